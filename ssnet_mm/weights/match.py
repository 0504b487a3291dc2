"""Weights matched with one network: every name and shape fits, or the difference is explained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssnet_mm.engine.checkpoint import is_finite
from ssnet_mm.errors import UserError, few, listed
from ssnet_mm.layers.bilinear import bilinear_kernel

from .conversion import BACKBONE, HEAD, Conversion, Shape, is_bilinear

_SCORES = re.compile(rf'{HEAD}scores\.(\d+)\.(?:pointwise\.)?weight')
_LEVEL = re.compile(rf'{HEAD}(scores|upsamples)\.(-?\d+)\.(.+)')
_FINAL = f'{HEAD}final.weight'
COUNTER = '.num_batches_tracked'  # torch counts batches, the others do not


def mismatches(
    weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> tuple[list[str], list[str]]:
    """The one strict check of weights against a network's names and shapes.

    Returns:
        The names that are missing, batch counters excepted, and those whose shapes differ.
    """
    missing = [key for key in shapes if key not in weights and not key.endswith(COUNTER)]
    theirs = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    return missing, [key for key, shape in shapes.items() if theirs.get(key, shape) != shape]


def match(
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
    names = {prefix + key: key for key in target}  # ours, as in a segmentor, to the target's
    idle = [start for start in skip if not any(key.startswith(start) for key in target)]
    if idle:
        raise UserError(f'skip: no parameter of the net begins with {few(idle)}')
    _check_kind(conversion.state_dict, names, prefix or BACKBONE)
    levels, classes = _head({name: target[key] for name, key in names.items()})
    theirs = {ours: tuple(weight.shape) for ours, weight in conversion.state_dict.items()}
    their_levels, their_classes = _head(theirs)
    finer = levels - their_levels if their_levels else 0  # levels are counted from the finest
    other_classes = bool(levels and their_levels) and classes != their_classes

    given = {_shifted(ours, finer): ours for ours in theirs}
    state, used, new = dict[str, Tensor](), dict[str, str](), dict[str, str]()
    left, unexpected = dict(conversion.left), list[str]()

    def as_built(key: str, why: str, ours: str | None = None, reason: str = '') -> None:
        """Leave a parameter of the net as it is, and the weight there is for it, if any."""
        new[key] = f'as the net was built: {why}'
        if ours is not None:
            left[conversion.used.get(ours, ours)] = reason or why

    for name, key in names.items():
        shape, ours = target[key], given.pop(name, None)
        level = _LEVEL.fullmatch(name) if their_levels else None
        if key.startswith(tuple(skip)):
            as_built(key, 'skipped, as asked', ours)
        elif ours is not None and other_classes and name.startswith(HEAD):
            as_built(key, f'for {classes} classes', ours, f'for {their_classes} classes')
        elif (
            ours is not None
            and name == _FINAL
            and shape != theirs[ours]
            and is_bilinear(conversion.state_dict[ours])
        ):
            as_built(key, 'of another stride', ours, 'fixed bilinear upsampling, of another stride')
        elif ours is not None:
            state[key], used[key] = conversion.state_dict[ours], conversion.used.get(ours, ours)
        elif (
            name.startswith(BACKBONE)
            or name.endswith(COUNTER)
            or (level and int(level[2]) >= finer)
        ):
            continue  # missing, unless it counts batches: the check below tells
        elif level is None:
            as_built(key, 'the source has none')
        elif other_classes or '.depthwise.' in name:
            as_built(key, 'the source has no level this fine')
        elif level[1] == 'scores':
            state[key], new[key] = torch.zeros(shape), 'zero: the source has no level this fine'
        else:
            state[key] = bilinear_kernel(classes, shape[-1])
            new[key] = 'bilinear: the source has no level this fine'
    for name, ours in given.items():
        reason = _reason_to_leave(name, conversion.state_dict[ours], names, prefix)
        foreign = conversion.used.get(ours, ours)
        if reason is None:
            unexpected.append(foreign)
        else:
            left[foreign] = reason
    missing, misshapen = mismatches(state, {k: v for k, v in target.items() if k not in new})
    described = [f'{key} ({tuple(state[key].shape)} instead of {target[key]})' for key in misshapen]
    problems = listed(dict(missing=missing, misshapen=described, unexpected=unexpected))
    if problems:
        raise UserError(
            f'{conversion.source} does not fit the net: {problems}; change the model to match, or '
            'name what may stay as it is built (skip)'
        )
    if not used:
        raise UserError(f'{conversion.source} has nothing for this module')
    check_finite(state, used)
    return replace(conversion, state_dict=state, used=used, left=left, new=new)


def check_finite(state: Mapping[str, Tensor], used: Mapping[str, str]) -> None:
    """Raise UserError that names the weights which hold NaN or infinity."""
    bad = [used.get(key, key) for key, tensor in state.items() if not is_finite(tensor)]
    if bad:
        raise UserError(
            f'NaN or infinity in {few(bad)}; take another file, or leave them out (skip) if they '
            'are meant to be learned anew'
        )


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
    scores = [shape for key, shape in shapes.items() if _SCORES.fullmatch(key)]
    return len(scores), scores[0][0] if scores else 0


def _shifted(ours: str, finer: int) -> str:
    """One of our names with its level counted as in a net of so many finer levels."""
    level = _LEVEL.fullmatch(ours)
    return f'{HEAD}{level[1]}.{int(level[2]) + finer}.{level[3]}' if level else ours


def _check_kind(theirs: Iterable[str], names: Iterable[str], part: str) -> None:
    """Say it in words where nets differ as a whole in some part; a list of keys would not help."""
    given, needed = (
        ' '.join(key for key in keys if key.startswith(part)) for keys in (theirs, names)
    )
    if not given:
        return
    their_separable, separable = ('.depthwise.' in keys for keys in (given, needed))
    if their_separable != separable:
        raise UserError(
            'the weights are of a separable net (FastFCN8), this one is dense (FCN8); set '
            "conv_cfg=dict(type='SeparableConv2d')"
            if their_separable
            else 'the weights are of dense convolutions, the net has separable ones; ask for the '
            'closest separable ones (factorize), or set conv_cfg=None'
        )
    their_bn, bn = ('.bn.' in keys for keys in (given, needed))
    if their_bn != bn:
        raise UserError(
            'the weights have batch norm, the net has none; set model.backbone.norm_cfg'
            if their_bn
            else 'the net has batch norm, the weights were trained without; set '
            'model.backbone.norm_cfg=None, or fit them to images: tools/convert_weights.py '
            '--bn-batches'
        )


def _reason_to_leave(name: str, weight: Tensor, names: Iterable[str], prefix: str) -> str | None:
    """Why a weight of ours may be left for which the net has no place; None if it may not."""
    if prefix and not name.startswith(prefix):
        return 'no part of this module'
    if name == _FINAL and any(key.startswith(f'{HEAD}scores.') for key in names):
        bilinear = is_bilinear(weight)
        return 'fixed bilinear upsampling, which resizing the logits does' if bilinear else None
    if name.startswith(BACKBONE):
        part = '.'.join(name.split('.')[: 3 if name.startswith(f'{BACKBONE}stages.') else 2])
        absent = not any(key.startswith(f'{part}.') for key in names)
        return f'the net has no {part.removeprefix(BACKBONE)}' if absent else None
    if not any(_LEVEL.fullmatch(key) for key in names):
        return 'the net has another head'
    level = _LEVEL.fullmatch(name)
    return 'the net has no level this fine' if level and int(level[2]) < 0 else None


def with_num_classes(conversion: Conversion, num_classes: int) -> Conversion:
    """Make the score layers, and what depends on them, anew for another number of classes.

    Scores are drawn from a normal distribution of standard deviation 0.01 and upsampling starts
    bilinear, as in a new FCN8Head; everything else is kept.

    Raises:
        UserError: There are no score layers, or nothing to tell apart.
    """
    if num_classes < 1:
        raise UserError(f'{num_classes} classes: expected 1 or more')
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
            state[key], made = bilinear_kernel(num_classes, tensor.shape[-1]), 'bilinear'
        elif '.depthwise.' in key:
            state[key], made = torch.ones_like(tensor), 'one'
        elif key.endswith('.bias'):
            state[key], made = torch.zeros(num_classes), 'zero'
        else:
            state[key] = 0.01 * torch.randn(num_classes, *tensor.shape[1:])
            made = 'drawn from a normal distribution of standard deviation 0.01'
        new[key] = f'{made}, for {num_classes} classes'
        left[used.pop(key)] = f'for {classes} classes'
    return replace(conversion, state_dict=state, used=used, left=left, new=new)
