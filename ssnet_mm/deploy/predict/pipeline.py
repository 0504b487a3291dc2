"""Images through the network: reading, the network and writing overlap.

Each takes its turn on one image while the others work on the next ones. Results, their order and
what is said are as if they did not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ssnet_mm.deploy.images import Maps, Pixels
from ssnet_mm.deploy.predict.outputs import write_image, write_ranking
from ssnet_mm.deploy.predict.progress import Progress
from ssnet_mm.deploy.predict.sources import output_names
from ssnet_mm.deploy.predict.workers import workers
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError

_WORKERS = 2  # threads that read and write beside the network
_AHEAD = 8  # images in work at once, the network's batch not counted
_HELD = 256 * 2**20  # bytes of images in work at once; a larger image is alone


def predict_images(
    segment: Segmenter,
    images: Sequence[Path],
    out_dir: str | Path,
    opacity: float = 0.5,
    confidence: bool = False,
) -> list[str]:
    """Write ``overlay/<name>.png`` and ``index/<name>.png`` for each image, with a progress line.

    The index map is a palette PNG: its pixel values are class indices, and it shows their colours;
    beyond 256 classes it is a 16-bit grey PNG. Of a model trained with ``reduce_zero_label`` they
    are those of the annotations, from 1 on, as tools/test.py --out writes them.

    With ``confidence`` there is also ``confidence/<name>.png``, 8-bit grey: 255 times each pixel's
    probability; and ``confidence.csv``, which ranks the images: those to label next come first.

    Returns:
        What went wrong with the images that were skipped, each named.
    """
    out_dir = Path(out_dir)
    if confidence:
        segment.check_scores()
    folders = {(out_dir / kind).resolve() for kind in ('overlay', 'index', 'confidence')}
    if any(image.parent.resolve() in folders for image in images):
        raise UserError(f'{out_dir} would overwrite the images; choose another folder')
    names = output_names(images)
    failures: dict[int, str] = {}
    progress = Progress(len(images))
    writing: deque[_Job] = deque()
    sure: dict[int, tuple[float, float]] = {}

    def finish_writing() -> None:
        job = writing.popleft()
        sure[job.place] = job.result.result()
        progress.step()

    def failed(place: int, error: Exception) -> None:
        message = str(error) or type(error).__name__
        known = isinstance(error, UserError) and str(images[place]) in message
        failures[place] = message if known else f'{images[place]} ({message})'
        progress.step()

    with workers(_WORKERS) as pool:

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
                task = pool.submit(
                    write_image, segment, pixels, found, out_dir, names[job.place], opacity
                )
                writing.append(_Job(job.place, job.size, task))
            while writing and (writing[0].result.done() or len(writing) > _AHEAD):
                finish_writing()
        while writing:
            finish_writing()
    progress.end()
    if confidence:
        write_ranking(out_dir / 'confidence.csv', {images[i]: sure[i] for i in sure})
    return [failures[place] for place in sorted(failures)]


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
        with Image.open(path) as image:
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
