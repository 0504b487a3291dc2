"""The configs ``fcn*_voc_caffe*.py`` compute what the published Caffe nets do, crop by crop.

The reference is written after the nets' prototxts (https://github.com/shelhamer/
fcn.berkeleyvision.org: voc-fcn8s, voc-fcn8s-atonce, voc-fcn16s, voc-fcn32s) in plain torch calls,
with their layers' names and their numbers. Weights are random, the upsampling's too.
"""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ssnet_mm import CaffeFCN8Head, FCN8Head
from ssnet_mm.weights import load_foreign, load_into

CONFIGS = Path(__file__).parents[2] / 'configs'
CLASSES = 3
WIDTHS = [8, 16, 6]  # of pool3, pool4 and fc7, narrow
MEAN = (104.00699, 116.66877, 122.67892)  # of the published data layer: blue, green, red


class Caffe:
    """A net's layers, fed from our state dict: ``net['name'](x)`` in the prototxts' names."""

    def __init__(self, weights: dict[str, Tensor], levels: int) -> None:
        self.weights = weights
        self.names = {'fc6': 'backbone.fc6.conv', 'fc7': 'backbone.fc7.conv'}
        for stage, depth in enumerate((2, 2, 3, 3, 3)):
            for i in range(depth):
                self.names[f'conv{stage + 1}_{i + 1}'] = f'backbone.stages.{stage}.{i}.conv'
        scores = ['score_pool3', 'score_pool4', 'score_fr'][-levels:]
        upsamples = ['upscore_pool4', 'upscore2'][3 - levels :]
        self.names.update({name: f'decode_head.scores.{i}' for i, name in enumerate(scores)})
        self.names.update({name: f'decode_head.upsamples.{i}' for i, name in enumerate(upsamples)})
        self.names['upscore'] = 'decode_head.final'

    def conv(self, name: str, x: Tensor, pad: int = 0) -> Tensor:
        key = self.names[name]
        return F.conv2d(x, self.weights[f'{key}.weight'], self.weights[f'{key}.bias'], padding=pad)

    def conv_relu(self, name: str, x: Tensor, pad: int = 0) -> Tensor:
        return self.conv(name, x, pad).clamp(min=0)

    def deconv(self, name: str, x: Tensor, stride: int) -> Tensor:
        weight = self.weights[f'{self.names[name]}.weight']
        assert weight.shape[2:] == (2 * stride, 2 * stride)
        return F.conv_transpose2d(x, weight, stride=stride)

    def vgg(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pools = []
        for stage, depth in enumerate((2, 2, 3, 3, 3)):
            for i in range(depth):
                name = f'conv{stage + 1}_{i + 1}'
                x = self.conv_relu(name, x, pad=100 if name == 'conv1_1' else 1)
            # Caffe rounds up: the last window may hold one row or column.
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=float('-inf'))
            x = F.max_pool2d(x, 2, 2)
            pools.append(x)
        fc7 = self.conv_relu('fc7', self.conv_relu('fc6', x))
        return pools[2], pools[3], fc7


def crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    cropped = x[:, :, offset:, offset:][:, :, :height, :width]
    assert cropped.shape[2:] == like.shape[2:]
    return cropped


def fcn8s(weights, data, scale_pool3=1.0, scale_pool4=1.0):
    net = Caffe(weights, levels=3)
    pool3, pool4, fc7 = net.vgg(data)
    upscore2 = net.deconv('upscore2', net.conv('score_fr', fc7), 2)
    score_pool4c = crop(net.conv('score_pool4', pool4 * scale_pool4), 5, upscore2)
    upscore_pool4 = net.deconv('upscore_pool4', upscore2 + score_pool4c, 2)
    score_pool3c = crop(net.conv('score_pool3', pool3 * scale_pool3), 9, upscore_pool4)
    upscore8 = net.deconv('upscore', upscore_pool4 + score_pool3c, 8)
    return crop(upscore8, 31, data)


def fcn8s_atonce(weights, data):
    return fcn8s(weights, data, scale_pool3=0.0001, scale_pool4=0.01)


def fcn16s(weights, data):
    net = Caffe(weights, levels=2)
    _, pool4, fc7 = net.vgg(data)
    upscore2 = net.deconv('upscore2', net.conv('score_fr', fc7), 2)
    score_pool4c = crop(net.conv('score_pool4', pool4), 5, upscore2)
    upscore16 = net.deconv('upscore', upscore2 + score_pool4c, 16)
    return crop(upscore16, 27, data)


def fcn32s(weights, data):
    net = Caffe(weights, levels=1)
    *_, fc7 = net.vgg(data)
    return crop(net.deconv('upscore', net.conv('score_fr', fc7), 32), 19, data)


PUBLISHED = {
    'fcn8_voc_caffe': fcn8s,
    'fcn8_voc_caffe_atonce': fcn8s_atonce,
    'fcn16_voc_caffe': fcn16s,
    'fcn32_voc_caffe': fcn32s,
}
NETS = pytest.mark.parametrize('name', PUBLISHED)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(name: str, **changes) -> nn.Module:
    """A config's model, narrow, with random weights of a lasting size."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    model = copy.deepcopy(cfg.model)
    model.backbone.update(base_channels=2, fc_channels=WIDTHS[2])
    model.decode_head.update(num_classes=CLASSES)
    model.decode_head.in_channels = WIDTHS[-len(model.decode_head.in_channels) :]
    model.update(changes)
    net = MODELS.build(model).eval()
    for key, parameter in net.named_parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
        if 'upsamples' in key or 'final' in key:
            fan_in = 4 * CLASSES  # of each output pixel
        nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
    for score, scale in zip(net.decode_head.scores, net.decode_head.level_scales or ()):
        score.weight.data /= scale  # so that every level counts
    return net


def make_image(size: tuple[int, int]) -> Tensor:
    return torch.randint(256, (3, *size), dtype=torch.uint8)


def subtract_mean(image: Tensor) -> Tensor:
    return (image.float() - torch.tensor(MEAN)[:, None, None])[None]


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in units of the expected values' spread."""
    assert actual.shape == expected.shape
    spread = (expected.amax((0, 2, 3)) - expected.amin((0, 2, 3))).max()
    spread = spread if spread > 0 else expected.abs().max()
    assert spread > 1e-3
    return ((actual - expected).abs().max() / spread).item()


def as_batch(image: Tensor, **meta) -> dict:
    """What a test data loader hands to ``test_step``."""
    shape = tuple(image.shape[1:])
    sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, **meta))
    return dict(inputs=[image], data_samples=[sample])


def published_file(weights: dict[str, Tensor], levels: int, path: Path) -> None:
    """Write our state dict under Caffe's names, as pytorch-fcn and as NumPy would."""
    names = Caffe(weights, levels).names
    names[{3: 'upscore8', 2: 'upscore16', 1: 'upscore'}[levels]] = names.pop('upscore')
    state = {
        f'{layer}.{parameter}': weights[f'{key}.{parameter}']
        for layer, key in names.items()
        for parameter in ('weight', 'bias')
        if f'{key}.{parameter}' in weights
    }
    if path.suffix == '.npz':
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.save({'model_state_dict': state}, path)


@NETS
@pytest.mark.parametrize('suffix', ['.pth', '.npz'])
def test_a_published_file_gives_the_published_outputs(name, suffix, tmp_path):
    donor, image = build(name), make_image((97, 131))
    weights, levels = donor.state_dict(), len(donor.decode_head.scores)
    published_file(weights, levels, tmp_path / f'net{suffix}')
    model = build(name)  # of other weights
    conversion = load_into(model, load_foreign(tmp_path / f'net{suffix}'))
    assert not conversion.left and not conversion.new
    with torch.inference_mode():
        expected = PUBLISHED[name](weights, subtract_mean(image))
        actual = model.test_step(as_batch(image))[0].seg_logits.data[None]
    difference = (actual - expected).abs().max().item()
    print(f'{name}{suffix}: max difference {difference:.1e}, spread {expected.std():.2f}')
    assert difference < 1e-4 and expected.std() > 0.1


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        *((name, size) for name in PUBLISHED for size in [(1, 1), (33, 50), (97, 131)]),
        ('fcn8_voc_caffe', (500, 375)),  # an image of VOC
    ],
)
def test_the_logits_are_those_of_the_published_net(name, size):
    model, image = build(name), make_image(size)
    data = subtract_mean(image)
    with torch.inference_mode():
        expected = PUBLISHED[name](model.state_dict(), data)
        raw = model(data, mode='tensor')
        (result,) = model.test_step(as_batch(image))

    assert expected.shape == (1, CLASSES, *size)
    assert raw.shape[2] >= size[0] and raw.shape[3] >= size[1]
    differences = [
        largest_difference(raw[:, :, : size[0], : size[1]], expected),
        largest_difference(model.decode_head.to_image(raw, size), expected),
        largest_difference(result.seg_logits.data[None], expected),
    ]
    print(f'{name} {size}: {max(differences):.1e} of the spread')
    assert max(differences) < 1e-5
    assert torch.equal(result.pred_sem_seg.data[0], expected[0].argmax(0))


@NETS
def test_the_loss_is_the_sum_over_the_published_nets_logits(name):
    model, data = build(name), subtract_mean(make_image((33, 50))) / 50
    labels = torch.randint(CLASSES, (1, 33, 50))
    labels[:, :3] = 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    losses = model.loss(data, [sample])

    logits = PUBLISHED[name](model.state_dict(), data)
    expected = F.cross_entropy(logits, labels, ignore_index=255, reduction='sum')
    torch.testing.assert_close(losses['decode.loss_ce'], expected, rtol=1e-5, atol=0)
    hits = (logits.argmax(1) == labels)[labels != 255].double().mean() * 100
    torch.testing.assert_close(losses['decode.acc_seg'], hits[None].float(), rtol=1e-5, atol=0)

    losses['decode.loss_ce'].backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == ['decode_head.final.weight']


@pytest.mark.parametrize('step', [-1, 1])
@pytest.mark.parametrize(
    ('name', 'place'),
    [(n, p) for n, places in zip(PUBLISHED, (3, 3, 2, 1)) for p in range(places)],
)
def test_a_crop_one_pixel_off_shows(name, place, step):
    model, data = build(name), subtract_mean(make_image((33, 50)))
    head = model.decode_head
    if place < len(head.skip_crops):
        head.skip_crops[place] += step
    else:
        head.image_crop += step
    with torch.inference_mode():
        expected = PUBLISHED[name](model.state_dict(), data)
        actual = head.to_image(model(data, mode='tensor'), (33, 50))

    assert largest_difference(actual, expected) > 1e-3


def test_a_sliding_window_sees_the_published_net_in_each_place():
    window = dict(mode='slide', crop_size=(64, 80), stride=(33, 51))
    model, image = build('fcn8_voc_caffe', test_cfg=ConfigDict(window)), make_image((97, 131))
    data = subtract_mean(image)
    total, count = torch.zeros(1, CLASSES, 97, 131), torch.zeros(97, 131)
    with torch.inference_mode():
        for y in (0, 33):
            for x in (0, 51):
                part = (..., slice(y, y + 64), slice(x, x + 80))
                total[part] += fcn8s(model.state_dict(), data[part])
                count[part] += 1
        (result,) = model.test_step(as_batch(image))

    assert count.min() == 1
    assert largest_difference(result.seg_logits.data[None], total / count) < 1e-5


def test_a_window_larger_than_the_image_changes_nothing():
    window = dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    model, image = build('fcn8_voc_caffe'), make_image((33, 50))
    with torch.inference_mode():
        (whole,) = model.test_step(as_batch(image))
        model.test_cfg = ConfigDict(window)
        (slid,) = model.test_step(as_batch(image))

    torch.testing.assert_close(slid.seg_logits.data, whole.seg_logits.data, rtol=0, atol=0)


def test_test_time_augmentation_means_over_the_published_nets_outputs():
    model, image = build('fcn8_voc_caffe'), make_image((33, 50))
    tta = MODELS.build(dict(type='SegTTAModel', module=model))
    meta = dict(img_path='one.jpg', flip_direction='horizontal')
    views = [
        as_batch(image, flip=False, **meta),
        as_batch(image.flip(2), flip=True, **meta),
    ]
    batch = {key: [view[key] for view in views] for key in views[0]}
    with torch.inference_mode():
        (result,) = tta.test_step(batch)
        plain, flipped = (
            fcn8s(model.state_dict(), subtract_mean(view)) for view in (image, image.flip(2))
        )

    mean = (plain.softmax(1) + flipped.flip(3).softmax(1)) / 2
    assert not torch.equal(mean.argmax(1), plain.argmax(1))
    assert torch.equal(result.pred_sem_seg.data, mean.argmax(1))


def test_images_of_a_batch_that_were_padded_give_logits_of_the_padded_size():
    model, image = build('fcn8_voc_caffe'), make_image((33, 50))
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    padded = F.pad(subtract_mean(image), (0, 14, 0, 31))
    with torch.inference_mode():
        (result,) = model.test_step(as_batch(image))
        expected = fcn8s(model.state_dict(), padded)[:, :, :33, :50]

    assert largest_difference(result.seg_logits.data[None], expected) < 1e-5


def walk(levels: int, padding: int) -> tuple[list[int], int]:
    """The crops, from following a map's first pixel through the image layer by layer."""
    position, step = 0.0, 1.0  # of a map's first pixel, and from one to the next, in image pixels
    pooled = []
    for stage in range(5):
        if stage == 0:
            position += (1 - padding) * step  # conv1_1; the other 3x3 convolutions change nothing
        position, step = position + step / 2, step * 2  # the middle of a 2x2 window
        pooled.append((position, step))
    position += 3 * step  # the middle of fc6's 7x7 window
    crops = []
    for skip_position, skip_step in pooled[3::-1][: levels - 1]:
        step /= 2
        position -= 1.5 * step  # the first of four outputs that the first input spreads over
        assert step == skip_step
        crops.append((position - skip_position) / skip_step)
    position -= (2 * step - 1) / 2
    return crops[::-1], -position


@pytest.mark.parametrize('padding', [97, 100, 132])
@pytest.mark.parametrize('levels', [1, 2, 3, 4, 5])
def test_the_crops_follow_from_the_layers(levels, padding):
    head = CaffeFCN8Head([4] * levels, num_classes=5, image_padding=padding)

    assert (head.skip_crops, head.image_crop) == walk(levels, padding)


@pytest.mark.parametrize(
    ('name', 'shapes', 'stride', 'raw'),
    [
        ('fcn8_voc_caffe', [(21, 256), (21, 512), (21, 4096)], 8, (537, 409)),
        ('fcn16_voc_caffe', [(21, 512), (21, 4096)], 16, (533, 405)),
        ('fcn32_voc_caffe', [(21, 4096)], 32, (525, 397)),
    ],
)
def test_at_full_size_the_shapes_are_the_published_ones(name, shapes, stride, raw):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        logits = model(torch.empty(1, 3, 500, 375), mode='tensor')
        image = model.decode_head.to_image(logits, (500, 375))
    head = model.decode_head

    assert [score.weight.shape[:2] for score in head.scores] == shapes
    assert [u.weight.shape for u in head.upsamples] == [(21, 21, 4, 4)] * (len(shapes) - 1)
    assert head.final.weight.shape == (21, 21, 2 * stride, 2 * stride)
    assert logits.shape == (1, 21, *raw)  # upscore: 32 * ceil((500 + 198) / 32) - 136 rows, less 31
    assert image.shape == (1, 21, 500, 375)


@NETS
def test_starts_bilinear_with_scores_of_zero_as_in_caffe(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    head = cfg.model.decode_head
    head.in_channels = [4] * len(head.in_channels)
    head = MODELS.build(head)
    head.init_weights()

    assert not any(p.any() for p in head.scores.parameters())
    assert not head.final.weight.requires_grad
    for layer in (*head.upsamples, head.final):
        size = layer.kernel_size[0]
        places = torch.arange(size)
        line = 1 - (places - (size / 2 - 0.5)).abs() / (size / 2)
        expected = line[:, None] * line[None] * torch.eye(21)[:, :, None, None]
        assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize(
    ('padding', 'levels', 'match'),
    [
        (68, 3, 'image_padding must be at least 69 with 3 levels.*got 68'),
        (80, 1, 'image_padding must be at least 81 with 1 levels.*got 80'),
        (100, 6, r'at most 5 levels, pool1\.\.fc7, got 6'),
    ],
)
def test_refuses_a_padding_that_can_not_be_cropped(padding, levels, match):
    with pytest.raises(ValueError, match=match):
        CaffeFCN8Head([4] * levels, num_classes=5, image_padding=padding)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (dict(fc6_padding=None), r'can not cut 30x30 out of a map of 27x27 at 5: .*fc6_padding=0'),
        (dict(strides=(2, 2, 2, 2, 1)), r'can not cut .*strides and dilations'),
    ],
)
def test_refuses_a_backbone_of_another_geometry(change, match):
    cfg = Config.fromfile(CONFIGS / 'fcn8_voc_caffe.py').model
    model = build(
        'fcn8_voc_caffe',
        backbone={**cfg.backbone, **change, 'base_channels': 2, 'fc_channels': WIDTHS[2]},
    )

    with pytest.raises(ValueError, match=match):
        model(torch.zeros(1, 3, 224, 224), mode='tensor')


def test_refuses_to_cut_an_image_out_of_a_smaller_map():
    head = CaffeFCN8Head([4], num_classes=5, image_padding=100)
    with pytest.raises(ValueError, match='can not cut 40x30 out of a map of 39x40 at 0'):
        head.to_image(torch.zeros(1, 5, 39, 40), (40, 30))


def test_image_padding_makes_an_fcn8_head_one_of_this_geometry():
    cfg = dict(type='FCN8Head', in_channels=WIDTHS, num_classes=CLASSES)
    old = MODELS.build({**cfg, 'image_padding': 100})
    new = MODELS.build({**cfg, 'type': 'CaffeFCN8Head', 'image_padding': 100})

    assert type(old) is type(new) is CaffeFCN8Head
    assert (old.skip_crops, old.image_crop) == (new.skip_crops, new.image_crop) == ([9, 5], 31)
    new.load_state_dict(old.state_dict())
    for plain in (MODELS.build(cfg), MODELS.build({**cfg, 'image_padding': None})):
        assert type(plain) is FCN8Head


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same(copied):
    model, data = build('fcn8_voc_caffe'), subtract_mean(make_image((33, 50)))
    twin = copied(model)

    assert type(twin.decode_head) is CaffeFCN8Head
    assert torch.equal(twin(data, mode='tensor'), model(data, mode='tensor'))
