"""Foreign weights under our names, with an account of every tensor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ssnet_mm.constants import CAFFE_MEAN_BGR, IMAGENET_MEAN, IMAGENET_STD
from ssnet_mm.engine.input import Input
from ssnet_mm.errors import few
from ssnet_mm.layers.bilinear import bilinear_kernel

BACKBONE, HEAD = 'backbone.', 'decode_head.'  # what a segmentor's names begin with
OURS = "ssnet_mm's"  # what the source of our own weights begins with

Shape = tuple[int, ...]


IMAGENET_RGB = Input('RGB', IMAGENET_MEAN, IMAGENET_STD)
CAFFE_BGR = Input('BGR', CAFFE_MEAN_BGR, (1.0, 1.0, 1.0))
SSNET_RGB = Input('RGB', (123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
# What can be said of a file whose names do not tell it.
INPUTS = {
    'imagenet': IMAGENET_RGB,
    'caffe': CAFFE_BGR,
    'ssnet': SSNET_RGB,
    'unit': Input('RGB', (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),  # grey values from 0 to 1
}


@dataclass(frozen=True)
class Conversion:
    """Weights under our names, and where each of them came from.

    Args:
        source: The format and net they come from, in words.
        state_dict: Our names to tensors in our layouts.
        used: Our names to the foreign ones.
        left: Foreign names that were not used, to the reason.
        new: Our names that no foreign tensor was for, to what they hold instead.
        notes: What else a user should know, a sentence each.
        bn_eps: The epsilon inside the square root of the batch norm that these weights are for;
            None where there is none, or the source does not fix it.
        input: The image the weights expect; None where the source does not fix it.
        level_scales: Fixed factors on the levels before their score layers, finest first; None
            where the source does not fix them.
        errors: Of split kernels, by layer: the error's share of the kernel's norm, 0 to 1.
    """

    source: str
    state_dict: dict[str, Tensor]
    used: dict[str, str]
    left: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bn_eps: float | None = None
    input: Input | None = None
    level_scales: tuple[float, ...] | None = None
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether the weights were trained by this package's own layers."""
        return self.source.startswith(OURS)

    @property
    def summary(self) -> str:
        """One line: how much was used, and what was left, why."""
        parts = [f'{self.source}: {len(self.used)} tensors used']
        for kind, tensors in dict(left=self.left, new=self.new).items():
            reasons: dict[str, list[str]] = {}
            for key, reason in tensors.items():
                reasons.setdefault(reason, []).append(key)
            groups = [f'{few(keys)} ({reason})' for reason, keys in reasons.items()]
            if groups:
                parts.append(f'{len(tensors)} {kind}: {", ".join(groups)}')
        return '; '.join([*parts, *self.notes])

    def account(self) -> str:
        """A line for every tensor: where it came from, or why it was left."""
        width = max(map(len, self.used), default=0)
        lines = [self.source]
        for ours, foreign in self.used.items():
            shape = 'x'.join(map(str, self.state_dict[ours].shape)) or 'scalar'
            lines.append(f'  used  {ours:<{width}}  <-  {foreign}  ({shape})')
        lines += [f'  new   {ours}: {reason}' for ours, reason in self.new.items()]
        lines += [f'  left  {foreign}: {reason}' for foreign, reason in self.left.items()]
        lines += [f'  error {layer}: {error:.3f}' for layer, error in self.errors.items()]
        lines += [f'  note  {note}' for note in self.notes]
        return '\n'.join(lines)


def with_bn_eps(conversion: Conversion, eps: float) -> Conversion:
    """Fit the weights to a net whose batch norm has another epsilon: in evaluation it computes the
    same.

    Batch norm scales by weight / sqrt(running_var + eps): the weight takes up the difference. The
    running statistics stay as they are, they are the data's.
    """
    theirs = conversion.bn_eps
    if theirs is None or theirs == eps:
        return conversion
    state = dict(conversion.state_dict)
    for key, var in conversion.state_dict.items():
        if key.endswith('.running_var'):
            weight = key.replace('running_var', 'weight')
            factor = ((var.double() + eps) / (var.double() + theirs)).sqrt()
            state[weight] = (state[weight].double() * factor).to(state[weight].dtype)
    note = f'batch norm weights adjusted from eps {theirs:g} to {eps:g}'
    return replace(conversion, state_dict=state, bn_eps=eps, notes=(*conversion.notes, note))


def is_bilinear(weight: Tensor) -> bool:
    """Whether a transposed convolution's weight is the fixed bilinear one."""
    kernel = bilinear_kernel(weight.shape[0], weight.shape[-1])
    return weight.shape == kernel.shape and torch.allclose(
        weight.float(), kernel, rtol=0, atol=1e-6
    )
