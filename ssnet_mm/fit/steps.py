"""The steps of a fit, each of which leaves its result: a second call goes on where one ended."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from ssnet_mm.checks import contact_sheet
from ssnet_mm.deploy.check import verify
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.engine import launch
from ssnet_mm.engine.checkpoint import newest_whole
from ssnet_mm.engine.console import BEST
from ssnet_mm.errors import UserError, few, quiet
from ssnet_mm.files import make_folder, named_file, printable, write_result
from ssnet_mm.fit import page
from ssnet_mm.fit.config_text import NETS, config_text
from ssnet_mm.fit.plan import Plan, choose, fill, measure
from ssnet_mm.own_configs import find_config
from ssnet_mm.prepare.destination import RECORD
from ssnet_mm.prepare.run import Prepared, prepare
from ssnet_mm.prepare.settings import Settings
from ssnet_mm.results.runs import read_run

_STATE = 'fit.json'
# Seconds on two cores: the start, the checks before training and test, the export, the report.
_REST = 50


@dataclass(frozen=True)
class Fit:
    """What is to be made of which photos.

    Args:
        source: Folder of photos, with annotations or beside ``settings.masks``.
        out: Folder for all that is made.
        settings: As for ``prepare``.
        net: A key of ``NETS``; empty for the first, or the one that was begun with.
        minutes: For all of it.
        iters: Iterations, instead of minutes.
    """

    source: Path
    out: Path
    settings: Settings
    net: str = ''
    minutes: float = 8.0
    iters: int | None = None

    @property
    def config(self) -> Path:
        return self.out / 'config.py'

    @property
    def run(self) -> Path:
        return self.out / 'run'

    @property
    def export(self) -> Path:
        """ONNX, where its packages are; they come with the extra "deploy"."""
        onnx = find_spec('onnx') and find_spec('onnxruntime')
        return self.out / ('model.onnx' if onnx else 'model.pt2')


@dataclass
class State:
    """Results of the steps, kept in a file.

    Args:
        path: The file.
        steps: Of each step what it was made from, what came of it, and how long it took.
    """

    path: Path
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> State:
        try:
            steps = json.loads(path.read_text())
            if not all(isinstance(row['seconds'], float) for row in steps.values()):
                raise ValueError('no seconds')
        except FileNotFoundError:
            steps = {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} can't be read ({error}); delete it to begin anew") from error
        return cls(path, steps)

    def once(self, name: str, made_of: str, step: Callable[[], Any]) -> Any:
        """The result of a step, from before if what it is made of has not changed."""
        known = self.steps.get(name)
        if known and known['made_of'] == made_of:
            return known['result']
        print(f'\n== {name}', flush=True)
        start = time.monotonic()
        part = f'{name}, stopped'  # which may be gone on with
        done = False
        try:
            result = step()
            done = True
        finally:
            before = self.steps.pop(part, {}).get('seconds', 0.0)
            seconds = round(before + time.monotonic() - start, 1)
            if done:
                self.steps[name] = dict(made_of=made_of, seconds=seconds, result=result)
            else:
                self.steps[part] = dict(made_of=made_of, seconds=seconds, result=None)
            self.write()
        return result

    def write(self) -> None:
        write_result(self.path, json.dumps(self.steps, indent=1).encode())


def fit(task: Fit) -> Path:
    """Do what is left to do; the report's path.

    Raises:
        UserError: Something can't be used, or the config was changed after it was trained.
    """
    start = time.monotonic()
    make_folder(task.out)
    state = State.read(task.out / _STATE)
    data = _prepare(task, state)
    if not task.config.exists():
        state.steps.pop('config', None)  # of a config that was deleted
        state.once('config', '', lambda: _write_config(task, data, start))
    else:
        begun = state.steps.get('config', {}).get('result', {}).get('net')
        if task.net not in ('', begun):
            raise UserError(
                f'{task.config} is there, of {begun or "another net"}; take another --out for '
                f'{task.net}, or delete it'
            )
        print(f'{task.config}: is there, and taken as it is')
    text = _digest(task.config)
    trained = state.steps.get('train')
    if trained and trained['made_of'] != text:
        raise UserError(
            f'{task.config} was changed after it was trained; delete {task.run} and '
            f'{state.path} to train anew, or take another --out'
        )
    cfg = launch.load_config(str(task.config))
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    seen, counts = (state.steps['prepare']['result'][key] for key in ('data', 'counts'))
    trained_on = state.once('train', text, lambda: dict(_train(task), data=seen, counts=counts))
    if trained_on.get('data', seen) != seen:
        state.steps['prepare']['result']['notes'].append(
            'the data have changed since the training; the scores are those of the validation '
            'images as they are now'
        )
    checkpoint = named_file(str(task.run / BEST))
    if not os.path.isfile(checkpoint) or checkpoint == str(task.run / BEST):
        raise UserError(f'{task.run} holds no best checkpoint; delete {state.path} to train anew')
    made_of = f'{text} {os.path.basename(checkpoint)} {os.stat(checkpoint).st_mtime_ns} {seen}'
    state.once('test', made_of, lambda: _test(task, checkpoint))
    state.once('pictures', made_of, lambda: _pictures(task, checkpoint, data))
    state.once('export', made_of, lambda: _export(task, checkpoint))
    report = task.out / 'report.html'
    write_result(report, printable(page.render(task, state.steps, data)).encode())
    return report


def _prepare(task: Fit, state: State) -> Prepared:
    print('== prepare', flush=True)
    start = time.monotonic()
    known = state.steps.get('prepare', {})
    masks = task.settings.masks
    made_of = str(task.source.resolve()) + (f' with {masks.resolve()}' if masks else '')
    if known and known['made_of'] not in ('', made_of):
        raise UserError(
            f'{task.out} holds a fit of {known["made_of"]}, not of {made_of}; take another --out, '
            f'or delete {state.path} if the folder was only moved'
        )
    data = prepare(task.source, task.out / 'data', task.settings)
    for line in data.faults:
        print(f'left out: {" ".join(line.split())}')
    for finding in data.report.findings:
        print(f'{finding.check.severity}: {finding}')
    if data.report.errors:
        raise UserError(f'the data would spoil training: {data.report.errors[0]}')
    for split in ('train', 'val'):
        if not data.counts[split]:
            raise UserError(
                f'no image is left to {split} with; give more than one, or another --val'
            )
    counts = {split: data.counts[split] for split in data.counts}
    # masks that were edited in place have other counts; those made anew another record
    totals = [(sorted(t.digests), sorted(t.labels.items())) for t in data.report.totals]
    record = (data.root / RECORD).read_bytes()
    seen = hashlib.blake2b(record + repr(totals).encode(), digest_size=12).hexdigest()
    if known and known['result'].get('data', seen) != seen:
        print('note: the data have changed; what is trained already stays as it is')
    notes = [str(finding) for finding in data.report.notes]
    result = dict(counts=counts, faults=data.faults, notes=notes, data=seen)
    seconds = known.get('seconds') or round(time.monotonic() - start, 1)
    state.steps['prepare'] = dict(made_of=made_of, seconds=seconds, result=result)
    state.write()
    print(
        f'{task.out / "data"}: {counts["train"]} train, {counts["val"]} val; '
        f'{len(data.record.classes)} classes: {few(data.record.classes)}'
    )
    return data


def _write_config(task: Fit, data: Prepared, start: float) -> dict[str, str]:
    net = task.net or next(iter(NETS))
    base, totals = find_config(NETS[net]), data.report.totals[0]
    weights = totals.median_frequency_weights().tolist()
    workers = min(4, os.cpu_count() or 1)
    tried = task.out / 'tried.py'  # a config that is whole alone is taken as it is, later

    def write(path: Path, plan: Plan, amp: str) -> Config:
        text = config_text(task.config, base, data, weights, plan, amp, workers)
        write_result(path, printable(text).encode())  # the folder's name need not be text
        cfg = launch.load_config(str(path))
        init_default_scope(cfg.get('default_scope') or 'mmseg')
        return cfg

    def left() -> float:
        return 60 * task.minutes - _REST - (time.monotonic() - start)

    plan = choose(totals.sizes, data.counts, None, 0, task.iters or 100)
    try:
        cfg = write(tried, plan, '')
        launch.use_amp(cfg)
        amp = '' if cfg.optim_wrapper.type == 'OptimWrapper' else cfg.optim_wrapper.type
        if task.iters is None:
            trial = task.out / 'tried.pth'
            plan = choose(totals.sizes, data.counts, measure(cfg, trial), left())
            plan = fill(plan, data.counts, measure(write(tried, plan, amp), trial), left())
    finally:
        tried.unlink(missing_ok=True)
    write(task.config, plan, amp)
    print(f'{task.config}: {plan}')
    return dict(net=net, plan=str(plan))


def _have_own_folder(cfg: Config, folder: Path) -> None:
    cfg.work_dir, cfg.launcher = str(folder), 'none'
    # mmengine gives a visualizer of a known name again, which writes into the other run's folder
    cfg.visualizer.name = str(folder)


def _train(task: Fit) -> dict[str, Any]:
    cfg = launch.load_config(str(task.config))
    _have_own_folder(cfg, task.run)
    if task.run.is_dir() and newest_whole(str(task.run), cfg)[0]:
        cfg.resume = True
    launch.run(cfg, 'train')
    ended = _ended(cfg, task.run)
    if ended:
        print(ended)
    return dict(device=_device(), ended=ended)


def _ended(cfg: Config, run: Path) -> str:
    """Why a training that nobody stopped ended before its last iteration; empty if it didn't."""
    scores = read_run(run).curves.get('mIoU', [])
    length = cfg.train_cfg.get('max_iters', 0)
    if not scores or scores[-1][0] >= length:
        return ''
    step, score = max(scores, key=lambda row: row[1])
    return (
        f'stopped early, at iteration {scores[-1][0]} of {length}: mIoU no longer rose (best: '
        f'{score:.1f}%, at iteration {step})'
    )


def _device() -> str:
    if get_device() == 'cuda':
        return torch.cuda.get_device_name()
    return f'{get_device()} ({platform.machine()}, {os.cpu_count()} cores)'


def _test(task: Fit, checkpoint: str) -> dict[str, Any]:
    cfg = launch.load_config(str(task.config))
    _have_own_folder(cfg, task.out / 'test')
    cfg.load_from, cfg.resume = checkpoint, False
    launch.report_scores(cfg, str(task.out / 'test'), checkpoint)
    launch.run(cfg, 'test', skip_data_check=True)
    return {}


def _pictures(task: Fit, checkpoint: str, data: Prepared) -> dict[str, Any]:
    cfg = launch.load_config(str(task.config))
    device = 'cuda' if get_device() == 'cuda' else 'cpu'
    model = load_model(cfg, checkpoint, device)
    shown = page.draw_examples(model, cfg, task.out)
    sheet = contact_sheet(data.splits, 8)
    if sheet:
        write_result(task.out / 'data.png', sheet)
    return dict(images=shown)


def _export(task: Fit, checkpoint: str) -> dict[str, Any]:
    cfg = launch.load_config(str(task.config))
    model = load_model(cfg, checkpoint, 'cpu')
    height, width = cfg.crop_size
    format = 'onnx' if task.export.suffix == '.onnx' else 'torch-export'
    report = export(model, task.export, format, end_to_end=True, size=(height, width))
    print(f'{task.export}: {report}')
    with quiet(MMLogger.get_current_instance()):  # it lists each class, twice
        verified = verify(model, task.export)
    scores = {name: float(row['mIoU']) for name, row in verified.items()}
    for name, score in scores.items():
        print(f'mIoU on val, {name}: {score:.2f}%')
    return dict(report=str(report), scores=scores, bytes=task.export.stat().st_size)


def _digest(path: Path) -> str:
    if not path.is_file():
        return ''
    return hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
