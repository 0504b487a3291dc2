import math

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from ssnet_mm.engine.metrics import ClassIoUMetric
from ssnet_mm.results.scores import Scores, boundary_band, count


def scores(classes, *pairs, **settings):
    counts = sum(count(np.array(p), np.array(t), len(classes), 255, **settings) for p, t in pairs)
    return Scores(classes, counts, len(pairs))


def blobs(rng, shape, num_classes):
    coarse = rng.integers(0, num_classes, (shape[0] // 6 + 1, shape[1] // 6 + 1))
    return coarse.repeat(6, 0).repeat(6, 1)[: shape[0], : shape[1]]


def eroded(mask, width):
    """``mask_to_boundary`` of boundary-iou-api, in its own words: pad by zeros, erode, compare."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & (inner[1:-1, 1:-1] == 0)


@pytest.mark.parametrize('width', [1, 2, 5])
def test_bands_are_what_erosion_takes_from_each_class(width):
    labels = blobs(np.random.default_rng(0), (47, 61), 5)
    labels[10:30, 20:50] = 3
    band = boundary_band(labels, width)
    for label in range(5):
        mask = labels == label
        np.testing.assert_array_equal(band & mask, eroded(mask, width))
    assert not band.all()


def test_scores_by_hand():
    found = scores(
        ('sky', 'road', 'car', 'bus'), ([[0, 0, 1, 1]], [[0, 0, 1, 255]]), ([[0, 2]], [[2, 2]])
    )
    sky, road, car, bus = found.rows()
    assert sky['IoU'] == pytest.approx(200 / 3, abs=1e-4) and sky['support'] == 2
    assert sky['precision'] == pytest.approx(200 / 3, abs=1e-4) and sky['recall'] == 100
    assert (road['IoU'], car['IoU'], car['accuracy'], car['precision']) == (100, 50, 50, 100)
    assert bus == dict(
        index=3, IoU=None, accuracy=None, precision=None, recall=None, boundary_IoU=None,
        support=0, predicted=0, **{'class': 'bus'},
    )  # fmt: skip
    means = found.means()
    assert means['aAcc'] == 80
    assert means['mIoU'] == pytest.approx((200 / 3 + 100 + 50) / 3)
    assert found.confusion.tolist() == [[2, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_the_precision_of_a_class_that_is_never_predicted_is_0():
    found = scores(('sky', 'road', 'bus'), ([[0, 0]], [[0, 1]]))
    assert [row['precision'] for row in found.rows()] == [50, 0, None]
    assert found.means()['mPrecision'] == 25


def test_boundaries_count_beside_areas():
    truth = np.zeros((100, 100), int)
    truth[20:80, 20:80] = 1
    smaller = np.zeros((100, 100), int)
    smaller[22:78, 22:78] = 1
    perfect = scores(('a', 'b'), (truth, truth))
    assert perfect.means()['mBoundaryIoU'] == 100
    found = scores(('a', 'b'), (smaller, truth))  # round(0.02 * 141.4): bands of 3 pixels
    band = 60**2 - 54**2, 56**2 - 50**2, 56**2 - 54**2  # of truth, of prediction, of both
    expected = 100 * band[2] / (band[0] + band[1] - band[2])
    assert found.rows()[1]['boundary_IoU'] == pytest.approx(expected, abs=1e-4)
    assert found.rows()[1]['IoU'] == pytest.approx(100 * 56**2 / 60**2, abs=1e-4)
    wide = scores(('a', 'b'), (smaller, truth), boundary_ratio=0.5)  # all is near a boundary
    assert wide.rows()[1]['boundary_IoU'] == wide.rows()[1]['IoU']


def test_void_has_no_part_in_boundaries():
    truth = np.zeros((60, 60), int)
    truth[20:40, 20:40] = 1
    truth[18:20, 18:42] = truth[40:42, 18:42] = 255
    prediction = np.where(truth == 255, 1, truth)
    assert scores(('a', 'b'), (prediction, truth)).means()['mBoundaryIoU'] == 100


def test_what_is_no_class_is_wrong_and_has_a_column():
    found = scores(('a', 'b'), ([[0, 7, -1, 1]], [[0, 0, 1, 1]]))
    assert found.confusion.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert (found.rows()[0]['IoU'], found.means()['aAcc']) == (50, 50)
    assert scores(('a',), ([[0]], [[0]])).confusion.shape == (1, 1)


@pytest.mark.parametrize('num_classes', [3, 21, 300])
def test_they_agree_with_mmseg(num_classes):
    rng = np.random.default_rng(num_classes)
    MMLogger.get_instance('scores')
    metric = ClassIoUMetric(ignore_index=1000)
    names = metric.dataset_meta = dict(classes=[f'class {i}' for i in range(num_classes)])
    total = 0
    for _ in range(3):
        truth, prediction = (blobs(rng, (50, 70), num_classes) for _ in range(2))
        prediction = np.where(rng.random((50, 70)) < 0.6, truth, prediction)
        truth[:5] = 1000
        total = total + count(prediction, truth, num_classes, 1000)
        sample = {
            'pred_sem_seg': {'data': torch.from_numpy(prediction)[None]},
            'gt_sem_seg': {'data': torch.from_numpy(truth)[None]},
        }
        metric.process({}, [sample])
    theirs = metric.evaluate(3)
    ours = Scores(names['classes'], total, 3)
    for key in ('aAcc', 'mIoU', 'mAcc'):
        assert ours.means()[key] == pytest.approx(theirs[key], abs=0.006)
    for row in ours.rows():
        iou = theirs[f'IoU.{row["class"]}']
        assert row['IoU'] == pytest.approx(iou, abs=0.006) or (row['IoU'] is None) == math.isnan(
            iou
        )
