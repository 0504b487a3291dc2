"""Images through the network: reading, the network and writing overlap.

Each takes its turn on one image while the others work on the next ones. Results, their order and
what is said are as if they did not.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from ssnet_mm.deploy.images import Maps, Pixels
from ssnet_mm.deploy.predict.annotations import labelme_file
from ssnet_mm.deploy.predict.outputs import OUTPUTS, POLYGONS, write_image, write_tables
from ssnet_mm.deploy.predict.overlay import Overlay
from ssnet_mm.deploy.predict.polygons import Outline
from ssnet_mm.deploy.predict.progress import Progress
from ssnet_mm.deploy.predict.sources import output_names
from ssnet_mm.deploy.predict.task import Result, Task, count_labels
from ssnet_mm.deploy.predict.workers import workers
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError
from ssnet_mm.limits import open_image
from ssnet_mm.prepare.labels import is_background

_WORKERS = 2  # threads that read and write beside the network
_AHEAD = 8  # images in work at once, the network's batch not counted
_HELD = 256 * 2**20  # bytes of images in work at once; a larger image is alone


def predict_images(
    segment: Segmenter,
    images: Sequence[Path],
    out_dir: str | Path,
    opacity: float = 0.5,
    confidence: bool = False,
    *,
    root: Path | None = None,
    legend: bool = False,
    transparent: Collection[str] = (),
    polygons: str | None = None,
    tolerance: float = 1.0,
    min_area: int = 1,
) -> list[str]:
    """Write ``overlay/<name>.png`` and ``index/<name>.png`` for each image, with a progress line.

    The index map is a palette PNG: its pixel values are class indices, and it shows their colours;
    beyond 256 classes it is a 16-bit grey PNG. Of a model trained with ``reduce_zero_label`` they
    are those of the annotations, from 1 on, as tools/test.py --out writes them.

    ``areas.csv`` has each image's share of each class, and how many pixels these are.

    Args:
        segment: What labels the images.
        images: Their files.
        out_dir: Folder to write to.
        opacity: Of the colours on overlays, 0 to 1.
        confidence: Whether to write ``confidence/<name>.png`` as well, 8-bit grey: 255 times each
            pixel's probability; and ``confidence.csv``, which ranks the images: those to label next
            come first.
        root: Folder that all images are below, whose folders are kept in the output.
        legend: Whether the classes of an image are named below its overlay.
        transparent: Names of classes that are not painted, and have no polygons.
        polygons: ``'coco'`` writes the classes' regions to ``coco.json``, ``'labelme'`` to
            ``labelme/<name>.json``. The background has none: tools take what is not marked as it.
        tolerance: How many pixels a polygon may be off, to have fewer points.
        min_area: Regions of fewer pixels have no polygon.

    Returns:
        What went wrong with the images that were skipped, each named.

    Raises:
        UserError: Something can't be had, or would overwrite the images, or LabelMe's files, which
            are corrected by hand; nothing is written then. Or results can't be written.
    """
    if polygons and polygons not in POLYGONS:
        raise UserError(f'polygons must be {" or ".join(POLYGONS)}, got {polygons}')
    if confidence:
        segment.check_scores()
    out_dir = Path(out_dir)
    overlay = Overlay(segment, opacity, legend, transparent)
    outlined = (i for i in overlay.painted if not is_background(overlay.names[i]))
    outline = Outline(frozenset(outlined), tolerance, min_area)
    asked = {'confidence' if confidence else None, polygons}
    kinds = [kind for kind, row in OUTPUTS.items() if kind in asked or not row.optional]
    task = Task(segment, out_dir, kinds, overlay, outline)
    names = _names(task, images, root)
    failures: dict[int, str] = {}
    writing: deque[_Job] = deque()
    made: dict[int, list[Any]] = {}

    def finish_writing() -> None:
        job = writing.popleft()
        made[job.place] = job.result.result()
        progress.step()

    def failed(place: int, error: Exception) -> None:
        message = str(error) or type(error).__name__
        known = isinstance(error, UserError) and str(images[place]) in message
        failures[place] = message if known else f'{images[place]} ({message})'
        progress.step()

    def write(place: int, pixels: Pixels, maps: Maps) -> list[Any]:
        path = images[place]
        labels, *scores = maps
        result = Result(
            path, (path.relative_to(root) if root else path).as_posix(), names[place], pixels,
            labels, scores[0] if scores else None, count_labels(labels, len(overlay.names)),
        )  # fmt: skip
        return write_image(task, result)

    with Progress(len(images)) as progress, workers(_WORKERS) as pool:

        def read(place: int, size: int) -> _Job:
            return _Job(place, size, pool.submit(segment.pixels, images[place]))

        todo = deque((i, _size_in_memory(image)) for i, image in enumerate(images))
        reading: deque[_Job] = deque()
        while todo or reading:
            while todo and _room(todo[0][1], reading, writing):
                reading.append(read(*todo.popleft()))
            if not reading:  # what is being written takes all the room
                finish_writing()
                continue
            group = _next_group(reading, segment.batch_size, failed)
            for job, pixels, found in _segmented(segment, group, confidence):
                if isinstance(found, Exception):
                    failed(job.place, found)
                    continue
                result = pool.submit(write, job.place, pixels, found)
                writing.append(_Job(job.place, job.size, result))
            while writing and (writing[0].result.done() or len(writing) > _AHEAD):
                finish_writing()
        while writing:
            finish_writing()
    write_tables(task, [made[place] for place in sorted(made)])
    return [failures[place] for place in sorted(failures)]


def _names(task: Task, images: Sequence[Path], root: Path | None) -> list[str]:
    """Names of the images' files, without suffix; UserError where they would overwrite others."""
    out_dir = task.out_dir
    folders = {(out_dir / kind).resolve() for kind in OUTPUTS}
    real = os.path.realpath  # unlike resolve() it takes links to themselves
    # of a link its own folder, and that of what it names
    above = {Path(p) for i in images for p in (real(i.parent), os.path.dirname(real(i)))}
    for folder in above:
        if not folders.isdisjoint((folder, *folder.parents)):
            raise UserError(f'{out_dir} would overwrite the images; choose another folder')
    names = [name.removesuffix('.png') for name in output_names(images, root)]
    for name in names if 'labelme' in task.kinds else ():
        if (file := labelme_file(out_dir, name)).exists():
            raise UserError(
                f'{file} is there already, and may be corrected by hand; choose another folder'
            )
    return names


class _Job(NamedTuple):
    place: int  # of the image
    size: int  # in bytes, of its pixels
    result: Future[Any]


def _room(size: int, *queues: deque[_Job]) -> bool:
    """Whether an image of so many bytes may be read beside those in work."""
    jobs = [job for queue in queues for job in queue]
    held = sum(job.size for job in jobs)
    return not jobs or (len(jobs) < 2 * _AHEAD and held + size <= _HELD)


def _size_in_memory(path: Path) -> int:
    """Bytes of an image's pixels, by its header; 0 where it has none: reading it will tell why."""
    try:
        with open_image(path, None) as image:
            return 3 * math.prod(image.size)
    except Exception:
        return 0


def _next_group(reading: deque[_Job], count: int, failed: Any) -> list[tuple[_Job, Pixels]]:
    """The next images of one size, up to a count; those that can't be read are told."""
    group: list[tuple[_Job, Pixels]] = []
    while reading and len(group) < count:
        try:
            pixels = reading[0].result.result()
        except Exception as error:  # decoders raise all kinds
            failed(reading.popleft().place, error)
            continue
        if group and pixels.shape != group[0][1].shape:
            break
        group.append((reading.popleft(), pixels))
    return group


def _segmented(
    segment: Segmenter, group: list[tuple[_Job, Pixels]], scores: bool
) -> Iterator[tuple[_Job, Pixels, Maps | Exception]]:
    """Label maps, and scores, of images of one size; the error where there are none."""
    found: list[Any]
    pictures = [pixels for _, pixels in group]
    try:
        found = segment(pictures, scores=True) if scores else [(x,) for x in segment(pictures)]
    except Exception as error:  # runtimes raise all kinds; the other images still count
        found = [error]
        if len(group) > 1:  # one of them is at fault
            for one in group:
                yield from _segmented(segment, [one], scores)
            return
    for (job, pixels), maps in zip(group, found, strict=True):
        yield job, pixels, maps
