import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import CONV_CFGS, SEPARABLE, SIZES, count_trainable, draw_statistics
from mmcv.cnn import ConvModule
from mmseg.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm.layers import SeparableConv2d
from ssnet_mm.models.backbones import VGG16
from ssnet_mm.models.backbones.vgg16 import SamePool2x2


def tiny(**kwargs) -> VGG16:
    return VGG16(**{**dict(base_channels=2, fc_channels=6), **kwargs})


def with_random_norms(net: VGG16) -> VGG16:
    """Give the norm layers statistics and weights that change something."""
    for norm in draw_statistics(net).modules():
        if isinstance(norm, _BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias, std=0.1)
    return net


def biased(net: VGG16) -> VGG16:
    for name, parameter in net.named_parameters():
        if name.endswith('bias'):
            nn.init.normal_(parameter, std=0.1)
    return net


def conv_modules(net: nn.Module) -> list[ConvModule]:
    return [m for m in net.modules() if isinstance(m, ConvModule)]


@CONV_CFGS
@SIZES
def test_levels_are_rounded_up_at_every_size(size, conv_cfg):
    net = tiny(out_indices=range(6), conv_cfg=conv_cfg).eval()
    with torch.inference_mode():
        levels = net(torch.rand(1, 3, *size))

    assert type(levels) is tuple
    widths, strides = (2, 4, 8, 16, 16, 6), (2, 4, 8, 16, 32, 32)
    assert [level.shape for level in levels] == [
        (1, width, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        for width, stride in zip(widths, strides)
    ]


@pytest.mark.parametrize('size', [(32, 32), (31, 33), (1, 1)])
def test_equals_a_hand_written_vgg16(size):
    net = biased(with_random_norms(tiny(base_channels=4, fc_channels=16))).double().eval()
    weights = net.state_dict()
    x = image = torch.rand(2, 3, *size, dtype=torch.float64)

    expected = []
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        for i in range(depth):
            name = f'stages.{stage}.{i}'
            x = F.conv2d(x, weights[f'{name}.conv.weight'], weights[f'{name}.conv.bias'], padding=1)
            mean, var = weights[f'{name}.bn.running_mean'], weights[f'{name}.bn.running_var']
            x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-3) ** 0.5
            x = x * weights[f'{name}.bn.weight'][:, None, None]
            x = (x + weights[f'{name}.bn.bias'][:, None, None]).clamp(min=0)
        # After a ReLU zeros never win: padding with them is padding with nothing.
        x = F.max_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)), 2)
        expected.append(x)
    x = F.conv2d(x, weights['fc6.conv.weight'], weights['fc6.conv.bias'], padding=3).clamp(min=0)
    x = F.conv2d(x, weights['fc7.conv.weight'], weights['fc7.conv.bias']).clamp(min=0)

    for level, value in zip(net(image), [expected[2], expected[3], x]):
        assert value.abs().max() > 0
        torch.testing.assert_close(level, value)


@CONV_CFGS
def test_fc6_is_a_fully_connected_layer_on_a_7x7_map(conv_cfg):
    net = biased(tiny(conv_cfg=conv_cfg)).eval()
    linear = nn.Linear(16 * 7 * 7, 6)
    with torch.no_grad():
        if conv_cfg is None:
            kernel = net.fc6.conv.weight
        else:  # the dense kernel that the pair factors
            kernel = net.fc6.conv.pointwise.weight * net.fc6.conv.depthwise.weight[:, 0]
        bias = net.fc6.conv.bias if conv_cfg is None else net.fc6.conv.pointwise.bias
        linear.weight.copy_(kernel.reshape(6, -1))
        linear.bias.copy_(bias)
    x = torch.rand(3, 16, 7, 7)

    fc6 = net.fc6(x)

    assert fc6.shape == (3, 6, 7, 7)  # 'same' padding: only the centre sees the whole map
    torch.testing.assert_close(fc6[:, :, 3, 3], linear(x.flatten(1)).relu())
    assert fc6[:, :, 3, 3].max() > 0


def test_full_size_has_the_thirteen_convolutions_of_vgg16():
    with torch.device('meta'):
        net = VGG16()
    shapes = [
        (m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding)
        for m in conv_modules(net.stages)
    ]
    table = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    table += [(256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]

    assert [len(stage) for stage in net.stages] == [2, 2, 3, 3, 3]
    assert shapes == [(c, d, (3, 3), (1, 1), 1) for c, d in table]
    assert (net.fc6.in_channels, net.fc6.out_channels, net.fc6.kernel_size) == (512, 4096, (7, 7))
    assert (net.fc7.in_channels, net.fc7.out_channels, net.fc7.kernel_size) == (4096, 4096, (1, 1))


@pytest.mark.parametrize(
    ('kwargs', 'expected'),
    [
        # VGG16's published 14,714,688 in convolutions, 102,764,544 in fc6, 16,781,312 in fc7
        (dict(norm_cfg=None), 14_714_688 + 102_764_544 + 16_781_312),
        (dict(norm_cfg=None, fc_channels=None, out_indices=(4,)), 14_714_688),
        # 2 * (2*64 + 2*128 + 3*256 + 3*512 + 3*512) in batch norm
        (dict(), 14_714_688 + 102_764_544 + 16_781_312 + 8_448),
        # two convolutions: 3*3*3*64 + 64, 3*3*64*64 + 64, and their norms
        (dict(out_indices=(0,)), 1_792 + 36_928 + 256),
    ],
    ids=['plain', 'stages_only', 'batch_norm', 'first_stage'],
)
def test_parameters_of_the_dense_net(kwargs, expected):
    with torch.device('meta'):
        assert count_trainable(VGG16(**kwargs)) == expected


@pytest.mark.parametrize('norm_cfg', [None, dict(type='BN')], ids=['plain', 'batch_norm'])
def test_parameters_of_the_separable_net(norm_cfg):
    widths = [3] + [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    expected = sum(9 * c + c * d + d for c, d in zip(widths, widths[1:]))
    expected += 49 * 512 + 512 * 4096 + 4096  # fc6
    expected += 4096 + 4096 * 4096 + 4096  # fc7 keeps its 1x1 depthwise
    expected += 2 * sum(widths[1:]) if norm_cfg else 0
    with torch.device('meta'):
        assert count_trainable(VGG16(conv_cfg=SEPARABLE, norm_cfg=norm_cfg)) == expected


@CONV_CFGS
def test_the_conv_type_is_that_of_every_layer(conv_cfg):
    expected = nn.Conv2d if conv_cfg is None else SeparableConv2d
    net = tiny(conv_cfg=conv_cfg)

    assert [type(m.conv) for m in conv_modules(net)] == [expected] * 15


@CONV_CFGS
def test_norms_and_biases_stand_beside_each_other_but_fc6_and_fc7_have_no_norm(conv_cfg):
    net = tiny(conv_cfg=conv_cfg)
    for module in conv_modules(net):
        conv = module.conv if conv_cfg is None else module.conv.pointwise
        assert conv.bias is not None
    assert all(m.with_norm and isinstance(m.norm, nn.BatchNorm2d) for m in conv_modules(net.stages))
    assert not any(m.with_norm for m in (net.fc6, net.fc7))


def test_the_default_norm_is_that_of_keras():
    assert {(m.norm.eps, m.norm.momentum) for m in conv_modules(tiny().stages)} == {(1e-3, 0.01)}


@pytest.mark.parametrize(
    ('norm_cfg', 'expected'),
    [(None, type(None)), (dict(type='GN', num_groups=2), nn.GroupNorm)],
)
def test_the_norm_can_be_switched_off_or_be_another(norm_cfg, expected):
    net = tiny(norm_cfg=norm_cfg)

    assert {type(m.norm) for m in conv_modules(net.stages)} == {expected}


def test_says_nothing_of_a_bias_beside_the_norm(recwarn):
    tiny()

    assert not [w for w in recwarn if 'bias' in str(w.message)]


# The strides and dilations that keep stage 5, or stages 4 and 5, at a higher resolution.
DILATED = {
    'last_pool': dict(strides=(2, 2, 2, 2, 1), fc_dilation=2),
    'stage5': dict(strides=(2, 2, 2, 1, 2), dilations=(1, 1, 1, 1, 2), fc_dilation=2),
    'stage5_and_last_pool': dict(strides=(2, 2, 2, 1, 1), dilations=(1, 1, 1, 1, 2), fc_dilation=4),
    'stages4_and_5': dict(strides=(2, 2, 1, 1, 1), dilations=(1, 1, 1, 2, 4), fc_dilation=8),
}


@CONV_CFGS
@pytest.mark.parametrize('size', [(1, 1), (31, 33), (64, 64), (97, 131)])
@pytest.mark.parametrize('change', DILATED.values(), ids=DILATED)
def test_a_dilated_net_computes_what_the_strided_one_does_and_more_between(change, size, conv_cfg):
    kwargs = dict(out_indices=range(6), conv_cfg=conv_cfg, base_channels=4, fc_channels=16)
    strided = biased(with_random_norms(tiny(**kwargs))).double().eval()
    dilated = tiny(**kwargs, **change).double().eval()
    dilated.load_state_dict(strided.state_dict())
    image = torch.rand(1, 3, *size, dtype=torch.float64)

    with torch.inference_mode():
        coarse, fine = strided(image), dilated(image)

    total = 1
    for level, (few, many) in enumerate(zip(coarse, fine)):
        total *= change['strides'][level] if level < 5 else 1
        step = 2 ** min(level + 1, 5) // total
        assert many.shape[2:] == (math.ceil(size[0] / total), math.ceil(size[1] / total))
        assert few.abs().max() > 0
        torch.testing.assert_close(many[:, :, ::step, ::step], few)


@pytest.mark.parametrize(('stride', 'dilation'), [(2, 1), (1, 1), (1, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (7, 8)])
def test_pooling_takes_the_maximum_of_what_lies_within_the_map(size, stride, dilation):
    x = torch.randn(1, 1, *size) - 5  # negative, so that padding with zeros would show
    expected = torch.empty(1, 1, math.ceil(size[0] / stride), math.ceil(size[1] / stride))
    for i in range(expected.shape[2]):
        for j in range(expected.shape[3]):
            rows = slice(i * stride, i * stride + dilation + 1, dilation)
            columns = slice(j * stride, j * stride + dilation + 1, dilation)
            expected[0, 0, i, j] = x[0, 0, rows, columns].max()

    torch.testing.assert_close(SamePool2x2(stride, dilation)(x), expected, rtol=0, atol=0)


def test_out_indices_give_the_order():
    net = tiny(out_indices=(5, 0, 3, 3)).eval()
    full = tiny(out_indices=range(6)).eval()
    full.load_state_dict(net.state_dict())
    x = torch.rand(1, 3, 33, 31)
    levels = full(x)

    for level, index in zip(net(x), (5, 0, 3, 3), strict=True):
        torch.testing.assert_close(level, levels[index], rtol=0, atol=0)


@pytest.mark.parametrize(
    ('out_indices', 'stages', 'has_fc'),
    [((0,), 1, False), ((2, 1), 3, False), ((4,), 5, False), ((1, 5), 5, True)],
)
def test_makes_only_the_stages_it_needs(out_indices, stages, has_fc):
    net = tiny(out_indices=out_indices)

    assert len(net.stages) == stages
    assert (net.fc6 is not None, net.fc7 is not None) == (has_fc, has_fc)


@CONV_CFGS
@pytest.mark.parametrize('padding', [2, 100])
def test_image_padding_is_a_border_of_zeros_around_the_image(padding, conv_cfg):
    net, padded = (
        tiny(out_indices=range(6), conv_cfg=conv_cfg, image_padding=p) for p in (None, padding)
    )
    padded.load_state_dict(biased(net.eval()).state_dict())
    x = torch.rand(1, 3, 33, 31)
    bordered = F.pad(x, [padding - 1] * 4)  # the last pixel is the convolution's own padding

    for level, expected in zip(padded.eval()(x), net(bordered), strict=True):
        torch.testing.assert_close(level, expected)


@CONV_CFGS
@pytest.mark.parametrize(('padding', 'dilation'), [(0, 1), (1, 1), (4, 2)])
def test_less_padding_of_fc6_leaves_its_border_out(padding, dilation, conv_cfg):
    kwargs = dict(conv_cfg=conv_cfg, fc_dilation=dilation)
    net, less = tiny(**kwargs), tiny(**kwargs, fc6_padding=padding)
    less.load_state_dict(biased(net.eval()).state_dict())
    x = torch.rand(1, 3, 420, 500)
    border = 3 * dilation - padding

    (*_, whole), (*_, inner) = net(x), less.eval()(x)
    torch.testing.assert_close(inner, whole[:, :, border:-border, border:-border])
    assert inner.abs().max() > 0


@pytest.mark.parametrize(
    ('kwargs', 'needed', 'least'),
    [
        (dict(fc6_padding=0), 7, 193),  # 6 * 32 + 1
        (dict(fc6_padding=2), 3, 65),
        (dict(fc6_padding=0, image_padding=81), 7, 33),  # 193 - 2 * 80
        (dict(fc6_padding=0, image_padding=100), 7, 1),  # Caffe's padding takes any image
    ],
)
def test_an_image_too_small_for_fc6_is_named(kwargs, needed, least):
    net = tiny(**kwargs).eval()
    assert net(torch.rand(1, 3, least, least + 40))[-1].shape[2] == 1
    if least > 1:
        match = (
            f'image of {least + 40}x{least - 1} is too small.*must be {needed} or more.*fc6_padding'
        )
        with pytest.raises(ValueError, match=match):
            net(torch.rand(1, 3, least + 40, least - 1))


@CONV_CFGS
@pytest.mark.parametrize('out_indices', [(0,), (2, 3), (4,), (2, 3, 5)])
def test_every_parameter_gets_a_gradient(out_indices, conv_cfg):
    net = tiny(out_indices=out_indices, conv_cfg=conv_cfg, base_channels=4)
    sum(level.square().sum() for level in net(torch.rand(2, 3, 33, 47))).backward()

    missing = [
        n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    # (A bias before batch norm has no effect: rounding is all that its gradient holds.)
    zero = [
        n for n, p in net.named_parameters() if 'conv' in n and 'weight' in n and not p.grad.any()
    ]
    assert (missing, zero) == ([], [])


@CONV_CFGS
@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 5, 6])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(frozen, conv_cfg):
    net = tiny(frozen_stages=frozen, conv_cfg=conv_cfg)
    net.eval().train()
    before = copy.deepcopy(net.state_dict())
    # The image asks for a gradient, so that there is one where all stages are frozen, too.
    net(torch.rand(2, 3, 33, 31, requires_grad=True))[-1].sum().backward()

    def is_frozen(name: str) -> bool:
        place, index = name.split('.')[:2]
        return int(index) < frozen if place == 'stages' else frozen == 6

    assert {n: p.grad is None for n, p in net.named_parameters()} == {
        n: is_frozen(n) for n, _ in net.named_parameters()
    }
    for name, value in net.state_dict().items():
        if name.endswith(('running_mean', 'running_var')):
            assert torch.equal(value, before[name]) == is_frozen(name), name


@pytest.mark.parametrize(('frozen', 'trainable'), [(1, True), (6, False)])
def test_eval_unfreezes_nothing(frozen, trainable):
    net = tiny(frozen_stages=frozen)
    for mode in (False, True):
        net.train(mode)
        assert not any(p.requires_grad for p in net.stages[:frozen].parameters())
        assert {p.requires_grad for p in net.fc7.parameters()} == {trainable}


def test_norm_eval_keeps_all_statistics_but_trains_the_weights():
    net = tiny(norm_eval=True).train()
    before = copy.deepcopy(net.state_dict())
    net(torch.rand(2, 3, 33, 31))[-1].sum().backward()

    assert net.training and net.dropout.training
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert all(m.norm.weight.grad is not None for m in conv_modules(net.stages))


@pytest.mark.parametrize('kwargs', [dict(), dict(norm_eval=True), dict(frozen_stages=2)])
def test_train_and_eval_return_the_net(kwargs):
    net = tiny(**kwargs)

    assert net.train() is net and net.eval() is net and net.train(False) is net
    assert not any(m.training for m in net.modules())


def test_dropout_follows_fc6_and_fc7_in_training_only():
    net = tiny(out_indices=range(6), norm_cfg=None, fc_channels=64, dropout_ratio=0.25)
    x = torch.rand(4, 3, 64, 64)
    seen: dict[str, torch.Tensor] = {}
    for name in ('fc6', 'fc7'):
        getattr(net, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update(
                {f'to {name}': inputs[0], name: output}
            )
        )

    training, evaluated = net.train()(x), None
    for level, source in ((seen['to fc7'], seen['fc6']), (training[5], seen['fc7'])):
        alive = source > 0
        kept = level[alive] > 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.05)
        torch.testing.assert_close(level[alive][kept], source[alive][kept] / 0.75)

    evaluated = net.eval()(x)
    for level, same in zip(training[:5], evaluated[:5]):
        torch.testing.assert_close(level, same, rtol=0, atol=0)
    torch.testing.assert_close(seen['to fc7'], seen['fc6'], rtol=0, atol=0)
    torch.testing.assert_close(evaluated[5], seen['fc7'], rtol=0, atol=0)


def test_no_dropout_where_its_ratio_is_zero():
    net = tiny(norm_cfg=None, dropout_ratio=0)
    x = torch.rand(2, 3, 33, 31)

    for training, evaluated in zip(net.train()(x), net.eval()(x)):
        torch.testing.assert_close(training, evaluated, rtol=0, atol=0)


@CONV_CFGS
def test_activations_start_as_kaiming_foretells(conv_cfg):
    # With fan_out a ReLU layer from C to D channels multiplies the mean square by C / D, so that
    # backwards nothing grows or fades; pooling adds a little. Without a norm nothing hides errors.
    ratios = []
    for _ in range(8):
        net = VGG16(base_channels=32, fc_channels=64, norm_cfg=None, conv_cfg=conv_cfg).eval()
        x = F.interpolate(torch.randn(2, 3, 16, 16), (64, 64), mode='bilinear')  # smooth
        with torch.inference_mode():
            foretold = x.square().mean() * 3
            ratios.append([level.square().mean() * level.shape[1] / foretold for level in net(x)])

    # fc7 loses some: most of fc6's taps meet padding on so small a map. A gain of 1 for sqrt(2)
    # would make it 180 times less.
    assert torch.tensor(ratios).sqrt().log().mean(0).abs().max() < math.log(4)


def test_takes_images_of_other_depths():
    assert tiny(in_channels=7)(torch.rand(2, 7, 33, 31))[0].shape == (2, 8, 5, 4)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(in_channels=0), 'in_channels must be at least 1, got 0'),
        (dict(base_channels=-1), 'base_channels must be at least 1, got -1'),
        (dict(fc_channels=-4), 'fc_channels must be at least 1, got -4'),
        (dict(dropout_ratio=1), r'dropout_ratio must lie in \[0, 1\), got 1'),
        (dict(dropout_ratio=-0.1), r'dropout_ratio must lie in \[0, 1\), got -0.1'),
        (dict(out_indices=()), r'out_indices must lie in 0\.\.5 .*got \(\)'),
        (dict(out_indices=(2, 6)), r'out_indices must lie in 0\.\.5 .*got \(2, 6\)'),
        (dict(out_indices=(-1,)), r'out_indices must lie in 0\.\.5 .*got \(-1,\)'),
        (
            dict(fc_channels=None),
            r'out_indices must lie in 0\.\.4 .*needs fc_channels.*\(2, 3, 5\)',
        ),
        (dict(frozen_stages=7), r'frozen_stages must lie in -1\.\.6, got 7'),
        (dict(frozen_stages=-2), r'frozen_stages must lie in -1\.\.6, got -2'),
        (
            dict(frozen_stages=6, fc_channels=None, out_indices=(4,)),
            r'frozen_stages must lie in -1\.\.5, got 6',
        ),
        (dict(image_padding=0), 'image_padding must be at least 1, got 0'),
        (
            dict(image_padding=1, dilations=(2, 1, 1, 1, 1)),
            'image_padding must be at least 2, got 1',
        ),
        (dict(fc6_padding=-1), 'fc6_padding must be at least 0, got -1'),
        (dict(strides=(2, 2, 2)), r'strides must be 5 positive integers, got \(2, 2, 2\)'),
        (dict(strides=(2, 2, 2, 2, 0)), 'strides must be 5 positive integers'),
        (dict(strides=(2, 2, 2, 2, 3)), r'strides must be 1 or 2, got \(2, 2, 2, 2, 3\)'),
        (
            dict(dilations=(1, 1, 1, 1)),
            r'dilations must be 5 positive integers, got \(1, 1, 1, 1\)',
        ),
    ],
)
def test_refuses_what_makes_no_sense(kwargs, match):
    with pytest.raises(ValueError, match=match):
        tiny(**kwargs)


def test_is_built_by_name_and_leaves_its_arguments_alone():
    cfg = dict(type='VGG16', base_channels=2, fc_channels=6, norm_cfg=dict(type='BN'))
    before = copy.deepcopy(cfg)
    net = MODELS.build(cfg)

    assert type(net) is VGG16 and cfg == before


def test_a_copy_computes_the_same():
    net = tiny().eval()
    x = torch.rand(1, 3, 33, 31)

    for level, same in zip(net(x), copy.deepcopy(net)(x)):
        torch.testing.assert_close(level, same, rtol=0, atol=0)


@pytest.mark.parametrize('height', [32, 64])
def test_rows_of_fc6_that_meet_no_pixel_get_no_gradient_in_bfloat16(height):
    """oneDNN's bfloat16 kernels (AVX512-BF16) leave them as they find the memory."""
    net = VGG16(base_channels=16, fc_channels=64, out_indices=(5,))
    with torch.autocast('cpu', torch.bfloat16):
        (fc7,) = net(torch.randn(2, 3, height, 96))
        assert torch.is_autocast_enabled('cpu')
    fc7.float().square().sum().backward()
    rows = net.fc6.conv.weight.grad.abs().sum((0, 1, 3))
    reach = height // 32 - 1
    assert rows[3] > 0
    assert (rows[: 3 - reach] == 0).all() and (rows[4 + reach :] == 0).all()
