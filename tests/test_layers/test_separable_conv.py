import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.nets import SEPARABLE
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ssnet_mm.layers import SeparableConv2d

# Every geometry which ConvModule, or a user, may ask of a conv layer.
GEOMETRIES = {
    '3x3': dict(kernel_size=3, padding=1),
    'no_padding': dict(kernel_size=3),
    '1x1': dict(kernel_size=1),
    '1x1_strided': dict(kernel_size=1, stride=2),
    'strided': dict(kernel_size=3, stride=2, padding=1),
    'strided_one_way': dict(kernel_size=3, stride=(2, 1), padding=1),
    'dilated': dict(kernel_size=3, padding=2, dilation=2),
    'dilated_one_way': dict(kernel_size=3, padding=(3, 1), dilation=(3, 1)),
    'strided_and_dilated': dict(kernel_size=3, stride=2, padding=2, dilation=2),
    'even': dict(kernel_size=2, stride=2),
    'even_padded': dict(kernel_size=4, padding=1),
    'asymmetric': dict(kernel_size=(1, 5), padding=(0, 2)),
    'large': dict(kernel_size=7, padding=3),
    'larger_than_the_image': dict(kernel_size=15, padding=7),
    'same': dict(kernel_size=5, padding='same'),
    'same_even': dict(kernel_size=4, padding='same'),
    'same_dilated': dict(kernel_size=3, padding='same', dilation=3),
    'valid': dict(kernel_size=3, padding='valid'),
    'reflect': dict(kernel_size=3, padding=1, padding_mode='reflect'),
    'replicate': dict(kernel_size=5, padding=2, padding_mode='replicate'),
    'circular': dict(kernel_size=3, padding=(1, 2), padding_mode='circular'),
    'reflect_same': dict(kernel_size=3, padding='same', padding_mode='reflect'),
}


def spread(layer: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return layer(x).square().mean().item()


@pytest.mark.parametrize('bias', [True, False])
def test_is_a_filter_for_each_channel_and_then_a_mix_of_the_channels(bias):
    conv = SeparableConv2d(3, 5, 3, stride=2, padding=1, bias=bias).double()
    if bias:
        nn.init.normal_(conv.pointwise.bias)
    x = torch.rand(2, 3, 11, 14, dtype=torch.float64)

    filtered = []
    for channel in range(3):
        kernel = conv.depthwise.weight[channel : channel + 1]
        filtered.append(F.conv2d(x[:, channel : channel + 1], kernel, stride=2, padding=1)[:, 0])
    expected = torch.einsum(
        'oc,cnhw->nohw', conv.pointwise.weight[:, :, 0, 0], torch.stack(filtered)
    )
    if bias:
        expected = expected + conv.pointwise.bias[:, None, None]

    assert expected.shape == (2, 5, 6, 7)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no_bias'])
@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_equals_the_dense_convolution_whose_kernel_is_the_product_of_both(geometry, bias):
    conv = SeparableConv2d(3, 5, bias=bias, **geometry).double()
    nn.init.normal_(conv.depthwise.weight)  # a 1x1 depthwise starts as ones
    dense = nn.Conv2d(3, 5, bias=bias, dtype=torch.float64, **geometry)
    with torch.no_grad():
        dense.weight.copy_(conv.pointwise.weight * conv.depthwise.weight[:, 0])
        if bias:
            nn.init.normal_(conv.pointwise.bias)
            dense.bias.copy_(conv.pointwise.bias)

    x = torch.rand(2, 3, 11, 14, dtype=torch.float64)

    torch.testing.assert_close(conv(x), dense(x))


@pytest.mark.parametrize('geometry', GEOMETRIES.values(), ids=GEOMETRIES)
def test_shows_the_attributes_of_the_dense_layer_it_stands_for(geometry):
    separable, dense = SeparableConv2d(3, 5, **geometry), nn.Conv2d(3, 5, **geometry)
    names = ['in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation']
    names += ['transposed', 'output_padding', 'groups', 'padding_mode']

    assert {name: getattr(separable, name) for name in names} == {
        name: getattr(dense, name) for name in names
    }


@pytest.mark.parametrize('groups', [2, 0, 4])
def test_refuses_groups(groups):
    with pytest.raises(ValueError, match=f'groups must be 1, got {groups}'):
        SeparableConv2d(4, 4, 3, groups=groups)


def test_refuses_groups_from_a_conv_module():
    with pytest.raises(ValueError, match='groups must be 1, got 4'):
        ConvModule(4, 4, 3, groups=4, conv_cfg=SEPARABLE)


def test_has_three_parameters_and_only_the_pointwise_one_has_a_bias():
    shapes = {name: tuple(p.shape) for name, p in SeparableConv2d(8, 16, 3).state_dict().items()}
    without = SeparableConv2d(8, 16, 3, bias=False).state_dict()

    assert shapes == {
        'depthwise.weight': (8, 1, 3, 3),
        'pointwise.weight': (16, 8, 1, 1),
        'pointwise.bias': (16,),
    }
    assert list(without) == ['depthwise.weight', 'pointwise.weight']


def test_a_1x1_layer_keeps_its_depthwise_half_which_starts_as_the_identity():
    conv = SeparableConv2d(8, 16, 1)
    x = torch.rand(1, 8, 3, 5)

    assert conv.depthwise.weight.shape == (8, 1, 1, 1)
    torch.testing.assert_close(conv(x), conv.pointwise(x), rtol=0, atol=0)


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize(('in_channels', 'out_channels'), [(32, 64), (64, 16)])
def test_starts_as_widely_spread_as_a_dense_kaiming_layer(kernel_size, in_channels, out_channels):
    x = torch.rand(1, in_channels, 9, 9)  # not centred, as after a ReLU
    separable, dense = 0.0, 0.0
    for _ in range(200):
        layer = nn.Conv2d(in_channels, out_channels, kernel_size)
        nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(layer.bias)
        separable += spread(SeparableConv2d(in_channels, out_channels, kernel_size), x)
        dense += spread(layer, x)

    # Of 200 draws of 16 outputs each the means still scatter by some percent.
    assert separable / dense == pytest.approx(1, abs=0.1)


def test_the_gain_scales_the_initial_outputs():
    x = torch.rand(1, 8, 5, 5)
    conv = SeparableConv2d(8, 16, 3)
    torch.manual_seed(1)
    conv.init_weights()
    default = conv(x)
    torch.manual_seed(1)
    conv.init_weights(gain=1)

    torch.testing.assert_close(default, 2**0.5 * conv(x))


def test_a_conv_module_keeps_the_initial_weights():
    torch.manual_seed(1)
    alone = SeparableConv2d(8, 16, 3, padding=1)
    torch.manual_seed(1)
    within = ConvModule(8, 16, 3, padding=1, conv_cfg=SEPARABLE).conv

    for name, weight in alone.state_dict().items():
        torch.testing.assert_close(within.state_dict()[name], weight, rtol=0, atol=0)


def test_a_base_module_that_draws_all_conv2d_anew_leaves_the_spread_as_it_was():
    class Parent(BaseModule):
        def __init__(self):
            super().__init__(init_cfg=dict(type='Constant', layer='Conv2d', val=3.0))
            self.conv = SeparableConv2d(64, 64, 3)
            self.dense = nn.Conv2d(64, 64, 3)

    parent = Parent()
    parent.init_weights()

    assert (parent.dense.weight == 3).all()  # so the initialiser did run
    assert parent.conv.depthwise.weight.std().item() == pytest.approx(1 / 3, rel=0.1)
    assert parent.conv.pointwise.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmcv', 'mmseg', 'mmpretrain'])
def test_is_found_under_every_default_scope_and_under_none(scope, no_default_scope):
    if scope == 'mmpretrain':
        pytest.importorskip('mmpretrain')
    with DefaultScope.overwrite_default_scope(scope):
        assert type(build_conv_layer(SEPARABLE, 3, 5, 3)) is SeparableConv2d
        assert type(ConvModule(3, 5, 3, conv_cfg=SEPARABLE).conv) is SeparableConv2d


def test_lives_in_the_root_registry():
    assert MODELS.module_dict['SeparableConv2d'] is SeparableConv2d


@pytest.mark.parametrize('order', [('conv', 'norm', 'act'), ('norm', 'act', 'conv')])
def test_works_in_a_conv_module_with_norm(order):
    module = ConvModule(
        3, 5, 3, stride=2, padding=1, conv_cfg=SEPARABLE, norm_cfg=dict(type='BN'), order=order
    )
    x = torch.rand(2, 3, 11, 14)

    expected = x
    for step in order:
        layer = dict(conv=module.conv, norm=module.norm, act=torch.relu)[step]
        expected = layer(expected)

    assert expected.shape == (2, 5, 6, 7)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ('norm_cfg', 'bias', 'has_bias'),
    [
        (None, 'auto', True),
        (dict(type='BN'), 'auto', False),
        (None, False, False),
        (dict(type='GN', num_groups=1), True, True),
    ],
)
def test_a_conv_module_decides_about_the_bias(norm_cfg, bias, has_bias):
    module = ConvModule(3, 5, 3, conv_cfg=SEPARABLE, norm_cfg=norm_cfg, bias=bias)

    assert (module.conv.pointwise.bias is not None) == has_bias
    assert module.conv.depthwise.bias is None


def test_a_conv_module_shows_the_layers_attributes():
    module = ConvModule(3, 5, (3, 1), stride=2, padding=(2, 0), dilation=2, conv_cfg=SEPARABLE)

    assert (module.in_channels, module.out_channels, module.groups) == (3, 5, 1)
    assert (module.kernel_size, module.stride, module.padding) == ((3, 1), (2, 2), (2, 0))
    assert (module.dilation, module.transposed, module.output_padding) == ((2, 2), False, (0, 0))


def test_a_conv_module_may_pad_before_it():
    module = ConvModule(3, 5, 3, padding=1, padding_mode='reflect', conv_cfg=SEPARABLE)
    x = torch.rand(2, 3, 11, 14)

    torch.testing.assert_close(module(x), module.conv(F.pad(x, (1,) * 4, mode='reflect')).relu())


def test_a_conv_module_hands_on_the_padding_mode_in_conv_cfg():
    # ConvModule's own argument does not reach any conv layer, so this is the way to 'circular'.
    module = ConvModule(3, 5, 3, padding=1, conv_cfg=dict(padding_mode='circular', **SEPARABLE))
    x = torch.rand(2, 3, 11, 14)
    padded = F.pad(x, (1,) * 4, mode='circular')
    filtered = F.conv2d(padded, module.conv.depthwise.weight, groups=3)

    torch.testing.assert_close(module(x), module.conv.pointwise(filtered).relu())


def test_spectral_norm_fails_loudly():
    # torch's spectral norm reads a parameter `weight`, of which this layer has two.
    with pytest.raises(KeyError, match='weight'):
        ConvModule(3, 5, 3, conv_cfg=SEPARABLE, with_spectral_norm=True)


def test_every_parameter_gets_a_gradient():
    conv = SeparableConv2d(3, 5, 3)
    conv(torch.rand(2, 3, 11, 14)).square().mean().backward()

    for name, parameter in conv.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_device_and_dtype_reach_both_halves():
    conv = SeparableConv2d(3, 5, 3, device='meta', dtype=torch.float64)

    assert {p.device.type for p in conv.parameters()} == {'meta'}
    assert {p.dtype for p in conv.parameters()} == {torch.float64}


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_computes_the_same_and_shares_nothing(copied):
    conv = SeparableConv2d(3, 5, 3, stride=2, padding=1)
    twin = copied(conv)
    x = torch.rand(2, 3, 11, 14)
    before = conv(x)

    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
    nn.init.zeros_(twin.pointwise.weight)
    torch.testing.assert_close(conv(x), before, rtol=0, atol=0)


def test_a_trace_works_at_another_size():
    conv = SeparableConv2d(3, 5, 3, stride=2, padding=1).eval()
    traced = torch.jit.trace(conv, torch.rand(1, 3, 8, 8))
    x = torch.rand(2, 3, 11, 14)

    torch.testing.assert_close(traced(x), conv(x))


def test_bfloat16_autocast_comes_close_and_keeps_float32_gradients():
    conv = SeparableConv2d(8, 16, 3, padding=1)
    x = torch.rand(2, 8, 11, 14)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    y.float().square().mean().backward()

    assert y.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; two layers in a row lose a few of them.
    torch.testing.assert_close(y.float(), conv(x), rtol=0.05, atol=0.05)
    assert {p.grad.dtype for p in conv.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in conv.parameters())
