"""A segmentor that computes in bfloat16, and weights that lie as a CPU's kernels take them."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.mkldnn import to_mkldnn

from ssnet_mm.engine.console import tell
from ssnet_mm.errors import UserError
from ssnet_mm.models import FCN8Head

# Of a convolution that is packed. Those of FCN8's fc6 take 411 MB, which oneDNN would lay out anew
# at each call; smaller ones stay in its caches, and stay parameters.
_LARGE = 2**20


class _Float32Logits:
    """In front of a decode head's class: what follows the head computes in float32."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        logits = super().forward(*args, **kwargs)  # type: ignore[misc]
        return logits.float() if isinstance(logits, Tensor) else logits


def compute_in_bfloat16(model: nn.Module) -> None:
    """Have the segmentors in a model, or the model itself, compute in bfloat16 from now on.

    Images and logits stay float32, as do batch norms that were not fused, and :class:`FCN8Head`,
    whose arithmetic is nothing beside the backbone's. For inference only.
    """
    segmentors: list[Any] = [m for m in model.modules() if isinstance(m, BaseSegmentor)]
    if not all(hasattr(segmentor, 'backbone') for segmentor in segmentors):
        raise UserError('only segmentors with a backbone and a decode head compute in bfloat16')
    for segmentor in segmentors:
        for part in segmentor.children():
            if not isinstance(part, (BaseDataPreprocessor, FCN8Head)):
                part.bfloat16()
        segmentor.backbone.register_forward_pre_hook(_to_bfloat16)
        for module in segmentor.modules():
            if isinstance(module, _BatchNorm):
                module.float()
            elif isinstance(module, BaseDecodeHead) and not isinstance(module, FCN8Head):
                kind = type(module)
                module.__class__ = type(kind.__name__, (_Float32Logits, kind), {})


class _RoundedConv2d(nn.Conv2d):
    """A convolution of bfloat16 numbers by float32's kernels: exact products, sums in float32."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


def run_in_bfloat16(model: nn.Module) -> None:
    """Have a model compute in bfloat16 in this process.

    On a CPU for which oneDNN has no such convolutions torch's own take thirty times as long as
    float32's; there float32's take their place, with numbers rounded as bfloat16's would be.
    """
    compute_in_bfloat16(model)
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for module in model.modules():
        if type(module) is nn.Conv2d:
            weight = module.weight
            if weight.dtype == torch.bfloat16 and weight.device.type == 'cpu':
                module.__class__ = _RoundedConv2d


def _to_bfloat16(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.bfloat16() for x in inputs)


def pack_weights(model: nn.Module) -> None:
    """Lay out large kernels once, as oneDNN's convolutions take them on this CPU.

    The outputs are the same, but for rounding. For inference on a CPU only, as the last step: what
    is packed are no parameters any more.
    """
    if not torch.backends.mkldnn.is_available():
        return
    takes = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        takes.add(torch.bfloat16)
    for module in list(model.modules()):
        for name, conv in module._modules.items():
            if (
                type(conv) is nn.Conv2d
                and conv.weight.numel() >= _LARGE
                and conv.weight.dtype in takes
                and conv.weight.device.type == 'cpu'
                and conv.padding_mode == 'zeros'
                and not isinstance(conv.padding, str)
                and not (conv._forward_hooks or conv._forward_pre_hooks)
            ):
                module._modules[name] = to_mkldnn(conv.eval(), conv.weight.dtype)


class BFloat16Hook(Hook):
    """Have a Runner test in bfloat16, after weights are loaded and layers fused."""

    priority = 'LOWEST'  # after FuseHook, if that is registered before

    def before_test_epoch(self, runner: Runner) -> None:
        run_in_bfloat16(runner.model)
        tell(runner.logger, 'testing in bfloat16')
