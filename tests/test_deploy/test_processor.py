import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Resize

from ssnet_mm.deploy.processor import Processor, resize_image, resize_labels
from ssnet_mm.errors import UserError


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    'resize',
    [
        dict(scale=[480, 360], keep_ratio=True),
        dict(scale=[100, 150], keep_ratio=True),
        dict(scale=[33, 20], keep_ratio=False),
        dict(scale_factor=[0.5, 0.5], keep_ratio=True),
        dict(scale_factor=[1.5, 0.7], keep_ratio=False),
    ],
)
@pytest.mark.parametrize('shape', [(37, 45), (90, 41), (360, 480)])
def test_images_are_resized_as_by_mmcv(resize, shape):
    processor = Processor(2, resize=resize)
    image = noise(*shape, 3)
    result = Resize(**{k: tuple(v) if k != 'keep_ratio' else v for k, v in resize.items()})(
        {'img': image}
    )
    found = processor.resized(image)
    assert found.shape == result['img'].shape and processor.input_size(*shape) == found.shape[:2]
    # OpenCV computes in fixed point
    assert np.abs(found.astype(int) - result['img']).max() <= 1


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(9, 12, 3)
    assert Processor(2).resized(image) is image
    assert Processor(2, resize=dict(scale=[12, 9], keep_ratio=True)).resized(image) is image


def test_resizing_to_the_same_size_changes_nothing():
    image = noise(9, 12, 3)
    np.testing.assert_array_equal(resize_image(image, (9, 12)), image)


def test_channels_are_ordered_and_normalised():
    images = noise(2, 4, 5, 3)
    processor = Processor(2, mean=(1, 2, 3), std=(2, 4, 8), channel_order='bgr')
    found = processor.normalised(images)
    assert found.shape == (2, 3, 4, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found[1, 0], (images[1, ..., 2] - 1.0) / 2)
    np.testing.assert_allclose(found[1, 2], (images[1, ..., 0] - 3.0) / 8)
    np.testing.assert_array_equal(Processor(2).normalised(images)[0, 1], images[0, ..., 1])


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('original', [(50, 70), (301, 97), (7, 9)])
def test_labels_are_those_of_logits_resized_twice(align_corners, original):
    logits = np.random.default_rng(1).normal(size=(5, 7, 9)).astype(np.float32)
    expected = torch.from_numpy(logits)[None]
    for size in ((50, 70), original):
        expected = F.interpolate(expected, size=size, mode='bilinear', align_corners=align_corners)
    found = Processor(5, align_corners=align_corners).maps(logits, (50, 70), original)[0]
    assert found.dtype == np.uint8 and found.shape == original
    assert (found == expected[0].argmax(0).numpy()).mean() > 0.9995  # but for ties


def test_one_logit_is_held_against_the_threshold():
    logits = np.array([[[-3.0, 0.0], [0.5, 3.0]]], np.float32)
    found = Processor(2, threshold=0.6).maps(logits, (2, 2), (2, 2))[0]
    assert found.tolist() == [[0, 0], [1, 1]]  # sigmoid(0.5) is 0.62


def test_labels_go_to_the_nearest():
    labels = np.array([[1, 2], [3, 4]], np.uint8)
    assert resize_labels(labels, (4, 3)).tolist() == [[1, 2, 2], [1, 2, 2], [3, 4, 4], [3, 4, 4]]
    large = noise(36, 48)
    nearest = mmcv.imresize(large, (12, 9), interpolation='nearest')
    assert resize_labels(large, (9, 12)).shape == nearest.shape


def test_processors_travel_as_text():
    processor = Processor(
        3, (1.5, 2, 3), (4, 5, 6), 'bgr', dict(scale=[4, 5], keep_ratio=True), True, True, 0.5,
        True, 'int8', ('a', 'ü"\''), ((1, 2, 3), (4, 5, 6)),
    )  # fmt: skip
    assert Processor.from_json(processor.to_json(), 'it') == processor
    for text, message in (
        (None, 'a.onnx does not say how to use it'),
        ('{"future": 1}', 'a.onnx was exported by another version'),
        ('{', 'a.onnx was exported by another version'),
    ):
        with pytest.raises(UserError, match=message):
            Processor.from_json(text, 'a.onnx')
