"""Compare segmentors side by side: size, arithmetic, speed and memory, on synthetic images.

Every row (a config on a backend in a precision) lives in a process of its own, so that its peak
memory is its own and its crash costs one row. All rows are built and warmed up, then they take
turns, one at a time, round after round: what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from ssnet_mm.benchmark.layers import REST, count_macs, measure_machine, time_layers
from ssnet_mm.benchmark.worker import (
    PHOTO,
    Predictor,
    Row,
    Settings,
    Trainer,
    build_segmentor,
    export_row,
    optimise,
    serve,
)
from ssnet_mm.engine.config import config_errors
from ssnet_mm.errors import UserError
from ssnet_mm.files import atomic_write
from ssnet_mm.malloc import keep_freed_memory

BACKENDS = ('torch', 'fused', 'compile', 'onnxruntime', 'openvino')
EXPORTED = ('onnxruntime', 'openvino')
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')
Result = dict[str, Any]


def plan(
    configs: Sequence[str],
    backends: Sequence[str] = ('torch',),
    precisions: Sequence[str] = ('fp32',),
    checkpoints: Sequence[str] = (),
) -> list[Row]:
    """All combinations, config by config, then backend by backend.

    Raises:
        UserError: The checkpoints are not one a config.
    """
    if checkpoints and len(checkpoints) != len(configs):
        raise UserError(
            f'--checkpoint takes one file a config: got {len(checkpoints)} for {len(configs)}'
        )
    weights: Sequence[str | None] = checkpoints or [None] * len(configs)
    return [
        Row(config, backend, precision, checkpoint)
        for config, checkpoint in zip(configs, weights, strict=True)
        for backend in backends
        for precision in precisions
    ]


def check_settings(settings: Settings) -> None:
    """Raise a UserError for sizes and counts that are not positive, or a device not there."""
    for name in ('shape', 'batch', 'threads', 'rounds', 'num_classes'):
        value = getattr(settings, name)
        if value is not None and min(value if name == 'shape' else (value,)) < 1:
            given = ' '.join(map(str, value)) if name == 'shape' else value
            raise UserError(f'--{name.replace("_", "-")} must be at least 1, got {given}')
    with config_errors(f'--device {settings.device} cannot be used'):
        torch.empty(1, device=settings.device)


def describe_config(row: Row, settings: Settings) -> Result:
    """Parameters, and multiply-adds of one image; None where they can't be counted.

    Raises:
        UserError: The config does not build, or its checkpoint does not fit.
    """
    model, _ = build_segmentor(row.config, settings.num_classes, row.checkpoint)
    params = sum(p.numel() for p in model.parameters())
    try:
        macs = count_macs(model.to('meta'), (1, 3, *settings.shape))['']
    except Exception:  # some models look at their numbers; a shape that can't be fails in the row
        macs = None
    return {'params': params, 'macs': macs}


class RowError(Exception):
    """Why a row has no result."""


class Worker:
    """A process that makes something and calls its methods when asked."""

    def __init__(self, context: BaseContext, make: Callable[..., Any], *args: Any) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, make, *args), daemon=True
        )
        self.process.start()
        theirs.close()  # or the end of the process would not be the end of the pipe
        try:
            self._receive()
        except RowError:
            self.stop()
            raise

    def ask(self, method: str) -> Any:
        """What the method returns; RowError if it fails or the process dies."""
        with contextlib.suppress(OSError):  # it is dead: receiving tells why
            self.connection.send(method)
        return self._receive()

    def _receive(self) -> Any:
        try:
            done, answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise RowError(f'its process died ({_exit(self.process.exitcode)})') from None
        if not done:
            raise RowError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f'exit code {code}'
    name = signal.Signals(-code).name
    return f'{name}: out of memory?' if name == 'SIGKILL' else name


def run(
    rows: Sequence[Row], settings: Settings, say: Callable[[str], object] = lambda text: None
) -> list[Result]:
    """Time all rows.

    Args:
        rows: The first one is what the others are compared with.
        settings: How to time.
        say: Is told of the progress.

    Returns:
        For each row ``config``, ``backend``, ``precision``, ``shape``, ``batch``, ``params``,
        ``macs`` (one image), ``latency_ms`` and ``end_to_end_ms`` (of a batch: ``median`` and
        ``p95``), ``images_per_s``, ``peak_mib``, ``held_mib`` (training: one image), ``ratio`` (of
        the medians, to the first row's) and ``error``. What was not measured is None.

    Raises:
        UserError: Settings, a config or a checkpoint are at fault; nothing was timed then.
    """
    check_settings(settings)
    configs: dict[tuple[str, str | None], Result] = {}
    for row in rows:
        key = row.config, row.checkpoint
        if key not in configs:
            configs[key] = describe_config(row, settings)
    context = _context()
    workers: dict[Row, Worker] = {}
    seconds: dict[Row, list[dict[str, float]]] = {row: [] for row in rows}
    facts: dict[Row, Result] = {}
    errors: dict[Row, str] = {}

    def attempt(row: Row, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RowError as error:
            errors[row] = str(error)
            say(f'{row.label}: {error}')
            if row in workers:
                workers.pop(row).stop()

    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, row in enumerate(rows):
                say(f'{row.label}: preparing, {i + 1} of {len(rows)}')
                worker = attempt(row, lambda: _start(context, row, settings, f'{folder}/{i}'))  # noqa: B023
                if worker is not None:
                    workers[row] = worker
            for i in range(settings.rounds):
                say(f'round {i + 1} of {settings.rounds}')
                for row, worker in list(workers.items()):
                    taken = attempt(row, lambda: worker.ask('turn'))  # noqa: B023
                    if taken is not None:
                        seconds[row].append(taken)
            for row, worker in list(workers.items()):
                facts[row] = attempt(row, lambda: worker.ask('facts')) or {}  # noqa: B023
        finally:
            for worker in workers.values():
                worker.stop()
    results = []
    for row in rows:
        result = _result(row, settings, seconds[row] if row not in errors else [])
        known = {**configs[row.config, row.checkpoint], **facts.get(row, {})}
        results.append({**result, **known, 'error': errors.get(row)})
    first = (results[0]['latency_ms'] or {}).get('median')
    for result in results:
        if first and result['latency_ms']:
            result['ratio'] = result['latency_ms']['median'] / first
    return results


def _context() -> BaseContext:
    """How processes start: off one that has the libraries loaded, where the system has that."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ssnet_mm.benchmark.worker'])
    return context


def _start(context: BaseContext, row: Row, settings: Settings, path: str) -> Worker:
    if row.backend == 'train':
        return Worker(context, Trainer, row, settings)
    if row.backend not in EXPORTED:
        return Worker(context, Predictor, row, settings)
    path += '.onnx' if row.backend == 'onnxruntime' else '.xml'
    # in a process of its own too: an export takes more memory than what it writes
    Worker(context, export_row, row, settings, path).stop()
    return Worker(context, Predictor, row, settings, path)


def percentile(values: Iterable[float], q: float) -> float:
    """The value below which a share ``q`` of the values lies, interpolated linearly."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {'median': statistics.median(seconds) * 1e3, 'p95': percentile(seconds, 0.95) * 1e3}


def _result(row: Row, settings: Settings, seconds: Sequence[dict[str, float]]) -> Result:
    latency = _milliseconds([s['network'] for s in seconds])
    return {
        'config': row.config,
        'backend': row.backend,
        'precision': row.precision,
        'shape': list(settings.shape),
        'batch': settings.batch,
        'params': None,
        'macs': None,
        'latency_ms': latency,
        'end_to_end_ms': _milliseconds([s['end_to_end'] for s in seconds if 'end_to_end' in s]),
        'images_per_s': settings.batch / latency['median'] * 1e3 if latency else None,
        'peak_mib': None,
        'held_mib': None,
        'ratio': None,
    }


def describe_run(rows: Sequence[Row], settings: Settings) -> str:
    """What the numbers depend on, in a few lines: machine, versions, settings.

    Raises:
        UserError: From :func:`check_settings`.
    """
    check_settings(settings)
    if torch.device(settings.device).type == 'cuda':
        machine = f'{torch.cuda.get_device_name(settings.device)} (CUDA {torch.version.cuda}); '
        tf32 = torch.backends.cudnn.allow_tf32
        machine += f'fp32 convolutions {"may use" if tf32 else "do without"} TF32; CPU '
    else:
        machine = 'CPU '
    packages = ['torch', _provider('mmseg')]
    packages += [name for name in EXPORTED if any(row.backend == name for row in rows)]
    height, width = settings.shape
    passes = 'training step: forward, loss, backward, optimizer step'
    if all(row.backend != 'train' for row in rows):
        passes = 'network alone, to logits'
        if settings.end_to_end:
            passes += f'; end to end from a {PHOTO[1]}x{PHOTO[0]} JPEG in memory to a label map'
    precisions = ', '.join(dict.fromkeys(row.precision for row in rows))
    return '\n'.join(
        [
            f'device: {machine}{cpu_model()}, {settings.threads} threads of '
            f'{os.cpu_count()} cores, {platform.system()}',
            'versions: ' + ', '.join(f'{name} {_version(name)}' for name in packages),
            f'input: {settings.batch} x 3 x {height} x {width} (synthetic), {precisions}',
            f'timed: {passes}; {settings.rounds} interleaved rounds',
        ]
    )


def cpu_model() -> str:
    """The processor's name."""
    try:
        with open('/proc/cpuinfo') as file:
            names = [line.split(':', 1)[1].strip() for line in file if 'model name' in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _provider(module: str) -> str:
    """The distribution of the installed stack that brings mmseg."""
    names = ('onedl-mmsegmentation', 'mmsegmentation')
    return next((name for name in names if _version(name) != 'not installed'), module)


def _version(name: str) -> str:
    try:
        return torch.__version__ if name == 'torch' else version(name)
    except PackageNotFoundError:
        return 'not installed'


def write_json(results: Any, path: str | Path) -> None:
    """Write results, whole or not at all; UserError if the place can't be written."""
    write(path, json.dumps(results, indent=2).encode() + b'\n')


def write(path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all; UserError if the place can't be written."""
    try:
        atomic_write(path, data)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


def run_layers(
    rows: Sequence[Row], settings: Settings, say: Callable[[str], object] = lambda text: None
) -> list[Result]:
    """Time the layers of each row's network, in this process, float32, torch or fused.

    The process keeps the memory that it frees, also for rows of the backend torch.

    Returns:
        For each row ``config``, ``backend``, ``shape``, ``batch``, the machine's measured
        ``peak_gflops`` and ``bandwidth_gb_s``, and ``layers``: for each ``name``, ``ms``, ``macs``,
        ``gflops`` (a second), ``peak_share``, ``limit_ms`` (the least the machine could take) and
        ``bound`` (by 'arithmetic' or 'memory').

    Raises:
        UserError: As :func:`run`, or another backend or precision is asked for.
    """
    check_settings(settings)
    if any(row.backend not in ('torch', 'fused') or row.precision != 'fp32' for row in rows):
        raise UserError('--layers looks into the backends torch and fused, in fp32')
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    machine = measure_machine(settings.device)
    results = []
    for row in rows:
        say(row.label)
        model, _ = build_segmentor(row.config, settings.num_classes, row.checkpoint)
        model = optimise(model, row.backend).to(settings.device)
        image = torch.rand(settings.batch, 3, *settings.shape, device=settings.device)
        if row.backend == 'fused':
            image = image.to(memory_format=torch.channels_last)
        layers = []
        for cost in time_layers(model, image, settings.rounds):
            speed = 2 * cost.macs / cost.seconds if cost.seconds else 0.0
            counted = cost.name != REST
            layers.append(
                {
                    'name': cost.name,
                    'ms': cost.seconds * 1e3,
                    'macs': cost.macs,
                    'gflops': speed / 1e9,
                    'peak_share': speed / machine.flops,
                    'limit_ms': cost.limit(machine) * 1e3 if counted else None,
                    'bound': cost.bound(machine) if counted else None,
                }
            )
        results.append(
            {
                'config': row.config,
                'backend': row.backend,
                'shape': list(settings.shape),
                'batch': settings.batch,
                'peak_gflops': machine.flops / 1e9,
                'bandwidth_gb_s': machine.bandwidth / 1e9,
                'layers': layers,
            }
        )
    return results


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)
