"""Settings that contradict each other: seen from the config and what was built from it.

What can't work is a UserError; what is allowed, but hardly meant, is returned as warnings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmseg.registry import (
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
)

from ssnet_mm.checks.splits import Totals
from ssnet_mm.engine.config.nested import dicts, listed_or_single, walk
from ssnet_mm.engine.config.options import arguments, default_of, hands_on
from ssnet_mm.errors import UserError, few

_POSITIVE = (
    'batch_size', 'crop_size', 'size', 'num_classes', 'max_iters', 'max_epochs', 'val_interval',
    'accumulative_counts', 'base_batch_size',
)  # fmt: skip


def check_sizes(cfg: Config) -> None:
    """Are batch sizes, crops, class counts and schedule lengths positive whole numbers?"""
    for name, value in walk(cfg):
        sized = name.rpartition('.')[2] in _POSITIVE and not isinstance(value, Mapping)
        if sized and not all(isinstance(n, int) and n > 0 for n in listed_or_single(value)):
            raise UserError(f'{name} must be positive and whole, got {value!r}')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 1 << 32):
        raise UserError(f'randomness.seed must be a whole number from 0 on, got {seed!r}')
    level = cfg.get('log_level', 'INFO')
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        raise UserError(f'log_level must be one of DEBUG, INFO, WARNING, ERROR, got {level!r}')


def check_complete(cfg: Config, mode: str) -> None:
    """Are the settings that need one another all there, or all left out?"""
    if not cfg.get(f'{mode}_dataloader'):
        raise UserError(f'{cfg.filename} has no {mode}_dataloader, which {mode}ing needs')
    for names in (
        ('train_dataloader', 'train_cfg', 'optim_wrapper'),
        ('val_dataloader', 'val_cfg', 'val_evaluator'),
        ('test_dataloader', 'test_cfg', 'test_evaluator'),
    ):
        missing = [name for name in names if cfg.get(name) is None]
        if 0 < len(missing) < len(names):
            there = [name for name in names if name not in missing]
            raise UserError(
                f'{cfg.filename} sets {" and ".join(there)}, but not {" and ".join(missing)}; they '
                'go together: set all of them, or all to None'
            )


def _parts(setting: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts that a setting names or lists, or the one that it is, and where they stand."""
    for name, part in dicts(setting, where):
        if name.count('.') <= where.count('.') + 1:
            yield name, part


def _hooks(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(cfg.get('custom_hooks'), Mapping):
        raise UserError('custom_hooks must be a list of hooks, as [dict(type=...)]')
    for group in ('default_hooks', 'custom_hooks'):
        yield from _parts(cfg.get(group), group)


def check_arguments(cfg: Config, mode: str) -> None:
    """Do the parts that only a Runner builds, or that drop what they don't know, know it all?"""
    places = {'visualizer': VISUALIZERS, 'log_processor': LOG_PROCESSORS}
    if mode == 'train':
        places |= {'train_cfg': LOOPS, 'val_cfg': LOOPS, 'val_evaluator': METRICS}
    else:
        places |= {'test_cfg': LOOPS, 'test_evaluator': METRICS}
    backends = (cfg.get('visualizer') or {}).get('vis_backends')
    parts: list[tuple[str, Mapping[str, Any], Registry]] = [
        *((*hook, HOOKS) for hook in _hooks(cfg)),
        *((*part, VISBACKENDS) for part in _parts(backends, 'visualizer.vis_backends')),
        *((*part, places[name]) for name in places for part in _parts(cfg.get(name), name)),
    ]
    for where, part, registry in parts:
        if 'type' not in part:
            continue
        kind = registry.get(part['type']) if isinstance(part['type'], str) else part['type']
        if kind is None:
            raise UserError(
                f'{where}: {part["type"]} is not in the {registry.name} registry; check the '
                'spelling, and custom_imports if it is your own'
            )
        if not isinstance(kind, type):
            continue
        known = arguments(kind) | {'type', '_scope_', 'priority', 'keep_results'}  # of Cityscapes'
        if not hands_on(kind) and set(part) - known:
            raise UserError(f'{where}: {part["type"]} takes no {few(sorted(set(part) - known))}')


def check_sliding(cfg: Any) -> None:
    """Has sliding inference its window and stride, and does it leave no gaps?"""
    model = cfg.model.get('module', cfg.model)  # of what averages flips and scales
    test_cfg: Any = model.get('test_cfg') or {}
    if test_cfg.get('mode') != 'slide':
        return
    for key in ('crop_size', 'stride'):
        value = test_cfg.get(key)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise UserError(
                f"model.test_cfg: mode='slide' needs {key}=(height, width), got {value!r}"
            )
    if any(s > c or s < 1 for s, c in zip(test_cfg.stride, test_cfg.crop_size, strict=True)):
        raise UserError(
            f'model.test_cfg: a stride of {test_cfg.stride} leaves gaps between windows of '
            f'{test_cfg.crop_size}; set at most that'
        )


def check_best(cfg: Config, names: Sequence[str]) -> None:
    """Does the validation give what ``save_best`` and the like choose by?

    Args:
        cfg: The config.
        names: Of the values that the validation gives.
    """
    hooks = list(_hooks(cfg))
    kinds = [HOOKS.get(h['type']) if isinstance(h.get('type'), str) else None for _, h in hooks]
    # those of others, as ValLossHook, may add to what the metrics give
    adds = any('after_val_epoch' in vars(k) and 'mmengine' not in k.__module__ for k in kinds if k)
    schedules = dicts(listed_or_single(cfg.get('param_scheduler')), 'param_scheduler')
    for where, part in (*hooks, *schedules):
        for key in ('save_best', 'monitor'):
            wanted = listed_or_single(part.get(key))
            rules = listed_or_single(part.get('rule')) or [_default_rule(part)]
            for i, name in enumerate(wanted):
                _check_name(where, key, name, names, part, adds)
                _check_rule(where, name, rules[i] if len(rules) == len(wanted) else rules[0])


def unwatched(cfg: Config) -> list[str]:
    """Notes on early stopping and schedules that wait for scores where nothing is validated."""
    if cfg.get('val_cfg') is not None:
        return []
    schedules = dicts(listed_or_single(cfg.get('param_scheduler')), 'param_scheduler')
    return [
        f'{where}: {part.get("type")} waits for {part["monitor"]} of a validation, and the '
        'config has none'
        for where, part in (*_hooks(cfg), *schedules)
        if part.get('monitor')
    ]


def unscored_best(cfg: Config, totals: Sequence[Totals]) -> list[str]:
    """Notes on classes whose IoU the best checkpoint is chosen by, and that no mask holds.

    Args:
        cfg: The config.
        totals: Of its data sets.
    """
    scored = [part for part in totals if part.split.where.startswith('val_') and part.masks]
    classes = scored[0].split.dataset.metainfo.get('classes') or () if scored else ()
    return [
        f'{where}: save_best={name!r}, but no mask of validation holds {name[4:]}: its IoU is NaN, '
        'by which no checkpoint is ever the best, or 0 where it is predicted'
        for where, part in _hooks(cfg)
        for name in listed_or_single(part.get('save_best'))
        for label in [i for i, known in enumerate(classes) if name == f'IoU.{known}']
        if not any(part.labels[label] for part in scored)
    ]


def _check_name(
    where: str, key: str, name: str, names: Sequence[str], part: Mapping[str, Any], adds: bool
) -> None:
    if name == 'auto' and key == 'save_best':
        if names and part.get('rule') is None:
            try:  # what the hook does when the first validation is over
                CheckpointHook(**{**part, 'type': None, 'save_best': names[0]})
            except ValueError as error:
                raise UserError(f"{where}: {key}='auto' takes {names[0]}: {error}") from error
    elif name not in names and not (adds and 'loss' in name.lower()):
        raise UserError(
            f'{where}: {key}={name!r} is not among what the validation gives: '
            f'{", ".join(names) or "nothing"}'
        )


def _default_rule(part: Mapping[str, Any]) -> str | None:
    """What a hook or a schedule goes by that is given no rule; None: by the name."""
    kind = PARAM_SCHEDULERS.get(part['type']) if isinstance(part.get('type'), str) else None
    return default_of(kind, 'rule') if kind else None


def _check_rule(where: str, name: str, rule: str | None) -> None:
    less = any(word in name.lower() for word in ('loss', 'error'))
    scores = ('miou', 'iou.', 'macc', 'aacc', 'mdice', 'mfscore', 'mprecision', 'mrecall')
    more = not less and any(word in name.lower() for word in scores)
    if (more and rule == 'less') or (less and rule == 'greater'):
        raise UserError(
            f'{where}: rule={rule!r} takes {"low" if more else "high"} values of {name} for good; '
            f'set rule={"greater" if more else "less"!r}'
        )
