"""Training with less memory: keep the outputs of convolutions, compute the rest again.

Batch norm, ReLU, pooling and the cheapest convolutions are computed again in the backward pass.
torch's own contexts for such selective checkpointing serve the compiler alone: in eager mode they
fail in a second backward pass over the same graph, and after two forward passes under one autocast,
which casts the weights in the first of them only.

Sources: Chen et al., https://arxiv.org/abs/1604.06174 (checkpointing); Rota Bulo et al.,
https://arxiv.org/abs/1712.02616 (batch norm computed again).
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

# A convolution with at most so many products per output value is computed again: a depthwise one,
# the first one, a pointwise one of 64 channels. With 32, 64 or 128 FastFCN8 holds 298, 202 or 154
# MiB for an image of 512x512, and a step takes 1.09, 1.11 or 1.15 of a plain one's processor time.
CHEAP_PRODUCTS = 64


def _is_costly(op: Any, args: tuple) -> bool:
    """Whether an operation is a convolution whose output is worth keeping."""
    return op is torch.ops.aten.convolution.default and args[1][0].numel() > CHEAP_PRODUCTS


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """The same as torch's selective checkpointing asks for it."""
    costly = _is_costly(op, args)
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE


class _KeepConvolutions(TorchDispatchMode):
    """Notes the outputs of costly convolutions, or takes them from ``again`` in their place."""

    def __init__(self, again: Iterable[Tensor] | None = None) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.again: Iterator[Tensor] | None = None if again is None else iter(again)

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not _is_costly(op, args):
            return op(*args, **(kwargs or {}))
        if self.again is not None:
            return next(self.again).detach()
        output = op(*args, **(kwargs or {}))
        # a ReLU right after it works in place on what is kept; it may do so twice
        self.outputs.append(output.detach())
        return output


class _Segment:
    """Layers that run once forward, and once more in each backward pass with the same outcome."""

    def __init__(self, layers: nn.Sequential) -> None:
        self.layers = layers
        # The copy has the same parameters. It stays in the mode of the forward pass, and batch norm
        # counts in it when it runs again, not in the original.
        self.copy = copy.deepcopy(layers, {id(p): p for p in layers.parameters()})
        self.outputs: list[Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.outputs is not None:
            with _KeepConvolutions(again=self.outputs):
                return self.copy(x)
        with _KeepConvolutions() as convolutions:
            x = self.layers(x)
        self.outputs = convolutions.outputs
        return x


def _obstacle(layer: nn.Module) -> str | None:
    """Why a layer must not run twice, or None if it may."""
    for module in layer.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return 'it has forward hooks'
        # torch's, mmcv's, ...: they would communicate in the backward pass, between DDP's transfers
        if 'Sync' in type(module).__name__:
            return f'its norm layer is a {type(module).__name__}'
    return None


def _checkpoint(layers: list[nn.Module], x: Tensor) -> Tensor:
    if not layers:
        return x
    stage = nn.Sequential(*layers)
    if torch.compiler.is_compiling():  # the compiler itself repeats values, not side effects
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        return checkpoint(stage, x, use_reentrant=False, context_fn=contexts)
    return checkpoint(_Segment(stage), x, use_reentrant=False)


def recompute_stage(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run layers one after the other, from (N, C, H, W), keeping little for the backward pass.

    Outputs, gradients and the running statistics of batch norm are those of a plain run. A layer
    that must not run twice (``SyncBN``, forward hooks) runs plainly, with a warning.
    """
    if not torch.is_grad_enabled():
        return nn.Sequential(*layers)(x)
    segment: list[nn.Module] = []
    for layer in layers:
        obstacle = _obstacle(layer)
        if obstacle is None:
            segment.append(layer)
        else:
            warnings.warn(f'with_cp saves no memory in a layer: {obstacle}', stacklevel=2)
            x, segment = layer(_checkpoint(segment, x)), []
    return _checkpoint(segment, x)
