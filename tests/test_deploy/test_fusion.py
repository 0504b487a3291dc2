import copy

import pytest
import torch
from helpers.nets import SEPARABLE, draw_statistics
from mmcv.cnn import ConvModule
from mmengine import runner
from mmengine.config import ConfigDict
from mmseg.registry import MODELS
from torch import nn

from ssnet_mm import build_model, deploy
from ssnet_mm.deploy import fuse
from ssnet_mm.layers import SeparableConv2d

BN = dict(type='BN')


def unsettle(model):
    """Give norms and 1x1 depthwise layers something to do, as training does."""
    for module in draw_statistics(model).modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, SeparableConv2d) and module.kernel_size == (1, 1):
            nn.init.uniform_(module.depthwise.weight, -2, 2)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def tiny(conv_type):
    return unsettle(build_model(3, conv_type, base_channels=8, fc_channels=8))


def count(model, *types):
    return sum(isinstance(module, types) for module in model.modules())


@torch.no_grad()
def check(model, image, run=lambda net, image: net(image), **kwargs):
    """The fused model gives what the model gives in eval mode; return it."""
    fused = fuse(model, **kwargs)
    expected = run(copy.deepcopy(model).eval(), image)
    assert expected.std() > 1e-3
    torch.testing.assert_close(run(fused, image), expected, rtol=1e-4, atol=1e-5)
    return fused


def logits(net, image):
    return net(image, mode='tensor')


@pytest.mark.parametrize('kind', ['ConvWS', 'ConvAWS'])
def test_convolutions_that_compute_otherwise_keep_their_layout(kind):
    backbone = dict(type='mmseg.VGG16', base_channels=8, fc_channels=8, conv_cfg=dict(type=kind))
    check(unsettle(MODELS.build(backbone)), torch.randn(2, 3, 45, 67), lambda net, x: net(x)[-1])


@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(('conv_type', 'separable'), [('conv', 0), ('ds', 13)])
def test_our_networks_keep_their_outputs_and_lose_layers(conv_type, separable, channels_last):
    image = torch.randn(2, 3, 45, 67)
    fused = check(tiny(conv_type), image, logits, channels_last=channels_last)

    assert count(fused, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d) == 0
    # of the 18 separable layers the first, fc7 and the three scores became plain; fc6 is 7x7
    assert count(fused, SeparableConv2d) == separable
    assert [m for m in fused.modules() if isinstance(m, SeparableConv2d) and m.kernel_size[0] == 1
            or isinstance(m, nn.Conv2d) and m.groups == 3] == []  # fmt: skip
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any(m.training for m in fused.modules())
    of_layout = logits(fused, image).is_contiguous(memory_format=torch.channels_last)
    assert of_layout == channels_last


def test_the_original_is_neither_touched_nor_shared():
    model = tiny('ds').train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    names = str(model)
    fused = fuse(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert str(model) == names and model.training
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        for tensor in [*fused.parameters(), *fused.buffers()]:
            tensor.zero_()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_fused_model_predicts_copies_moves_and_fuses_again():
    model = tiny('ds').eval()
    image = torch.randint(256, (3, 45, 67), dtype=torch.uint8)
    (expected,) = model.test_step(dict(inputs=[image]))
    fused = fuse(model)
    for net in (fused, copy.deepcopy(fused), fuse(fused), fused.to('cpu')):
        (sample,) = net.test_step(dict(inputs=[image]))
        torch.testing.assert_close(sample.seg_logits.data, expected.seg_logits.data)


def test_a_fused_model_exports_and_compiles():
    fused, image = fuse(tiny('ds')), torch.randn(1, 3, 45, 67)
    program = torch.export.export(fused, (image,), strict=False).module()
    compiled = torch.compile(fused, backend='eager')
    with torch.no_grad():
        expected = logits(fused, image)
        torch.testing.assert_close(program(image), expected)
        torch.testing.assert_close(logits(compiled, image), expected)


RESNET = dict(
    type='ResNet', depth=18, base_channels=8, stem_channels=8, out_indices=(1, 2, 3), norm_cfg=BN
)
VGG = dict(type='VGG16', base_channels=8, fc_channels=None, out_indices=(2, 3, 4), norm_cfg=BN)
FCN8 = dict(type='FCN8Head', in_channels=[16, 32, 64], in_index=[0, 1, 2])
UPER = dict(
    type='UPerHead', in_channels=[32, 64, 64], in_index=[0, 1, 2], channels=8, pool_scales=(1, 2),
    norm_cfg=BN,
)  # fmt: skip


@pytest.mark.parametrize(
    ('backbone', 'head', 'separable'),
    [
        (dict(RESNET), FCN8, 0),
        (dict(RESNET, conv_cfg=SEPARABLE), dict(FCN8, conv_cfg=SEPARABLE), 16),  # the 3x3 ones
        (dict(RESNET, type='ResNetV1c', depth=50), dict(FCN8, in_channels=[64, 128, 256]), 0),
        (dict(VGG, conv_cfg=SEPARABLE), dict(UPER, conv_cfg=SEPARABLE), 16),
    ],
    ids=['ResNet', 'separable_ResNet', 'ResNet50V1c', 'separable_UPerHead'],
)  # fmt: skip
def test_among_parts_of_mmseg(backbone, head, separable):
    parts = dict(backbone=backbone, decode_head=dict(head, num_classes=3))
    cfg = ConfigDict(type='EncoderDecoder', test_cfg=dict(mode='whole'), **copy.deepcopy(parts))
    fused = check(unsettle(MODELS.build(cfg)), torch.randn(2, 3, 45, 67), logits)

    assert count(fused, nn.BatchNorm2d, nn.SyncBatchNorm) == 0
    assert count(fused, SeparableConv2d) == separable


def hooked(*hooks):
    conv = nn.Conv2d(3, 4, 1)
    for hook in hooks:
        hook(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(4))


class Defined(nn.Module):
    """Defines a convolution before a norm, and runs them the other way round."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.bn(x))


class Tapped(nn.Sequential):
    """Reads what lies between the convolution and the norm."""

    def forward(self, x):
        return self[1](self[0](x)) + self[0](x)


def shared_conv():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(3)), conv)


def shared_norm():
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU(), norm)


UNCERTAIN = {
    'norm_first': lambda: Defined(),
    'own_forward': lambda: Tapped(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
    'shared_conv': shared_conv,
    'shared_norm': shared_norm,
    'hook': lambda: hooked(lambda m: m.register_forward_hook(lambda m, i, out: out.abs())),
    'spectral_norm': lambda: hooked(nn.utils.spectral_norm),
    'parametrised': lambda: hooked(nn.utils.parametrizations.weight_norm),
    'activation_between': lambda: ConvModule(
        3, 4, 1, norm_cfg=BN, order=('conv', 'act', 'norm'), act_cfg=dict(type='Sigmoid')
    ),
    'pre_activation': lambda: ConvModule(3, 4, 1, norm_cfg=BN, order=('norm', 'conv', 'act')),
    'spectral_ConvModule': lambda: ConvModule(3, 4, 1, norm_cfg=BN, with_spectral_norm=True),
    'transposed': lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)),
    'no_running_statistics': lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize('name', UNCERTAIN)
def test_what_is_uncertain_stays_as_it_is(name):
    fused = check(unsettle(UNCERTAIN[name]()), torch.randn(2, 3, 9, 11))
    assert count(fused, nn.BatchNorm2d) == 1


CERTAIN = {
    'grouped': lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
    'not_affine': lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)),
    'synchronised': lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4)),
    'reflected': lambda: ConvModule(3, 4, 3, padding=1, norm_cfg=BN, padding_mode='reflect'),
    'efficient': lambda: ConvModule(3, 4, 1, norm_cfg=BN, efficient_conv_bn_eval=True),
    'linear': lambda: ConvModule(
        3, 4, 1, norm_cfg=BN, act_cfg=None, order=('conv', 'act', 'norm')
    ),
    'separable': lambda: ConvModule(
        3, 4, 3, stride=2, padding=2, dilation=2, bias=False, norm_cfg=BN, conv_cfg=SEPARABLE
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', CERTAIN)
def test_what_is_certain_is_folded(name):
    fused = check(unsettle(CERTAIN[name]()), torch.randn(2, 3, 9, 11))
    assert count(fused, nn.BatchNorm2d, nn.SyncBatchNorm) == 0


def test_a_folded_norm_can_not_be_left_out():
    module = unsettle(ConvModule(3, 4, 1, norm_cfg=BN))
    fused = check(module, torch.randn(2, 3, 9, 11), lambda m, x: m(x, activate=False))
    with pytest.raises(RuntimeError, match='was fused: it can not run without its norm'):
        fused(torch.randn(1, 3, 4, 4), norm=False)


@pytest.mark.parametrize('bias', [True, False])
def test_a_separable_layer_by_itself(bias):
    layer = SeparableConv2d(
        8, 5, 1, stride=2, padding=1, dilation=3, bias=bias, padding_mode='reflect'
    )
    fused = check(unsettle(layer), torch.randn(2, 8, 9, 11))
    assert type(fused) is nn.Conv2d and (fused.bias is not None) == bias
    layer.pointwise.register_forward_hook(lambda m, i, out: out + 1)
    assert type(check(layer, torch.randn(2, 8, 9, 11))) is SeparableConv2d
    shared = SeparableConv2d(4, 4, 3, padding='same')
    fused = check(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 4, 9, 11))
    assert fused[0] is fused[2] and type(fused[0]) is nn.Conv2d


def test_the_tool_tests_the_fused_model(tool, tiny_config, tmp_path, monkeypatch):
    config = tiny_config()
    tool('train').main([config, '--work-dir', str(tmp_path)])
    seen = []

    def spy(owner, name, note):
        inner = getattr(owner, name)

        def outer(self, *args):
            result = inner(self, *args)
            seen.append(note(self, result))
            return result

        monkeypatch.setattr(owner, name, outer)

    spy(runner.TestLoop, 'run_iter', lambda loop, _: count(loop.runner.model, nn.BatchNorm2d))
    spy(runner.Runner, 'test', lambda _, metrics: metrics)
    test = [config, str(tmp_path / 'iter_2.pth'), '--work-dir', str(tmp_path / 'test')]
    for extra in ([], ['--fuse'], ['--fuse', '--tta']):
        tool('test').main([*test, *extra])
    assert seen[:4] == [13] * 4 and seen[5:9] == [0] * 4 and seen[10:14] == [0] * 4
    for key in ('aAcc', 'mIoU'):
        assert seen[4][key] == pytest.approx(seen[9][key], abs=0.1) and seen[4][key] > 0


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'no_such'"):
        _ = deploy.no_such
