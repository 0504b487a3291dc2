"""Our weights fitted to one net: another class count, more levels, no fc6; nothing by chance."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssnet_mm.errors import UserError
from ssnet_mm.layers.bilinear import bilinear_kernel

from .conversion import Conversion, few, is_bilinear, listed
from .layout import BACKBONE, HEAD, Shape

_AS_BUILT = 'as the net was built'
_SCORES = re.compile(rf'{HEAD}scores\.(\d+)\.(?:pointwise\.)?weight')
_LEVEL = re.compile(rf'{HEAD}(scores|upsamples)\.(-?\d+)\.(.+)')
_FINAL = f'{HEAD}final.weight'


def fit(
    conversion: Conversion, target: Mapping[str, Shape], skip: Sequence[str] = ()
) -> Conversion:
    """Choose what a net takes of some weights.

    Every parameter of the net's backbone must be there, unless it is skipped. In the head:

    - Score layers of another class count, and what depends on it, stay as the net was built.
    - A finer level than the weights have (FCN-16s has one more than FCN-32s) gets zero scores and
      bilinear upsampling, so that the net starts with the coarser one's predictions, as in the
      paper.
    - A head of another kind, or one the weights lack, stays as the net was built.

    Args:
        conversion: Weights under our names.
        target: Names and shapes of the net's state dict: of a segmentor, or of a VGG16 or an
            FCN8Head alone.
        skip: Beginnings of names in ``target`` that stay as the net was built.

    Returns:
        The conversion under the target's names, ``new`` being those no foreign tensor was for.

    Raises:
        UserError: A parameter is missing or misshapen, or one would be lost, or nothing at all is
            for this net; what is at fault is named.
    """
    prefix = _prefix(target)
    names = {prefix + key: shape for key, shape in target.items()}
    idle = [start for start in skip if not any(key.startswith(start) for key in target)]
    if idle:
        raise UserError(f'skip: no parameter of the net begins with {few(idle)}')
    _check_kind(conversion.state_dict, names, prefix)
    theirs = {key: tuple(tensor.shape) for key, tensor in conversion.state_dict.items()}
    levels, classes = _head(names)
    their_levels, their_classes = _head(theirs)
    finer = levels - their_levels if their_levels else 0  # levels are counted from the finest
    other_classes = bool(levels and their_levels) and classes != their_classes

    given = {_shifted(key, finer): key for key in conversion.state_dict}
    state: dict[str, Tensor] = {}
    used, new, left = dict[str, str](), dict[str, str](), dict(conversion.left)
    missing, misshapen, unexpected = list[str](), list[str](), list[str]()
    for key, name in zip(target, names):
        shape = names[name]
        ours = given.pop(name, None)
        if key.startswith(tuple(skip)):
            new[key] = f'{_AS_BUILT}: skipped, as asked'
            if ours is not None:
                left[_origin(conversion, ours)] = 'skipped, as asked'
        elif ours is None:
            level = _LEVEL.fullmatch(name)
            if name.endswith('.num_batches_tracked'):
                continue  # torch counts batches, the others do not
            if name.startswith(BACKBONE) or (level and their_levels and int(level[2]) >= finer):
                missing.append(key)
            elif level is None or not their_levels:
                new[key] = f'{_AS_BUILT}: the source has none'
            elif other_classes or '.depthwise.' in name:
                new[key] = f'{_AS_BUILT}: the source has no level this fine'
            else:
                zero = level[1] == 'scores'
                state[key] = torch.zeros(shape) if zero else bilinear_kernel(classes, shape[-1])
                new[key] = f'{"zero" if zero else "bilinear"}: the source has no level this fine'
        elif other_classes and name.startswith(HEAD):
            new[key] = f'{_AS_BUILT}: for {classes} classes'
            left[_origin(conversion, ours)] = f'for {their_classes} classes'
        elif theirs[ours] == shape:
            state[key], used[key] = conversion.state_dict[ours], _origin(conversion, ours)
        elif name == _FINAL and is_bilinear(conversion.state_dict[ours]):
            new[key] = f'{_AS_BUILT}: of another stride'
            left[_origin(conversion, ours)] = 'fixed bilinear upsampling, of another stride'
        else:
            misshapen.append(f'{key} ({theirs[ours]} instead of {shape})')
    for name, ours in given.items():
        reason = _reason_to_leave(name, conversion.state_dict[ours], names, prefix)
        if reason is None:
            unexpected.append(_origin(conversion, ours))
        else:
            left[_origin(conversion, ours)] = reason
    problems = dict(missing=missing, misshapen=misshapen, unexpected=unexpected)
    if any(problems.values()):
        raise UserError(
            f'{conversion.source} does not fit the net: {listed(problems)}; change the model to '
            'match, or name what may stay as it is built (skip)'
        )
    if not used:
        raise UserError(f'{conversion.source} has nothing for this module')
    return replace(conversion, state_dict=state, used=used, left=left, new=new)


def _origin(conversion: Conversion, ours: str) -> str:
    """The foreign name of what one of our names stands for; ours where it was made anew."""
    return conversion.used.get(ours, ours)


def _prefix(target: Mapping[str, Shape]) -> str:
    """What our names have before a module's own."""
    starts = {f'{BACKBONE}stages.0.0.conv.': '', 'stages.0.0.conv.': BACKBONE, 'scores.0.': HEAD}
    for start, prefix in starts.items():
        if any(key.startswith(start) for key in target):
            return prefix
    raise UserError(
        'foreign weights are for a segmentor whose backbone is VGG16, or for a VGG16 or FCN8Head '
        'alone; this module is none of these'
    )


def _head(shapes: Mapping[str, Shape]) -> tuple[int, int]:
    """Score layers, and their classes; 0, 0 where there are none."""
    scores = {key: found for key in shapes if (found := _SCORES.fullmatch(key))}
    return len(scores), next((shapes[key][0] for key in scores), 0)


def _shifted(key: str, finer: int) -> str:
    level = _LEVEL.fullmatch(key)
    return f'{HEAD}{level[1]}.{int(level[2]) + finer}.{level[3]}' if level else key


def _check_kind(state: Mapping[str, Tensor], names: Mapping[str, Shape], prefix: str) -> None:
    """Say it in words where nets differ as a whole; a list of keys would not help."""
    part = prefix or BACKBONE

    def kind(keys: Iterable[str]) -> tuple[bool, bool]:
        text = ' '.join(key for key in keys if key.startswith(part))
        return '.depthwise.' in text, '.bn.' in text

    if not any(key.startswith(part) for key in state):
        return  # nothing to compare
    (their_separable, their_bn), (separable, bn) = kind(state), kind(names)
    if their_separable != separable:
        raise UserError(
            'the weights are of a separable net (FastFCN8), this one is dense (FCN8); set '
            "conv_cfg=dict(type='SeparableConv2d')"
            if their_separable
            else 'the weights are of dense convolutions, the net has separable ones; ask for the '
            'closest separable ones (factorize), or set conv_cfg=None'
        )
    if their_bn != bn:
        raise UserError(
            'the weights have batch norm, the net has none; set model.backbone.norm_cfg'
            if their_bn
            else 'the net has batch norm, the weights were trained without; set '
            'model.backbone.norm_cfg=None'
        )


def _reason_to_leave(
    name: str, tensor: Tensor, names: Mapping[str, Shape], prefix: str
) -> str | None:
    if prefix and not name.startswith(prefix):
        return 'no part of this module'
    if name == _FINAL and any(key.startswith(f'{HEAD}scores.') for key in names):
        bilinear = is_bilinear(tensor)
        return 'fixed bilinear upsampling, which resizing the logits does' if bilinear else None
    part = '.'.join(name.split('.')[: 3 if name.startswith(f'{BACKBONE}stages.') else 2]) + '.'
    if name.startswith(BACKBONE):
        absent = not any(key.startswith(part) for key in names)
        return f'the net has no {part[len(BACKBONE) : -1]}' if absent else None
    if not any(_LEVEL.fullmatch(key) for key in names):
        return 'the net has another head'
    level = _LEVEL.fullmatch(name)
    return 'the net has no level this fine' if level and int(level[2]) < 0 else None


def with_num_classes(conversion: Conversion, num_classes: int) -> Conversion:
    """Make the score layers, and what depends on them, anew for another number of classes.

    Scores are drawn from a normal distribution of standard deviation 0.01 and upsampling starts
    bilinear, as in a new FCN8Head; everything else is kept.

    Raises:
        UserError: There are no score layers.
    """
    levels, classes = _head({key: tuple(t.shape) for key, t in conversion.state_dict.items()})
    if not levels:
        raise UserError(f'{conversion.source} has no score layers to give {num_classes} classes')
    if classes == num_classes:
        return conversion
    state, used = dict(conversion.state_dict), dict(conversion.used)
    new, left = dict(conversion.new), dict(conversion.left)
    for key, tensor in conversion.state_dict.items():
        if not (_LEVEL.fullmatch(key) or key == _FINAL):
            continue
        if 'scores' not in key:
            state[key], new[key] = bilinear_kernel(num_classes, tensor.shape[-1]), 'bilinear'
        elif '.depthwise.' in key:
            state[key], new[key] = torch.ones_like(tensor), 'one'
        elif key.endswith('.bias'):
            state[key], new[key] = torch.zeros(num_classes), 'zero'
        else:
            state[key] = 0.01 * torch.randn(num_classes, *tensor.shape[1:])
            new[key] = 'drawn from a normal distribution of standard deviation 0.01'
        new[key] += f', for {num_classes} classes'
        left[used.pop(key)] = f'for {classes} classes'
    return replace(conversion, state_dict=state, used=used, left=left, new=new)
