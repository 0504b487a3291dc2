"""What is timed, how, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssnet_mm.constants import MAX_THREADS
from ssnet_mm.deploy.runtimes import FORMATS
from ssnet_mm.errors import UserError

# Of a network in torch: as it is built, fused, and fused and compiled.
IN_TORCH = ('torch', 'fused', 'compile')
RUNTIMES = (*IN_TORCH, *(f.runtime for f in FORMATS.values()))
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')


@dataclass(frozen=True)
class Row:
    """What is timed."""

    config: str  # path, or mmseg:: and the name of a config that mmseg brings along
    runtime: str = 'torch'
    precision: str = 'fp32'  # in training not 'int8', and mixed with float32
    checkpoint: str | None = None  # None leaves the weights as drawn
    training: bool = False  # time a training step instead of a prediction
    mark: str = ''  # after the name, where a config stands for several rows

    @property
    def name(self) -> str:
        """Of the config, short."""
        return Path(self.config).stem + self.mark

    @property
    def label(self) -> str:
        """Short, for tables and charts."""
        return f'{self.name}, {self.runtime}, {self.precision}'


@dataclass(frozen=True)
class Settings:
    """How all rows are timed; UserError where that is not possible."""

    shape: tuple[int, int] = (512, 512)  # height and width of the network's input
    batch: int = 1  # images a pass
    threads: int = 1  # CPU threads of every runtime
    device: str = 'cpu'
    rounds: int = 20  # timed passes of each row
    end_to_end: bool = False  # time the way from a JPEG file to its label map too
    num_classes: int | None = None  # put into every head; None leaves the configs' own

    def __post_init__(self) -> None:
        for name in ('shape', 'batch', 'threads', 'rounds', 'num_classes'):
            value = getattr(self, name)
            if value is not None and np.min(value) < 1:
                raise UserError(f'{name} must be at least 1, got {value}')
        if self.threads > MAX_THREADS:
            raise UserError(f'threads must be at most {MAX_THREADS}, got {self.threads}')
        from ssnet_mm.deploy.device import check_device  # imports torch

        check_device(self.device)


@dataclass
class Result:
    """What was measured of a row. What was not is None."""

    row: Row
    settings: Settings
    params: int | None = None
    macs: int | None = None  # multiply-adds of one image
    # seconds of each pass: of the network alone or a training step; from a JPEG file to its labels
    network: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    peak_mib: float | None = None  # the most memory that was needed
    held_mib: float | None = None  # what one image holds until the backward pass
    ratio: float | None = None  # of the median time, to that of the first row
    peak_flops: float | None = None  # the most that was reached in this precision, in this run
    error: str | None = None  # why the row failed, in one line

    @property
    def images_per_s(self) -> float | None:
        """By the median time."""
        return self.settings.batch / float(np.median(self.network)) if self.network else None

    @property
    def flops(self) -> float | None:
        """Operations a second that the network's passes reach, by the median time."""
        if self.macs is None or self.images_per_s is None or self.row.training:
            return None
        return 2 * self.macs * self.images_per_s

    @property
    def limit(self) -> float | None:
        """Seconds that the network's arithmetic would take at ``peak_flops``."""
        if self.macs is None or self.peak_flops is None or self.row.training:
            return None
        return 2 * self.macs * self.settings.batch / self.peak_flops

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: times in milliseconds, as median and 95th percentile."""
        return {
            'config': self.row.config,
            'checkpoint': self.row.checkpoint,
            'backend': self.row.runtime,
            'precision': self.row.precision,
            'training': self.row.training,
            'shape': list(self.settings.shape),
            'batch': self.settings.batch,
            'params': self.params,
            'macs': self.macs,
            'latency_ms': milliseconds(self.network),
            'end_to_end_ms': milliseconds(self.end_to_end),
            'images_per_s': self.images_per_s,
            'peak_mib': self.peak_mib,
            'held_mib': self.held_mib,
            'ratio': self.ratio,
            'peak_gflops': None if self.peak_flops is None else self.peak_flops / 1e9,
            'limit_ms': None if self.limit is None else self.limit * 1e3,
            'error': self.error,
        }


def milliseconds(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile of some times, in milliseconds; None if there are none."""
    if not seconds:
        return None
    median, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return {'median': float(median), 'p95': float(p95)}


def plan(
    configs: Sequence[str],
    runtimes: Sequence[str] = ('torch',),
    precisions: Sequence[str] = ('fp32',),
    checkpoints: Sequence[str] = (),
    training: bool = False,
) -> list[Row]:
    """All combinations, config by config, then runtime by runtime."""
    if checkpoints and len(checkpoints) != len(configs):
        raise UserError(
            f'checkpoints must be one file a config: got {len(checkpoints)} for {len(configs)}'
        )
    weights: Sequence[str | None] = checkpoints or [None] * len(configs)
    names = [Path(config).stem for config in configs]  # files of one name lie in several folders
    marks = [
        f' #{names[:i].count(name) + 1}' if names.count(name) > 1 else ''
        for i, name in enumerate(names)
    ]
    return [
        Row(config, runtime, precision, checkpoint, training, mark)
        for config, checkpoint, mark in zip(configs, weights, marks, strict=True)
        for runtime in runtimes
        for precision in precisions
    ]
