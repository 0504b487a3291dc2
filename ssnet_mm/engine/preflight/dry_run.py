"""One training step and one validated image on a copy, before anything is written.

What would fail at the first validation, hours into a training, fails here in a second: metric
names, sliding windows, transforms in the wrong order, an optimizer that does not take its settings.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.runner import Runner
from mmseg.registry import PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from ssnet_mm.engine.config import config_errors, describe
from ssnet_mm.engine.config.nested import listed_or_single, values
from ssnet_mm.engine.data import Located
from ssnet_mm.engine.guards import check_predictions, check_scored_batch, check_training_batch
from ssnet_mm.engine.metrics import check_scored_classes
from ssnet_mm.engine.preflight import network, resuming, schedules, settings
from ssnet_mm.errors import UserError
from ssnet_mm.limits import open_image, orientation_of

_SIZES = 8  # of images, of which one each is loaded to see whether they fit into a batch

_UNREAD = (OSError, ValueError)  # of headers: loading tells, or can

OUT_OF_MEMORY = (
    'out of GPU memory; lower the batch_size of the data loader or crop_size, or use --amp'
)


def dry_run(
    cfg: Config,
    mode: str,
    model: Any,
    datasets: Mapping[str, Any],
    evaluator: Evaluator | None,
    resumed: tuple[str, Mapping[str, Any]] | None,
) -> list[str]:
    """Train a step on two images and validate one; for testing, test one.

    Args:
        cfg: The config.
        mode: 'train' or 'test'.
        model: As it will be trained; a copy of it is.
        datasets: By the names of their data loaders.
        evaluator: Of validation, or of the test.
        resumed: Path and content of the checkpoint that training goes on from.

    Returns:
        Warnings of what is allowed, but hardly meant.

    Raises:
        UserError: A part of the config fails, or does not suit another.
    """
    found: list[str] = []
    with undisturbed(), _out_of_memory():
        stage = 'val' if mode == 'train' else 'test'
        trial = copy.deepcopy(model)
        if mode == 'train':
            network.check_pretrained(trial)
        if get_device() != 'cpu' or cfg.get('launcher', 'none') != 'none':
            trial = revert_sync_batchnorm(trial)  # it needs the processes that do not exist yet
        trial = trial.to(get_device())
        if mode == 'train':
            if cfg.get('efficient_conv_bn_eval') is not None:
                with config_errors(f'efficient_conv_bn_eval of {cfg.filename}'):
                    turn_on_efficient_conv_bn_eval(trial, cfg.efficient_conv_bn_eval)
            loader = _build_loader(cfg, 'train_dataloader', datasets['train_dataloader'])
            epoch_length = max(1, len(loader))
            optimizer, schedulers, rates = _build_schedule(cfg, trial, epoch_length)
            found += schedules.unmatched_layers(cfg, trial)
            found += schedules.check_schedule(cfg, schedulers, epoch_length, rates)
            if resumed and not isinstance(optimizer, OptimWrapperDict):
                with config_errors(f'{resumed[0]} can not be resumed from'):
                    found += resuming.check_optimizer(*resumed, optimizer, schedulers, cfg)
                    resuming.load_state(resumed[1], optimizer, schedulers)
            source = f', resumed from {resumed[0]}' if resumed else ''
            where = f'train_dataloader of {cfg.filename}'
            with config_errors(f'a training step on {where}{source}'):
                crops = list(values(cfg.train_dataloader, 'crop_size'))
                found += _train(trial, loader, optimizer, crops, where)
            if schedules.ends_with_one(cfg, len(datasets['train_dataloader'])):
                with config_errors(
                    f'{where}, whose last batch is of one image (drop_last=True leaves it out)'
                ):
                    trial.train_step(_batch(loader, 1), optimizer)
        if f'{stage}_dataloader' in datasets and evaluator:
            names = _evaluate(cfg, stage, trial, evaluator, datasets[f'{stage}_dataloader'])
            if mode == 'train':
                with config_errors(f'default_hooks of {cfg.filename}'):
                    settings.check_best(cfg, names)
    return found


def _train(
    model: Any, loader: DataLoader, optimizer: Any, crops: Sequence[Any], where: str
) -> list[str]:
    """Train a step on two images, cut to one of ``crops``; what is strange about them."""
    model.train()
    # batch norm needs two values a channel, of maps that may be of one pixel
    batch = _batch(loader, min(2, loader.batch_size or 2))
    check_training_batch(model, batch)
    found = network.check_normalisation(model.data_preprocessor, batch)
    found += network.check_padding(model.data_preprocessor, batch, crops)
    with _pipeline_errors(f'a training step on {where}', batch), _watched(optimizer) as learning:
        loss = float(model.train_step(batch, optimizer).get('loss', 1.0))
    if not math.isfinite(loss):
        raise UserError(
            f'the first loss is {loss}, before anything is learned; see to loss_decode, to mean '
            'and std of model.data_preprocessor, and to the first images'
        )
    ignored = getattr(getattr(model, 'decode_head', None), 'ignore_index', 255)
    samples = batch.get('data_samples', ()) if isinstance(batch, Mapping) else ()
    if loss == 0 and any((s.gt_sem_seg.data != ignored).any() for s in samples):
        found.append(
            'the first loss is 0, from which nothing is learned; see to loss_weight and '
            'class_weight in model.decode_head.loss_decode'
        )
    if loss > 0 and learning and not any(learning):
        raise UserError(
            f'the first loss is {loss:.4g}, and every gradient that the optimizer gets is 0, so '
            'that nothing would be learned; see to optim_wrapper.clip_grad, whose max_norm must '
            'lie above 0, to lr_mult, and to loss_weight'
        )
    return found


@contextlib.contextmanager
def _watched(optimizer: Any) -> Iterator[list[bool]]:
    """Note which weights that have a rate get a gradient other than 0, when a step is taken.

    What decays moves without one. Nothing is noted of a step that is not taken, as where the
    gradients of float16 overflow, and of several optimizers.
    """
    found: list[bool] = []

    def note(stepping: Any, *_: Any) -> None:
        for group in stepping.param_groups:
            gradients = [p.grad for p in group['params'] if p.grad is not None]
            found.extend(bool(grad.any()) for grad in gradients if group.get('lr', 1.0) > 0)

    inner = getattr(optimizer, 'optimizer', None)
    if not isinstance(inner, torch.optim.Optimizer):
        yield found
        return
    handle = inner.register_step_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def with_parts(where: str, config: Mapping[str, Any], dataset: Any) -> Iterator[Located]:
    """A data set, and those that it wraps: a wrapper may have a pipeline of its own."""
    yield where, config, dataset
    if 'datasets' in config:
        parts = zip(config['datasets'], getattr(dataset, 'datasets', ()), strict=False)
        for i, (part, built) in enumerate(parts):
            yield from with_parts(f'{where}.datasets.{i}', part, built)
    elif 'dataset' in config:
        yield from with_parts(
            f'{where}.dataset', config['dataset'], getattr(dataset, 'dataset', None)
        )


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave random numbers as they were, and print and log nothing."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = [int(os.environ.get('LOCAL_RANK', 0))] if get_device() == 'cuda' else []
    logger = 'dry run'
    MMLogger.get_instance(logger, log_level='CRITICAL')
    try:
        with torch.random.fork_rng(gpus), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with torch.cuda.device(gpus[0]) if gpus else contextlib.nullcontext():
                yield
    finally:
        MMLogger._instance_dict.pop(logger, None)  # or it would go on as the current one
        random.setstate(python)
        np.random.set_state(numpy)
        if gpus:
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, torch.cuda.OutOfMemoryError):
            raise UserError(OUT_OF_MEMORY) from error
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error


def _build_schedule(
    cfg: Config, model: nn.Module, epoch_length: int
) -> tuple[Any, list[Any], list[float]]:
    """The optimizer, its schedulers and the rates that it has without them.

    None of the last two where there are several optimizers.
    """
    with config_errors(f'optim_wrapper of {cfg.filename}'):
        schedules.check_optimizer(cfg)
        wrapper = copy.deepcopy(cfg.optim_wrapper)
        wrapper.pop('accumulative_counts', None)  # the trial takes a step as well
        optimizer = build_optim_wrapper(model, wrapper)
    if isinstance(optimizer, OptimWrapperDict):
        return optimizer, [], []
    rates = [group['lr'] for group in optimizer.param_groups if 'lr' in group]
    schedulers = []
    for i, scheduler in enumerate(listed_or_single(cfg.get('param_scheduler'))):
        with config_errors(f'param_scheduler.{i} of {cfg.filename}'):
            end = schedules.training_length(cfg)
            if scheduler.get('by_epoch', True) != schedules.by_epoch(cfg):
                end = end * epoch_length if schedules.by_epoch(cfg) else 1
            scheduler = {'end': end, **copy.deepcopy(scheduler)}  # as the Runner does
            default = dict(optimizer=optimizer, epoch_length=epoch_length)
            schedulers.append(PARAM_SCHEDULERS.build(scheduler, default_args=default))
    return optimizer, schedulers, rates


def _build_loader(cfg: Config, name: str, dataset: Any) -> DataLoader:
    with config_errors(f'{name} of {cfg.filename}'):
        return Runner.build_dataloader({**cfg[name], 'dataset': dataset}, seed=0)


def _batch(loader: DataLoader, size: int) -> Any:
    """The first samples of a data loader, put together as it does."""
    dataset: Any = loader.dataset
    return loader.collate_fn([dataset[i % len(dataset)] for i in range(size)])


def build_evaluator(cfg: Config, mode: str) -> Evaluator | None:
    """Build the metrics of validation (mode 'train') or of the test, which write nothing yet."""
    stage = 'val' if mode == 'train' else 'test'
    given = copy.deepcopy(cfg.get(f'{stage}_evaluator'))
    if not given:
        return None
    with config_errors(f'{stage}_evaluator of {cfg.filename}'):
        metrics = given if isinstance(given, (list, tuple)) else [given]
        formatting = [metric for metric in metrics if metric.get('format_only')]
        if any(not metric.get('output_dir') for metric in formatting):
            raise UserError(
                f'{stage}_evaluator of {cfg.filename}: format_only=True scores nothing and writes '
                'predictions; set the output_dir that they go to'
            )
        for metric in metrics:
            for key in ('output_dir', 'report_dir'):
                metric.pop(key, None)  # nothing is written yet
        return Evaluator([metric for metric in metrics if metric not in formatting])


def _evaluate(cfg: Config, stage: str, model: Any, evaluator: Evaluator, dataset: Any) -> list[str]:
    """Validate or test one image; the names of what the metrics give."""
    loader = f'{stage}_dataloader'
    where = f'{loader} of {cfg.filename}'
    built = _build_loader(cfg, loader, dataset)
    with config_errors(f'predicting the first image of {where}'), torch.no_grad():
        model.eval()
        batch = _batch(built, 1)
        step = model.val_step if stage == 'val' else model.test_step
        with _pipeline_errors(where, batch):
            samples = step(batch)
    if (built.batch_size or 1) > 1:
        with config_errors(where):
            check_scored_batch(built.collate_fn([dataset[i] for i in _of_each_size(dataset)]))
    if stage == 'test':  # after a step at too high a rate, training says better what is wrong
        check_predictions(samples)
    _check_label_size(samples, where)
    where_scored = f'{stage}_evaluator of {cfg.filename}'
    check_scored_classes(evaluator.metrics, dataset.metainfo, where_scored)
    with config_errors(where_scored), np.errstate(all='ignore'):
        evaluator.dataset_meta = dataset.metainfo
        with _pipeline_errors(where, batch):
            evaluator.process(data_samples=samples, data_batch=batch)
        return [str(name) for name in evaluator.evaluate(len(samples))]


@contextlib.contextmanager
def _pipeline_errors(where: str, batch: Any) -> Iterator[None]:
    """Name the transform that is missing, where something fails for want of what it gives."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(batch, Mapping) and 'inputs' not in batch:
            raise UserError(
                f'{where}: samples come without inputs ({describe(error)}); put '
                "dict(type='PackSegInputs') at the end of the pipeline"
            ) from error
        if 'gt_sem_seg' in str(error):
            raise UserError(
                f'{where}: samples come without a label map ({describe(error)}); put '
                "dict(type='LoadAnnotations') after LoadImageFromFile in the pipeline"
            ) from error
        raise


def _of_each_size(dataset: Any) -> list[int]:
    """One image of each size at which they are stored, as their headers say; some, if many."""
    found: dict[Any, int] = {}
    for i in range(len(dataset) if hasattr(dataset, 'get_data_info') else 0):
        path = dataset.get_data_info(i).get('img_path', '')
        if not os.path.isfile(path):  # a pipe would be waited for
            continue
        with contextlib.suppress(*_UNREAD), open_image(path, None) as image:
            turned = orientation_of(image) > 4  # by 90 degrees
            found.setdefault((image.size, turned), i)
            if len(found) == _SIZES:
                break
    return [*found.values()] or [0]


def _check_label_size(samples: Sequence[Any], where: str) -> None:
    for sample in samples:
        predicted = sample.get('pred_sem_seg') if hasattr(sample, 'get') else None
        label = sample.get('gt_sem_seg') if hasattr(sample, 'get') else None
        if predicted is None or label is None:
            continue
        ours, theirs = (tuple(part.data.shape[-2:]) for part in (predicted, label))
        if ours != theirs:
            raise UserError(
                f'{where}: the label map is {theirs[0]}x{theirs[1]}, the image '
                f'{ours[0]}x{ours[1]}; put LoadAnnotations after Resize in the pipeline: '
                "predictions are compared at the image's own size"
            )
