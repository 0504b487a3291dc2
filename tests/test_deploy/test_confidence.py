import csv
import re

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.deploy.confidence import (
    Calibrated,
    calibrate,
    calibration_error,
    fit_temperature,
)
from ssnet_mm.deploy.model import load_model
from ssnet_mm.deploy.predict import predict_images
from ssnet_mm.deploy.processor import Processor, decide
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError


def drawn(temperature, count=60_000, classes=4):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (count, classes)).astype(np.float32)
    shares = np.exp(logits / temperature)
    shares /= shares.sum(1, keepdims=True)
    labels = (shares.cumsum(1) < rng.random((count, 1))).sum(1)
    return logits, labels


@pytest.mark.parametrize('temperature', [0.5, 1, 3])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    assert calibration_error(logits, labels, temperature) < 0.01
    if temperature != 1:
        assert calibration_error(logits, labels) > 0.04


def test_a_temperature_at_the_end_of_what_is_looked_at_is_told():
    logits, labels = drawn(1)
    for truth, end in (
        (logits.argmax(1), 'least .* labelled wrong'),
        (labels[::-1], 'most .* apart'),
    ):
        temperature = fit_temperature(logits, truth)
        said = str(Calibrated(temperature, 0.2, 0.1, 2, len(truth)))
        assert re.match(rf'temperature \d+\.\d+ \(the {end}\); expected', said)
    assert str(Calibrated(1.0, 0.2, 0.1, 2, 9)).startswith('temperature 1.000; expected')


def test_the_calibration_error_is_the_gap_in_each_bin():
    # two bins: 0.9 of which half are right, and 0.6 of which all are
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], np.float32))
    labels = np.array([0, 1, 1, 1])
    assert calibration_error(logits, labels) == pytest.approx((0.4 + 0.4) / 2)


def test_the_calibration_error_is_of_the_class_that_a_threshold_takes():
    # both are taken for class 1, at 0.35 and 0.65; at a half, 0.65 of either class are one bin
    logits = np.log(np.array([[0.65, 0.35], [0.35, 0.65]], np.float32))
    labels = np.array([1, 1])
    assert calibration_error(logits, labels, threshold=0.3) == pytest.approx((0.65 + 0.35) / 2)
    assert calibration_error(logits, labels) == pytest.approx(0.3 / 2)


def test_probabilities_of_a_single_logit_are_of_the_class_taken():
    logits = np.array([[[-3.0, 0.0], [0.5, 3.0]]], np.float32)
    labels, scores = decide(logits, 2, 0.6, temperature=2)
    assert labels.tolist() == [[0, 0], [1, 1]]
    found = torch.tensor([3.0, 0.0, 0.5, 3.0]).div(2).sigmoid().view(2, 2)
    np.testing.assert_allclose(scores, found, rtol=1e-6)


@pytest.fixture
def sure(tiny_config, tmp_path):
    """A config and a checkpoint of a network that is surer than it is right."""
    config = tiny_config()
    model = init_model(config, None, 'cpu')
    for name, weight in model.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data, std=8)
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'sure.pth')
    return config, str(tmp_path / 'sure.pth')


def test_calibration_makes_a_sure_network_less_so(sure):
    model = load_model(load_config(sure[0]), sure[1], 'cpu')
    found = calibrate(model)
    assert found.temperature > 2 and found.after < found.before and found.images == 4
    assert found.pixels < 4 * 37 * 45  # void is left out
    assert f'{100 * found.after:.2f}% after' in str(found)


def test_calibration_names_the_sample_that_is_damaged(sure, tiny_data):
    model = load_model(load_config(sure[0]), sure[1], 'cpu')
    mask = tiny_data / 'SegmentationClass' / '2.png'
    labels = np.array(Image.open(mask))
    labels[:9] = 77
    Image.fromarray(labels).save(mask)
    with pytest.raises(UserError, match='/2.png .* holds label 77, but there are 3 classes'):
        calibrate(model)
    (tiny_data / 'JPEGImages' / '1.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='/1.jpg: LoadImageFromFile fails with'):
        calibrate(model)


def test_calibration_on_classes_in_another_order_is_refused(sure):
    content = torch.load(sure[1])
    content['meta'] = dict(dataset_meta=dict(classes=('right', 'left', 'ground')))
    torch.save(content, sure[1])
    with pytest.raises(UserError, match='trained on classes in another order: label 0 is .right.'):
        calibrate(load_model(load_config(sure[0]), sure[1], 'cpu'))


def test_tiles_and_whole_images_have_the_same_scores_in_torch(sure):
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    whole, tiled = (Segmenter(*sure, device='cpu', tile=tile) for tile in (None, 70))
    labels, scores = whole(image, scores=True)
    np.testing.assert_array_equal(labels, whole(image))
    assert scores.dtype == np.float32 and 1 / 3 <= scores.min() < scores.max() <= 1
    other_labels, other = tiled(image, scores=True)
    np.testing.assert_array_equal(labels, other_labels)
    np.testing.assert_allclose(scores, other, atol=1e-5)


def test_tiles_of_a_file_have_scores_at_its_temperature():
    def run(planes):
        return np.concatenate([planes[:, :1] / 50, planes[:, 1:2] / 50], 1)

    image = np.random.default_rng(0).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    session = Session(run, Processor(2, temperature=2.0))
    for scale in (1, 0.7):
        labels, scores = Segmenter(session, scale=scale)(image, scores=True)
        tiled = Segmenter(session, scale=scale, tile=16, overlap=4)(image, scores=True)
        np.testing.assert_array_equal(labels, tiled[0])
        np.testing.assert_allclose(scores, tiled[1], atol=1e-5)
    difference = image[..., 0].astype(np.float32) - image[..., 1]
    expected = 1 / (1 + np.exp(-np.abs(difference) / 100))
    np.testing.assert_allclose(Segmenter(session)(image, scores=True)[1], expected, atol=1e-5)


def test_files_that_say_what_they_do_not_hold():
    both = Processor(2, end_to_end=True, scores=True)
    with pytest.raises(UserError, match='does not give what it says'):
        Segmenter(Session(lambda x: [x[..., 0] // 200], both))(np.zeros((4, 5, 3), np.uint8))


def test_the_tools_fit_store_and_rank(tool, sure, tiny_data, tmp_path, capsys):
    need('onnx')
    config, checkpoint = sure
    file, out = tmp_path / 'sure.onnx', tmp_path / 'out'
    tool('export').main(
        [config, checkpoint, '--format', 'onnx', '--out', str(file), '--end-to-end', '--scores',
         '--calibrate-confidence', '--size', '37', '45']
    )  # fmt: skip
    assert 'confidence on val: temperature ' in capsys.readouterr().out
    segment = Segmenter(file)
    assert segment.session.processor.temperature > 2
    photos = tiny_data / 'JPEGImages'
    tool('predict').main([str(file), str(photos), '--out-dir', str(out), '--confidence'])
    assert f'{out}/confidence.csv' in capsys.readouterr().out
    rows = list(csv.DictReader((out / 'confidence.csv').open()))
    means = [float(row['mean_confidence']) for row in rows]
    assert means == sorted(means) and len(rows) == 4
    for row in rows:
        name = row['image'].rpartition('/')[2].replace('jpg', 'png')
        scores = segment(row['image'], scores=True)[1]
        grey = np.asarray(Image.open(out / 'confidence' / name))
        assert grey.dtype == np.uint8 and np.abs(grey - 255 * scores).max() <= 0.51
        assert float(row['mean_confidence']) == pytest.approx(scores.mean(), abs=1e-4)
        assert float(row['share_below_half']) == pytest.approx((scores < 0.5).mean(), abs=1e-4)


def test_confidence_that_can_not_be_had(fails, sure, tiny_data, tmp_path):
    labels = Segmenter(Session(lambda x: x[..., 0] // 200, Processor(2, end_to_end=True)))
    with pytest.raises(UserError, match='this file gives labels alone'):
        predict_images(labels, [tiny_data / 'JPEGImages' / '1.jpg'], tmp_path, confidence=True)
    assert not (tmp_path / 'overlay').exists()
    (tmp_path / 'a.mp4').touch()
    line = fails('predict', *sure, tmp_path / 'a.mp4', '--out-dir', tmp_path, '--confidence')
    assert '--confidence ranks images, and' in line
