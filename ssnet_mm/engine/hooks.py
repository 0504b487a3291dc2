"""Checkpoints that hold plain data, are read safely, and are loaded whole."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ssnet_mm.engine.checkpoint import (
    Place,
    allow_history,
    check_finite,
    chosen_otherwise,
    find_checkpoint,
    load_state_dict,
    pretrained_weights,
    read_checkpoint,
    read_to_load,
    scored_otherwise,
    training_config,
    was_read,
    weights_of,
)

# What torch's weights-only loading takes as it is. Exact types: it knows no subclass of them.
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device,
)  # fmt: skip


def to_plain(value: Any) -> Any:
    """Turn a value into one that torch's weights-only loading takes without any allow-list.

    Containers keep their kind where it is known to that loading; those with nothing to turn are
    returned themselves, with what hangs on them (a state dict has ``_metadata``). An array becomes
    a list, a HistoryBuffer a dict, and what has no plain form its ``str``.
    """
    if type(value) in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, HistoryBuffer):
        log, count = value.data
        return {
            'log_history': torch.from_numpy(log),
            'count_history': torch.from_numpy(count),
            'max_length': value.max_length,
        }
    if isinstance(value, (np.ndarray, np.generic)):
        return to_plain(value.tolist())
    if isinstance(value, Mapping):
        items = [(to_plain(k), to_plain(v)) for k, v in value.items()]
        known = type(value) in (dict, OrderedDict)
        pairs = zip(items, value.items(), strict=True)
        same = all(k is a and v is b for (k, v), (a, b) in pairs)
        return value if known and same else dict(items)
    for sequence in (list, tuple):
        if isinstance(value, sequence):
            return sequence(to_plain(part) for part in value)
    if isinstance(value, (set, frozenset)):
        return {to_plain(part) for part in value}
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    return str.__str__(value) if isinstance(value, str) else str(value)


def restore_history(checkpoint: dict[str, Any]) -> None:
    """Turn the log histories of a plain checkpoint back into HistoryBuffers, in place."""
    scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
    for name, value in scalars.items():
        if isinstance(value, Mapping):
            scalars[name] = HistoryBuffer(
                value['log_history'].cpu().numpy(),
                value['count_history'].cpu().numpy(),
                value['max_length'],
            )


def keep_own_files(checkpoint: dict[str, Any], place: Place) -> list[str]:
    """Have a checkpoint name files of this run alone, in place.

    mmengine removes the best checkpoint that a resumed one names, wherever it lies: a copied run
    would remove the original's, and a hostile file any. The score of a best checkpoint that is not
    there is forgotten, or a run that never reaches it again would have none; what is resumed is
    validated anew.

    Returns:
        A note for each of these.
    """
    notes = []
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    for key in [k for k in info if k.startswith(('best_ckpt', 'last_ckpt'))]:
        own = os.path.join(place.folder, os.path.basename(str(info[key])))
        if re.fullmatch(
            rf'(best_|iter_|epoch_).*\.pth|{place.name}', os.path.basename(own)
        ) and os.path.isfile(own):
            info[key] = own
        else:
            score = key.replace('best_ckpt', 'best_score')
            if score != key and score in info and not place.remote:
                notes.append(
                    f'{os.path.basename(own)}, the best checkpoint until now, is not in '
                    f'{place.folder}; its score is not compared with those to come'
                )
                for stale in (score, 'iter_validated'):
                    _forget(checkpoint, stale)
            _forget(checkpoint, key)
    if 'keep_ckpt_ids' in info:
        info['keep_ckpt_ids'] = [i for i in info['keep_ckpt_ids'] if type(i) is int]
    return notes


def forget_best(checkpoint: dict[str, Any], cfg: Config) -> list[str]:
    """Have a checkpoint hold no best score that scores to come can't be compared with, in place.

    Returns:
        A note, if it held one.
    """
    before = training_config(checkpoint.get('meta'))
    scored, chosen = scored_otherwise(before, cfg), chosen_otherwise(before, cfg)
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    stale = []
    if scored or chosen:
        stale += [key for key in info if key.startswith(('best_score', 'best_ckpt'))]
    if scored:
        stale += [key for key in info if key == 'early_stopping' and info[key]]
    for key in stale:
        _forget(checkpoint, key)
    if not stale:
        return []
    changes = '; '.join(filter(None, (scored, chosen)))
    return [
        f'the best score until now is not compared with those to come: {changes}; its checkpoint '
        'stays'
    ]


def _forget(checkpoint: dict[str, Any], key: str) -> None:
    for part in ('runtime_info', 'resumed_keys'):  # mmengine warns of what only the second has
        checkpoint['message_hub'].get(part, {}).pop(key, None)


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Keep checkpoints plain when they are written, and look at them before they are loaded.

    What is written loads with ``torch.load(path, weights_only=True)`` anywhere, and its weights are
    finite. What is loaded, for
    ``load_from``, ``resume`` or ``init_cfg=dict(type='Pretrained')``, was first read without
    running code; resuming then works under torch >= 2.6 for checkpoints of other configs too.

    Args:
        strict: Whether loaded weights must fit the model key by key. mmengine only warns, and goes
            on with whatever random weights are left.

    Raises:
        UserError: From the Runner's ``train``, ``val`` or ``test``, before any weight is loaded;
            or where weights to be written hold NaN or infinity: then no file is.
    """

    priority = 'LOWEST'  # after the hooks that add to a checkpoint

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict

    def before_run(self, runner: Runner) -> None:
        source = find_checkpoint(runner._load_from, runner._resume, runner.work_dir, runner.cfg)
        if source is not None and not was_read(source):
            read_to_load(source, runner._resume)
        runner._load_from = source  # mmengine would take a name as relative to where we are
        for path in pretrained_weights(runner.cfg.get('model')):
            if not was_read(path):
                read_checkpoint(path)
        allow_history()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        for key in ('state_dict', 'ema_state_dict'):
            check_finite(checkpoint.get(key, {}), f'what iteration {runner.iter + 1} would save')
        for key, value in checkpoint.items():
            checkpoint[key] = to_plain(value)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        restore_history(checkpoint)
        # a field of old versions, which resuming would run as Python to compare numbers of GPUs
        checkpoint.get('meta', {}).pop('config', None)
        notes = keep_own_files(checkpoint, Place.of(runner.work_dir, runner.cfg))
        if runner._resume:
            for note in notes + forget_best(checkpoint, runner.cfg):
                runner.logger.warning(note)
        if self.strict:
            source = runner._load_from or 'the checkpoint'
            load_state_dict(runner.model, weights_of(checkpoint, source), source)
