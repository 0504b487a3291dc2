"""A network made ready for inference: the same outputs from fewer layers.

mmcv's ``fuse_conv_bn`` takes every norm which is *defined* after a convolution for one that *runs*
after it, and does not look into separable layers. Here a pair is folded only where the class that
runs it is known.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import Conv2d as MMCVConv2d
from mmcv.cnn import ConvModule
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssnet_mm.engine.console import tell
from ssnet_mm.layers import SeparableConv2d
from ssnet_mm.models import VGG16

# Exact types: a subclass may compute something else (deformable convolution, parametrisation).
_CONVS = (nn.Conv2d, MMCVConv2d)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout2d)

# Blocks and stems whose `forward` runs `norm<i>` on the output of `conv<i>`, which nothing else
# reads. By the forward's home: subclasses that keep it (ResNetV1c, ResNeXt's) are meant as well.
_NUMBERED_PAIRS = [
    f'{toolbox}.models.backbones.{name}.forward'
    for toolbox in ('mmseg', 'mmpretrain')
    for name in ('resnet.BasicBlock', 'resnet.Bottleneck', 'resnet.ResNet', 'hrnet.HRNet')
]

# Up to here one dense kernel is faster than a depthwise and a pointwise one: the image's channels.
_DENSE_CHANNELS = 4


def fuse(model: nn.Module, *, channels_last: bool = True) -> nn.Module:
    """Copy a model for inference, with the same outputs from fewer layers.

    - A batch norm is folded into the convolution it follows, in a separable layer into the
      pointwise half: in ``ConvModule``, ``nn.Sequential`` and the blocks and stems of ResNet and
      HRNet. Where it is not certain what a norm follows, where hooks are attached or a layer is
      shared, all stays as it is.
    - A ``SeparableConv2d`` of 1x1, or on at most four channels (the image), becomes one
      ``nn.Conv2d``.
    - The dropout of ``VGG16`` and of decode heads is gone.

    Code that reaches into a block, to read what a convolution gave before its norm, finds it
    normalised. The copy is for inference only: in eval mode, without gradients. ``train()`` brings
    back neither norms nor dropout, and its checkpoints do not fit the model that it was made from.
    It shares nothing with that one, which is left as it was: fuse again after further training.

    Args:
        model: Any module: a whole segmentor, or a part.
        channels_last: Lay out the weights for channels-last convolutions, which the activations
            then follow. The outputs are of that layout too; their shapes are the same.

    Returns:
        The copy, on the same device and of the same type.

    Source:
        The folding is section 3.2 of B. Jacob et al., "Quantization and Training of Neural Networks
        for Efficient Integer-Arithmetic-Only Inference", https://arxiv.org/abs/1712.05877.

    Example:
        >>> import torch
        >>> from ssnet_mm import build_model
        >>> from ssnet_mm.deploy import fuse
        >>> model = build_model(21, conv_type='ds', base_channels=8, fc_channels=32).eval()
        >>> fused = fuse(model)
        >>> image = torch.rand(1, 3, 97, 131)
        >>> out, expected = (net(image, mode='tensor') for net in (fused, model))
        >>> torch.allclose(out, expected, atol=1e-4)
        True
    """
    root = nn.ModuleList([copy.deepcopy(model)])
    as_dense = functools.cache(_as_dense)  # a shared layer stays shared
    with torch.no_grad():
        _fold_norms(root)
        for module in list(root.modules()):
            children: dict[str, Any] = module._modules
            drops = isinstance(module, (VGG16, BaseDecodeHead))
            for name, child in children.items():
                if type(child) is SeparableConv2d:
                    children[name] = as_dense(child)
                elif drops and type(child) in _DROPOUTS and not _is_hooked(child):
                    children[name] = nn.Identity()
    for module in root.modules():
        if channels_last and type(module) in (*_CONVS, nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)
    root.eval().requires_grad_(False)
    return root[0]


class FuseHook(Hook):
    """Have a Runner test the fused model, after its weights are loaded."""

    priority = 'LOWEST'  # after EMAHook has put its averages in

    def before_test_epoch(self, runner: Runner) -> None:
        norms = _count(runner.model, _NORMS)
        if is_model_wrapper(runner.model):  # distributed: it passes the test steps on
            runner.model.module = fuse(runner.model.module)
        else:
            runner.model = fuse(runner.model)
        folded = norms - _count(runner.model, _NORMS)
        tell(runner.logger, f'fused for inference: {folded} of {norms} batch norms folded')


class _FoldedConvModule(ConvModule):
    """A ConvModule whose norm is in its convolution for good."""

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        if not norm:
            raise RuntimeError('this ConvModule was fused: it can not run without its norm')
        return super().forward(x, activate)


def _count(module: nn.Module, types: tuple[type[nn.Module], ...]) -> int:
    return sum(type(m) in types for m in module.modules())


def _is_hooked(module: nn.Module) -> bool:
    """Whether a call may do more than the class says (spectral norm, pruning)."""
    return bool(module._forward_hooks or module._forward_pre_hooks or 'forward' in vars(module))


def _pairs(module: Any) -> Iterator[tuple[str, str]]:
    """Names of children of which a module runs the second on the output of the first alone."""
    forward = type(module).forward
    if 'forward' in vars(module):
        return
    if forward is nn.Sequential.forward:
        yield from pairwise(module._modules)
    elif type(module) is ConvModule:
        order = ''.join(step[0] for step in module.order if step != 'act' or module.with_activation)
        if 'cn' in order and module.with_norm:
            yield 'conv', module.norm_name
    elif f'{forward.__module__}.{forward.__qualname__}' in _NUMBERED_PAIRS:
        for i in (1, 2, 3):
            yield f'conv{i}', getattr(module, f'norm{i}_name', '')


def _fold_norms(root: nn.Module) -> None:
    # in how many places each module is registered
    users = Counter(id(c) for m in root.modules() for c in m._modules.values() if c is not None)
    module: Any
    for module in root.modules():
        children = module._modules
        for name, norm_name in _pairs(module):
            layer, norm = children.get(name), children.get(norm_name)
            conv: Any = layer.pointwise if type(layer) is SeparableConv2d else layer
            if type(conv) not in _CONVS or type(norm) not in _NORMS or norm.running_mean is None:
                continue
            if any(users[id(m)] > 1 or _is_hooked(m) for m in (*layer.modules(), norm)):
                continue
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var,
                norm.eps, norm.weight, norm.bias,
            )  # fmt: skip
            children[norm_name] = nn.Identity()
            if type(module) is ConvModule:
                module.efficient_conv_bn_eval_forward = None  # it would fold what is folded
                module.__class__ = _FoldedConvModule


def _as_dense(layer: SeparableConv2d) -> nn.Module:
    """The one convolution that computes the same; the layer itself where the pair is less work."""
    depthwise: Any = layer.depthwise  # its tuples of two are tuples of int to torch's hints
    pointwise = layer.pointwise
    if depthwise.kernel_size != (1, 1) and depthwise.in_channels > _DENSE_CHANNELS:
        return layer
    exact = type(depthwise) in _CONVS and type(pointwise) in _CONVS
    if not exact or any(_is_hooked(module) for module in layer.modules()):
        return layer
    conv = nn.Conv2d(
        depthwise.in_channels,
        pointwise.out_channels,
        depthwise.kernel_size,
        stride=depthwise.stride,
        padding=depthwise.padding,
        dilation=depthwise.dilation,
        bias=pointwise.bias is not None,
        padding_mode=depthwise.padding_mode,
        device='meta',  # nothing is drawn: the caller's random numbers stay as they are
    )
    conv.weight = nn.Parameter(pointwise.weight * depthwise.weight.transpose(0, 1))
    conv.bias = pointwise.bias
    return conv
