"""What a network costs: multiply-adds, and where the time goes, layer by layer.

A layer's time is set beside the least that this machine could take for it: its arithmetic at the
speed of a large matrix product or convolution, or the bytes it reads and writes at the speed of one
large copy, whichever takes longer (the roofline model, https://doi.org/10.1145/1498765.1498785).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .rows import Row, Settings

REST = '(all else)'  # what runs between the layers: additions, resizing, Python
_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
_PRODUCT_SECONDS = 0.02  # a matrix product of less is made larger
_SAMPLES = 5  # of the machine's speed; the best one counts, as it is a limit
WARMUP = 3  # passes before those that count: the first compiles, or picks kernels


@dataclass(frozen=True)
class Machine:
    """What a machine can do at best, measured."""

    flops: float  # operations a second, a multiply-add being two
    bandwidth: float  # bytes read or written a second


@dataclass(frozen=True)
class LayerCost:
    """One layer's part of a pass."""

    name: str
    seconds: float  # median over the rounds
    macs: int
    moved: int  # bytes: inputs, weights and outputs, each once

    @property
    def flops(self) -> float:
        """Operations a second."""
        return 2 * self.macs / self.seconds if self.seconds else 0.0

    def limit(self, machine: Machine) -> float:
        """The least seconds the machine could take."""
        return max(2 * self.macs / machine.flops, self.moved / machine.bandwidth)

    def bound(self, machine: Machine) -> str:
        """Which of the two sets the limit: 'arithmetic' or 'memory'."""
        arithmetic = 2 * self.macs / machine.flops >= self.moved / machine.bandwidth
        return 'arithmetic' if arithmetic else 'memory'

    def to_dict(self, machine: Machine) -> dict[str, Any]:
        """As JSON holds it; what runs between the layers has no limit."""
        return {
            'name': self.name,
            'ms': self.seconds * 1e3,
            'macs': self.macs,
            'gflops': self.flops / 1e9,
            'peak_share': self.flops / machine.flops,
            'limit_ms': None if self.name == REST else self.limit(machine) * 1e3,
            'bound': None if self.name == REST else self.bound(machine),
        }


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done what it was told; a CPU always has."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device | str) -> float:
    """How long a call takes."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def count_macs(model: nn.Module, shape: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of convolutions and matrix products on an input (N, C, H, W), by module name.

    A module's number has those of its parts in it, ``''`` is the whole. On the meta device nothing
    is computed and nothing is allocated.
    """
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        run_network(model, torch.empty(*shape, device=device))
    macs = {'': counter.get_total_flops() // 2}  # torch counts two operations
    root = type(model).__name__
    for name, operations in counter.get_flop_counts().items():
        if name.startswith(f'{root}.'):
            macs[name.removeprefix(f'{root}.')] = sum(operations.values()) // 2
    return macs


def run_network(model: nn.Module, image: Tensor) -> Any:
    """Logits at the network's own resolution."""
    return model(image, mode='tensor') if hasattr(model, 'decode_head') else model(image)


class Arithmetic:
    """What arithmetic a machine can do in a precision, shown by a large matrix product.

    On a CPU a 3x3 convolution of about as many operations stands beside it, and the faster of the
    two counts: on AMD's, torch's float32 products take twice as long as its convolutions.
    """

    def __init__(self, device: str, precision: str, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.precision = precision
        largest = 2048 if self.device.type == 'cpu' else 8192
        side = 256
        self._draw(side)
        # a CPU may lack instructions for a precision, and then takes minutes for the largest
        while side < largest and self._seconds(self.works[0][1]) < _PRODUCT_SECONDS:
            side *= 2
            self._draw(side)

    @torch.no_grad()
    def _draw(self, side: int) -> None:
        """Make the works, and do them once: the first time picks a kernel."""
        shape = (2, side, side)
        if self.precision == 'int8':
            factors = torch.randint(-127, 128, shape, dtype=torch.int8, device=self.device)
            self.works = [(2 * side**3, functools.partial(torch._int_mm, *factors))]
        else:
            factors = torch.rand(shape, device=self.device).to(_DTYPES[self.precision])
            self.works = [(2 * side**3, functools.partial(torch.mm, *factors))]
            if self.device.type == 'cpu':
                channels, size = side // 4, side // 32
                image = torch.rand(1, channels, size, size).to(
                    factors.dtype, memory_format=torch.channels_last
                )
                kernel = torch.rand(channels, channels, 3, 3).to(factors.dtype)
                convolve = functools.partial(F.conv2d, image, kernel, padding=1)
                self.works.append((2 * kernel.numel() * size**2, convolve))
        for _, work in self.works:
            work()

    def _seconds(self, work: Callable[[], object]) -> float:
        return seconds_of(work, self.device)

    def turn(self) -> float:
        """Operations a second, a multiply-add being two."""
        return max(operations / self._seconds(work) for operations, work in self.works)


def measure_machine(device: str = 'cpu', precision: str = 'fp32') -> Machine:
    """Time large products and one large copy, with torch's threads as set."""

    def best(function: Callable[[], object]) -> float:
        return min(seconds_of(function, device) for _ in range(_SAMPLES + 1))

    arithmetic = Arithmetic(device, precision)
    flops = max(arithmetic.turn() for _ in range(_SAMPLES))
    source = torch.rand(64 * 2**20, device=device)  # 256 MiB: more than a core's share of caches
    target = torch.empty_like(source)
    copy = best(lambda: target.copy_(source))
    return Machine(flops, 2 * source.nbytes / copy)


@torch.no_grad()
def time_layers(
    model: nn.Module, image: Tensor, rounds: int, macs: Mapping[str, int]
) -> list[LayerCost]:
    """Time every layer (a module without parts) of a network in eval mode, on a batch (N, C, H, W).

    The layers come in the order in which they run, then :data:`REST`: the whole pass, timed without
    looking into it, less the layers. ``macs`` are those of :func:`count_macs`.
    """
    device = image.device
    idle = (nn.Identity, nn.modules.dropout._DropoutNd)  # pass on what they are given
    layers = {
        m: name
        for name, m in model.named_modules()
        if name and not any(m.children()) and not isinstance(m, idle)
    }
    started: dict[nn.Module, float] = {}
    moved: defaultdict[str, int] = defaultdict(int)
    samples: list[defaultdict[str, float]] = []  # seconds of each pass
    whole: list[float] = []

    def before(module: nn.Module, inputs: Any) -> None:
        synchronize(device)
        started[module] = time.perf_counter()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        synchronize(device)
        samples[-1][layers[module]] += time.perf_counter() - started[module]
        weights = (*module.parameters(), *module.buffers())  # buffers, where they are packed
        tensors = [t for t in (*inputs, output, *weights) if isinstance(t, Tensor)]
        moved[layers[module]] += sum(t.nbytes for t in tensors)

    for _ in range(rounds + WARMUP):  # in turns: what slows the machine for a while slows both
        whole.append(seconds_of(lambda: run_network(model, image), device))
        samples.append(defaultdict(float))
        moved.clear()
        handles = [m.register_forward_pre_hook(before) for m in layers]
        handles += [m.register_forward_hook(after) for m in layers]
        try:
            run_network(model, image)
        finally:
            for handle in handles:
                handle.remove()
    del whole[:WARMUP], samples[:WARMUP]
    costs = [
        LayerCost(name, statistics.median(s[name] for s in samples), macs.get(name, 0), moved[name])
        for name in samples[0]
    ]
    rest = statistics.median(whole) - sum(cost.seconds for cost in costs)
    return [*costs, LayerCost(REST, max(rest, 0.0), macs[''] - sum(c.macs for c in costs), 0)]


@dataclass(frozen=True)
class LayerTimes:
    """Where a row's time goes."""

    row: Row
    settings: Settings
    machine: Machine
    costs: list[LayerCost]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; speeds in operations a second, a multiply-add being two."""
        return {
            'config': self.row.config,
            'backend': self.row.runtime,
            'precision': self.row.precision,
            'shape': list(self.settings.shape),
            'batch': self.settings.batch,
            'peak_gflops': self.machine.flops / 1e9,
            'bandwidth_gb_s': self.machine.bandwidth / 1e9,
            'layers': [cost.to_dict(self.machine) for cost in self.costs],
        }
