"""A training that goes on: from which checkpoint, and whether by what it was started with."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.optim import ReduceOnPlateauParamScheduler

from ssnet_mm.engine.checkpoint import (
    Place,
    changed,
    find_checkpoint,
    newest_whole,
    read_checkpoint,
    training_config,
)
from ssnet_mm.engine.config.nested import plain
from ssnet_mm.engine.preflight import schedules
from ssnet_mm.errors import UserError, few

_IMPLEMENTATION = ('foreach', 'fused')  # of the same steps
_TRAINED_BY = (
    'model', 'train_dataloader', 'optim_wrapper', 'custom_hooks', 'val_dataloader',
    'val_evaluator', 'default_hooks',
)  # fmt: skip
_LOADED_BY = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')


def choose_checkpoint(cfg: Config) -> list[str]:
    """Have a config resume the run's own newest checkpoint, or ``load_from`` where it has none yet.

    Weights alone are the start, and nothing to resume. So a queue may start a job the same way
    every time.

    Returns:
        Notes on what was passed over.
    """
    given = cfg.get('load_from')
    own, passed = newest_whole(cfg.work_dir, cfg)
    notes = [f'passed over, {own} is resumed: {reason}' for reason in passed]
    if own is not None:
        cfg.load_from = own
        if given is not None and os.path.abspath(given) != os.path.abspath(own):
            notes.append(f'{own} is resumed; load_from={given} is not loaded again')
    elif given is not None:
        path = find_checkpoint(given, False, cfg.work_dir)
        cfg.resume = path is None or 'optimizer' in read_checkpoint(path)
        if not cfg.resume:
            notes.append(f'nothing to resume yet: {path} holds weights alone, and is the start')
    else:  # mmengine would take what `last_checkpoint` names, there or not
        cfg.resume = Place.of(cfg.work_dir, cfg).remote
    return notes


def keep_seed(cfg: Config, meta: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Give a config the seed of the checkpoint that is resumed, which orders the images.

    Returns:
        Epochs and iterations that are done, and a note if the config has another seed.
    """
    seed = meta.get('seed')
    position = meta.get('epoch'), meta.get('iter')
    given = cfg.setdefault('randomness', {}).get('seed')
    if seed is not None:
        cfg.randomness.seed = seed
    if given in (None, seed):
        return position, []
    return position, [f'resumed with the seed that the run had, {seed}; the config has {given}']


def changed_settings(path: str, meta: Mapping[str, Any], cfg: Config) -> list[str]:
    """A note where a training goes on by other settings than the checkpoint's, its schedule aside.

    Such as options of ``--cfg-options``, or ``--amp``, that were given at the start alone.

    Args:
        path: The checkpoint that is resumed from.
        meta: Of it.
        cfg: The config.
    """
    before = training_config(meta)
    changes = changed(before, cfg, _TRAINED_BY, _LOADED_BY)
    if not before or not changes:
        return []
    return [f'resumed by other settings than {path} was trained with: {changes}']


def check_optimizer(
    path: str, checkpoint: Mapping[str, Any], optimizer: Any, schedulers: Sequence[Any], cfg: Config
) -> list[str]:
    """Does the config ask for another rate or schedule than the one that resuming goes on with?

    Args:
        path: The checkpoint that is resumed from.
        checkpoint: What it holds.
        optimizer: The config's.
        schedulers: The config's.
        cfg: The config.
    """
    scaled = (cfg.get('auto_scale_lr') or {}).get('enable')
    differences = _other_loop(checkpoint['meta'], cfg)
    saved = checkpoint['optimizer'].get('param_groups', [])
    for theirs, ours in zip(saved, optimizer.param_groups, strict=False):
        # numbers that another optimizer does not have; switches may be of a newer torch
        missing = [
            key
            for key in ours.keys() - theirs.keys()
            if not key.startswith('initial_') and not isinstance(ours[key], bool | None)
        ]
        if missing:
            differences.append(f'an optimizer without {", ".join(sorted(missing))}')
        for key in sorted(set(theirs) & set(ours) - {'params', *_IMPLEMENTATION}):
            # what a schedule changes is compared at its start
            skipped = f'initial_{key}' in theirs or (scaled and 'lr' in key)
            if not skipped and plain(theirs[key]) != plain(ours[key]):
                name = key.removeprefix('initial_')
                differences.append(f'{name} {theirs[key]} (config: {ours[key]})')
    states = checkpoint.get('param_schedulers') or []
    if isinstance(states, (list, tuple)):
        if len(states) != len(schedulers):
            differences.append(f'{len(states)} schedules (config: {len(schedulers)})')
        for i, (state, scheduler) in enumerate(zip(states, schedulers, strict=False)):
            ours = scheduler.state_dict()
            for key in ('begin', 'end', 'eta_min', 'power', 'milestones', 'T_max', 'step_size',
                        'gamma', 'start_factor', 'end_factor', 'factor', 'by_epoch'):  # fmt: skip
                if plain(state.get(key)) != plain(ours.get(key)):  # one may be of another kind
                    differences.append(
                        f'param_scheduler.{i}.{key} {state.get(key)} (config: {ours.get(key)})'
                    )
    if differences:
        raise UserError(
            f'--resume goes on with the optimizer and schedule of {path}: '
            f'{few(dict.fromkeys(differences))}; to train its weights by the config, start anew '
            f'with --cfg-options load_from={path} instead of --resume'
        )
    unit = 'epoch' if schedules.by_epoch(cfg) else 'iter'
    done, total = checkpoint['meta'].get(unit), schedules.training_length(cfg)
    if isinstance(done, int) and done >= total:
        return [f'nothing is left to train: {path} has done {done} of {total} {unit}s']
    return []


def _other_loop(meta: Mapping[str, Any], cfg: Config) -> list[str]:
    """Does the config count epochs where the run counted iterations, or the other way round?

    What is done would be taken for as much of the other.
    """
    before = training_config(meta).get('train_cfg')
    if not isinstance(before, Mapping) or not {'max_epochs', 'max_iters'} & {*before}:
        return []
    theirs, ours = (
        'epochs' if 'max_epochs' in loop else 'iterations' for loop in (before, cfg.train_cfg)
    )
    return [] if theirs == ours else [f'a train_cfg that counts {theirs} (config: {ours})']


def load_state(checkpoint: Mapping[str, Any], optimizer: Any, schedulers: Sequence[Any]) -> None:
    """Load what resuming loads, for the trial step; whatever it raises, resuming would."""
    optimizer.load_state_dict(copy.deepcopy(checkpoint['optimizer']))
    states = checkpoint.get('param_schedulers') or []
    if isinstance(states, (list, tuple)):
        for scheduler, state in zip(schedulers, states, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
            if not isinstance(scheduler, ReduceOnPlateauParamScheduler):
                scheduler.step()
    for group in optimizer.param_groups:
        for key in ('lr', 'momentum', 'weight_decay'):
            if not isinstance(group.get(key, 0.0), (int, float)):
                raise TypeError(f'{key} is no number')
