from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from mmseg.registry import TRANSFORMS

from ssnet_mm.engine.preflight.pipelines import check_pipelines, effect_of
from ssnet_mm.errors import UserError

FLIP = dict(type='RandomFlip', prob=0.5)
RESIZE = dict(type='Resize', scale=(90, 74))
CROP = dict(type='RandomCrop', crop_size=(512, 512))
PAD = dict(type='Pad', size_divisor=32)
COLOURS = dict(type='PhotoMetricDistortion')
IMAGE, LABELS, PACK = (
    dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.mark.parametrize(
    ('transform', 'effect'),
    [
        (RESIZE, (True, False, False)),
        (dict(type='Resize', scale=(2048, 512), keep_ratio=True), (True, False, False)),
        (dict(type='RandomFlip', prob=0.0), (False, False, False)),
        (FLIP, (True, False, True)),
        (CROP, (True, True, True)),
        (PAD, (True, True, False)),
        (dict(type='RandomRotate', prob=1.0, degree=30), (True, True, True)),
        (dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3), (False, False, False)),
        (COLOURS, (False, False, True)),
        (dict(type='RandomMosaic', prob=1.0), (False, False, False)),  # needs other images
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_what_a_transform_does_to_a_label_map_is_tried(transform, effect):
    assert effect_of(TRANSFORMS.build(transform)) == effect


def test_classes_that_are_renamed_stay_in_their_place():
    def swap(data):
        return dict(data, gt_seg_map=np.array([1, 0, 3, 2, 7])[data['gt_seg_map']])

    assert effect_of(swap) == (False, False, False)


def check(loader, *transforms):
    dataset = SimpleNamespace(pipeline=Compose(list(transforms)))
    return check_pipelines([(f'{loader}_dataloader.dataset', {}, dataset)])


@pytest.mark.parametrize('moving', [FLIP, RESIZE, CROP, PAD], ids=lambda t: t['type'])
def test_training_moves_no_image_without_its_label_map(moving):
    message = f'train_.*: {moving["type"]} moves the image, .* put LoadAnnotations before'
    with pytest.raises(UserError, match=message):
        check('train', IMAGE, moving, LABELS, PACK)
    assert check('train', IMAGE, LABELS, moving, PACK) == []
    assert check('train', IMAGE, COLOURS, LABELS, PACK) == []


@pytest.mark.parametrize('moving', [FLIP, RESIZE, CROP, PAD], ids=lambda t: t['type'])
def test_label_maps_are_scored_as_they_are_stored(moving):
    with pytest.raises(UserError, match=f'{moving["type"]} changes the label map, .* put LoadAnn'):
        check('val', IMAGE, LABELS, moving, PACK)


def test_predictions_are_not_stretched_over_images_they_are_not_of():
    for moving in (CROP, PAD):
        with pytest.raises(UserError, match=f'test_.*: {moving["type"]} cuts, pads or turns'):
            check('test', IMAGE, moving, LABELS, PACK)
    assert check('test', IMAGE, RESIZE, LABELS, PACK) == []


def test_chance_in_scores_is_noted():
    (note,) = check('val', IMAGE, COLOURS, LABELS, PACK)
    assert note == (
        'val_dataloader.dataset.pipeline: PhotoMetricDistortion draws at random, so that scores '
        'do, too'
    )


def augmented(*choices):
    return dict(type='TestTimeAug', transforms=[[c] if isinstance(c, dict) else c for c in choices])


TURN = dict(type='RandomRotate', prob=1.0, degree=(90, 90))


@pytest.mark.parametrize('moving', [TURN, CROP, PAD], ids=lambda t: t['type'])
def test_augmentations_of_a_test_turn_back_what_they_move(moving):
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    assert (
        check('test', IMAGE, augmented([RESIZE, dict(RESIZE, scale=(45, 37))], flips, LABELS, PACK))
        == []
    )
    assert check('test', IMAGE, augmented(flips, LABELS), PACK) == []
    for others in ([moving], [flips[0], moving]):
        with pytest.raises(UserError, match=f'test_.*: {moving["type"]} cuts, pads or turns'):
            check('test', IMAGE, augmented(others, LABELS, PACK))
    with pytest.raises(UserError, match='RandomFlip changes the label map, .* put LoadAnn'):
        check('test', IMAGE, augmented([LABELS], flips, PACK))
    (note,) = check('test', IMAGE, augmented([COLOURS, COLOURS], flips, LABELS, PACK))
    assert 'PhotoMetricDistortion draws at random' in note
