"""What can be known to fail before a Runner exists, and so before anything is written."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import WEIGHT_INITIALIZERS, init_default_scope
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS
from torch import Tensor, nn

from ssnet_mm.checks import Report, Split, check_lists, check_splits, contact_sheet
from ssnet_mm.engine import settings
from ssnet_mm.engine.checkpoint import (
    check_classes,
    find_checkpoint,
    load_state_dict,
    newest_whole,
    pretrained_weights,
    read_checkpoint,
    read_to_load,
    weights_of,
    weights_only,
)
from ssnet_mm.engine.config import build_segmentor, config_errors, single_datasets
from ssnet_mm.engine.dry_run import build_evaluator, dry_run, whole_dataset
from ssnet_mm.engine.metrics import check_outputs
from ssnet_mm.engine.samples import check_samples
from ssnet_mm.errors import UserError, few
from ssnet_mm.files import write_result

_POSITIVE = (
    'batch_size', 'crop_size', 'size', 'num_classes', 'max_iters', 'max_epochs', 'val_interval',
    'accumulative_counts',
)  # fmt: skip

# the variable by which each launcher numbers its processes
_RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}

# A data set: where it stands in the config, its own config, and built.
Located = tuple[str, Mapping[str, Any], Any]


@dataclass(frozen=True)
class Prepared:
    """What ``preflight`` has built, for a Runner to go on with.

    Args:
        model: As the config's; for testing, or from a checkpoint, it holds the weights already.
        random_state: torch's random numbers after its weights were drawn from the config's seed;
            None if the config has no seed, or another one for each process.
        datasets: Each with its config.
        position: Epochs and iterations that are done already, where a run is resumed.
        notes: Of data and settings that need not be wrong, but may be, a line each.
    """

    model: nn.Module
    random_state: Tensor | None
    datasets: list[tuple[Any, Any]]
    position: tuple[int, int]
    notes: list[str]


def preflight(cfg: Config, mode: str, *, skip_data_check: bool = False) -> Prepared:
    """Check a config for training or testing: machine, sizes, data sets, model, weights.

    Args:
        cfg: With ``work_dir`` and ``launcher`` set.
        mode: 'train' or 'test'.
        skip_data_check: Look at the first sample of each data set only.

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
    datasets: list[Located] = []
    whole, notes = {}, []
    loaders = ['train_dataloader', 'val_dataloader'] if mode == 'train' else ['test_dataloader']
    for loader in loaders:
        if cfg.get(loader):
            found = check_data(cfg, loader, num_classes)
            datasets += found
            with config_errors(f'{loader} of {cfg.filename}'):
                parts = [(dataset, built) for _, dataset, built in found]
                whole[loader] = whole_dataset(cfg[loader]['dataset'], parts)
    if mode == 'train':
        num_processes = int(os.environ.get('WORLD_SIZE', 1))
        notes += settings.check_loop(cfg, len(whole['train_dataloader']), num_processes)
        for weights in pretrained_weights(cfg.model):
            read_checkpoint(weights)
        with config_errors(f'init_cfg in {cfg.filename}'):
            check_initializers(model)
        if hasattr(model, 'load_teacher'):
            model.load_teacher()
    resume = cfg.get('resume', False)
    if resume and cfg.get('load_from') is None:
        cfg.load_from, passed = newest_whole(cfg.work_dir)
        notes += [f'passed over, {cfg.load_from} is resumed: {reason}' for reason in passed]
    path = find_checkpoint(cfg.get('load_from'), False, cfg.work_dir)
    checkpoint = read_to_load(path, resume) if path else {}
    if path:
        load_state_dict(model, weights_of(checkpoint, path), path)
        if mode == 'test' or resume:  # other weights may be a start for other classes
            check_classes(checkpoint, path, datasets[0][2].metainfo.get('classes') or ())
    position = (0, 0)
    if path and resume:
        position, changed = _go_on(cfg, checkpoint['meta'])
        notes += changed
    if mode == 'test':
        check_outputs(cfg.get('test_evaluator'), [built for *_, built in datasets])
    evaluator = build_evaluator(cfg, mode)
    settings.check_ignore_index(model, cfg, list(whole), evaluator.metrics if evaluator else [])
    if not skip_data_check and is_first_process(cfg):
        notes += _look_at_data(cfg, datasets)
    for dataset in whole.values():
        check_samples(dataset, model)
    resumed = (path, checkpoint) if path and resume else None
    notes += dry_run(cfg, mode, model, whole, evaluator, resumed)
    reused = [(cfg[loader]['dataset'], dataset) for loader, dataset in whole.items()]
    return Prepared(model, random_state, reused, position, notes)


def _go_on(cfg: Config, meta: Mapping[str, Any]) -> tuple[Any, list[str]]:
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


def _look_at_data(cfg: Config, datasets: Sequence[Located]) -> list[str]:
    """Notes on the images and masks; UserError for what would spoil training or scores."""
    report = look_at_data(cfg, datasets, whole_config=False)
    if report.errors:
        more = len(report.errors) - 1
        others = f' ({more} more {"kind" if more == 1 else "kinds"} of error)' if more else ''
        raise UserError(f'{report.errors[0]}{others}; ssnet_mm check {cfg.filename} shows all')
    notes = [str(finding) for finding in report.notes]
    return notes + [
        f'{where} is not on this disk, and was not checked' for where in report.elsewhere
    ]


def is_first_process(cfg: Config) -> bool:
    """Of several started for one run, each would read the same files; one tells for all."""
    rank = _RANKS.get(cfg.get('launcher', 'none'), '')
    return os.environ.get(rank, '0') == '0'


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
            # mmengine reads `override` itself: for which parts other values are drawn
            own = {key: value for key, value in cfg.items() if key != 'override'}
            built = WEIGHT_INITIALIZERS.build(copy.deepcopy(own))
            if hasattr(built, 'check'):
                built.check(module, model)


def check_machine(cfg: Config, mode: str) -> None:
    """Is there the accelerator that mixed precision or the launcher asks for?"""
    device = get_device()
    wrapper = cfg.get('optim_wrapper', {}).get('type', '')
    if mode == 'train' and 'Amp' in str(wrapper) and device in ('cpu', 'mps'):
        raise UserError(
            f'{wrapper} scales the losses of float16, which needs CUDA, and torch finds none here; '
            'on a CPU set optim_wrapper.type=OptimWrapper, or train.py --amp, which takes bfloat16'
        )
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    if launcher in _RANKS and _RANKS[launcher] not in os.environ:
        raise UserError(
            f'--launcher {launcher} expects to be started by it ({_RANKS[launcher]} is not set); '
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


def check_data(cfg: Config, loader: str, num_classes: int | None = None) -> list[Located]:
    """Are the data sets of a data loader there, does the first sample load, do classes suffice?

    Raises:
        UserError: One of these is not so.
    """
    if cfg[loader].get('persistent_workers') and not cfg[loader].get('num_workers'):
        raise UserError(
            f'{loader}: persistent_workers need num_workers above 0; without workers set '
            f'{loader}.persistent_workers=False'
        )
    found = []
    for where, dataset, built in build_datasets(cfg, loader):
        for finding in check_lists(Split(where, built, num_classes or 0)):
            if finding.check.severity == 'error':  # it explains a first image that is not there
                raise UserError(str(finding))
        info = built.get_data_info(0)
        for key in ('img_path', 'seg_map_path'):
            path = info.get(key)
            if path and '://' not in path and not os.path.isfile(path):
                raise UserError(
                    f'{where}: {path} not found, the first {key} listed by {_listing(dataset)}; '
                    'check data_prefix and the suffixes'
                )
        files = ' with '.join(info[key] for key in ('seg_map_path', 'img_path') if info.get(key))
        with config_errors(f'{where}: its first sample, {files}, does not load'):
            built[0]
        classes: Sequence[str] = built.metainfo.get('classes') or ()
        if num_classes is not None and num_classes < len(classes):
            raise UserError(
                f'{where} has {len(classes)} classes, the model {num_classes}; set '
                f'model.decode_head.num_classes={len(classes)}'
            )
        found.append((where, dataset, built))
    return found


def build_datasets(cfg: Config, loader: str) -> Iterator[Located]:
    """The data sets of a data loader.

    Raises:
        UserError: A folder or a list is not there, the config is at fault, or a data set is empty.
    """
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
            raise UserError(
                f'{where} is empty: no image listed by {_listing(dataset)}{_suffixes(dataset)}'
            )
        yield where, dataset, built


def look_at_data(cfg: Config, datasets: Sequence[Located], *, whole_config: bool) -> Report:
    """Read every image and mask of data sets, and check them.

    Args:
        cfg: The config.
        datasets: From :func:`check_data` or :func:`build_datasets`; one whose config equals an
            earlier one's is left out.
        whole_config: Whether these are all that the config has.
    """
    splits = []
    for i, (where, dataset, built) in enumerate(datasets):
        if all(dataset != other for _, other, _ in datasets[:i]):
            num_classes, ignore_index = _labels(cfg, where, built)
            splits.append(Split(where, built, num_classes, ignore_index))
    return check_splits(splits, whole_config=whole_config)


@weights_only()
def check_whole_data(cfg: Config, sheet: str | os.PathLike[str]) -> tuple[Report, bool]:
    """Check the data of all data loaders of a config, and draw a contact sheet.

    Args:
        cfg: The config.
        sheet: PNG file to write.

    Returns:
        What was found; and whether there was an image with its mask to draw.

    Raises:
        UserError: As :func:`build_datasets`, the config has no data loader, or the sheet can't be
            written.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    datasets = [
        located
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader')
        if cfg.get(loader)
        for located in build_datasets(cfg, loader)
    ]
    if not datasets:
        raise UserError(f'{cfg.filename} has no data loader, so there is no data to check')
    report = look_at_data(cfg, datasets, whole_config=True)
    drawn = contact_sheet([totals.split for totals in report.totals])
    if drawn:
        write_result(sheet, drawn)
    return report, drawn is not None


def _labels(cfg: Config, where: str, dataset: Any) -> tuple[int, int]:
    """How many classes a data set's labels may name, and the label that doesn't count."""
    model = cfg.model.get('module', cfg.model)  # inside test-time augmentation's
    head = model.get('decode_head', {})
    head = head[-1] if isinstance(head, (list, tuple)) else head
    num_classes = len(dataset.metainfo.get('classes') or ()) or head.get('num_classes', 256)
    if head.get('out_channels') == 1 or head.get('num_classes') == 1:
        num_classes = max(num_classes, 2)  # one channel tells two classes apart
    evaluator = cfg.get(f'{where.split("_")[0]}_evaluator') or {}
    parts = head if where.startswith('train') else evaluator
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    ignored = [part.get('ignore_index') for part in parts]
    return num_classes, next((label for label in ignored if label is not None), 255)


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
    if _listing(dataset).endswith('.txt'):
        try:
            with open(_listing(dataset), encoding='utf-8') as file:
                for _ in file:
                    pass
        except UnicodeDecodeError as error:
            raise UserError(
                f'{_listing(dataset)} is not text in UTF-8 ({where}, ann_file); save it as such'
            ) from error


def _listing(dataset: Mapping[str, Any]) -> str:
    """Where the names of the images stand: a text file, or the image folder itself."""
    listing = dataset.get('ann_file') or (dataset.get('data_prefix') or {}).get('img_path') or ''
    return os.path.join(dataset.get('data_root') or '', listing)


def _suffixes(dataset: Mapping[str, Any]) -> str:
    """What the files of an image folder end in, which may not be ``img_suffix``."""
    folder = _listing(dataset)
    if not os.path.isdir(folder):
        return ''
    suffixes = {os.path.splitext(name)[1] for name in os.listdir(folder)} - {''}
    return f', whose files end in {few(sorted(suffixes))}; see to img_suffix' if suffixes else ''


def _mend(root: str, where: str) -> str:
    if 'miniature' in os.path.basename(os.path.normpath(root)):
        return 'make it with ssnet_mm miniature'
    return f'put it there, or point to it with --cfg-options {where}.data_root=DIR'
