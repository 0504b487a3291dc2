"""The curves of a training, read from what it has logged."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ssnet_mm.errors import UserError
from ssnet_mm.files import printable
from ssnet_mm.limits import parse_json

Curve = list[tuple[int, float]]  # steps and values

# What is drawn: a title, and the names in the logs of training and of validation.
CURVES = {
    'loss': ('train', 'loss'),
    'validation loss': ('val', 'loss'),
    'learning rate': ('train', 'lr'),
    'mIoU': ('val', 'mIoU'),
}


@dataclass(frozen=True)
class Run:
    """A training, however often it was stopped and resumed.

    Args:
        name: Of its work directory or its log.
        curves: By their titles, those of ``CURVES`` that were logged.
    """

    name: str
    curves: dict[str, Curve]


def read_run(work_dir: str | os.PathLike[str]) -> Run:
    """Read the logs of a work directory, ``*/vis_data/scalars.json`` of each start; or one log.

    From the step on at which a resumed run goes on, what was logged before is dropped: it was
    trained again.

    Raises:
        UserError: There is no log, or none that says anything.
    """
    folder = Path(work_dir)
    # folders are named by their times
    within = folder.glob('*/vis_data/scalars.json') if os.path.isdir(folder) else ()
    logs = [folder] if os.path.isfile(folder) else sorted(within)
    if not logs:
        raise UserError(
            f'no log of a training in {work_dir}: expected {work_dir}/TIME/vis_data/scalars.json; '
            'name a work directory or a log'
        )
    points: dict[str, dict[int, float]] = {title: {} for title in CURVES}
    ends: dict[int, int] = {}
    for log in logs:
        entries = list(_located(_entries(log), ends))
        # one that begins with the validation of what was trained before has trained nothing again
        steps = [step + (found == 'val') for found, step, _ in entries if step is not None]
        for title, known in points.items():
            if steps:
                points[title] = {step: v for step, v in known.items() if step < min(steps)}
            kind, key = CURVES[title]
            for found, step, entry in entries:
                value = entry.get(key)
                if found == kind and step is not None and _is_number(value):
                    points[title][step] = float(value)
    curves = {title: sorted(found.items()) for title, found in points.items() if found}
    if not curves:
        raise UserError(f'{logs[-1]} holds neither losses nor scores: nothing was trained yet')
    return Run(_name(folder), curves)


def _name(path: Path) -> str:
    """Of a work directory, or of a log: by its own name, unless the toolbox gave it that."""
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return printable(path.name)
    return printable(path.parents[2].name if path.name == 'scalars.json' else path.stem)


def _entries(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            entry = parse_json(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if isinstance(entry, dict):
            yield entry


def _located(
    entries: Iterable[dict[str, Any]], ends: dict[int, int]
) -> Iterator[tuple[str, int | None, dict[str, Any]]]:
    """Entries with what they are of, training or validation, and the iteration they stand at.

    Args:
        entries: Of a log.
        ends: The last iteration of each epoch, kept up here: where a training counts epochs,
            mmengine logs scores by them, and all else by iterations.
    """
    last = None
    for entry in entries:
        kind = 'train' if 'lr' in entry else 'val'
        step = entry.get('iter', entry.get('step'))
        step = step if isinstance(step, int) else None
        if kind == 'val' and step is not None and step != last:
            step = ends.get(step, step)
        elif kind == 'train' and step is not None and isinstance(entry.get('epoch'), int):
            ends[entry['epoch']] = last = step
        yield kind, step, entry


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
