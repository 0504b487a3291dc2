"""The order in which a config is looked at, and what is built on the way."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import set_random_seed
from torch import Tensor, nn

from ssnet_mm.engine.checkpoint import (
    check_classes,
    find_checkpoint,
    load_state_dict,
    pretrained_weights,
    read_checkpoint,
    read_to_load,
    trained_otherwise,
    weights_of,
)
from ssnet_mm.engine.config import build_segmentor, config_errors
from ssnet_mm.engine.config.nested import dicts, listed_or_single, walk
from ssnet_mm.engine.config.options import unread_variables
from ssnet_mm.engine.data import (
    Located,
    check_data,
    check_scored_once,
    look_at_data,
    trained_on,
    whole_dataset,
)
from ssnet_mm.engine.metrics import check_outputs
from ssnet_mm.engine.preflight import network, resuming, schedules, settings
from ssnet_mm.engine.preflight.dry_run import (
    build_evaluator,
    dry_run,
    undisturbed,
    with_parts,
)
from ssnet_mm.engine.preflight.pipelines import check_pipelines
from ssnet_mm.engine.samples import check_samples
from ssnet_mm.errors import UserError, few

# the variable by which each launcher numbers its processes
_RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


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
    settings.check_sizes(cfg)
    settings.check_complete(cfg, mode)
    settings.check_arguments(cfg, mode)
    settings.check_sliding(cfg)
    _name_pretrained(cfg)
    model, random_state = _build_seeded(cfg)
    network.check_classes(model)
    network.check_geometry(model)
    datasets: list[Located] = []
    whole, notes = {}, unread_variables(str(cfg.filename))
    if mode == 'train':
        notes += network.check_losses(model, cfg)
    num_classes = getattr(getattr(model, 'module', model), 'num_classes', None)
    num_processes = int(os.environ.get('WORLD_SIZE', 1))
    loaders = ['train_dataloader', 'val_dataloader'] if mode == 'train' else ['test_dataloader']
    for loader in loaders:
        if cfg.get(loader):
            found = check_data(cfg, loader, num_classes)
            datasets += found
            with config_errors(f'{loader} of {cfg.filename}'):
                singles = [(dataset, built) for _, dataset, built in found]
                whole[loader] = whole_dataset(cfg[loader]['dataset'], singles)
                if not len(whole[loader]):
                    raise UserError(f'{loader}.dataset of {cfg.filename} gives no image at all')
            if not loader.startswith('train'):
                schedules.check_scoring(cfg[loader], loader, len(whole[loader]), num_processes)
                check_scored_once(f'{loader}.dataset', whole[loader])
    notes += network.check_meaning(datasets, num_classes)
    with undisturbed():
        notes += check_pipelines(datasets)
    if mode == 'train':
        network.check_heads(model, datasets)
        notes += schedules.check_loop(cfg, len(whole['train_dataloader']), num_processes)
        notes += schedules.check_saving(cfg)
        notes += settings.unwatched(cfg)
        for weights in pretrained_weights(cfg.model):
            read_checkpoint(weights)
        with config_errors(f'init_cfg in {cfg.filename}'):
            check_initializers(model, cfg)
        if hasattr(model, 'load_teacher'):
            model.load_teacher()
            classes = datasets[0][2].metainfo.get('classes') or ()
            check_classes({'meta': model.teacher_meta}, model.teacher_checkpoint, classes)
    if cfg.get('resume') and (mode == 'train' or cfg.get('load_from') is None):
        notes += resuming.choose_checkpoint(cfg)
    resume = cfg.get('resume', False)
    path = cfg.load_from = find_checkpoint(cfg.get('load_from'), False, cfg.work_dir)
    checkpoint = read_to_load(path, resume) if path else {}
    if path:
        load_state_dict(model, weights_of(checkpoint, path), path)
        if mode == 'test' or resume:  # other weights may be a start for other classes
            check_classes(checkpoint, path, datasets[0][2].metainfo.get('classes') or ())
        if not resume:
            network_of = cfg if mode == 'test' else None
            notes += trained_otherwise(path, checkpoint.get('meta'), model, network_of)
    elif mode == 'train':
        notes += network.check_frozen(model, schedules.still_parameters(cfg, model))
    position = (0, 0)
    if path and resume:
        position, changed = resuming.keep_seed(cfg, checkpoint['meta'])
        notes += changed + resuming.changed_settings(path, checkpoint['meta'], cfg)
    trained = [built for where, _, built in datasets if where.startswith('train_')]
    scored = [built for where, _, built in datasets if not where.startswith('train_')]
    check_outputs(cfg.get(f'{"val" if mode == "train" else mode}_evaluator'), scored, trained)
    evaluator = build_evaluator(cfg, mode)
    parts = [
        part
        for loader, built in whole.items()
        for part in with_parts(f'{loader}.dataset', cfg[loader]['dataset'], built)
    ]
    network.check_normalised_once(model, parts)
    notes += network.check_ignore_index(model, parts, evaluator.metrics if evaluator else [])
    if not skip_data_check and is_first_process(cfg):
        notes += _look_at_data(cfg, datasets)
        notes += trained_on(cfg, datasets) if mode == 'test' else []
    for dataset in whole.values():
        check_samples(dataset, model)
    resumed = (path, checkpoint) if path and resume else None
    notes += dry_run(cfg, mode, model, whole, evaluator, resumed)
    reused = [(cfg[loader]['dataset'], dataset) for loader, dataset in whole.items()]
    return Prepared(model, random_state, reused, position, notes)


def _look_at_data(cfg: Config, datasets: Sequence[Located]) -> list[str]:
    """Notes on the images and masks; UserError for what would spoil training or scores."""
    report = look_at_data(cfg, datasets, whole_config=False)
    if report.errors:
        more = len(report.errors) - 1
        others = f' ({more} more {"kind" if more == 1 else "kinds"} of error)' if more else ''
        raise UserError(f'{report.errors[0]}{others}; ssnet_mm check {cfg.filename} shows all')
    notes = [str(finding) for finding in report.notes]
    notes += settings.unscored_best(cfg, report.totals)
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


def _name_pretrained(cfg: Config) -> None:
    """Call mmengine's initializer by the one name that it and mmseg's backbones compare with.

    By another, with a scope or as a class, other initializers may overwrite what it loads.
    """
    for name, part in dicts(cfg.model, 'model'):
        kind = part.get('type') if '.init_cfg' in name else None
        if (WEIGHT_INITIALIZERS.get(kind) if isinstance(kind, str) else kind) is PretrainedInit:
            part['type'] = 'Pretrained'  # type: ignore[index]


def check_initializers(model: Any, cfg: Config) -> None:
    """Do the initializers build, and find what they need where they can tell?"""
    settings = dict(walk(cfg.model, 'model'))
    for name, module in model.named_modules():
        where = f'model.{name}.init_cfg' if name else 'model.init_cfg'
        for init_cfg in listed_or_single(getattr(module, 'init_cfg', None)):
            # mmengine reads `override` itself: for which parts other values are drawn
            own = {key: value for key, value in init_cfg.items() if key != 'override'}
            built = WEIGHT_INITIALIZERS.build(copy.deepcopy(own))
            if hasattr(built, 'check'):
                built.check(module, model)
            if settings.get(where):  # what a toolbox sets itself may be for more nets than this one
                _check_drawn(built, init_cfg, module, where)


def _check_drawn(initializer: Any, init_cfg: Mapping[str, Any], module: Any, where: str) -> None:
    """Are there the layers, and the parts by name, for which values are to be drawn?"""
    overridden = listed_or_single(init_cfg.get('override'))
    for name in (part['name'] for part in overridden if 'name' in part):
        if not hasattr(module, name):
            parts = few(key for key, _ in module.named_children())
            raise UserError(
                f'{where}: override names {name}, which is not there; '
                f'{where.removesuffix(".init_cfg")} has {parts}'
            )
    layers = getattr(initializer, 'layer', None)
    if layers is None or (not layers and overridden):
        return
    if not layers:
        raise UserError(f'{where}: {init_cfg["type"]} draws no weight without layer or override')
    if not set(layers) & {kind for part in module.modules() for kind in _class_names(part)}:
        kinds = few(sorted({type(part).__name__ for part in module.modules()}))
        raise UserError(
            f'{where}: layer={init_cfg["layer"]!r} is the class of no layer there; it has {kinds}'
        )


def _class_names(module: Any) -> Iterator[str]:
    """The names by which mmengine's initializers find a layer: its class's, and its bases'."""
    return (kind.__name__ for kind in (type(module), *type(module).__bases__))


def check_machine(cfg: Config, mode: str) -> None:
    """Is there the accelerator that mixed precision or the launcher asks for?"""
    device = get_device()
    wrapper = (cfg.get('optim_wrapper') or {}).get('type', '')
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
        backend = (cfg.get('env_cfg', {}).get('dist_cfg') or {}).get('backend', 'nccl')
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
