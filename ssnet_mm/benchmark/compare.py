"""Compare segmentors side by side: size, arithmetic, speed and memory, on synthetic images.

Every row (a config on a runtime in a precision) lives in a process of its own, so that its peak
memory is its own and its crash costs one row. All rows are built and warmed up, then they take
turns, one at a time, round after round: what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch

from ssnet_mm.deploy import fuse
from ssnet_mm.deploy.precision import compute_in_bfloat16, pack_weights
from ssnet_mm.deploy.runtimes import FORMATS
from ssnet_mm.engine.config import config_errors
from ssnet_mm.errors import UserError
from ssnet_mm.malloc import keep_freed_memory

from .layers import Arithmetic, LayerTimes, count_macs, measure_machine, time_layers
from .rows import IN_TORCH, Result, Row, Settings
from .worker import PHOTO, Predictor, Trainer, build_row, export_row, serve


class RowError(Exception):
    """Why a row has no result."""


class Worker:
    """A process that makes something and calls its methods when asked."""

    def __init__(self, context: BaseContext, make: Callable[..., Any], *args: Any) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process = context.Process(  # type: ignore[attr-defined]
            target=serve, args=(theirs, make, *args), daemon=True
        )
        with _stdout_to_stderr():
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
            code = self.process.exitcode or 0
            how = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
            if how == 'SIGKILL':
                how += ': out of memory?'
            raise RowError(f'its process died ({how})') from None
        if not done:
            raise RowError(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """For processes that start in here: toolboxes print, and standard output is the table's."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(ours, 1)
        os.close(ours)


def run(
    rows: Sequence[Row], settings: Settings, say: Callable[[str], object] = lambda text: None
) -> list[Result]:
    """Time all rows and compare them with the first one; ``say`` is told of the progress.

    Raises:
        UserError: A config or a checkpoint is at fault; nothing was timed then.
    """
    size_of = functools.cache(_size)
    results = [
        Result(row, settings, *size_of(row.config, row.checkpoint, settings)) for row in rows
    ]
    workers: dict[int, Worker] = {}  # of the rows that did not fail, by their place

    @contextlib.contextmanager
    def one_row(place: int) -> Iterator[Result]:
        """Keep a failure to its row."""
        result = results[place]
        try:
            yield result
        except RowError as error:
            say(f'{result.row.label}: {error}')
            result.error = str(error)
            result.network, result.end_to_end = [], []
            if place in workers:
                workers.pop(place).stop()

    context = _context()
    meters: dict[str, Worker] = {}  # of arithmetic, by precision
    peaks: defaultdict[str, list[float]] = defaultdict(list)  # operations a second
    with tempfile.TemporaryDirectory() as folder:
        try:
            for i, row in enumerate(rows):
                say(f'{row.label}: preparing, {i + 1} of {len(rows)}')
                with one_row(i):
                    workers[i] = _start(context, row, settings, f'{folder}/{i}')
            meters.update(_start_meters(context, [rows[i] for i in workers], settings))
            for turn in range(settings.rounds):
                say(f'round {turn + 1} of {settings.rounds}')
                for precision, meter in list(meters.items()):
                    try:
                        peaks[precision].append(meter.ask('turn'))
                    except RowError as error:
                        say(f'arithmetic in {precision}: {error}')
                        meters.pop(precision).stop()
                for i, worker in list(workers.items()):
                    with one_row(i) as result:
                        for name, seconds in worker.ask('turn').items():
                            getattr(result, name).append(seconds)
            for i, worker in list(workers.items()):
                with one_row(i) as result:
                    for name, value in worker.ask('facts').items():
                        setattr(result, name, value)
        finally:
            for worker in [*workers.values(), *meters.values()]:
                worker.stop()
    for precision, rates in peaks.items():
        same = [result for result in results if result.row.precision == precision]
        # a runtime may have better kernels than torch's own product, as OpenVINO for int8
        peak = max(rates + [result.flops for result in same if result.flops])
        for result in same:
            result.peak_flops = peak
    if results[0].network:
        first = float(np.median(results[0].network))
        for result in results:
            if result.network:
                result.ratio = float(np.median(result.network)) / first
    return results


def _size(config: str, checkpoint: str | None, settings: Settings) -> tuple[int, int | None]:
    """Parameters, and multiply-adds of one image; None where they can't be counted."""
    model, _ = build_row(Row(config, checkpoint=checkpoint), settings)
    params = sum(p.numel() for p in model.parameters())
    try:
        return params, count_macs(model.to('meta'), (1, 3, *settings.shape))['']
    except Exception:  # some models look at their numbers; a shape that can't be fails in the row
        return params, None


def _context() -> BaseContext:
    """How processes start: off one that has the libraries loaded, where the system has that."""
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['ssnet_mm.benchmark.worker'])
    return context


def _start(context: BaseContext, row: Row, settings: Settings, path: str) -> Worker:
    if row.training:
        return Worker(context, Trainer, row, settings)
    if row.runtime in IN_TORCH:
        return Worker(context, Predictor, row, settings)
    path += next(f.suffix for f in FORMATS.values() if f.runtime == row.runtime)
    # in a process of its own too: an export takes more memory than what it writes
    Worker(context, export_row, row, settings, path).stop()
    return Worker(context, Predictor, row, settings, path)


def _start_meters(
    context: BaseContext, rows: Sequence[Row], settings: Settings
) -> dict[str, Worker]:
    """What measures the machine's arithmetic in turn with the rows, by the precisions it has."""
    meters = {}
    for precision in {row.precision for row in rows if not row.training}:
        with contextlib.suppress(RowError):
            meters[precision] = Worker(
                context, Arithmetic, settings.device, precision, settings.threads
            )
    return meters


def run_layers(
    rows: Sequence[Row], settings: Settings, say: Callable[[str], object] = lambda text: None
) -> list[LayerTimes]:
    """Time the layers of each row's network, in this process, as built or fused.

    The process keeps the memory that it frees, also for networks as built.
    """
    precisions = {row.precision for row in rows}
    if any(row.runtime not in ('torch', 'fused') for row in rows) or precisions - {'fp32', 'bf16'}:
        raise UserError('layers are timed of torch and fused, in fp32 and bf16')
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    machines = {p: measure_machine(settings.device, p) for p in precisions}
    results = []
    for row in rows:
        say(row.label)
        model, _ = build_row(row, settings)
        with config_errors(row.label):  # it may take no such images
            image = torch.rand(settings.batch, 3, *settings.shape, device=settings.device)
            if row.runtime == 'fused':
                model, image = fuse(model), image.to(memory_format=torch.channels_last)
            model = model.to(settings.device)
            macs = count_macs(model, image.shape)
            if row.precision == 'bf16':
                compute_in_bfloat16(model)
            if row.runtime == 'fused':
                pack_weights(model)
            costs = time_layers(model, image, settings.rounds, macs)
        results.append(LayerTimes(row, settings, machines[row.precision], costs))
    return results


def describe_run(rows: Sequence[Row], settings: Settings) -> str:
    """What the numbers depend on, in a few lines: machine, versions, settings."""
    device = f'CPU {_cpu_model()}, {settings.threads} threads of {os.cpu_count()} cores'
    if torch.device(settings.device).type == 'cuda':
        tf32 = 'may use' if torch.backends.cudnn.allow_tf32 else 'do without'
        gpu = f'{torch.cuda.get_device_name(settings.device)} (CUDA {torch.version.cuda})'
        device = f'{gpu}; fp32 convolutions {tf32} TF32; {device}'
    provider = packages_distributions().get('mmseg', ['mmseg'])[0]  # of the installed stack
    versions = [f'torch {torch.__version__}']
    for name in (provider, *sorted({row.runtime for row in rows} & {'onnxruntime', 'openvino'})):
        try:
            versions.append(f'{name} {version(name)}')
        except PackageNotFoundError:
            versions.append(f'{name} not installed')
    passes = 'training step: forward, loss, backward, optimizer step'
    if not any(row.training for row in rows):
        passes = 'network alone, to logits'
        if settings.end_to_end:
            passes += f'; end to end from a {PHOTO[1]}x{PHOTO[0]} JPEG file to a label map'
    height, width = settings.shape
    precisions = ', '.join(dict.fromkeys(row.precision for row in rows))
    return (
        f'device: {device}, {platform.system()}\n'
        f'versions: {", ".join(versions)}\n'
        f'input: {settings.batch} x 3 x {height} x {width} (synthetic), {precisions}\n'
        f'timed: {passes}; {settings.rounds} interleaved rounds'
    )


def _cpu_model() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':', 1)[1].strip() for line in file if 'model name' in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
