"""Training with less memory: keep the outputs of convolutions, compute the rest again.

For the backward pass autograd keeps the input of every convolution, of every batch norm and of
every ReLU. Most of that follows from a few of them at little cost. Here a stage is cut into
segments, each of which ends right after a convolution, and each runs under
:func:`torch.utils.checkpoint.checkpoint`: its input is kept, what lies between is computed again in
the backward pass. The convolution at its end is not, as checkpoint stops as soon as that
convolution's input is there. So the costly convolutions run once, and batch norm, ReLU and the
cheap convolutions twice.

Source of the idea: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost",
https://arxiv.org/abs/1604.06174; S. Rota Bulo et al., "In-Place Activated BatchNorm for
Memory-Optimized Training of DNNs", https://arxiv.org/abs/1712.02616.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssnet_mm.layers import SeparableConv2d

# A convolution with at most so many products per output value is computed again: its output costs
# less than a depthwise convolution's, which is slow for its size.
CHEAP_PRODUCTS = 128

# Norm layers without running statistics may simply run twice. SyncBatchNorm is left out: it would
# communicate in the backward pass, between DDP's own transfers.
STATELESS_NORMS = (nn.GroupNorm, nn.InstanceNorm2d)

Statistics = tuple[Tensor, Tensor]  # mean and 1 / standard deviation of a batch, by channel


class _BatchNorm(torch.autograd.Function):
    """Batch norm in training, which may be told the batch's statistics instead of taking them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
        known: list[Statistics],
    ) -> Tensor:
        if not known:
            y, mean, invstd = torch.native_batch_norm(
                x, weight, bias, *running, True, momentum, eps
            )
            known.append((mean, invstd))
        else:  # no pass over x for its statistics, and the running ones stay as they are
            mean, invstd = known[0]
            variance = invstd**-2 - eps
            y = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, invstd, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return (*grads, None, None, None, None)


class _MaxPool2d(torch.autograd.Function):
    """Max-pooling that keeps its indices in 32 bits, and not its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        y, indices = F.max_pool2d(x, *args, return_indices=True)
        ctx.save_for_backward(indices.int())
        ctx.args, ctx.shape, ctx.memory_format = args, x.shape, torch.contiguous_format
        if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            ctx.memory_format = torch.channels_last
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        # Of the input the kernel reads the shape alone.
        shape = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.memory_format
        )
        kernel, stride, padding, dilation, ceil_mode = ctx.args
        grad_input = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, shape, kernel, stride, padding, dilation, ceil_mode, indices.long()
        )
        return (grad_input, *(None for _ in ctx.args))


class _Segment:
    """Layers that run once forward, and once more in the backward pass with the same outcome."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.statistics: dict[nn.Module, list[Statistics]] = {
            layer: [] for layer in layers if isinstance(layer, nn.BatchNorm2d) and layer.training
        }

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self._norm(layer, x) if isinstance(layer, nn.BatchNorm2d) else layer(x)
        return x

    def _norm(self, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        known = self.statistics.get(norm)
        if known is None:  # in eval mode in the forward pass, whatever it is in now
            running = (norm.running_mean, norm.running_var)
            batch = norm.running_mean is None
            return F.batch_norm(x, *running, norm.weight, norm.bias, batch, 0.0, norm.eps)
        momentum = norm.momentum or 0.0
        if not known and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:  # the plain mean over all batches
                momentum = 1.0 / float(norm.num_batches_tracked)
        running = (norm.running_mean, norm.running_var)
        return _BatchNorm.apply(x, norm.weight, norm.bias, running, momentum, norm.eps, known)


def _products(conv: nn.Conv2d) -> int:
    """Products per output value."""
    return conv.weight[0].numel()


def _hooked(layer: nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())


def _obstacle(layer: nn.Module) -> str | None:
    """Why a layer can't be taken apart, or None if it can."""
    if type(layer) is not ConvModule or layer.order != ('conv', 'norm', 'act'):
        return 'it is not a ConvModule of the order conv, norm, act'
    if layer.with_explicit_padding:
        return 'it pads by a layer of its own'
    if not isinstance(layer.conv, (nn.Conv2d, SeparableConv2d)):
        return f'its convolution is a {type(layer.conv).__name__}'
    if layer.with_norm:
        norm = layer.norm
        if type(norm) is not nn.BatchNorm2d and not isinstance(norm, STATELESS_NORMS):
            return f'its norm layer is a {type(norm).__name__}'
        if getattr(norm, 'track_running_stats', False) and isinstance(norm, nn.InstanceNorm2d):
            return 'its norm layer tracks statistics'
    if _hooked(layer):
        return 'it has forward hooks'
    return None


def _parts(layer: ConvModule) -> Iterable[tuple[nn.Module, bool]]:
    """The layers of a ConvModule in turn, each with whether its output is kept."""
    conv = layer.conv
    if isinstance(conv, SeparableConv2d):
        keep = _products(conv.pointwise) > CHEAP_PRODUCTS
        yield conv.depthwise, not keep
        yield conv.pointwise, keep
    else:
        keep = _products(conv) > CHEAP_PRODUCTS
        yield conv, keep
    if layer.with_norm:
        yield layer.norm, False
    if layer.with_activation:
        # Right after the convolution it works in place, on what is kept.
        yield layer.activate, keep and not layer.with_norm


def _run(layers: list[nn.Module], x: Tensor) -> Tensor:
    if len(layers) == 1:  # nothing between two kept values
        return layers[0](x)
    if torch.compiler.is_compiling():  # the compiler itself repeats values, not side effects

        def segment(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        return checkpoint(segment, x, use_reentrant=False, preserve_rng_state=False)
    if not x.requires_grad and not any(
        p.requires_grad for layer in layers for p in layer.parameters()
    ):
        return _Segment(layers)(x)  # frozen: nothing to keep
    return checkpoint(_Segment(layers), x, use_reentrant=False, preserve_rng_state=False)


def recompute_stage(stage: Any, x: Tensor) -> Tensor:
    """Run ConvModules one after the other, keeping little for the backward pass.

    Outputs, gradients and the running statistics of batch norm are those of a plain run, up to
    rounding of the gradients. Without gradients it is a plain run. A layer that can't be taken
    apart (``SyncBN`` in place of ``BN``, forward hooks, another conv layer type) runs plainly and
    keeps all it wants; a warning says so.

    Args:
        stage: The ConvModules, an ``nn.Sequential`` of them.
        x: Input of the first, (N, C, H, W).

    Returns:
        Output of the last, (N, C', H', W').
    """
    if not torch.is_grad_enabled():
        for layer in stage:
            x = layer(x)
        return x
    segment: list[nn.Module] = []
    for layer in stage:
        obstacle = _obstacle(layer)
        if obstacle is not None:
            warnings.warn(f'with_cp saves no memory in a layer: {obstacle}', stacklevel=2)
            x = _run(segment, x) if segment else x
            x, segment = layer(x), []
            continue
        for part, keep in _parts(layer):
            segment.append(part)
            if keep:
                x, segment = _run(segment, x), []
    return _run(segment, x) if segment else x


def recompute_max_pool2d(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """Pool as ``pool`` does, without its input being kept for the backward pass.

    Args:
        pool: The layer whose settings count.
        x: Map of shape (N, C, H, W).

    Returns:
        Map of shape (N, C, H', W').
    """
    args = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)
    if not x.requires_grad or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.max_pool2d(x, *args)
    pairs = [[a, a] if isinstance(a, int) else list(a) for a in args[:4]]
    return _MaxPool2d.apply(x, *pairs, pool.ceil_mode)
