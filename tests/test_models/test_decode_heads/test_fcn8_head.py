import copy
import os
import pickle
import sys
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import CONV_CFGS, SEPARABLE, data_sample
from helpers.processes import run
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ssnet_mm.layers import SeparableConv2d
from ssnet_mm.models.decode_heads import FCN8Head

WIDTHS = (3, 4, 5, 6)  # all different, so that no level passes for another


def make_head(levels: int = 3, num_classes: int = 5, **kwargs) -> FCN8Head:
    return FCN8Head(in_channels=list(WIDTHS[:levels]), num_classes=num_classes, **kwargs)


def make_levels(levels: int, height: int, width: int, **kwargs) -> list[Tensor]:
    """Levels of an image of that size, the finest at 1/8 of it, all rounded up."""
    return [
        torch.randn(2, WIDTHS[i], ceil(height / 2 ** (3 + i)), ceil(width / 2 ** (3 + i)), **kwargs)
        for i in range(levels)
    ]


def with_random_weights(head: FCN8Head) -> FCN8Head:
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    return head


def make_samples(height: int, width: int, num_classes: int = 5) -> list[SegDataSample]:
    samples = []
    for _ in range(2):
        labels = torch.randint(num_classes, (1, height, width))
        labels[:, 0] = 255
        samples.append(data_sample((height, width), labels))
    return samples


def score(weights: dict[str, Tensor], level: int, x: Tensor) -> Tensor:
    name = f'scores.{level}'
    if f'{name}.depthwise.weight' in weights:
        x = F.conv2d(x, weights[f'{name}.depthwise.weight'], groups=x.shape[1])
        name = f'{name}.pointwise'
    return F.conv2d(x, weights[f'{name}.weight'], weights[f'{name}.bias'])


@CONV_CFGS
@pytest.mark.parametrize('levels', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (31, 33), (64, 128), (97, 131), (375, 500)])
def test_equals_a_hand_written_fusion(size, levels, conv_cfg):
    head = with_random_weights(make_head(levels, conv_cfg=conv_cfg)).double().eval()
    weights = head.state_dict()
    inputs = make_levels(levels, *size, dtype=torch.float64)

    expected = score(weights, levels - 1, inputs[-1])
    for i in range(levels - 2, -1, -1):
        height, width = inputs[i].shape[2:]
        kernel = weights[f'upsamples.{i}.weight']
        expected = F.conv_transpose2d(expected, kernel, stride=2, padding=1)
        assert 0 <= expected.shape[2] - height <= 1 and 0 <= expected.shape[3] - width <= 1
        expected = expected[:, :, :height, :width] + score(weights, i, inputs[i])

    assert expected.shape == (2, 5, ceil(size[0] / 8), ceil(size[1] / 8))
    torch.testing.assert_close(head(inputs), expected)


@CONV_CFGS
def test_the_state_dict_names_a_score_for_each_level_and_an_upsampling_between_two(conv_cfg):
    layers = ['.weight', '.bias']
    if conv_cfg is not None:
        layers = ['.depthwise.weight', '.pointwise.weight', '.pointwise.bias']
    expected = [f'scores.{i}{layer}' for i in range(3) for layer in layers]
    expected += [f'upsamples.{i}.weight' for i in range(2)]

    assert list(make_head(conv_cfg=conv_cfg).state_dict()) == expected


@pytest.mark.parametrize('levels', [1, 2, 3, 4])
@pytest.mark.parametrize('num_classes', [2, 21])
def test_parameters(levels, num_classes):
    scores = sum(width * num_classes + num_classes for width in WIDTHS[:levels])
    upsamples = (levels - 1) * num_classes**2 * 4 * 4

    def count(**kwargs) -> int:
        return sum(p.numel() for p in make_head(levels, num_classes, **kwargs).parameters())

    assert count() == scores + upsamples
    # each score keeps its 1x1 depthwise half
    assert count(conv_cfg=SEPARABLE) == scores + upsamples + sum(WIDTHS[:levels])


def test_no_layer_of_the_base_class_is_left_over():
    head = make_head()

    assert not hasattr(head, 'conv_seg')
    assert {name.split('.')[0] for name, _ in head.named_parameters()} == {'scores', 'upsamples'}


@CONV_CFGS
@pytest.mark.parametrize('levels', [1, 2, 3, 4])
def test_every_parameter_gets_a_gradient_from_the_loss(levels, conv_cfg):
    head = make_head(levels, conv_cfg=conv_cfg)
    losses = head.loss(make_levels(levels, 65, 97), make_samples(65, 97), train_cfg=None)
    losses['loss_ce'].backward()

    without = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize('size', [(1, 1), (31, 33), (97, 131)])
def test_prediction_is_the_bilinear_enlargement_of_the_logits(size):
    head = make_head().eval()
    inputs = make_levels(3, *size)
    logits = head.predict(inputs, [dict(img_shape=size)] * 2, test_cfg=None)

    assert logits.shape == (2, 5, *size)
    expected = F.interpolate(head(inputs), size, mode='bilinear', align_corners=False)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize('align_corners', [False, True])
def test_to_image_is_what_a_prediction_does(align_corners):
    head = make_head(align_corners=align_corners).eval()
    inputs = make_levels(3, 65, 97)
    meta = dict(img_shape=(60, 90), pad_shape=(65, 97))
    expected = head.predict(inputs, [meta] * 2, test_cfg=None)

    torch.testing.assert_close(head.to_image(head(inputs), (65, 97)), expected, rtol=0, atol=0)
    window = dict(meta, img_shape=torch.Size((33, 31)))  # of a sliding window
    assert head.predict(inputs, [window] * 2, test_cfg=None).shape == (2, 5, 33, 31)


def test_level_scales_are_factors_on_the_levels():
    scales = (1e-4, 1e-2, 3.0)
    head, plain = with_random_weights(make_head(level_scales=scales)), make_head()
    plain.load_state_dict(head.state_dict())
    inputs = make_levels(3, 65, 97)

    expected = plain([level * scale for level, scale in zip(inputs, scales)])
    torch.testing.assert_close(head(inputs), expected)


@pytest.mark.parametrize('ratio', [-0.1, 1.0])  # at 1 nothing would get through in training
def test_refuses_a_dropout_that_is_none(ratio):
    with pytest.raises(ValueError, match=rf'dropout_ratio must lie in \[0, 1\), got {ratio}'):
        make_head(3, dropout_ratio=ratio)


def test_refuses_level_scales_that_do_not_match():
    with pytest.raises(ValueError, match=r'level_scales must be 3 numbers.*got \(1, 2\)'):
        make_head(3, level_scales=(1, 2))


@CONV_CFGS
def test_init_weights_keeps_the_start(conv_cfg):
    head = make_head(conv_cfg=conv_cfg)
    before = copy.deepcopy(head.state_dict())
    head.init_weights()

    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_init_cfg_reaches_the_scores():
    head = make_head(init_cfg=dict(type='Constant', layer='Conv2d', val=0.5, bias=0.25))
    head.init_weights()

    assert all((s.weight == 0.5).all() and (s.bias == 0.25).all() for s in head.scores)


@CONV_CFGS
def test_scores_start_narrow_and_without_bias(conv_cfg):
    head = FCN8Head(in_channels=[500, 1000], num_classes=21, conv_cfg=conv_cfg)
    for layer, width in zip(head.scores, (500, 1000)):
        x = torch.ones(1, width, 1, 1)
        assert type(layer) is (nn.Conv2d if conv_cfg is None else SeparableConv2d)
        # The sum of so many weights of standard deviation 0.01, once for each class.
        assert layer(x).std().item() == pytest.approx(0.01 * width**0.5, rel=0.4)
        assert not layer(0 * x).any()


@pytest.mark.parametrize('size', [(4, 5), (7, 3)])
def test_upsampling_starts_bilinear(size):
    (upsample,) = make_head(2).upsamples
    x = torch.randn(2, 5, *size)
    expected = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)

    assert upsample(x).shape == expected.shape
    # At the border bilinear enlargement repeats the last pixel, where the convolution sees zeros.
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(upsample(x)[inside], expected[inside])


def test_upsampling_starts_with_the_classes_apart():
    (upsample,) = make_head(2).upsamples
    line = torch.tensor([1, 3, 3, 1]) / 4

    for i in range(5):
        for j in range(5):
            expected = torch.outer(line, line) if i == j else torch.zeros(4, 4)
            torch.testing.assert_close(upsample.weight[i, j], expected, rtol=0, atol=0)
    assert upsample.bias is None


def test_upsampling_learns():
    head = make_head()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    before = [u.weight.clone() for u in head.upsamples]
    losses = head.loss(make_levels(3, 65, 97), make_samples(65, 97), train_cfg=None)
    losses['loss_ce'].backward()
    optimizer.step()

    assert not any(torch.equal(u.weight, b) for u, b in zip(head.upsamples, before))


@pytest.mark.parametrize(
    ('fine', 'coarse'), [((9, 8), (4, 4)), ((8, 11), (4, 5)), ((9, 11), (4, 5)), ((9, 9), (4, 5))]
)
def test_extends_levels_that_were_rounded_down_by_their_last_row_and_column(fine, coarse):
    head = with_random_weights(make_head(2)).eval()
    inputs = [torch.randn(1, 3, *fine), torch.randn(1, 4, *coarse)]
    upsampled = head.upsamples[0](head.scores[1](inputs[1]))
    rows = torch.arange(fine[0]).clamp(max=upsampled.shape[2] - 1)
    columns = torch.arange(fine[1]).clamp(max=upsampled.shape[3] - 1)
    expected = upsampled[:, :, rows][:, :, :, columns] + head.scores[0](inputs[0])

    torch.testing.assert_close(head(inputs), expected)


@pytest.mark.parametrize(
    ('fine', 'coarse', 'match'),
    [
        ((16, 16), (4, 4), '16x16 meets one of 8x8'),  # a step of 4
        ((8, 8), (8, 8), '8x8 meets one of 16x16'),  # of 1, as in dilated backbones
        ((4, 4), (8, 8), '4x4 meets one of 16x16'),  # coarsest first
        ((8, 16), (4, 4), '8x16 meets one of 8x8'),
        ((16, 8), (4, 4), '16x8 meets one of 8x8'),
    ],
)
def test_refuses_levels_that_do_not_differ_by_two(fine, coarse, match):
    inputs = [torch.randn(1, 3, *fine), torch.randn(1, 4, *coarse)]

    with pytest.raises(ValueError, match=f'steps of 2.*{match}.*in_index'):
        make_head(2)(inputs)


def test_in_index_picks_the_levels():
    head = with_random_weights(make_head(2, in_index=[1, -1])).eval()
    plain = make_head(2).eval()
    plain.load_state_dict(head.state_dict())
    fine, coarse = make_levels(2, 65, 97)
    rubbish = torch.randn(1, 99, 1, 1)

    torch.testing.assert_close(head([rubbish, fine, rubbish, coarse]), plain([fine, coarse]))


@pytest.mark.parametrize(
    ('in_channels', 'in_index'), [([], None), ([], []), ([3, 4], [0]), ([3], [0, 1])]
)
def test_refuses_levels_that_do_not_match(in_channels, in_index):
    with pytest.raises(ValueError, match='in_channels and in_index name one level each'):
        FCN8Head(in_channels=in_channels, in_index=in_index, num_classes=5)


def test_dropout_is_off_unless_asked_for():
    inputs = make_levels(3, 65, 97)
    plain, dropping = make_head().train(), make_head(dropout_ratio=0.5).train()

    torch.testing.assert_close(plain(inputs), plain.eval()(inputs), rtol=0, atol=0)
    assert not torch.equal(dropping(inputs), dropping(inputs))
    dropping.eval()
    torch.testing.assert_close(dropping(inputs), dropping(inputs), rtol=0, atol=0)


def test_one_output_channel_for_two_classes():
    bce = dict(type='CrossEntropyLoss', use_sigmoid=True)
    head = make_head(num_classes=2, out_channels=1, threshold=0.5, loss_decode=bce)
    inputs = make_levels(3, 65, 97)
    losses = head.loss(inputs, make_samples(65, 97, num_classes=2), train_cfg=None)

    assert head(inputs).shape == (2, 1, 9, 13)
    assert [u.weight.shape for u in head.upsamples] == [(1, 1, 4, 4)] * 2
    assert losses['loss_ce'].isfinite()


@pytest.mark.parametrize('channels', [1, 2])
def test_a_batch_that_is_all_void_has_a_loss_of_zero(channels):
    loss = dict(type='CrossEntropyLoss', use_sigmoid=channels == 1)
    head = make_head(num_classes=2, out_channels=channels, threshold=0.5, loss_decode=loss)
    samples = make_samples(37, 53, num_classes=2)
    for sample in samples:
        sample.gt_sem_seg.data.fill_(255)
    losses = head.loss(make_levels(3, 37, 53), samples, {})
    assert losses.keys() == {'loss_ce', 'acc_seg'} and losses['loss_ce'] == 0
    losses['loss_ce'].backward()
    gradients = [p.grad for p in head.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_ignored_pixels_do_not_count():
    head = make_head(ignore_index=4)
    inputs = make_levels(3, 65, 97)
    samples = make_samples(65, 97, num_classes=4)
    for sample in samples:
        sample.gt_sem_seg.data[:, :40] = 4
    losses = head.loss(inputs, samples, train_cfg=None)

    logits = F.interpolate(head(inputs), (65, 97), mode='bilinear')
    labels = torch.cat([s.gt_sem_seg.data for s in samples])
    each = F.cross_entropy(logits, labels, ignore_index=4, reduction='none')
    assert not each[:, :40].any()
    torch.testing.assert_close(losses['loss_ce'], each.mean())


def test_class_weights_count_where_pixels_are_ignored():
    weights = [0.5, 1.0, 2.0, 1.0, 0.1]
    # 'none': OpenMMLab's weighted 'mean' raises an IndexError where pixels are ignored.
    loss = dict(type='CrossEntropyLoss', class_weight=weights, reduction='none')
    head = make_head(loss_decode=loss)
    inputs, samples = make_levels(3, 65, 97), make_samples(65, 97)
    losses = head.loss(inputs, samples, train_cfg=None)

    logits = F.interpolate(head(inputs), (65, 97), mode='bilinear')
    labels = torch.cat([s.gt_sem_seg.data for s in samples])
    expected = F.cross_entropy(logits, labels, reduction='none', ignore_index=255)
    expected *= torch.tensor([*weights, 0.0])[labels.clamp(max=5)]
    torch.testing.assert_close(losses['loss_ce'], expected)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same_and_shares_nothing(copied):
    head = make_head()
    twin = copied(head)
    inputs = make_levels(3, 65, 97)
    before = head(inputs)

    torch.testing.assert_close(twin(inputs), before, rtol=0, atol=0)
    with_random_weights(twin)
    torch.testing.assert_close(head(inputs), before, rtol=0, atol=0)


def test_is_built_by_name_and_leaves_its_arguments_alone():
    cfg = dict(type='FCN8Head', in_channels=[3, 4], in_index=[0, 1], num_classes=5)
    before = copy.deepcopy(cfg)
    head = MODELS.build(cfg)

    assert type(head) is FCN8Head and isinstance(head, BaseModule)
    assert cfg == before


@pytest.mark.parametrize('padding', [{}, dict(image_padding=100)], ids=['FCN8', 'Caffe'])
@CONV_CFGS
def test_logits_are_float32_under_autocast(conv_cfg, padding):
    head = with_random_weights(make_head(conv_cfg=conv_cfg, **padding))
    levels = [torch.randn(2, WIDTHS[i], 36 >> i, 36 >> i).bfloat16() for i in range(3)]
    if padding:
        levels = [F.pad(x, (0, 20, 0, 20)) for x in levels[:2]] + [levels[2][..., :4, :4]]
    expected = head([x.float() for x in levels])
    with torch.autocast('cpu', torch.bfloat16):
        logits = head(levels)
        assert torch.is_autocast_enabled('cpu')
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    logits.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in head.scores.parameters())


_BACKWARD = """
import torch
from ssnet_mm import FCN8Head
head = FCN8Head(in_channels=[64, 128, 4096], num_classes=11)
shapes = (8, 64, 28, 28), (8, 128, 14, 14), (8, 4096, 7, 7)
for step in range(10):
    levels = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with torch.autocast('cpu', torch.bfloat16):
        logits = head([x.bfloat16() for x in levels])
    logits.square().mean().backward()
print('whole')
"""


@pytest.mark.skipif(
    not getattr(torch.cpu, '_is_amx_tile_supported', bool)(), reason='needs a CPU with AMX'
)
def test_the_backward_pass_keeps_to_its_memory():
    """oneDNN's AMX kernels of bfloat16 do not, where fewer than 16 classes are scored in it."""
    # in a process of its own, where glibc aborts at the first block that was written beyond
    env = dict(os.environ, MALLOC_CHECK_='3', LD_PRELOAD='libc_malloc_debug.so.0')
    assert run(sys.executable, '-c', _BACKWARD, env=env).split()[-1] == 'whole'
