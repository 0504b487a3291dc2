"""Settings that contradict each other: seen from the config and what was built from it.

What can't work is a UserError; what is allowed, but hardly meant, is returned as warnings.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmseg.registry import (
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    PARAM_SCHEDULERS,
    VISBACKENDS,
    VISUALIZERS,
)
from torch import Tensor, nn

from ssnet_mm.checks.facts import transforms_of
from ssnet_mm.engine.checkpoint import load_fitting, read_checkpoint, weights_of
from ssnet_mm.engine.config import config_errors, describe, single_datasets
from ssnet_mm.engine.config_files import sources
from ssnet_mm.engine.data import Located
from ssnet_mm.engine.nested import dicts, listed_or_single, values, walk
from ssnet_mm.engine.options import arguments, hands_on
from ssnet_mm.errors import UserError, few, listed

_POSITIVE = (
    'batch_size', 'crop_size', 'size', 'num_classes', 'max_iters', 'max_epochs', 'val_interval',
    'accumulative_counts',
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


def check_classes(model: nn.Module) -> None:
    """Can the heads tell classes apart: are there two, and does the loss suit one channel?"""
    for where, head in _heads(model):
        if head.num_classes == 1:
            raise UserError(
                f'{where}.num_classes=1: one class of pixels and the rest are two classes; set '
                f'{where}.num_classes=2 with two names in the classes of the data set, and for one '
                f'channel {where}.out_channels=1 and {where}.loss_decode.use_sigmoid=True'
            )
        threshold = getattr(head, 'threshold', None)
        if head.out_channels == 1 and threshold is not None and not 0 < threshold < 1:
            raise UserError(f'{where}.threshold is of a probability, 0 to 1; got {threshold}')
        sigmoids = [getattr(module, 'use_sigmoid', None) for module in head.modules()]
        if head.out_channels == 1 and False in sigmoids:
            raise UserError(
                f'{where}.out_channels=1: a softmax over one channel is 1 everywhere and learns '
                f'nothing; set {where}.loss_decode.use_sigmoid=True'
            )


def check_losses(model: nn.Module, cfg: Config) -> list[str]:
    """Has each class a weight, made for the classes of this data set, and counts each loss?"""
    notes = []
    for where, head in _heads(model):
        losses = [m for m in head.modules() if getattr(m, 'class_weight', None) is not None]
        for loss in losses:
            _check_weights(loss.class_weight, head, where)
            _check_weighted_void(loss, head, where)
        if losses:
            _check_inherited_weights(cfg, losses)
        for loss in head.modules():
            weight = getattr(loss, 'loss_weight', 1.0)
            if isinstance(weight, (int, float)) and not 0 <= weight < math.inf:
                raise UserError(f'{where}: loss_weight must be a number from 0 on, got {weight}')
            if 'loss' not in str(getattr(loss, 'loss_name', 'loss')):
                notes.append(
                    f'{where}.loss_decode: {loss.loss_name} is logged and not trained on, since '
                    f"loss_name does not hold 'loss'"
                )
    return notes


def _check_weights(weights: Any, head: Any, where: str) -> None:
    sized = np.ndim(weights) == 1
    if not sized or len(weights) not in {head.num_classes, head.out_channels}:
        what = f'{len(weights)} numbers' if sized else f'{weights!r}'
        raise UserError(
            f'{where}.loss_decode: class_weight has {what}, the model {head.num_classes} classes; '
            'give one a class, or class_weight=None'
        )
    numbers = [isinstance(w, (int, float, np.number)) and 0 <= w < math.inf for w in weights]
    if not all(numbers) or not any(weights):
        raise UserError(
            f'{where}.loss_decode: class_weight must be numbers from 0 on, and not all 0; got '
            f'{few(map(str, weights))}'
        )


def _check_weighted_void(loss: Any, head: Any, where: str) -> None:
    """Does this mmseg's mean of a weighted cross-entropy take void pixels?"""
    if type(loss).__name__ != 'CrossEntropyLoss' or loss.use_sigmoid or loss.use_mask:
        return
    scores = torch.zeros(1, head.out_channels, 2, 2)
    labels = torch.tensor([[[0, 0], [0, head.ignore_index]]])
    try:
        loss(scores, labels, ignore_index=head.ignore_index)
    except IndexError as error:
        raise UserError(
            f'{where}.loss_decode: with class_weight, the mean of mmseg fails on void pixels; set '
            f"{where}.loss_decode.reduction='none', of which the model takes the mean"
        ) from error


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if all(hasattr(module, a) for a in ('num_classes', 'out_channels', 'ignore_index')):
            yield f'model.{name}', module


def _check_inherited_weights(cfg: Config, losses: Sequence[Any]) -> None:
    """Were class weights made for the classes of another data set, in a base config?"""
    classes = _classes(cfg)
    weights = [list(loss.class_weight) for loss in losses]
    for source in list(sources(str(cfg.filename)))[1:]:
        base = Config.fromfile(source.path, import_custom_modules=False)
        theirs = _classes(base)
        inherited = any(weight in weights for weight in values(base.get('model'), 'class_weight'))
        if inherited and theirs and classes and list(theirs) != list(classes):
            raise UserError(
                f'class_weight is inherited from {os.path.relpath(source.path)}, where it is made '
                f'for the classes {few(theirs)}, not for {few(classes)}; set one number a class in '
                'model.decode_head.loss_decode.class_weight, or None'
            )


def _classes(cfg: Config) -> Sequence[str]:
    """The classes of a config's training data; none if it is but a part of a config."""
    for _, dataset in single_datasets((cfg.get('train_dataloader') or {}).get('dataset') or {}, ''):
        known = DATASETS.get(dataset['type']) if 'type' in dataset else None
        meta = {**getattr(known, 'METAINFO', {}), **dataset.get('metainfo', {})}
        return meta.get('classes') or ()
    return ()


def check_ignore_index(
    model: nn.Module, datasets: Sequence[Located], metrics: Sequence[Any]
) -> None:
    """Do heads, losses, padding, metrics and data sets ignore the same label?"""
    found = {f'{where}.ignore_index': head.ignore_index for where, head in _heads(model)}
    usual = set(found.values()) <= {255}  # of what is not set the default holds
    for where, head in _heads(model):
        for loss in head.modules():
            for key in ('ignore_index', 'ignore_label'):  # which some take from their own settings
                if loss is not head and hasattr(loss, key):
                    found[f'{where}, {key} of {type(loss).__name__}'] = getattr(loss, key)
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    padded = any(getattr(preprocessor, key, None) is not None for key in ('size', 'size_divisor'))
    if padded and hasattr(preprocessor, 'seg_pad_val'):
        found['model.data_preprocessor.seg_pad_val'] = preprocessor.seg_pad_val
    for metric in metrics:
        if hasattr(metric, 'ignore_index'):
            found[f'ignore_index of {type(metric).__name__}'] = metric.ignore_index
    for where, dataset, built in datasets:
        for name, value in walk(dataset, where):
            if name.endswith(('.seg_pad_val', '.ignore_index', '.pad_val.seg')):
                found[name] = value
        for transform in [] if usual else transforms_of(getattr(built, 'pipeline', [])):
            padding = getattr(transform, 'pad_val', None)
            padding = padding.get('seg') if isinstance(padding, Mapping) else None
            value = getattr(transform, 'seg_pad_val', padding)
            if value is not None:
                found[f'{where}.pipeline, padding of {type(transform).__name__}'] = value
    if len(set(found.values())) > 1:
        values = ', '.join(f'{where} is {value}' for where, value in found.items())
        raise UserError(f'void has no one label: {values}; set all to the value in the masks')


def check_meaning(datasets: Sequence[Located], num_classes: int | None) -> list[str]:
    """Do labels mean the same in all data sets, and to the model?

    Args:
        datasets: Built; of training and validation.
        num_classes: Of the model.
    """
    notes = []
    (first, _, reference), *others = datasets
    theirs = _names(reference)
    for where, _, dataset in others:
        ours = _names(dataset)
        if len(ours) != len(theirs) or (ours != theirs and sorted(ours) == sorted(theirs)):
            raise UserError(
                f'{where} has the classes {few(ours)} ({len(ours)}), {first} {few(theirs)} '
                f'({len(theirs)}); give both the same metainfo'
            )
        if ours != theirs:
            new, old = next(pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1])
            notes.append(f'{where} calls a class {new} that is {old} in {first}')
        reduces = [bool(getattr(d, 'reduce_zero_label', False)) for d in (reference, dataset)]
        if reduces[0] != reduces[1]:
            notes.append(
                f'reduce_zero_label is {reduces[1]} in {where} and {reduces[0]} in {first}; see '
                'that a label means the same in both'
            )
    if theirs and num_classes and num_classes > len(theirs):
        notes.append(
            f'model.decode_head.num_classes={num_classes}, but {first} has {len(theirs)} classes: '
            'the model may predict some that have no name'
        )
    return notes


def _names(dataset: Any) -> list[str]:
    return list(dataset.metainfo.get('classes') or ())


def check_normalisation(preprocessor: Any, batch: Any) -> list[str]:
    """Are mean and std those of grey levels, 0 to 255, where images come as such?"""
    std = getattr(preprocessor, 'std', None)
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if isinstance(std, Tensor) and isinstance(inputs, list) and std.max() < 1:
        brightest = max(float(image.max()) for image in inputs)
        if brightest > 1:
            return [
                'mean and std of model.data_preprocessor look like those of values from 0 to 1, '
                f'and images come with values up to {brightest:g}; multiply both by 255'
            ]
    return []


def check_sliding(cfg: Any) -> None:
    """Has sliding inference its window and stride, and does it leave no gaps?"""
    test_cfg: Any = cfg.model.get('test_cfg') or {}
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


def check_pretrained(model: nn.Module) -> None:
    """Would ``init_cfg=dict(type='Pretrained')`` load every weight of its module?

    Args:
        model: Changed: the weights that fit are loaded.

    Raises:
        UserError: The file of one can't be read, or lacks weights.
    """
    for name, module in model.named_modules():
        for init_cfg in listed_or_single(getattr(module, 'init_cfg', None)):
            if init_cfg.get('type') == 'Pretrained' and init_cfg.get('checkpoint'):
                _check_pretrained(module, f'model.{name}' if name else 'model', init_cfg)


def _check_pretrained(module: nn.Module, where: str, init_cfg: Mapping[str, Any]) -> None:
    path = os.path.expanduser(init_cfg['checkpoint'])
    if '://' in path:
        return  # not on this machine yet
    weights = {
        key.removeprefix('module.'): value
        for key, value in weights_of(read_checkpoint(path), path).items()
    }
    if 'init_weights' in vars(type(module)):  # it has a way of its own to load them
        with config_errors(f'{where}.init_cfg: loading {path}'):
            module.init_weights()  # type: ignore[operator]
        if not _holds_any(module, weights.values()):
            raise UserError(f'{where}.init_cfg: no weight of {path} gets into {where}')
        return
    prefix = init_cfg.get('prefix') or ''
    prefix = prefix and prefix.rstrip('.') + '.'
    part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    try:
        missing, _, misshapen = load_fitting(module, part)
    except RuntimeError as error:
        raise UserError(f'{where}.init_cfg: {path} does not fit: {describe(error)}') from error
    problems = listed(dict(missing=missing, misshapen=list(misshapen)))
    if not problems:
        return
    needed = [k for k in module.state_dict() if 'num_batches_tracked' not in k]
    prefixes = {k.removesuffix(needed[0]) for k in weights if needed and k.endswith(needed[0])}
    for other in sorted(prefixes - {prefix}):
        if all(other + k in weights for k in needed):
            problems += f'; its names begin with {other}: set {where}.init_cfg.prefix={other!r}'
    raise UserError(f'{where}.init_cfg: {path} does not load whole: {problems}')


def _holds_any(module: nn.Module, weights: Iterable[Any]) -> bool:
    """Whether any of some tensors is a module's now."""
    by_shape: dict[Any, list[Tensor]] = {}
    for weight in weights:
        if isinstance(weight, Tensor) and weight.numel() > 1:
            by_shape.setdefault(weight.shape, []).append(weight)
    return any(
        torch.equal(value.cpu(), weight)
        for value in module.state_dict().values()
        for weight in by_shape.get(value.shape, ())
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
    inits = [
        vars(base)['__init__'] for base in getattr(kind, '__mro__', ()) if '__init__' in vars(base)
    ]
    rules = [p for init in inits[:-1] if (p := inspect.signature(init).parameters.get('rule'))]
    return rules[0].default if rules else None


def _check_rule(where: str, name: str, rule: str | None) -> None:
    less = any(word in name.lower() for word in ('loss', 'error'))
    scores = ('miou', 'iou.', 'macc', 'aacc', 'mdice', 'mfscore', 'mprecision', 'mrecall')
    more = not less and any(word in name.lower() for word in scores)
    if (more and rule == 'less') or (less and rule == 'greater'):
        raise UserError(
            f'{where}: rule={rule!r} takes {"low" if more else "high"} values of {name} for good; '
            f'set rule={"greater" if more else "less"!r}'
        )
