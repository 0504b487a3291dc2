"""What a run says on the console: a few lines about it, its progress, and what to do next.

The log file holds everything, environment and whole config included.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from ssnet_mm.engine.config.nested import values
from ssnet_mm.engine.disk import raise_unwritten
from ssnet_mm.errors import few
from ssnet_mm.files import atomic_write, name_in
from ssnet_mm.version import __version__

BEST = 'best'  # a file in a work directory that names its best checkpoint

# Progress of loops, where a checkpoint is the best so far, and why early stopping ends a training;
# in tests each class' scores, too.
_SHOWN = {
    'train': re.compile(
        r'(Iter|Epoch)\(\w+\) *\[|The best checkpoint |resumed epoch: |'
        'the monitored metric did not improve |Monitored metric |Stopping threshold reached: '
    ),
    'test': re.compile(r'(Iter|Epoch)\(\w+\) *\[|\n\+--'),
}
# Warnings that the stacks give in every run of ours, whatever it does.
_NOISE = re.compile(
    'The prefix is not set in metric class|"FileClient" will be deprecated|'
    '"HardDiskBackend" is the alias of|Failed to search registry with scope "mmseg"'
)
_CLASS_SCORE = re.compile(r'  IoU\..*?: [\d.na]+')  # of which there may be hundreds


class _ConsoleFilter(logging.Filter):
    """Passes what a person wants to know."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return not _NOISE.match(record.getMessage())
        return hasattr(record, 'told') or bool(_SHOWN[self.mode].match(record.getMessage()))


class _ConsoleFormatter(logging.Formatter):
    """The message alone; warnings are marked as such."""

    def format(self, record: logging.LogRecord) -> str:
        message = _CLASS_SCORE.sub('', super().format(record))
        return f'{record.levelname}: {message}' if record.levelno >= logging.WARNING else message


def quieten(logger: logging.Logger, mode: str) -> None:
    """Have a logger's console say the essential; its files hold everything, or it raises.

    Args:
        logger: Of a Runner.
        mode: 'train' or 'test'.
    """
    raise_unwritten(logger)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            for known in [f for f in handler.filters if isinstance(f, _ConsoleFilter)]:
                handler.removeFilter(known)
            handler.addFilter(_ConsoleFilter(mode))
            handler.setFormatter(_ConsoleFormatter())


def quieten_current(mode: str) -> None:
    """The same for what is logged before there is a Runner."""
    quieten(MMLogger.get_current_instance(), mode)


def tell(logger: logging.Logger, line: str) -> None:
    """Log a line that is for the console, too."""
    logger.info(line, extra={'told': True})


def introduce(runner: Runner, cfg: Config, mode: str, datasets: Sequence[Any]) -> None:
    """Say what is run: data, model, where from, how, where to.

    Args:
        runner: Built, and not run yet.
        cfg: Its config.
        mode: 'train' or 'test'.
        datasets: Those it will use; in training those of training first.
    """
    model = runner.model.module if hasattr(runner.model, 'module') else runner.model
    lines = {
        'config': str(cfg.filename),
        'data': _data(cfg, datasets),
        'model': _model(model),
        'weights': _weights(cfg),
        'training': _training(cfg) if mode == 'train' else '',
        'device': _device(),
        'work dir': _short(runner.work_dir),
        'log': _short(os.path.join(runner.log_dir, f'{runner.timestamp}.log')),
    }
    tell(runner.logger, f'ssnet_mm {__version__}: {mode}')
    for name, line in lines.items():
        if line:
            tell(runner.logger, f'  {name:9} {line}')


def _short(path: str) -> str:
    """Relative to where we are, if it lies below."""
    relative = os.path.relpath(path)
    return path if relative.startswith('..') else relative


def _data(cfg: Config, datasets: Sequence[Any]) -> str:
    counts = ' and '.join(f'{len(dataset)}' for dataset in datasets)
    classes = datasets[0].metainfo.get('classes') or ()
    roots = dict.fromkeys(str(getattr(d, 'data_root', '') or '') for d in datasets)
    where = f' of {", ".join(_short(root) for root in roots if root)}' if any(roots) else ''
    return f'{counts} images{where}; {len(classes)} classes: {few(classes)}'


def _model(model: Any) -> str:
    parts = [type(model).__name__]
    head = getattr(model, 'decode_head', None)
    head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
    parts += [type(part).__name__ for part in (getattr(model, 'backbone', None), head) if part]
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f'{", ".join(parts)}; {count:,} trainable parameters'


def _weights(cfg: Config) -> str:
    if cfg.get('load_from'):
        how = 'resumed from ' if cfg.get('resume') else ''
        return f'{how}{cfg.load_from}'
    named = [*values(cfg.model, 'checkpoint'), *values(cfg.model, 'pretrained')]
    return ', '.join(dict.fromkeys(str(start) for start in named if start)) or 'random'


def _training(cfg: Config) -> str:
    loop, wrapper = cfg.train_cfg, cfg.optim_wrapper
    if loop.get('max_iters'):
        length, unit = loop.max_iters, 'iterations'
    else:
        length, unit = loop.get('max_epochs'), 'epochs'
    said = [f'{length} {unit} of batch {cfg.train_dataloader.get("batch_size")}']
    optimizer = wrapper.get('optimizer') or {}
    if 'type' in optimizer:  # there may be several
        said.append(f'{optimizer["type"]} at {optimizer.get("lr")}')
    if cfg.get('val_cfg') is not None:
        said.append(f'validated every {loop.get("val_interval", 1)}')
    if wrapper.get('type', 'OptimWrapper') != 'OptimWrapper':
        said.append(str(wrapper['type']))
    return ', '.join(said)


def _device() -> str:
    processes = get_world_size()
    many = f', {processes} processes' if processes > 1 else ''
    if get_device() == 'cuda':
        return f'{torch.cuda.get_device_name()}{many}'
    threads = torch.get_num_threads()
    return f'{get_device()}, {threads} thread{"s" if threads > 1 else ""}{many}'


class BestHook(Hook):
    """Have a file of the work directory name its best checkpoint, and say at the end which it is.

    The file holds the checkpoint's name alone, so that it holds for a copy of the folder too, on
    any file system. Our commands take it where they take a checkpoint.
    """

    priority = 'LOWEST'  # after the checkpoint is written

    def before_train(self, runner: Runner) -> None:
        self._write(runner)  # a run that is resumed may have been killed before it could

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        self._write(runner)

    def _best(self, runner: Runner) -> str:
        info = runner.message_hub.runtime_info
        names = [key for key in info if key == 'best_ckpt' or key.startswith('best_ckpt_')]
        return os.path.basename(str(info[names[0]])) if names and info[names[0]] else ''

    def _write(self, runner: Runner) -> None:
        best = self._best(runner)
        beside = os.path.join(runner.work_dir, best)
        if best and is_main_process() and os.path.isfile(beside):
            atomic_write(os.path.join(runner.work_dir, BEST), f'{best}\n'.encode())

    def after_run(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        work_dir = _short(runner.work_dir)
        if os.path.isfile(os.path.join(runner.work_dir, BEST)):
            found = os.path.join(work_dir, BEST)
            score = info.get('best_score')
            scored = '' if score is None else f', {float(score):.2f}'
            best = self._best(runner) or name_in(os.path.join(runner.work_dir, BEST))
            tell(runner.logger, f'best checkpoint: {work_dir}/{best}{scored}')
        elif info.get('last_ckpt'):
            found = _short(str(info['last_ckpt']))
            tell(runner.logger, f'last checkpoint: {found}')
        else:
            tell(runner.logger, 'no checkpoint was saved; default_hooks.checkpoint says when')
            return
        words = shlex.join([str(runner.cfg.filename), found])
        tell(runner.logger, f'next: ssnet_mm test {words}')
