"""What stands beside the weights of a checkpoint, checked before anything relies on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ssnet_mm.errors import UserError
from ssnet_mm.palette import is_palette

_LARGEST = 1 << 32  # iterations, epochs, seeds: NumPy takes seeds below it
_LONGEST = 1000  # class names, and characters of one


def check_meta(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Is ``meta``, where a checkpoint has it, what mmengine and mmseg write?

    Raises:
        UserError: It is not.
    """
    _tell(path, _faults_of_meta(checkpoint))


def dataset_meta(meta: Any) -> dict[str, Any]:
    """What ``meta`` tells of the training data, as classes and palette; empty if it is nothing."""
    meta = meta if isinstance(meta, Mapping) else {}
    if meta.get('CLASSES') and not meta.get('dataset_meta'):  # of mmseg 0.x
        return {'classes': meta['CLASSES'], 'palette': meta.get('PALETTE')}
    return dict(meta.get('dataset_meta') or {})


def check_resumable(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Is what resuming takes from a checkpoint of the right kinds?

    Raises:
        UserError: It is not.
    """
    _tell(path, _faults_of_run(checkpoint))


def _tell(path: str | os.PathLike[str], faults: Iterator[str]) -> None:
    fault = next(faults, None)
    if fault:
        raise UserError(
            f'{os.fspath(path)} is damaged or not of mmengine: {fault}; take another checkpoint, '
            'or its state_dict alone'
        )


def _faults_of_meta(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    meta = checkpoint.get('meta')
    if meta is None or ('meta' in checkpoint and isinstance(meta, Tensor)):  # a state dict alone
        return
    if not isinstance(meta, Mapping):
        yield f'meta is a {type(meta).__name__}'
        return
    for key in ('iter', 'epoch', 'seed'):
        if meta.get(key) is not None and not _counts(meta[key]):
            yield f'meta.{key} is {_shown(meta[key])}'
    dataset = meta.get('dataset_meta')
    if dataset is not None and not isinstance(dataset, Mapping):
        yield f'meta.dataset_meta is a {type(dataset).__name__}'
        return
    old = {'classes': meta.get('CLASSES'), 'palette': meta.get('PALETTE')}  # of mmseg 0.x
    for where, found in (('meta', old), ('meta.dataset_meta', dataset or {})):
        classes, palette = found.get('classes'), found.get('palette')
        if classes is not None and not (
            isinstance(classes, (list, tuple))
            and len(classes) <= _LONGEST
            and all(isinstance(name, str) and len(name) <= _LONGEST for name in classes)
        ):
            yield f'the classes of {where} are no list of names'
        if palette is not None and not is_palette(palette):
            yield f'the palette of {where} is no list of RGB colours'


def _faults_of_run(checkpoint: Mapping[str, Any]) -> Iterator[str]:
    meta = checkpoint['meta']
    if not isinstance(meta, Mapping):
        yield f'meta is a {type(meta).__name__}'
        return
    for key in ('iter', 'epoch'):
        if not _counts(meta.get(key)):
            yield f'meta.{key} is {_shown(meta.get(key))}'
    hub = checkpoint['message_hub']
    for key in ('log_scalars', 'runtime_info', 'resumed_keys'):
        if not isinstance(hub, Mapping) or not isinstance(hub.get(key), Mapping):
            yield f'message_hub has no {key}'
            return
    for name, history in hub['log_scalars'].items():
        if not isinstance(name, str) or not _is_history(history):
            yield f'message_hub.log_scalars.{_shown(name)} is no history'
    for key, value in hub['runtime_info'].items():
        score = not str(key).startswith('best_score') or _is_number(value)
        kept = key != 'keep_ckpt_ids' or isinstance(value, (list, tuple))
        counted = key != 'early_stopping' or _are_counts(value)
        if not (isinstance(key, str) and score and kept and counted):
            yield f'message_hub.runtime_info.{_shown(key)} is {_shown(value)}'
    if not all(isinstance(k, str) and type(v) is bool for k, v in hub['resumed_keys'].items()):
        yield 'message_hub.resumed_keys has something else than true and false'
    if not isinstance(checkpoint['optimizer'], Mapping):
        yield f'the optimizer is a {type(checkpoint["optimizer"]).__name__}'
    schedulers = checkpoint.get('param_schedulers')
    if schedulers is not None and not isinstance(schedulers, (list, tuple, Mapping)):
        yield f'param_schedulers is a {type(schedulers).__name__}'


def _shown(value: Any) -> str:
    return repr(value)[:40] if isinstance(value, (int, float, str, type(None))) else 'no number'


def _counts(value: Any) -> bool:
    """Whether it is a whole number as counters are."""
    return type(value) is int and 0 <= value < _LARGEST


def _are_counts(value: Any) -> bool:
    """Whether it is what ``StopHook`` keeps of early stopping: of each hook name, count, score."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(row, (list, tuple))
        and len(row) == 3
        and isinstance(row[0], str)
        and _counts(row[1])
        and _is_number(row[2])
        for row in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_history(history: Any) -> bool:
    """Whether it is a HistoryBuffer, or one as ``to_plain`` writes it; mmengine skips others."""
    parts: Sequence[Any]
    if isinstance(history, HistoryBuffer):
        found = vars(history)
        parts = found.get('_log_history'), found.get('_count_history')
        longest = found.get('max_length')
    elif isinstance(history, Mapping):
        parts = history.get('log_history'), history.get('count_history')
        longest = history.get('max_length')
    else:
        return _is_number(history)
    return (
        type(longest) is int
        and 0 < longest < _LARGEST
        and all(isinstance(part, (np.ndarray, Tensor)) and part.ndim == 1 for part in parts)
        and len(parts[0]) == len(parts[1]) <= longest
        and all('object' not in str(part.dtype) for part in parts)
    )
