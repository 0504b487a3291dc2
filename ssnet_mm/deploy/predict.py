"""Segment images from files and frames from videos: overlays, and index maps for images.

Reading, the network and writing overlap: each takes its turn on one image while the others work on
the next ones. Results, their order and what is said are as if they did not.
"""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from PIL import Image

from ssnet_mm.deploy.images import Labels, Maps, Pixels
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError, few, require
from ssnet_mm.files import MAX_NAME, make_folder, temporary_name, write_result

SUFFIXES = (
    '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.pnm', '.ppm',
    '.tif', '.tiff', '.webp', '.avif',
)  # fmt: skip
VIDEO_SUFFIXES = (
    '.3gp', '.avi', '.flv', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts',
    '.ogv', '.ts', '.webm', '.wmv',
)  # fmt: skip
_CODEC = 'mp4v'  # the one that OpenCV's own wheels write everywhere
_UNKNOWN_RATE = 25.0  # frames per second, for cameras that do not tell theirs
_WORKERS = 2  # threads that read and write beside the network
_AHEAD = 8  # images or frames in work at once, the network's batch not counted
_HELD = 256 * 2**20  # bytes of images in work at once; a larger image is alone
_COMPRESSION = 3  # of PNG: a third of the default's time, a tenth more bytes


def find_images(path: str | Path, listing: TextIO | None = None) -> list[Path]:
    """The image at a path, or the images in the folder at it (not in folders below), sorted.

    ``-`` reads paths from ``listing``, by default standard input, one a line. What a folder holds
    beside images is named on standard error. UserError where there is nothing, or a folder without
    images.
    """
    if os.fspath(path) == '-':
        lines = listing or sys.stdin
        # names need not be text
        raw = getattr(lines, 'buffer', None)
        names = map(os.fsdecode, raw) if raw else iter(lines)
        listed = [Path(name.strip()) for name in names if name.strip()]
        if not listed:
            raise UserError('no image: standard input names none; give one path a line')
        return listed
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'no image or folder {path}; check the path')
    images, others = [], []
    for item in sorted(path.iterdir()):
        # a broken link is an image that can't be read, and named as such
        named_so = item.suffix.lower() in SUFFIXES and not item.is_dir()
        if named_so:
            images.append(item)
        elif not item.name.startswith('.'):
            others.append(f'{item.name}/' if item.is_dir() else item.name)
    if not images:
        raise UserError(f'no image in {path}; looked for {" ".join(SUFFIXES)}')
    if others:
        _say(f'{len(others)} in {path} left out, no images by their names: {few(others)}')
    return images


def is_video(source: str | Path) -> bool:
    """Whether a source is a camera's number or names a video; what is a folder is neither."""
    return _is_camera(source) or (
        Path(source).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(source)
    )


def _is_camera(source: str | Path) -> bool:
    return os.fspath(source).isdecimal() and not os.path.exists(source)


def output_names(images: Sequence[Path]) -> list[str]:
    """PNG names for the results: the images' stems, or their full names where stems repeat.

    Where full names repeat too, as from several folders, a number follows. What would be too long
    a name is cut.
    """
    stems = {image.stem.lower() for image in images}  # some file systems ignore case
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        base = image.stem if len(stems) == len(images) else image.name
        base = os.fsdecode(os.fsencode(base)[: MAX_NAME - len('.png')])
        name, number = base, 2
        while name.lower() in taken:
            end = f'_{number}'
            room = MAX_NAME - len('.png') - len(end)
            name, number = os.fsdecode(os.fsencode(base)[:room]) + end, number + 1
        taken.add(name.lower())
        names.append(f'{name}.png')
    return names


def check_output(out_dir: str | Path, opacity: float) -> None:
    """UserError where results can't be written as asked for; nothing is made."""
    if not 0 <= opacity <= 1:
        raise UserError(f'opacity must be from 0 to 1, got {opacity}')
    for folder in (Path(out_dir), *Path(out_dir).parents):
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f'{folder} is a file; choose another folder')


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
    progress = _Progress(len(images))
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

    with _workers(_WORKERS) as pool:

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
                    _write, segment, pixels, found, out_dir, names[job.place], opacity
                )
                writing.append(_Job(job.place, job.size, task))
            while writing and (writing[0].result.done() or len(writing) > _AHEAD):
                finish_writing()
        while writing:
            finish_writing()
    progress.end()
    if confidence:
        _write_ranking(out_dir / 'confidence.csv', {images[i]: sure[i] for i in sure})
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


def _write(
    segment: Segmenter, pixels: Pixels, maps: Maps, out_dir: Path, name: str, opacity: float
) -> tuple[float, float]:
    """Write an image's files; how sure its labels are: the mean, and the share below a half."""
    labels, *scores = maps

    def save(kind: str, picture: Image.Image) -> None:
        png = io.BytesIO()
        picture.save(png, format='PNG', compress_level=_COMPRESSION)
        write_result(out_dir / kind / name, png.getvalue())

    # of large images one at a time
    save('overlay', segment.overlay(pixels, labels, opacity))
    save('index', _indexed(segment, labels))
    for one in scores:
        save('confidence', Image.fromarray((one * np.float32(255)).round().astype(np.uint8)))
        return float(one.mean(dtype=np.float64)), float((one < 0.5).mean())
    return 1.0, 0.0


def _write_ranking(path: Path, sure: Mapping[Path, tuple[float, float]]) -> None:
    """Write a CSV of how sure the labels of images are, the least sure ones first."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(['image', 'mean_confidence', 'share_below_half'])
    for image, (mean, below) in sorted(sure.items(), key=lambda item: item[1]):
        writer.writerow([os.fspath(image), f'{mean:.4f}', f'{below:.4f}'])
    write_result(path, table.getvalue().encode(errors='surrogateescape'))


def _indexed(segment: Segmenter, labels: Labels) -> Image.Image:
    first = getattr(segment.session, 'first_index', 0)
    if first + segment.session.num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16) + np.uint16(first))
    indexed = Image.fromarray(labels + np.uint8(first))
    # mode L becomes P
    indexed.putpalette(bytes(3 * first) + segment.colours.tobytes()[: 3 * (256 - first)])
    return indexed


class _Progress:
    """One line of standard error that says how many images are done."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self) -> None:
        self.done += 1
        line = f'[{self.done}/{self.total}] elapsed: {time.monotonic() - self.start:.0f}s'
        print(line, end='\r', file=sys.stderr, flush=True)

    def end(self) -> None:
        print(file=sys.stderr)


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; where the block fails, what they have not begun is dropped."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def predict_video(
    segment: Segmenter,
    source: str | Path,
    out_dir: str | Path,
    opacity: float = 0.5,
    show: bool = False,
    limit: int | None = None,
) -> tuple[int, Path]:
    """Write the overlay of each frame of a video or camera to ``<name>.mp4``.

    The file gets its name when it is whole and can be played; the ``limit`` of frames, Ctrl-C, or
    q in the window that ``show`` opens end it well. What differs from the source, lost frames for
    one, is said on standard error.

    Returns:
        How many frames were written, and the file.
    """
    cv2 = require('cv2', 'opencv-python', 'a video')
    source = os.fspath(source)
    camera = _is_camera(source)
    if limit is not None and limit < 1:
        raise UserError(f'limit must be at least 1, got {limit}')
    if not camera and not os.path.isfile(source):
        raise UserError(f'no video {source}; check the path')
    target = Path(out_dir) / (f'camera{source}.mp4' if camera else f'{Path(source).stem}.mp4')
    for path in (source, os.fspath(target)):
        if not _is_text(path):
            raise UserError(f'{path!r}: OpenCV opens no name that is not UTF-8; rename it')
    if target.resolve() == Path(source).resolve():
        raise UserError(f'{out_dir} would overwrite the video; choose another folder')
    capture = cv2.VideoCapture(int(source) if camera else source)
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    out = _VideoFile(cv2, target, capture.get(cv2.CAP_PROP_FPS) or _UNKNOWN_RATE)
    clock = _Clock(out.rate)
    to_the_end = False

    def read() -> Pixels | None:
        """The next frame, RGB."""
        ok, frame = capture.read()
        if not ok:
            return None
        clock.tick(capture.get(cv2.CAP_PROP_POS_MSEC))
        return frame[..., ::-1]

    def paint(pixels: Pixels, labels: Labels) -> Any:
        painted = np.asarray(segment.overlay(pixels, labels, opacity))[..., ::-1].copy()  # BGR
        out.write(painted)
        return painted

    # one thread each: frames come and go one after the other
    try:
        with _workers(1) as reader, _workers(1) as writer:
            painting: deque[Future[Any]] = deque()
            with suppress(KeyboardInterrupt):
                begun, frame = 1, reader.submit(read)
                while True:
                    pixels = frame.result()
                    if pixels is None:
                        to_the_end = True
                        break
                    if begun != limit:
                        frame = reader.submit(read)
                    painting.append(writer.submit(paint, pixels, segment(pixels)))
                    while len(painting) > (0 if show else _AHEAD):
                        painted = painting.popleft().result()
                    if (show and _closed(cv2, painted)) or begun == limit:
                        break
                    begun += 1
            for job in painting:
                job.result()
        if not out.count:
            what = f'camera {source}' if camera else source
            raise UserError(f'no frame comes from {what}; is it a video, and not in use elsewhere?')
        out.finish()
    finally:
        capture.release()
        out.discard()
    if to_the_end and not camera and out.count < announced:
        _say(
            f'{source} announces {announced} frames, {out.count} could be read: it is cut short or '
            'damaged, or its announcement is an estimate'
        )
    if not camera and clock.varies:
        _say(
            f'{source} has frames at varying intervals; {target} shows them at a constant '
            f'{out.rate:g} a second'
        )
    return out.count, target


def _is_text(path: str) -> bool:
    """Whether a path has a name in UTF-8; other bytes come as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class _VideoFile:
    """A video that takes its name when it is whole.

    OpenCV says nothing of frames that it does not write: the disk is full, the size is another.
    """

    def __init__(self, cv2: Any, target: Path, rate: float) -> None:
        self.cv2 = cv2
        self.target = target
        self.rate = rate
        self.temporary = temporary_name(target)
        self.writer: Any = None
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def write(self, frame: Any) -> None:
        """Add a frame, BGR."""
        if self.writer is None:
            self._open(frame.shape)
        if frame.shape != self.shape:
            raise UserError(
                f'the frames change from {_width_by_height(self.shape)} to '
                f'{_width_by_height(frame.shape)} after {self.count}; bring the video to one size'
            )
        height, width = frame.shape[:2]
        # MPEG-4 has even sizes
        self.writer.write(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge'))
        self.count += 1

    def _open(self, shape: tuple[int, ...]) -> None:
        make_folder(self.target.parent)
        self.shape = shape
        height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        if (height, width) != shape[:2]:
            _say(
                f'{self.target} has {width}x{height} pixels, an even size: the last row or column '
                f'of {_width_by_height(shape)} is repeated'
            )
        code = self.cv2.VideoWriter.fourcc(*_CODEC)
        file = os.fspath(self.temporary)
        self.writer = self.cv2.VideoWriter(file, code, self.rate, (width, height))
        if not self.writer.isOpened():
            raise UserError(f"can't write {self.target}; choose another folder")

    def finish(self) -> None:
        """Give the file its name; UserError where it does not hold all frames."""
        self.writer.release()
        written = _frames_of_mp4(self.temporary)
        if written != self.count:
            raise UserError(
                f'{self.target} was not written: {written} of {self.count} frames could be; is the '
                'disk full?'
            )
        os.replace(self.temporary, self.target)

    def discard(self) -> None:
        """Remove what has not taken its name."""
        if self.writer is not None:
            self.writer.release()
            self.temporary.unlink(missing_ok=True)


def _width_by_height(shape: Sequence[int]) -> str:
    return f'{shape[1]}x{shape[0]}'


def _frames_of_mp4(path: Path) -> int:
    """How many frames an MP4's index lists; 0 where the file is not whole."""
    index, end = b'', 0
    with open(path, 'rb') as file:
        while header := file.read(8):
            size, kind = int.from_bytes(header[:4], 'big'), header[4:]
            taken = 8
            if size == 1:  # a long size follows
                size, taken = int.from_bytes(file.read(8), 'big'), 16
            if size < taken:
                return 0
            if kind == b'moov':
                index = file.read(size - taken)
            end += size
            file.seek(end)
    start = index.find(b'stsz')  # then version, flags and one size for all, 4 bytes each
    if start < 0 or end != os.path.getsize(path):
        return 0
    return int.from_bytes(index[start + 12 : start + 16], 'big')


class _Clock:
    """Whether frames come at a constant rate."""

    def __init__(self, rate: float) -> None:
        self.interval = 1000 / rate
        self.first = 0.0
        self.count = 0
        self.drift = 0.0

    def tick(self, milliseconds: float) -> None:
        """A frame comes, of this time in the video."""
        if not self.count:
            self.first = milliseconds
        expected = self.first + self.count * self.interval
        self.drift = max(self.drift, abs(milliseconds - expected))
        self.count += 1

    @property
    def varies(self) -> bool:
        """Whether a frame was ever more than two places off."""
        return self.drift > 2 * self.interval


def _closed(cv2: Any, painted: Any) -> bool:
    """Show a frame; whether q was pressed."""
    try:
        cv2.imshow('ssnet_mm', painted)
        return cv2.waitKey(1) & 0xFF == ord('q')
    except cv2.error as error:
        raise UserError(
            'showing frames needs a display, and an OpenCV built with windows'
        ) from error
