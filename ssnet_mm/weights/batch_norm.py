"""Batch norm's running statistics, estimated anew.

For weights that come without statistics, or whose statistics no longer fit: averaged weights,
converted ones, or those of a training too short for the running averages to follow.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm.engine.config import config_errors, single_datasets
from ssnet_mm.engine.data import check_data
from ssnet_mm.engine.guards import check_training_batch
from ssnet_mm.engine.samples import check_samples
from ssnet_mm.errors import UserError


def estimate_bn(model: nn.Module, dataloader: Iterable[Any], num_batches: int) -> int:
    """Replace the running statistics of every batch norm by those of some batches, in place.

    The new running mean and variance are the plain averages, over batches, of the mean and of the
    unbiased variance in each: what training keeps with a decaying average instead. Each batch is
    normalised by its own statistics on its way, as in training, but nothing else is as in training:
    dropout is off, no weight changes, and no gradient is kept. Afterwards every module is in the
    mode in which it was, also where an error ends the estimate.

    (``torch.optim.swa_utils.update_bn`` does the like with dropout on, which shifts the statistics
    of whatever follows a dropout.)

    Args:
        model: A segmentor. Frozen batch norms get new statistics too.
        dataloader: Batches as its ``data_preprocessor`` takes them. Label maps may be missing.
        num_batches: How many to take; fewer if the loader ends before.

    Returns:
        How many batches there were.

    Raises:
        UserError: The model has no batch norm with running statistics, or there is no batch.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise UserError('the model has no batch norm whose statistics could be estimated')
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    count = 0
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.momentum = None  # torch then averages plainly
        with torch.no_grad():
            for data in islice(dataloader, num_batches):
                if count == 0:
                    for norm in norms:
                        norm.reset_running_stats()
                # as in training: images smaller than the crop are padded to it
                data = model.data_preprocessor(data, training=True)  # type: ignore[operator]
                model(data['inputs'], mode='tensor')
                count += 1
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    if not count:
        raise UserError('no batch of images to estimate batch norm from')
    return count


def unlabelled_loader(cfg: Config, model: nn.Module) -> Iterable[Any]:
    """A config's training images, which need no labels, in batches.

    They come as in training, from ``train_dataloader`` through its augmentations, less what reads
    label maps or looks at them. The same seed is taken every time; with no worker processes the
    augmentations draw from this process' random numbers instead.

    Args:
        cfg: The config.
        model: The segmentor that takes them.

    Raises:
        UserError: The config has none, or the images are not there; where it is iterated over, one
            can't be read, or those of a batch differ in size.
    """
    if not cfg.get('train_dataloader'):
        raise UserError(f'{cfg.filename} has no train_dataloader to estimate batch norm from')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    cfg = copy.deepcopy(cfg)
    with config_errors(f'train_dataloader of {cfg.filename}'):
        for _, dataset in single_datasets(cfg.train_dataloader.dataset, 'train_dataloader.dataset'):
            _without_labels(dataset)
    check_data(cfg, 'train_dataloader', None)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    check_samples(loader.dataset, model)
    return _of_one_size(loader, model)


def _of_one_size(loader: Iterable[Any], model: nn.Module) -> Iterator[Any]:
    for data in loader:
        check_training_batch(model, data)
        yield data


def _without_labels(dataset: Any) -> None:
    """Change a data set's config so that no label map is looked for."""
    if dataset.get('data_prefix'):
        dataset.data_prefix.pop('seg_map_path', None)
    dataset.pipeline = [step for step in dataset.pipeline if _name(step) != 'LoadAnnotations']
    for step in dataset.pipeline:
        if _name(step) == 'RandomCrop':
            step.pop('cat_max_ratio', None)  # it chooses crops by their labels


def _name(step: Any) -> str:
    """A transform's name without the scope that may stand before it, as in ``mmseg.RandomCrop``."""
    kind = step.type
    return kind.rpartition('.')[2] if isinstance(kind, str) else str(kind.__name__)
