"""A foreign state dict turned into ours, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ssnet_mm.errors import UserError
from ssnet_mm.layers.bilinear import bilinear_kernel

from .layout import BACKBONE, BN_PARAMETERS, HEAD, Shape, Sizes, layout

_SHOWN_KEYS = 3  # of each kind of mismatch, so that the message stays one readable line


@dataclass(frozen=True)
class Input:
    """The image that weights were trained on: (grey value - mean) / std, channels in this order."""

    channels: str  # 'RGB' or 'BGR'
    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET_RGB = Input('RGB', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE_BGR = Input('BGR', (104.00699, 116.66877, 122.67892), (1.0, 1.0, 1.0))


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
        errors: Of factorised kernels, by layer: the error's share of the kernel's norm, 0 to 1.
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


def few(keys: list[str]) -> str:
    """The first few names, for a message."""
    return ', '.join(keys[:_SHOWN_KEYS]) + (', ...' if len(keys) > _SHOWN_KEYS else '')


def listed(problems: Mapping[str, list[str]]) -> str:
    """What is wrong with which names, for a message; empty where nothing is."""
    return '; '.join(f'{len(keys)} {kind}: {few(keys)}' for kind, keys in problems.items() if keys)


def _infer_sizes(
    shape_of: Callable[[str], Shape | None], name: Callable[[str], str], levels: int
) -> Sizes:
    """Read the widths off a few tensors.

    Args:
        shape_of: Gives the shape, in our layout, of what one of our names stands for, or None.
        name: One of our names to the foreign one.
        levels: Score layers in the source.

    Raises:
        UserError: The first convolution, which everything else is measured by, is not there.
    """
    stem = f'{BACKBONE}stages.0.0'
    depthwise, pointwise = (
        shape_of(f'{stem}.conv.{half}.weight') for half in ('depthwise', 'pointwise')
    )
    separable = depthwise is not None or pointwise is not None
    half = '.pointwise' if separable else ''

    def width(*layers: str) -> int | None:
        """Outputs of the first of these layers of which anything is there."""
        keys = [
            f'{layer}{half}.{parameter}' for layer in layers for parameter in ('weight', 'bias')
        ]
        return next((shape[0] for key in keys if (shape := shape_of(key))), None)

    first = f'{stem}.conv{half}.weight'
    shape = shape_of(first)
    if shape is None:
        raise UserError(f'{name(first)} is missing, the first convolution; check the file')
    if len(shape) != 4:
        raise UserError(
            f'{name(first)}, the first convolution, is misshapen: {shape}; check the file'
        )
    return Sizes(
        in_channels=shape[1],
        base_channels=shape[0],
        fc_channels=width(f'{BACKBONE}fc6.conv', f'{BACKBONE}fc7.conv'),
        separable=separable,
        bn=any(shape_of(f'{stem}.bn.{parameter}') for parameter in BN_PARAMETERS),
        levels=levels,
        num_classes=(width(*(f'{HEAD}scores.{i}' for i in range(levels))) or 0) if levels else 0,
        final=bool(levels and shape_of(f'{HEAD}final.weight')),
    )


def convert(
    source: str,
    tensors: Mapping[str, Tensor],
    name: Callable[[str], str],
    to_ours: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    reason_to_leave: Callable[[str], str | None] = lambda _: None,
    levels: int = 0,
    bn_eps: float | None = None,
    **kwargs: Any,
) -> Conversion:
    """Rename and lay out a foreign state dict, whole or not at all.

    Args:
        source: The format and net, in words.
        tensors: The foreign state dict.
        name: One of our names to the foreign one.
        to_ours: One of our names and the foreign tensor to the tensor in our layout.
        reason_to_leave: Why a foreign tensor that has no place in our nets may be left; None if
            there is no reason, which is an error.
        levels: Score layers in the source.
        bn_eps: The epsilon of the source's batch norm, if it has any.
        **kwargs: Other fields of the :class:`Conversion`.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected; it is named.
    """

    def get(key: str) -> Tensor | None:
        foreign = tensors.get(name(key))
        return None if foreign is None else to_ours(key, foreign)

    def shape_of(key: str) -> Shape | None:
        tensor = get(key)
        return None if tensor is None else tuple(tensor.shape)

    try:
        sizes = _infer_sizes(shape_of, name, levels)
    except UserError as error:
        raise UserError(f'these are not the weights of {source}: {error}') from error
    shapes = layout(sizes)
    state: dict[str, Tensor] = {}
    missing, misshapen = [], []
    for key, shape in shapes.items():
        tensor = get(key)
        if tensor is None:
            missing.append(name(key))
        elif tuple(tensor.shape) != shape:
            theirs = tuple(tensors[name(key)].shape)
            misshapen.append(f'{name(key)} {theirs}, for {key} {shape}')
        elif not tensor.is_floating_point():
            misshapen.append(f'{name(key)} of {tensor.dtype}, not floating point')
        else:
            state[key] = tensor.contiguous()
        if key.endswith('.running_var'):  # torch counts batches, the others do not
            counter = key.replace('running_var', 'num_batches_tracked')
            count = get(counter)
            if count is not None:
                state[counter] = count
    used = {key: name(key) for key in state}
    known = {*used.values(), *map(name, shapes)}
    left = {key: reason_to_leave(key) for key in tensors if key not in known}
    problems = {
        'missing': missing,
        'misshapen': misshapen,
        'unexpected': [key for key, reason in left.items() if reason is None],
    }
    if any(problems.values()):
        raise UserError(
            f'these are not the weights of {source}: {listed(problems)}; check the file, or name '
            'its source'
        )
    reasons = {key: reason for key, reason in left.items() if reason is not None}
    bn_eps = bn_eps if sizes.bn else None
    return Conversion(source, state, used, reasons, bn_eps=bn_eps, **kwargs)


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
