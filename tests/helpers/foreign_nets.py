"""Foreign nets at a small width, from the libraries' own modules, and nets of ours beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

import ssnet_mm  # noqa: F401  registers the parts
from ssnet_mm.weights import Conversion

BASE, FC, CLASSES = 4, 8, 5
NARROWER = 64 // BASE
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
TOLERANCE = 1e-4
SEPARABLE = dict(type='SeparableConv2d')
OUR_BN = dict(type='BN', eps=1e-3)


@torch.no_grad()
def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every number of a net: none zero by rule, activations of order 1."""
    random = torch.Generator().manual_seed(seed)
    for key, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        normal = torch.randn(value.shape, generator=random)
        if value.dim() > 1:
            gain = 1 if 'depthwise' in key else 2
            value.copy_(normal * (gain / value[0].numel()) ** 0.5)
        elif key.endswith('running_var'):
            value.copy_(1 + normal.square() / 2)
        else:
            value.copy_(normal / 4 + ('running' not in key and key.endswith('weight')))
    module.eval()  # whose result mmpretrain's VGG forgets
    return module


def _classifier(num_classes: int) -> nn.Sequential:
    dropout = (nn.ReLU(), nn.Dropout())
    inputs = 8 * BASE * 7 * 7
    return nn.Sequential(
        nn.Linear(inputs, FC), *dropout, nn.Linear(FC, FC), *dropout, nn.Linear(FC, num_classes)
    )


def torchvision_vgg(bn: bool, num_classes: int = 10) -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    plan: list = []
    for depth, factor in STAGES:
        plan += [BASE * factor] * depth + ['M']
    with torch.device('meta'):  # its classifier has a fixed width, and is replaced
        net = VGG(nn.Sequential(), num_classes, init_weights=False)
    net.features, net.classifier = make_layers(plan, batch_norm=bn), _classifier(num_classes)
    return draw(_rounding_up(net))


def saved_vgg(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file of torchvision's ``vgg16_bn``, and what is in it."""
    path, state = folder / 'vgg16.pth', torchvision_vgg(bn=True).state_dict()
    torch.save(state, path)
    return path, state


def mmpretrain_vgg(bn: bool, num_classes: int = -1) -> nn.Module:
    from mmpretrain.models import VGG

    with torch.device('meta'):
        net = VGG(16, num_classes, norm_cfg=dict(type='BN') if bn else None, ceil_mode=True)
    for module in net.features:
        if hasattr(module, 'conv'):
            old = module.conv
            inputs = max(old.in_channels // NARROWER, 3)
            outputs = old.out_channels // NARROWER
            module.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=old.bias is not None)
            if bn:
                setattr(module, module.norm_name, nn.BatchNorm2d(outputs))
    if num_classes > 0:
        net.classifier = _classifier(num_classes)
    return draw(net)


def _rounding_up(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True
    return net


@torch.no_grad()
def foreign_levels(net: nn.Module, image: Tensor) -> list[Tensor]:
    """The five pooled maps, and fc7 by the classifier over every 7x7 window of the padded pool5."""
    levels = []
    x = image
    for module in net.features:
        x = module(x)
        if isinstance(module, nn.MaxPool2d):
            levels.append(x)
    if getattr(net, 'classifier', None) is not None:
        windows = F.unfold(x, 7, padding=3)  # (1, C * 49, H * W)
        fc7 = net.classifier[:-1](windows[0].T)
        levels.append(fc7.T.reshape(1, FC, *x.shape[2:]))
    return levels


def caffe_weights(
    levels: int, base: int = BASE, fc: int = FC, classes: int = CLASSES, device: str = 'cpu'
) -> dict[str, Tensor]:
    """A state dict as of pytorch-fcn, or of the VGG16 it starts from (no levels)."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        if device == 'meta':
            return torch.empty(shape, device=device)
        return torch.randn(shape, generator=random) / 8

    state = {}
    channels = 3
    for stage, (depth, factor) in enumerate(STAGES, 1):
        for i in range(1, depth + 1):
            state[f'conv{stage}_{i}.weight'] = normal(base * factor, channels, 3, 3)
            state[f'conv{stage}_{i}.bias'] = normal(base * factor)
            channels = base * factor
    if levels:
        state['fc6.weight'], state['fc7.weight'] = normal(fc, channels, 7, 7), normal(fc, fc, 1, 1)
    else:
        state['fc6.weight'], state['fc7.weight'] = normal(fc, channels * 49), normal(fc, fc)
        state['fc8.weight'], state['fc8.bias'] = normal(classes, fc), normal(classes)
    state['fc6.bias'], state['fc7.bias'] = normal(fc), normal(fc)
    scores = {'score_fr': fc, 'score_pool4': 8 * base, 'score_pool3': 4 * base}
    for layer in list(scores)[:levels]:
        state[f'{layer}.weight'] = normal(classes, scores[layer], 1, 1)
        state[f'{layer}.bias'] = normal(classes)
    upsampling = {
        0: {},
        1: {'upscore': 64},
        2: {'upscore2': 4, 'upscore16': 32},
        3: {'upscore2': 4, 'upscore_pool4': 4, 'upscore8': 16},
    }[levels]
    for layer, kernel in upsampling.items():
        state[f'{layer}.weight'] = bilinear(classes, kernel).to(device)
    return state


def bilinear(classes: int, kernel: int) -> Tensor:
    """Caffe's filler for even kernels, written out another way than ours."""
    weight = torch.zeros(classes, classes, kernel, kernel)
    for y in range(kernel):
        for x in range(kernel):
            value = (min(y, kernel - 1 - y) + 0.5) * (min(x, kernel - 1 - x) + 0.5)
            for c in range(classes):
                weight[c, c, y, x] = value * 4 / kernel**2
    return weight


def segmentor(
    levels: int = 3,
    num_classes: int = CLASSES,
    conv_cfg: dict | None = None,
    norm_cfg: dict | None = None,
    seed: int = 0,
    **model: object,
) -> nn.Module:
    """A net of ours, every number of it drawn."""
    channels = [BASE, 2 * BASE, 4 * BASE, 8 * BASE, FC]
    indices = [0, 1, 2, 3, 5]
    net = MODELS.build(
        dict(
            dict(
                type='mmseg.EncoderDecoder',
                backbone=dict(
                    type='mmseg.VGG16',
                    base_channels=BASE,
                    fc_channels=FC,
                    out_indices=indices[-levels:],
                    conv_cfg=conv_cfg,
                    norm_cfg=norm_cfg,
                ),
                decode_head=dict(
                    type='mmseg.FCN8Head',
                    in_channels=channels[-levels:],
                    num_classes=num_classes,
                    conv_cfg=conv_cfg,
                ),
                test_cfg=dict(mode='whole'),
            ),
            **model,
        )
    )
    return draw(net, seed)


def shapes_of(state: nn.Module | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    items = state.state_dict() if isinstance(state, nn.Module) else state
    return {key: tuple(value.shape) for key, value in items.items()}


def check_account(
    conversion: Conversion, foreign: Iterable[str], target: Iterable[str] | None = None
) -> None:
    """Every foreign tensor is used or left, once; every parameter of the net is used or new."""
    used = list(conversion.used.values())
    assert len(set(used)) == len(used)
    assert sorted([*used, *conversion.left]) == sorted(foreign)
    assert all(conversion.left.values())
    ours = [*conversion.used, *conversion.new]
    assert len(set(ours)) == len(ours)
    assert set(conversion.state_dict) <= set(ours) and set(conversion.used) <= set(
        conversion.state_dict
    )
    if target is not None:
        lacking = set(target) ^ set(ours)
        assert all(key.endswith('num_batches_tracked') for key in lacking), lacking
    for line in (*conversion.used.values(), *conversion.left):
        assert line in conversion.account()
    assert '\n' not in conversion.summary
