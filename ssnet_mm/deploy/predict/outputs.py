"""What is written of images: for each kind a row of the table, and a function or two."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ssnet_mm.deploy.predict.annotations import (
    coco_annotations,
    labelme_annotations,
    write_coco,
)
from ssnet_mm.deploy.predict.task import Result, Task
from ssnet_mm.files import write_result

_COMPRESSION = 3  # of PNG: a third of the default's time, a tenth more bytes


class Output(NamedTuple):
    """A row of the table.

    Args:
        of_image: Writes the file of an image, or gives what the file of all is made of; in threads.
        of_all: Writes the file of all images from what ``of_image`` gave of each.
        optional: Whether it is written only where it is asked for.
    """

    of_image: Callable[[Task, Result], Any]
    of_all: Callable[[Task, list[Any]], None] | None = None
    optional: bool = False


def write_image(task: Task, image: Result) -> list[Any]:
    """Write an image's files; what the files of all images are made of, a kind each."""
    return [OUTPUTS[kind].of_image(task, image) for kind in task.kinds]


def write_tables(task: Task, images: Sequence[Sequence[Any]]) -> None:
    """Write the files of all images, from what :func:`write_image` gave of each."""
    for i, kind in enumerate(task.kinds):
        of_all = OUTPUTS[kind].of_all
        if of_all:
            of_all(task, [made[i] for made in images])


def _overlay(task: Task, image: Result) -> None:
    picture = task.overlay(image.pixels, image.labels, image.present)
    _save(task, image, 'overlay', picture)


def _index(task: Task, image: Result) -> None:
    segment = task.segment
    first = getattr(segment.session, 'first_index', 0)
    if first + segment.session.num_classes > 256:
        indexed = Image.fromarray(image.labels.astype(np.uint16) + np.uint16(first))
    else:
        indexed = Image.fromarray(image.labels + np.uint8(first))
        # mode L becomes P
        indexed.putpalette(bytes(3 * first) + segment.colours.tobytes()[: 3 * (256 - first)])
    _save(task, image, 'index', indexed)


def _confidence(task: Task, image: Result) -> tuple[float, float, Path]:
    """How sure the labels are: the mean, and the share below a half."""
    scores = image.scores
    assert scores is not None
    grey = (scores * np.float32(255)).round().astype(np.uint8)
    _save(task, image, 'confidence', Image.fromarray(grey))
    return float(scores.mean(dtype=np.float64)), float((scores < 0.5).mean()), image.path


def _write_ranking(task: Task, images: list[tuple[float, float, Path]]) -> None:
    """The least sure images first."""
    rows = [
        (os.fspath(path), f'{mean:.4f}', f'{below:.4f}') for mean, below, path in sorted(images)
    ]
    _write_csv(task, 'confidence', [('image', 'mean_confidence', 'share_below_half'), *rows])


def _areas(task: Task, image: Result) -> tuple[str, ...]:
    shares = image.counts / image.labels.size
    return os.fspath(image.path), *(f'{x:.6f}' for x in shares), *map(str, image.counts)


def _write_areas(task: Task, images: list[tuple[str, ...]]) -> None:
    names = task.overlay.names
    _write_csv(task, 'areas', [('image', *names, *(f'{name} pixels' for name in names)), *images])


# In the order in which an image's files are written.
OUTPUTS = {
    'overlay': Output(_overlay),
    'index': Output(_index),
    'areas': Output(_areas, _write_areas),
    'confidence': Output(_confidence, _write_ranking, optional=True),
    'coco': Output(coco_annotations, write_coco, optional=True),
    'labelme': Output(labelme_annotations, optional=True),
}
POLYGONS = ('coco', 'labelme')


def _save(task: Task, image: Result, kind: str, picture: Image.Image) -> None:
    png = io.BytesIO()
    picture.save(png, format='PNG', compress_level=_COMPRESSION)
    write_result(task.out_dir / kind / f'{image.name}.png', png.getvalue())


def _write_csv(task: Task, kind: str, rows: Iterable[Sequence[str]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows(rows)
    data = table.getvalue().encode(errors='surrogateescape')
    write_result(task.out_dir / f'{kind}.csv', data)
