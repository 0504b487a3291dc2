"""What can be known to fail before a Runner exists, and so before anything is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import WEIGHT_INITIALIZERS, init_default_scope
from mmseg.registry import DATASETS, MODELS

from ssnet_mm.engine.checkpoint import load_checkpoint, read_checkpoint
from ssnet_mm.engine.hooks import checkpoint_to_load, pretrained_weights
from ssnet_mm.errors import UserError

_POSITIVE = (
    'batch_size', 'crop_size', 'size', 'num_classes', 'max_iters', 'max_epochs', 'val_interval',
    'accumulative_counts',
)  # fmt: skip


def preflight(cfg: Config, mode: str) -> None:
    """Check a config for training or testing: machine, sizes, data sets, model, weights.

    Args:
        cfg: With ``work_dir`` and ``launcher`` set.
        mode: 'train' or 'test'.

    Raises:
        UserError: Naming the first thing that would fail and how to mend it.
    """
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    check_device(cfg, mode)
    check_sizes(cfg)
    with config_errors(f'the model of {cfg.filename}'):
        model = MODELS.build(copy.deepcopy(cfg.model))
    num_classes = getattr(getattr(model, 'module', model), 'num_classes', None)
    loaders = ['train_dataloader', 'val_dataloader'] if mode == 'train' else ['test_dataloader']
    for loader in loaders:
        if cfg.get(loader):
            check_data(cfg, loader, num_classes)
        elif loader != 'val_dataloader':
            raise UserError(f'{cfg.filename} has no {loader}, which {mode}ing needs')
    if mode == 'train':
        for path in pretrained_weights(cfg.model):
            read_checkpoint(path)
        with config_errors(f'init_cfg in {cfg.filename}'):
            check_initializers(model)
        if hasattr(model, 'load_teacher'):
            model.load_teacher()
    checkpoint = checkpoint_to_load(cfg.get('load_from'), cfg.get('resume', False), cfg.work_dir)
    if checkpoint:
        load_checkpoint(model, checkpoint)


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Turn whatever building from a config raises into a UserError: the config is the user's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{where}: {describe(error)}') from error


def check_initializers(model: Any) -> None:
    """Would the initializers that can tell, ``ForeignPretrained``, find what they need?"""
    for module in model.modules():
        cfgs = getattr(module, 'init_cfg', None) or []
        for cfg in [cfgs] if isinstance(cfgs, dict) else cfgs:
            kind = cfg.get('type')
            kind = WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind
            if hasattr(kind, 'check'):
                WEIGHT_INITIALIZERS.build(copy.deepcopy(cfg)).check(module, model)


def describe(error: BaseException) -> str:
    """An exception as one line; a bare assertion is shown by its kind alone."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f'{type(error).__name__}: {message}' if message else type(error).__name__


def check_device(cfg: Config, mode: str) -> None:
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


def single_datasets(dataset: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The data sets inside ConcatDataset, RepeatDataset and the like, with their config paths."""
    if 'datasets' in dataset:
        for i, part in enumerate(dataset['datasets']):
            yield from single_datasets(part, f'{where}.datasets.{i}')
    elif 'dataset' in dataset:
        yield from single_datasets(dataset['dataset'], f'{where}.dataset')
    else:
        yield where, dataset


def check_data(cfg: Config, loader: str, num_classes: int | None) -> None:
    """Are the data sets of a data loader there, does the first sample load, do classes suffice?"""
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


def swaps_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor turns BGR, in which images are loaded, into RGB."""
    names = ('_channel_conversion', 'channel_conversion')  # OneDL's mmseg, OpenMMLab's
    return any(getattr(preprocessor, name, False) for name in names)


def config_meta(cfg: Config) -> dict[str, Any]:
    """Classes and palette of a config's data set, which need not be on this machine."""
    if not cfg.get('test_dataloader'):
        return {}
    _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
    known = DATASETS.get(dataset['type'])
    return {**getattr(known, 'METAINFO', {}), **dataset.get('metainfo', {})}


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
