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
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop
from mmseg.registry import DATASETS, HOOKS, LOOPS, OPTIMIZERS, VISUALIZERS
from torch import nn

from ssnet_mm.engine.checkpoint import load_fitting, read_checkpoint, weights_of
from ssnet_mm.engine.config import describe, single_datasets
from ssnet_mm.engine.options import arguments, config_files, hands_on, plain
from ssnet_mm.errors import UserError, few, listed

_ENDLESS = int(1e9)  # mmengine's end of a schedule that has none


def check_loop(cfg: Config, num_images: int, num_processes: int) -> list[str]:
    """Does the training loop end, and does it train at all?

    Args:
        cfg: A config for training.
        num_images: In the training data set.
        num_processes: Among which the images are shared.
    """
    warnings = []
    loader = cfg.train_dataloader
    endless = 'Infinite' in str(loader.get('sampler', {}).get('type'))
    if by_epoch(cfg) and endless and not loader.get('num_batch_per_epoch'):
        raise UserError(
            'train_cfg counts epochs, but with the InfiniteSampler of train_dataloader none ends; '
            'set train_dataloader.sampler.type=DefaultSampler, or use IterBasedTrainLoop'
        )
    batch_size = loader.get('batch_size', 1)
    share = -(-num_images // num_processes)
    if loader.get('drop_last') and not endless and batch_size > share:
        raise UserError(
            f'no iteration to train: {share} images make no train_dataloader.batch_size of '
            f'{batch_size}, and drop_last leaves out what is less'
        )
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint') or {}
    interval, total = checkpoint.get('interval', -1), training_length(cfg)
    if not isinstance(interval, int) or isinstance(interval, bool):
        raise UserError(
            f'default_hooks.checkpoint.interval must be a number, got {interval!r}; -1 saves none '
            'but the last and the best'
        )
    if bool(checkpoint.get('by_epoch', True)) == by_epoch(cfg):
        never = interval <= 0 or interval > total
        if checkpoint and never and not checkpoint.get('save_last', True):
            warnings.append(
                f'default_hooks.checkpoint: with interval={interval} and save_last=False a '
                f'training of {total} saves no checkpoint but the best'
            )
    if cfg.train_cfg.get('val_begin', 1) > total and cfg.get('val_cfg'):
        warnings.append(
            f'train_cfg: val_begin={cfg.train_cfg.val_begin} lies beyond the end, {total}'
        )
    return warnings


def by_epoch(cfg: Config) -> bool:
    """Whether a config's training loop counts epochs, not iterations."""
    loop = cfg.train_cfg
    if 'type' not in loop:
        return bool(loop.get('by_epoch', True))
    kind = LOOPS.get(loop['type']) if isinstance(loop['type'], str) else loop['type']
    return isinstance(kind, type) and issubclass(kind, EpochBasedTrainLoop)


def training_length(cfg: Config) -> int:
    """Epochs or iterations, as the loop counts."""
    return cfg.train_cfg.get('max_epochs' if by_epoch(cfg) else 'max_iters') or _ENDLESS


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


def check_arguments(cfg: Config, mode: str) -> None:
    """Do hooks, loops and the visualizer, which only a Runner can build, know their arguments?"""
    hooks = cfg.get('default_hooks') or {}
    parts: list[tuple[str, Any, Registry]] = [
        *((f'default_hooks.{name}', hook, HOOKS) for name, hook in hooks.items()),
        *((f'custom_hooks.{i}', h, HOOKS) for i, h in enumerate(cfg.get('custom_hooks') or [])),
        ('visualizer', cfg.get('visualizer'), VISUALIZERS),
    ]
    for loop in ('train_cfg', 'val_cfg') if mode == 'train' else ('test_cfg',):
        parts.append((loop, cfg.get(loop), LOOPS))
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
    for path in config_files(str(cfg.filename)):
        base = Config.fromfile(path, import_custom_modules=False)
        theirs = _classes(base)
        inherited = any(weight in weights for weight in _values(base.get('model'), 'class_weight'))
        if inherited and theirs and classes and list(theirs) != list(classes):
            raise UserError(
                f'class_weight is inherited from {os.path.relpath(path)}, where it is made for the '
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


def _values(part: Any, key: str) -> Iterator[Any]:
    if isinstance(part, Mapping):
        if part.get(key) is not None:
            yield plain(part[key])
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for item in part:
            yield from _values(item, key)


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
            if 'ignore_index' in dataset:
                found[f'{where}.ignore_index'] = dataset['ignore_index']
            for i, transform in enumerate(dataset.get('pipeline') or []):
                for key in ('seg_pad_val', 'ignore_index'):
                    if key in transform:
                        found[f'{where}.pipeline.{i}.{key}'] = transform[key]
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


def check_optimizer(cfg: Config) -> None:
    """Has the optimizer the weight decay that is scaled layer by layer?"""
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    scaled = [
        key
        for key in ('bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult')
        if paramwise.get(key) is not None
    ]
    kind = optimizer.get('type')
    kind = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if scaled and isinstance(kind, type) and optimizer.get('weight_decay') is None:
        takes = 'weight_decay' in arguments(kind)
        mend = 'optim_wrapper.optimizer.weight_decay=0.0, or ' if takes else ''
        raise UserError(
            f'optim_wrapper: paramwise_cfg scales the weight decay ({few(scaled)}), but the '
            f'optimizer, {kind.__name__}, has no weight_decay; set {mend}'
            'optim_wrapper.paramwise_cfg=None'
        )
    if kind is None and optimizer:
        raise UserError(
            f'optim_wrapper.optimizer: {optimizer.get("type")} is not in the optimizer registry; '
            'check the spelling, and custom_imports if it is your own'
        )


def check_schedule(cfg: Config, schedulers: Sequence[Any], epoch_length: int) -> list[str]:
    """Do the schedules end with the training, and keep to the rates that are set?"""
    epochs, length = by_epoch(cfg), training_length(cfg)
    last = {True: length if epochs else 0, False: length * epoch_length if epochs else length}
    warnings = []
    for i, scheduler in enumerate(schedulers):
        where = f'param_scheduler.{i} ({type(scheduler).__name__})'
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            continue
        if scheduler.by_epoch and not epochs:
            raise UserError(
                f'{where} steps by epoch, but train_cfg counts iterations, so it would never step; '
                f'set param_scheduler.{i}.by_epoch=False'
            )
        _check_least_rate(scheduler, where, i)
        total = last[scheduler.by_epoch]
        end = _end(scheduler)
        unit = 'epoch' if scheduler.by_epoch else 'iteration'
        if total < end < _ENDLESS:
            warnings.append(
                f'{where} ends at {unit} {end}, the training at {total}: the rate does not '
                f'get to where it leads; {_mend(cfg, i, total)}'
            )
        elif type(scheduler).__name__.startswith('CosineAnnealing') and scheduler.T_max != min(
            scheduler.end, total
        ) - max(scheduler.begin, 0):
            warnings.append(
                f'{where} is at its least rate at {unit} {scheduler.begin + scheduler.T_max}, the '
                f'training ends at {total}; leave T_max out to have them meet'
            )
    decays = [s for s in schedulers if not _is_warmup(s)]
    if decays and decays == [s for s in decays if hasattr(s, 'end') and s.end < _ENDLESS]:
        final = max(decays, key=lambda scheduler: scheduler.end)
        total = last[final.by_epoch]
        if final.end < total:
            to_zero = not getattr(final, 'end_factor', getattr(final, 'eta_min', None))
            rate = 'a rate of 0, which learns nothing' if to_zero else 'the rate where it ended'
            warnings.append(
                f'param_scheduler ends at {final.end}, the training at {total}: the rest is '
                f'trained at {rate}; {_mend(cfg, schedulers.index(final), total)}'
            )
    return warnings


def _end(scheduler: Any) -> int:
    """Where a schedule has done all it does."""
    length = getattr(scheduler, 'step_size', getattr(scheduler, 'total_steps', 0))
    steps = max(getattr(scheduler, 'milestones', None) or [length])
    return int(scheduler.begin + steps if steps else scheduler.end)


def _is_warmup(scheduler: Any) -> bool:
    return getattr(scheduler, 'end_factor', None) == 1.0 or 'Constant' in type(scheduler).__name__


def _mend(cfg: Config, i: int, total: int) -> str:
    knob = ', or set max_iters where the config computes both from it' if 'max_iters' in cfg else ''
    return f'have param_scheduler.{i} end at {total}{knob}'


def _check_least_rate(scheduler: Any, where: str, i: int) -> None:
    least = getattr(scheduler, 'eta_min', None)
    if not least or scheduler.param_name != 'lr':
        return
    lower = sorted({rate for rate in scheduler.base_values if rate < least})
    if lower:
        rates = few(f'{rate:g}' for rate in lower)
        raise UserError(
            f'{where}: eta_min={least:g} is an absolute rate, to which layers with a lower one '
            f'({rates}, as by lr_mult) would rise; set param_scheduler.{i}.eta_min=0'
        )


def check_pretrained(model: nn.Module) -> None:
    """Would ``init_cfg=dict(type='Pretrained')`` load every weight of its module?

    Args:
        model: Changed: the weights that fit are loaded.

    Raises:
        UserError: The file of one can't be read, or lacks weights.
    """
    for name, module in model.named_modules():
        given = getattr(module, 'init_cfg', None) or []
        for init_cfg in [given] if isinstance(given, Mapping) else given:
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


def check_resumed(
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
    differences = []
    saved = checkpoint['optimizer'].get('param_groups', [])
    for theirs, ours in zip(saved, optimizer.param_groups, strict=False):
        for key in sorted(set(theirs) & set(ours) - {'params'}):
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
                if key in state and key in ours and plain(state[key]) != plain(ours[key]):
                    differences.append(
                        f'param_scheduler.{i}.{key} {state[key]} (config: {ours[key]})'
                    )
    if differences:
        raise UserError(
            f'--resume goes on with the optimizer and schedule of {path}: '
            f'{few(dict.fromkeys(differences))}; to train its weights by the config, start anew '
            f'with --cfg-options load_from={path} instead of --resume'
        )
    done, total = checkpoint['meta'].get('iter'), training_length(cfg)
    if not by_epoch(cfg) and isinstance(done, int) and done >= total:
        return [f'nothing is left to train: {path} has done {done} of {total} iterations']
    return []


def check_best(cfg: Config, names: Sequence[str]) -> None:
    """Does the validation give what ``save_best`` and the like choose by?

    Args:
        cfg: The config.
        names: Of the values that the validation gives.
    """
    hooks = [*(cfg.get('default_hooks') or {}).items()]
    hooks = [(f'default_hooks.{name}', hook) for name, hook in hooks]
    hooks += [(f'custom_hooks.{i}', h) for i, h in enumerate(cfg.get('custom_hooks') or [])]
    schedules = cfg.get('param_scheduler') or []
    schedules = [schedules] if isinstance(schedules, Mapping) else schedules
    watching = [*hooks, *((f'param_scheduler.{i}', s) for i, s in enumerate(schedules))]
    for where, part in watching:
        if not isinstance(part, Mapping):
            continue
        for key in ('save_best', 'monitor'):
            wanted = part.get(key) or []
            for name in [wanted] if isinstance(wanted, str) else wanted:
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
