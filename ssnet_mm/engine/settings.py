"""Settings that contradict each other: seen from the config and what was built from it.

What can't work is a UserError; what is allowed, but hardly meant, is returned as warnings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmseg.registry import DATASETS, HOOKS, LOOPS, VISUALIZERS
from torch import nn

from ssnet_mm.engine.checkpoint import load_fitting, read_checkpoint, weights_of
from ssnet_mm.engine.config import describe, single_datasets
from ssnet_mm.engine.config_files import sources
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


def _hooks(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The settings of a config's hooks, and where they stand."""
    for group in ('default_hooks', 'custom_hooks'):
        for name, part in dicts(cfg.get(group), group):
            if name.count('.') == 1:
                yield name, part


def check_arguments(cfg: Config, mode: str) -> None:
    """Do hooks, loops and the visualizer, which only a Runner can build, know their arguments?"""
    loops = ('train_cfg', 'val_cfg') if mode == 'train' else ('test_cfg',)
    parts: list[tuple[str, Any, Registry]] = [
        *((where, hook, HOOKS) for where, hook in _hooks(cfg)),
        ('visualizer', cfg.get('visualizer'), VISUALIZERS),
        *((loop, cfg.get(loop), LOOPS) for loop in loops),
    ]
    for where, part, registry in parts:
        if not isinstance(part, Mapping) or 'type' not in part:
            continue
        kind = registry.get(part['type']) if isinstance(part['type'], str) else part['type']
        if kind is None:
            raise UserError(
                f'{where}: {part["type"]} is not in the {registry.name} registry; check the '
                'spelling, and custom_imports if it is your own'
            )
        if not isinstance(kind, type):
            continue
        known = arguments(kind) | {'type', '_scope_', 'priority'}
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
        sigmoids = [getattr(module, 'use_sigmoid', None) for module in head.modules()]
        if head.out_channels == 1 and False in sigmoids:
            raise UserError(
                f'{where}.out_channels=1: a softmax over one channel is 1 everywhere and learns '
                f'nothing; set {where}.loss_decode.use_sigmoid=True'
            )


def check_class_weights(model: nn.Module, cfg: Config) -> None:
    """Is there a weight for each class, made for the classes of this data set?"""
    for where, head in _heads(model):
        losses = [m for m in head.modules() if getattr(m, 'class_weight', None) is not None]
        for loss in losses:
            count = len(loss.class_weight)
            if count not in {head.num_classes, head.out_channels}:
                raise UserError(
                    f'{where}.loss_decode: class_weight has {count} numbers, the model '
                    f'{head.num_classes} classes; give one a class, or class_weight=None'
                )
            _check_weighted_void(loss, head, where)
        if losses:
            _check_inherited_weights(cfg, losses)


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
                f'class_weight is inherited from {os.path.relpath(source.path)}, where it is made for the '
                f'classes {few(theirs)}, not for {few(classes)}; set one number a class in '
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
    model: nn.Module, cfg: Config, loaders: Sequence[str], metrics: Sequence[Any]
) -> None:
    """Do heads, padding, metrics and data sets ignore the same label?"""
    found = {f'{where}.ignore_index': head.ignore_index for where, head in _heads(model)}
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    padded = any(getattr(preprocessor, key, None) is not None for key in ('size', 'size_divisor'))
    if padded and hasattr(preprocessor, 'seg_pad_val'):
        found['model.data_preprocessor.seg_pad_val'] = preprocessor.seg_pad_val
    for metric in metrics:
        if hasattr(metric, 'ignore_index'):
            found[f'ignore_index of {type(metric).__name__}'] = metric.ignore_index
    for loader in loaders:
        for where, dataset in single_datasets(cfg[loader]['dataset'], f'{loader}.dataset'):
            for name, value in walk(dataset, where):
                if name.endswith(('.seg_pad_val', '.ignore_index')):
                    found[name] = value
    if len(set(found.values())) > 1:
        values = ', '.join(f'{where} is {value}' for where, value in found.items())
        raise UserError(f'void has no one label: {values}; set all to the value in the masks')


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
    if '://' in path or 'init_weights' in vars(type(module)):
        return  # not on this machine yet; or the module has a way of its own to load
    weights = {
        key.removeprefix('module.'): value
        for key, value in weights_of(read_checkpoint(path), path).items()
    }
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


def check_best(cfg: Config, names: Sequence[str]) -> None:
    """Does the validation give what ``save_best`` and the like choose by?

    Args:
        cfg: The config.
        names: Of the values that the validation gives.
    """
    schedules = dicts(listed_or_single(cfg.get('param_scheduler')), 'param_scheduler')
    for where, part in (*_hooks(cfg), *schedules):
        for key in ('save_best', 'monitor'):
            for name in listed_or_single(part.get(key)):
                _check_name(where, key, name, names, part)


def _check_name(
    where: str, key: str, name: str, names: Sequence[str], part: Mapping[str, Any]
) -> None:
    if name == 'auto' and key == 'save_best':
        if names and part.get('rule') is None:
            try:  # what the hook does when the first validation is over
                CheckpointHook(**{**part, 'type': None, 'save_best': names[0]})
            except ValueError as error:
                raise UserError(f"{where}: {key}='auto' takes {names[0]}: {error}") from error
    elif name not in names and 'loss' not in name.lower():
        raise UserError(
            f'{where}: {key}={name!r} is not among what the validation gives: '
            f'{", ".join(names) or "nothing"}'
        )
