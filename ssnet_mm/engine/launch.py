"""What training and testing share: from a config file and flags to a running Runner."""

from __future__ import annotations

import argparse
import errno
import fcntl
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import IO, Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.registry import HOOKS, RUNNERS
from torch import nn
from torch.utils.data import DataLoader

from ssnet_mm.engine.checkpoint import Place, check_unmixed, weights_only
from ssnet_mm.engine.config import config_errors, describe, single_datasets
from ssnet_mm.engine.config import load_config as load_config  # for the tools, with the rest
from ssnet_mm.engine.config.nested import dicts, listed_or_single
from ssnet_mm.engine.console import BestHook, introduce, quieten, quieten_current
from ssnet_mm.engine.disk import full_disk, write_whole
from ssnet_mm.engine.guards import GuardHook
from ssnet_mm.engine.hooks import PlainCheckpointHook
from ssnet_mm.engine.mixed_precision import AMP_DTYPES as AMP_DTYPES
from ssnet_mm.engine.mixed_precision import in_mixed_precision
from ssnet_mm.engine.mixed_precision import use_amp as use_amp
from ssnet_mm.engine.painting import LoadedVisualizationHook
from ssnet_mm.engine.preflight import Prepared, is_first_process, preflight, schedules
from ssnet_mm.engine.preflight.dry_run import OUT_OF_MEMORY
from ssnet_mm.engine.repeatable import (
    RepeatableHook,
    ResumedIterator,
    number_draws,
    skip_batches,
)
from ssnet_mm.engine.samples import check_samples
from ssnet_mm.engine.stopping import StopHook, StopSignals, start_worker
from ssnet_mm.errors import Stopped, UserError
from ssnet_mm.files import digest, make_folder, printable, sweep_temporary
from ssnet_mm.malloc import keep_freed_memory


def apply_run_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Put --work-dir and --launcher into the config; an absent flag leaves the config's value."""
    # precedence: --work-dir, then the config's work_dir, then ./work_dirs/<name of the config>
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        cfg.work_dir = os.path.join('./work_dirs', name)
    cfg.work_dir = os.path.expanduser(cfg.work_dir)
    cfg.launcher = args.launcher or cfg.get('launcher', 'none')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))


def use_tta(cfg: Config) -> list[str]:
    """Test with the config's augmentations (``tta_pipeline``) around the model (``tta_model``).

    Returns:
        What the user should know.
    """
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise UserError(f'--tta needs tta_model and tta_pipeline, {cfg.filename} lacks them')
    notes = []
    tried = _resized(cfg.tta_pipeline)
    for where, dataset in single_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset'):
        tested = _resized(dataset.get('pipeline'))
        if tried and not any(min(tried) <= size <= max(tried) for size in tested):
            usual = f'to {tested[0]}' if tested else 'not at all'
            notes.append(
                f'--tta: tta_pipeline resizes images to {min(tried)} to {max(tried)} pixels on '
                f'their long side, {where}.pipeline {usual}; give tta_pipeline scales about that'
            )
        dataset['pipeline'] = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)
    if cfg.model.type == 'SegTTAModel':
        cfg.model.type = 'MeanProbabilityTTAModel'  # the same, but for one output channel
    return notes


def _resized(pipeline: Any) -> list[int]:
    """The long sides of the sizes to which a pipeline resizes images."""
    parts = [part for _, part in dicts(pipeline) if part.get('type') == 'Resize']
    return [max(listed_or_single(part['scale'])) for part in parts if part.get('scale')]


def use_tensorboard(cfg: Config) -> None:
    """Have a run write its curves for TensorBoard as well, into its ``vis_data``."""
    try:
        import_module('torch.utils.tensorboard')
    except ImportError as error:
        raise UserError(
            f'--tensorboard needs tensorboard; run: pip install "ssnet_mm[tensorboard]" ({error})'
        ) from error
    visualizer = cfg.setdefault('visualizer', dict(type='SegLocalVisualizer', name='visualizer'))
    backends = list(visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    if all(backend['type'] != 'TensorboardVisBackend' for backend in backends):
        backends.append(dict(type='TensorboardVisBackend'))
    visualizer['vis_backends'] = backends


def write_predictions(cfg: Config, folder: str) -> None:
    """Have the metrics write an index PNG per image, for evaluation elsewhere."""
    evaluators = cfg.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if evaluator.get('type') == 'ReportMetric':
            continue  # writes scores alone
        evaluator['output_dir'] = folder
        evaluator['keep_results'] = True  # or CityscapesMetric removes them again


def report_scores(cfg: Config, folder: str, checkpoint: str, options: Sequence[str] = ()) -> None:
    """Have the test write a report of its scores into a folder.

    Args:
        cfg: Its ``test_evaluator`` gets a ``ReportMetric``, in the place of one that it has.
        folder: For the files.
        checkpoint: What is tested.
        options: Those of the command that the scores depend on, as they were written.
    """
    given = cfg.test_evaluator
    evaluators = list(given) if isinstance(given, (list, tuple)) else [given]
    own: Mapping = next((e for e in evaluators if e.get('type') == 'ReportMetric'), {})
    evaluators = [e for e in evaluators if e is not own]
    ignored = [e['ignore_index'] for e in evaluators if e.get('ignore_index') is not None]
    data = [
        dataset.get('data_root')
        for _, dataset in single_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset')
    ]
    content = digest(checkpoint) if os.path.isfile(checkpoint) else None  # a name may be an URL
    about = dict(
        config=str(cfg.filename), checkpoint=checkpoint, sha256=content, options=list(options),
        data=data,
    )  # fmt: skip
    report = dict(
        {'type': 'ReportMetric', 'ignore_index': ignored[0] if ignored else 255, **own},
        report_dir=folder,
        about=about,
    )
    cfg.test_evaluator = [*evaluators, report]


def paint_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Have the visualization hook show predictions in a window, or write them to a folder."""
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise UserError(
            f'--show and --show-dir need default_hooks.visualization, {cfg.filename} lacks it; add '
            "visualization=dict(type='SegVisualizationHook')"
        )
    hook['draw'] = True
    hook['interval'] = 1  # every image on both stacks; OpenMMLab's draws one batch in 50 otherwise
    if show:
        hook['show'] = True
        hook['wait_time'] = wait_time
    if show_dir is not None:
        cfg.visualizer['save_dir'] = show_dir


@contextmanager
def sole_training(*folders: str) -> Iterator[list[str]]:
    """Have folders for this training alone, and free of what killed ones left unfinished.

    The lock ends with this process, however that ends; workers of data loaders do not inherit it.
    Where the file system has none, nothing is removed, and a note says so.

    Raises:
        UserError: Another training is going on in one, or it can't be made.
    """
    notes = []
    with ExitStack() as locks:
        for folder in folders:
            with config_errors(f'work_dir {folder}'):
                os.makedirs(folder, exist_ok=True)
                lock = locks.enter_context(open(os.path.join(folder, '.lock'), 'w'))
            if _lock(lock, folder):
                sweep_temporary(folder)
            else:
                notes.append(
                    f'the file system of {folder} has no locks: see to it yourself that no other '
                    'training is going on there'
                )
        yield notes


def _lock(file: IO, work_dir: str) -> bool:
    """Lock a file; False where its file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return False
        raise UserError(
            f'another training is going on in {work_dir}; give this one another work dir, or wait'
        ) from error


def check_work_dir(cfg: Config) -> None:
    """UserError where another training is going on in a work dir, or has left its checkpoints.

    Or where its name is no text, as which mmengine notes the last checkpoint.
    """
    if printable(os.path.abspath(cfg.work_dir)) != os.path.abspath(cfg.work_dir):
        raise UserError(
            f'the name of work_dir {cfg.work_dir} is no text (UTF-8); choose another --work-dir'
        )
    lock = os.path.join(cfg.work_dir, '.lock')
    if is_first_process(cfg) and os.path.isfile(lock):
        with config_errors(f'work_dir {cfg.work_dir}'), open(lock, 'a') as file:
            _lock(file, cfg.work_dir)
    check_unmixed(cfg.work_dir, cfg.get('load_from'), cfg.get('resume', False), cfg)


@weights_only()
def run(
    cfg: Config,
    mode: str,
    hooks: Sequence[Hook] = (),
    *,
    skip_data_check: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Check a config, build its Runner, and train or test.

    Args:
        cfg: With ``work_dir`` and ``launcher`` set.
        mode: 'train' or 'test'.
        hooks: Hooks to add to those of the config.
        skip_data_check: Look at the first sample of each data set only.
        notes: To log beside those of ``preflight``.

    Raises:
        UserError: From ``preflight``, or a mistake in the config that only building shows.
    """
    quieten_current(mode)
    if mode == 'test':
        with full_disk(cfg.work_dir, 'test again'):
            prepared = preflight(cfg, mode, skip_data_check=skip_data_check)
            prepared.notes.extend(notes)
            return _run(cfg, mode, hooks, prepared)
    check_work_dir(cfg)
    resume = 'go on with --resume: the checkpoints written before are whole'
    with full_disk(cfg.work_dir, resume):
        with StopSignals() as signals:
            prepared = preflight(cfg, mode, skip_data_check=skip_data_check)
            prepared.notes.extend(notes)
            own = dict.fromkeys((cfg.work_dir, Place.of(cfg.work_dir, cfg).folder))
            with sole_training(*own if is_first_process(cfg) else ()) as unlocked:
                prepared.notes.extend(unlocked)
                _run(cfg, mode, [*hooks, RepeatableHook(), StopHook(signals), BestHook()], prepared)


def _run(cfg: Config, mode: str, hooks: Sequence[Hook], prepared: Prepared) -> None:
    """Build the Runner of a config that was checked, and train or test."""
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        _join_cpu_processes(cfg)
    shown = (cfg.get('visualizer') or {}).get('save_dir')
    if shown:
        make_folder(shown)
    with config_errors(f'config {cfg.filename}'):
        runner = _runner_class(cfg, mode, prepared).from_cfg(cfg)
    for kind in (PlainCheckpointHook, GuardHook):  # in our tools, whatever a config's hooks are
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())
    for hook in hooks:
        runner.register_hook(hook)
    write_whole(runner)
    introduce(runner, cfg, mode, [dataset for _, dataset in prepared.datasets])
    for note in prepared.notes:
        runner.logger.warning(note)
    tune(runner.model, in_mixed_precision(cfg) and mode == 'train')
    try:
        runner.train() if mode == 'train' else runner.test()
    except Stopped:
        _leave_processes()
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(OUT_OF_MEMORY) from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # loops and metrics are built only here, and hooks look at their settings when they begin
        if runner.begun:
            raise
        raise UserError(f'config {cfg.filename}: {describe(error)}') from error
    barrier()  # a process that leaves early may abort the others
    _leave_processes()


def _leave_processes() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _runner_class(cfg: Config, mode: str, prepared: Prepared) -> type[Runner]:
    """The config's Runner, made to go on with what ``preflight`` has built."""
    base: Any = RUNNERS.get(cfg.get('runner_type', 'Runner'))

    class PreparedRunner(base):
        begun = False  # whether an iteration has

        def call_hook(self, fn_name: str, **kwargs: Any) -> None:
            base.call_hook(self, fn_name, **kwargs)
            self.begun |= fn_name.startswith('before') and fn_name.endswith('_iter')

        def build_logger(self, *args: Any, **kwargs: Any) -> Any:
            logger = base.build_logger(self, *args, **kwargs)
            quieten(logger, mode)
            return logger

        def register_hook(self, hook: Any, priority: Any = None) -> None:
            kind = hook.get('type') if isinstance(hook, Mapping) else None
            if (HOOKS.get(kind) if isinstance(kind, str) else kind) is SegVisualizationHook:
                hook = {**hook, 'type': LoadedVisualizationHook}
            base.register_hook(self, hook, priority)

        def build_model(self, model: Any) -> nn.Module:
            if prepared.random_state is not None:
                torch.set_rng_state(prepared.random_state)
            return prepared.model

        def load_or_resume(self) -> None:
            with config_errors(f'{self._load_from} can not be used'):
                base.load_or_resume(self)

        def build_dataloader(self, dataloader: Any, *args: Any, **kwargs: Any) -> DataLoader:
            if isinstance(dataloader, Mapping):
                for i, (known, dataset) in enumerate(prepared.datasets):
                    if known == dataloader['dataset']:
                        dataloader = {**dataloader, 'dataset': dataset}
                        del prepared.datasets[i]  # mmengine copies it
                        break
            loader = base.build_dataloader(dataloader, *args, **kwargs)
            check_samples(loader.dataset, prepared.model)
            if mode == 'train':
                loader.worker_init_fn = functools.partial(start_worker, loader.worker_init_fn)
            return loader

        def build_train_loop(self, loop: Any) -> Any:
            different = self._randomness_cfg.get('diff_rank_seed', False)
            loader: DataLoader = self.build_dataloader(
                self._train_dataloader, seed=self.seed, diff_rank_seed=different
            )
            self._train_dataloader: Any = loader
            sampler = number_draws(loader, self.seed)
            epoch, done = prepared.position
            if sampler is None or not done:
                return base.build_train_loop(self, loop)
            if schedules.by_epoch(cfg):
                amid = done - epoch * len(loader)
                skip_batches(loader, sampler, epoch, amid if 0 < amid < len(loader) else 0)
                return base.build_train_loop(self, loop)
            epoch = skip_batches(loader, sampler, 0, min(done, schedules.training_length(cfg)))
            built = base.build_train_loop(self, loop)
            if hasattr(built, 'dataloader_iterator'):
                built.dataloader_iterator = ResumedIterator(built.dataloader_iterator, epoch, done)
            return built

    return PreparedRunner


def tune(model: nn.Module, mixed_precision: bool) -> None:
    """Make torch quick: channels-last convolutions, and on a CPU memory that is used again.

    Neither changes what is computed, but for rounding and for which values dropout draws. CUDA's
    half-precision convolutions are made for channels-last; float32's were not measured.

    Args:
        model: On the device where it will run.
        mixed_precision: Whether it will run under autocast.
    """
    on_cpu = next(model.parameters()).device.type == 'cpu'
    # DDP has noted the layout of the gradients already
    if (on_cpu or mixed_precision) and not is_model_wrapper(model):
        model.to(memory_format=torch.channels_last)
        if _needs_plain_layout(model):
            model.to(memory_format=torch.contiguous_format)
    if on_cpu:
        keep_freed_memory()


def _needs_plain_layout(model: Any) -> bool:
    """Whether layers fail in the layout that a model has, as mmcv's ConvWS, mmseg's DMHead."""
    net, training = getattr(model, 'module', model), model.training
    bands = (m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    like = next(net.parameters())
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net.eval()(like.new_zeros(2, next(bands, 3), 64, 64), mode='tensor')
    except Exception as error:  # an image of this size may be too small
        return 'view size is not compatible' in str(error)
    finally:
        model.train(training)
    return False


def _join_cpu_processes(cfg: Config) -> None:
    """Do on CPU what mmengine does with several GPUs; it would bind each process to a CUDA device.

    ``preflight`` has seen to it that the backend is gloo.
    """
    torch.distributed.init_process_group('gloo')
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)
    cfg.sync_bn = None  # SyncBN runs on GPUs only
