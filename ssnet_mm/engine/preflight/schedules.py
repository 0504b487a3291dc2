"""How long a training goes, and by which rates: what does not end, move or fit together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmseg.registry import LOOPS, OPTIMIZERS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ssnet_mm.engine.config.nested import listed_or_single
from ssnet_mm.engine.config.options import arguments
from ssnet_mm.errors import UserError, few

_ENDLESS = int(1e9)  # mmengine's end of a schedule that has none


def check_loop(cfg: Config, num_images: int, num_processes: int) -> list[str]:
    """Does the training loop end, does it train at all, and on batches that change?

    Args:
        cfg: A config for training.
        num_images: In the training data set.
        num_processes: Among which the images are shared.
    """
    length = 'max_epochs' if by_epoch(cfg) else 'max_iters'
    if _loop(cfg) in (EpochBasedTrainLoop, IterBasedTrainLoop) and length not in cfg.train_cfg:
        raise UserError(f'train_cfg lacks {length}, the length of the training')
    loader = cfg.train_dataloader
    endless = _is_endless(loader)
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
    notes = []
    if num_images > batch_size and (loader.get('sampler') or {}).get('shuffle') is False:
        notes.append(
            'train_dataloader.sampler: with shuffle=False batches hold the same images each time, '
            'as they stand in the list; set shuffle=True'
        )
    seen = _sliced(loader, num_processes)
    if seen is not None and seen < num_images:
        notes.append(
            f'train_dataloader: num_batch_per_epoch={loader.num_batch_per_epoch} trains on the '
            f'first {seen} of {num_images} images alone'
        )
    total = training_length(cfg)
    if cfg.train_cfg.get('val_begin', 1) > total and cfg.get('val_cfg'):
        notes.append(f'train_cfg: val_begin={cfg.train_cfg.val_begin} lies beyond the end, {total}')
    return notes


def _is_endless(loader: Mapping[str, Any]) -> bool:
    return 'Infinite' in str((loader.get('sampler') or {}).get('type'))


def ends_with_one(cfg: Config, num_images: int) -> bool:
    """Whether the last batch of an epoch is of one image alone."""
    loader = cfg.train_dataloader
    size = loader.get('batch_size', 1)
    return (
        size > 1
        and num_images % size == 1
        and not loader.get('drop_last')
        and not _is_endless(loader)
    )


def _sliced(loader: Mapping[str, Any], num_processes: int) -> int | None:
    """How many images from the first on mmengine's Runner keeps; None if it keeps all."""
    batches = loader.get('num_batch_per_epoch')
    return None if batches is None else batches * loader.get('batch_size', 1) * num_processes


def check_scoring(
    loader: Mapping[str, Any], where: str, num_images: int, num_processes: int = 1
) -> None:
    """Does validation, or the test, end, and does it take every image?"""
    if _is_endless(loader):
        raise UserError(
            f'{where}: with InfiniteSampler it never ends; set sampler.type=DefaultSampler'
        )
    left = num_images % loader.get('batch_size', 1)
    if loader.get('drop_last') and left:
        raise UserError(
            f'{where}: drop_last leaves {left} of {num_images} images out of the scores'
        )
    seen = _sliced(loader, num_processes)
    if seen is not None and seen != num_images:
        raise UserError(
            f'{where}: num_batch_per_epoch={loader["num_batch_per_epoch"]} has {seen} images '
            f'scored, and there are {num_images}; leave it out'
        )


def check_saving(cfg: Config) -> list[str]:
    """Are checkpoints written while a training goes on, and at its end?"""
    hooks = cfg.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint', {})  # mmengine has one where the config has none
    if checkpoint is None:
        return ['default_hooks.checkpoint=None: no checkpoint will be saved']
    interval, total = checkpoint.get('interval', -1), training_length(cfg)
    if not isinstance(interval, int) or isinstance(interval, bool):
        raise UserError(
            f'default_hooks.checkpoint.interval must be a number, got {interval!r}; -1 saves none '
            'but the last and the best'
        )
    counts_epochs, where = bool(checkpoint.get('by_epoch', True)), 'default_hooks.checkpoint'
    if counts_epochs and not by_epoch(cfg):
        return [
            f'{where} counts epochs, train_cfg iterations: it saves at the end of the training '
            f'alone; set {where}.by_epoch=False'
        ]
    never = interval <= 0 or interval > total
    if counts_epochs == by_epoch(cfg) and never and not checkpoint.get('save_last', True):
        return [
            f'{where}: with interval={interval} and save_last=False a training of {total} saves no '
            'checkpoint but the best'
        ]
    return []


def by_epoch(cfg: Config) -> bool:
    """Whether a config's training loop counts epochs, not iterations."""
    kind = _loop(cfg)
    return isinstance(kind, type) and issubclass(kind, EpochBasedTrainLoop)


def _loop(cfg: Config) -> Any:
    loop = cfg.train_cfg
    if 'type' not in loop:
        return EpochBasedTrainLoop if loop.get('by_epoch', True) else IterBasedTrainLoop
    return LOOPS.get(loop['type']) if isinstance(loop['type'], str) else loop['type']


def training_length(cfg: Config) -> int:
    """Epochs or iterations, as the loop counts."""
    return cfg.train_cfg.get('max_epochs' if by_epoch(cfg) else 'max_iters') or _ENDLESS


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


def _custom_keys(cfg: Config) -> dict[str, Any]:
    return (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}


def _keys_by_name(cfg: Config, model: nn.Module) -> dict[str, str]:
    """The one of ``custom_keys`` that counts for each parameter that learns, or an empty one.

    None at all where the optimizer is built by other rules than mmengine's.
    """
    if cfg.optim_wrapper.get('constructor') not in (None, 'DefaultOptimWrapperConstructor'):
        return {}
    ordered = sorted(sorted(_custom_keys(cfg)), key=len, reverse=True)
    return {
        name: next((key for key in ordered if key in name), '')
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def still_parameters(cfg: Config, model: nn.Module) -> list[str]:
    """The names of parameters that ``custom_keys`` give a rate of 0."""
    layers = _custom_keys(cfg)
    keys = _keys_by_name(cfg, model)
    return [name for name, key in keys.items() if key and layers[key].get('lr_mult') == 0]


def unmatched_layers(cfg: Config, model: nn.Module) -> list[str]:
    """Notes on rates and decays that are set for layers and do not get to them.

    mmengine gives a parameter what the longest of ``custom_keys`` in its name says, and then
    nothing of the shorter ones and of the multiples that hold for all biases or norm layers.
    """
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    layers = _custom_keys(cfg)
    names = [name for name, _ in model.named_parameters()]
    multiples = {
        layer: [mult for mult in ('lr_mult', 'decay_mult') if part.get(mult, 1) != 1]
        for layer, part in layers.items()
    }
    where = 'optim_wrapper.paramwise_cfg'
    notes = [
        f'{where}.custom_keys: no parameter has {layer!r} in its name, so that its {mult} has no '
        'effect'
        for layer, set_ in multiples.items()
        for mult in set_
        if not any(layer in name for name in names)
    ]
    taken = _keys_by_name(cfg, model)

    def keepers(mult: str, meant: Iterable[str]) -> list[str]:
        """The keys that keep a multiple from some parameters."""
        found = sorted({taken[name] for name in meant} - {''})
        return [
            key for key in found if mult not in layers[key] and layers[key].get('lr_mult', 1) != 0
        ]

    for layer, set_ in multiples.items():
        for mult in set_:
            longer = keepers(mult, (n for n in taken if layer in n and taken[n] != layer))
            if longer:
                notes.append(
                    f'{where}.custom_keys: {mult} of {layer!r} does not get to the parameters with '
                    f'{few(map(repr, longer))} in their names, for which that key alone counts; '
                    f'give it {mult} too'
                )
    norms = {
        f'{name}.{kind}'
        for name, module in model.named_modules()
        if isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm))
        for kind in ('weight', 'bias')
    } & {*taken}
    biases = {name for name in taken if name.endswith('.bias')} - norms
    for setting, mult, meant in (
        ('bias_lr_mult', 'lr_mult', biases),
        ('bias_decay_mult', 'decay_mult', biases),
        ('norm_decay_mult', 'decay_mult', norms),
    ):
        keys = keepers(mult, meant) if paramwise.get(setting) not in (None, 1) else []
        if keys:
            notes.append(
                f'{where}: {setting} does not get to the parameters with {few(map(repr, keys))} '
                'in their names, for which custom_keys alone count; name those it is meant for by '
                'longer keys, with lr_mult and decay_mult'
            )
    return notes


def check_schedule(
    cfg: Config, schedulers: Sequence[Any], epoch_length: int, rates: Sequence[float]
) -> list[str]:
    """Do the schedules end with the training, and keep to the rates that are set?

    Args:
        cfg: The config.
        schedulers: Built.
        epoch_length: Iterations of an epoch.
        rates: Of the optimizer's groups of parameters, before the schedules were built.
    """
    epochs, length = by_epoch(cfg), training_length(cfg)
    last = {True: length if epochs else 0, False: length * epoch_length if epochs else length}
    warnings = []
    bad = [rate for rate in rates if not 0 <= rate < math.inf]
    if bad:
        raise UserError(f'optim_wrapper: a learning rate of {bad[0]} is none')
    if rates and not any(rates):
        warnings.append('every learning rate is 0, so that nothing will be learned')
    hooks = cfg.get('default_hooks') or {}
    stepped = 'ParamScheduler' in str(cfg.get('custom_hooks'))
    if schedulers and hooks.get('param_scheduler', {}) is None and not stepped:
        warnings.append('default_hooks.param_scheduler=None: no param_scheduler will ever step')
    for i, scheduler in enumerate(schedulers):
        where = f'param_scheduler.{i} ({type(scheduler).__name__})'
        _check_absolute(scheduler, where, i, rates)
        if isinstance(scheduler, ReduceOnPlateauParamScheduler):
            if not cfg.get('val_cfg'):
                warnings.append(f'{where} goes by the validation; there is none: it never steps')
            continue
        if scheduler.by_epoch and not epochs:
            raise UserError(
                f'{where} steps by epoch, but train_cfg counts iterations, so it would never step; '
                f'set param_scheduler.{i}.by_epoch=False'
            )
        total = last[scheduler.by_epoch]
        end = _end(scheduler)
        steps = getattr(scheduler, 'total_steps', math.inf)
        if min(scheduler.end - 1, total) - scheduler.begin > steps:
            raise UserError(
                f'{where}: total_steps={steps} end before the training, at {total}, and it fails '
                f'where it is to go on; set total_steps={total - scheduler.begin}, or leave it out'
            )
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
        final = max(decays, key=_freezes_at)
        end, total = _freezes_at(final), last[final.by_epoch]
        if end < total:
            # after its last period the rate stays short of the least
            to_zero = not hasattr(final, 'periods') and not getattr(
                final, 'end_factor', getattr(final, 'eta_min', None)
            )
            rate = 'a rate of 0, which learns nothing' if to_zero else 'the rate where it ended'
            warnings.append(
                f'param_scheduler ends at {end}, the training at {total}: the rest is '
                f'trained at {rate}; {_mend(cfg, schedulers.index(final), total)}'
            )
    return warnings


def _end(scheduler: Any) -> int:
    """Where a schedule has done all it does."""
    periods = sum(getattr(scheduler, 'periods', ()))
    length = getattr(scheduler, 'step_size', getattr(scheduler, 'total_steps', periods))
    steps = max(getattr(scheduler, 'milestones', None) or [length])
    return int(scheduler.begin + steps if steps else scheduler.end)


def _freezes_at(scheduler: Any) -> int:
    """From where on a schedule leaves the rate as it is."""
    return int(
        min(scheduler.end, _end(scheduler)) if hasattr(scheduler, 'periods') else scheduler.end
    )


def _is_warmup(scheduler: Any) -> bool:
    return getattr(scheduler, 'end_factor', None) == 1.0 or 'Constant' in type(scheduler).__name__


def _mend(cfg: Config, i: int, total: int) -> str:
    knob = ', or set max_iters where the config computes both from it' if 'max_iters' in cfg else ''
    return f'have param_scheduler.{i} end at {total}{knob}'


def _check_absolute(scheduler: Any, where: str, i: int, rates: Sequence[float]) -> None:
    """Would a rate that a schedule gives to all layers take the place of the layers' own?"""
    if scheduler.param_name != 'lr':
        return
    for key in ('eta_min', 'min_value'):
        least = max(
            listed_or_single(getattr(scheduler, f'{key}s', getattr(scheduler, key, 0))) or [0]
        )
        lower = sorted({rate for rate in rates if rate < (least or 0)})
        if lower:
            found = few(f'{rate:g}' for rate in lower)
            raise UserError(
                f'{where}: {key}={least:g} is an absolute rate, to which layers with a lower one '
                f'({found}, as by lr_mult) would rise; set param_scheduler.{i}.{key}=0'
            )
    highest = getattr(scheduler, 'eta_max', None)
    if isinstance(highest, (int, float)) and len(set(rates)) > 1:
        raise UserError(
            f'{where}: eta_max={highest:g} is the rate of all layers, and lr_mult has no effect; '
            f'give param_scheduler.{i}.eta_max one for each group, or use another schedule'
        )
