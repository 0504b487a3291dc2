"""What can be known to fail before a Runner exists, and so before anything is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS
from torch import Tensor, nn

from ssnet_mm.engine import settings
from ssnet_mm.engine.checkpoint import (
    find_checkpoint,
    load_state_dict,
    pretrained_weights,
    read_checkpoint,
    read_to_load,
    weights_of,
)
from ssnet_mm.engine.config import build_segmentor, config_errors, single_datasets
from ssnet_mm.engine.dry_run import dry_run, whole_dataset
from ssnet_mm.errors import UserError

_POSITIVE = (
    'batch_size', 'crop_size', 'size', 'num_classes', 'max_iters', 'max_epochs', 'val_interval',
    'accumulative_counts',
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What ``preflight`` has built, for a Runner to go on with.

    Args:
        model: As the config's; for testing, or from a checkpoint, it holds the weights already.
        random_state: torch's random numbers after its weights were drawn from the config's seed;
            None if the config has no seed, or another one for each process.
        datasets: Each with its config.
        warnings: Of settings that are allowed, but hardly meant.
    """

    model: nn.Module
    random_state: Tensor | None
    datasets: list[tuple[Any, Any]]
    warnings: list[str]


def preflight(cfg: Config, mode: str) -> Prepared:
    """Check a config for training or testing: machine, sizes, data sets, model, weights.

    Args:
        cfg: With ``work_dir`` and ``launcher`` set.
        mode: 'train' or 'test'.

    Raises:
        UserError: Naming the first thing that would fail and how to mend it.
    """
    check_machine(cfg, mode)
    check_sizes(cfg)
    settings.check_complete(cfg, mode)
    settings.check_arguments(cfg, mode)
    settings.check_sliding(cfg)
    model, random_state = _build_seeded(cfg)
    settings.check_classes(model)
    if mode == 'train':
        settings.check_class_weights(model, cfg)
    num_classes = getattr(getattr(model, 'module', model), 'num_classes', None)
    datasets, whole, warnings = [], {}, []
    loaders = ['train_dataloader', 'val_dataloader'] if mode == 'train' else ['test_dataloader']
    for loader in loaders:
        if cfg.get(loader):
            found = check_data(cfg, loader, num_classes)
            with config_errors(f'{loader} of {cfg.filename}'):
                whole[loader] = whole_dataset(cfg[loader]['dataset'], found)
            datasets.append((cfg[loader]['dataset'], whole[loader]))
    if mode == 'train':
        num_processes = int(os.environ.get('WORLD_SIZE', 1))
        warnings += settings.check_loop(cfg, len(whole['train_dataloader']), num_processes)
        for weights in pretrained_weights(cfg.model):
            read_checkpoint(weights)
        with config_errors(f'init_cfg in {cfg.filename}'):
            check_initializers(model)
        if hasattr(model, 'load_teacher'):
            model.load_teacher()
    resume = cfg.get('resume', False)
    path = find_checkpoint(cfg.get('load_from'), resume, cfg.work_dir)
    checkpoint = read_to_load(path, resume) if path else {}
    if path:
        load_state_dict(model, weights_of(checkpoint, path), path)
    resumed = (path, checkpoint) if path and resume else None
    warnings += dry_run(cfg, mode, model, whole, resumed)
    return Prepared(model, random_state, datasets, warnings)


def _build_seeded(cfg: Config) -> tuple[Any, Tensor | None]:
    """Build the model with the weights that a Runner would draw, which sets the seed just before.

    Returns:
        The model, and the random state for what is drawn next; see :class:`Prepared`.
    """
    randomness = cfg.get('randomness', {})
    seed = randomness.get('seed')
    if seed is not None:
        set_random_seed(seed)
    model = build_segmentor(cfg, training=True)
    shared = seed is not None and not randomness.get('diff_rank_seed')
    return model, torch.get_rng_state() if shared else None


def check_initializers(model: Any) -> None:
    """Do the initializers build, and find what they need where they can tell?"""
    for module in model.modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        for cfg in [cfgs] if isinstance(cfgs, dict) else cfgs:
            built = WEIGHT_INITIALIZERS.build(copy.deepcopy(cfg))
            if hasattr(built, 'check'):
                built.check(module, model)


def check_machine(cfg: Config, mode: str) -> None:
    """Is there the accelerator that mixed precision or the launcher asks for?"""
    device = get_device()
    wrapper = cfg.get('optim_wrapper', {}).get('type', '')
    if mode == 'train' and 'Amp' in str(wrapper) and device in ('cpu', 'mps'):
        raise UserError(
            f'mixed precision ({wrapper}, --amp) needs CUDA, and torch finds none here; leave it '
            'out, or see that the driver and the CUDA build of torch are installed'
        )
    launcher = cfg.get('launcher', 'none')
    starts = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}
    if launcher == 'none':
        return
    if launcher in starts and starts[launcher] not in os.environ:
        raise UserError(
            f'--launcher {launcher} expects to be started by it ({starts[launcher]} is not set); '
            f'use tools/{"slurm" if launcher == "slurm" else "dist"}_{mode}.sh'
        )
    if device == 'cpu':
        backend = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('backend', 'nccl')
        if launcher != 'pytorch' or backend != 'gloo':
            raise UserError(
                f'--launcher {launcher} with backend {backend} needs CUDA, and torch finds none; '
                'on CPU use --launcher pytorch --cfg-options env_cfg.dist_cfg.backend=gloo'
            )
    elif launcher == 'pytorch' and int(os.environ['LOCAL_RANK']) >= torch.cuda.device_count():
        raise UserError(
            f'more processes than GPUs: torch finds {torch.cuda.device_count()} here; start as '
            'many processes on this machine'
        )


def check_sizes(cfg: Any, where: str = '') -> None:
    """Are batch sizes, crops, class counts and schedule lengths positive whole numbers?"""
    if isinstance(cfg, (Mapping, Config)):
        for key, value in cfg.items():
            path = f'{where}.{key}' if where else str(key)
            if key in _POSITIVE and value is not None and not isinstance(value, Mapping):
                numbers = value if isinstance(value, (list, tuple)) else [value]
                if not all(isinstance(number, int) and number > 0 for number in numbers):
                    raise UserError(f'{path} must be positive and whole, got {value!r}')
            else:
                check_sizes(value, path)
    elif isinstance(cfg, (list, tuple)):
        for i, part in enumerate(cfg):
            check_sizes(part, f'{where}.{i}')


def check_data(
    cfg: Config, loader: str, num_classes: int | None = None
) -> list[tuple[Mapping[str, Any], Any]]:
    """Are the data sets of a data loader there, does the first sample load, do classes suffice?

    Returns:
        The data sets, each after its config.

    Raises:
        UserError: One of these is not so.
    """
    found = []
    if cfg[loader].get('persistent_workers') and not cfg[loader].get('num_workers'):
        raise UserError(
            f'{loader}: persistent_workers need num_workers above 0; without workers set '
            f'{loader}.persistent_workers=False'
        )
    with config_errors(f'{loader} of {cfg.filename}'):
        datasets = list(single_datasets(cfg[loader]['dataset'], f'{loader}.dataset'))
    for where, dataset in datasets:
        _check_paths(dataset, where)
        with config_errors(f'{where} of {cfg.filename}'):
            try:
                built = DATASETS.build(copy.deepcopy(dataset))
                empty = len(built) == 0
            except ValueError as error:
                empty = 'at least one array' in str(error)  # from serialising a list of none
                if not empty:
                    raise
        if empty:
            raise UserError(f'{where} is empty: no image listed by {_listing(dataset)}')
        info = built.get_data_info(0)
        for key in ('img_path', 'seg_map_path'):
            path = info.get(key)
            if path and '://' not in path and not os.path.isfile(path):
                raise UserError(
                    f'{where}: {path} not found, the first {key} listed by {_listing(dataset)}; '
                    'check data_prefix and the suffixes'
                )
        with config_errors(f'{where}: its first sample, {info.get("img_path")}, does not load'):
            built[0]
        classes: Sequence[str] = built.metainfo.get('classes') or ()
        if num_classes is not None and num_classes < len(classes):
            raise UserError(
                f'{where} has {len(classes)} classes, the model {num_classes}; set '
                f'model.decode_head.num_classes={len(classes)}'
            )
        found.append((dataset, built))
    return found


def _check_paths(dataset: Mapping[str, Any], where: str) -> None:
    root = dataset.get('data_root') or ''
    if dataset.get('backend_args') or '://' in root:
        return  # not on this machine's disk
    prefix = dataset.get('data_prefix') or {}
    folders = {'data_root': root, **{key: os.path.join(root, prefix[key] or '') for key in prefix}}
    for key, folder in folders.items():
        if folder and not os.path.isdir(folder):
            raise UserError(
                f'data set not found: no folder {folder} ({where}, {key}); {_mend(root, where)}'
            )
    if dataset.get('ann_file') and not os.path.exists(_listing(dataset)):
        raise UserError(
            f'data set not found: no {_listing(dataset)} ({where}, ann_file); {_mend(root, where)}'
        )


def _listing(dataset: Mapping[str, Any]) -> str:
    """Where the names of the images stand: a text file, or the image folder itself."""
    listing = dataset.get('ann_file') or (dataset.get('data_prefix') or {}).get('img_path') or ''
    return os.path.join(dataset.get('data_root') or '', listing)


def _mend(root: str, where: str) -> str:
    if 'miniature' in os.path.basename(os.path.normpath(root)):
        return 'make it with tools/make_miniature.py'
    return f'put it there, or point to it with --cfg-options {where}.data_root=DIR'
