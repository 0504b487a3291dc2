"""Segment images from files and frames from videos: overlays, and index maps for images."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import temporary_name, write_result

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
_CODEC = 'mp4v'  # the one that OpenCV's own wheels write everywhere
_UNKNOWN_RATE = 25.0  # frames per second, for cameras that do not tell theirs


def find_images(path: str | Path, listing: TextIO | None = None) -> list[Path]:
    """The image at a path, or the images in the folder at it (not in folders below), sorted.

    Args:
        path: ``-`` reads paths from ``listing``, one a line.
        listing: By default standard input.

    Raises:
        UserError: There is nothing, or a folder without images.
    """
    if os.fspath(path) == '-':
        lines = [line.strip() for line in listing or sys.stdin]
        listed = [Path(line) for line in lines if line]
        if not listed:
            raise UserError('no image: standard input names none; give one path a line')
        return listed
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'no image or folder {path}; check the path')
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        raise UserError(f'no image in {path}; looked for {" ".join(SUFFIXES)}')
    return images


def is_video(source: str | Path) -> bool:
    """Whether a source is a camera's number or names a video."""
    source = os.fspath(source)
    return source.isdecimal() or Path(source).suffix.lower() in VIDEO_SUFFIXES


def output_names(images: Sequence[Path]) -> list[str]:
    """PNG names for the results: the images' stems, or their full names where stems repeat.

    Where full names repeat too, as from several folders, a number follows.
    """
    stems = [image.stem for image in images]
    repeat = len({stem.lower() for stem in stems}) < len(stems)  # some file systems ignore case
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        base = image.name if repeat else image.stem
        name, number = base, 2
        while name.lower() in taken:
            name, number = f'{base}_{number}', number + 1
        taken.add(name.lower())
        names.append(f'{name}.png')
    return names


def predict_images(
    segment: Segmenter, images: Sequence[Path], out_dir: str | Path, opacity: float = 0.5
) -> list[str]:
    """Write ``overlay/<name>.png`` and ``index/<name>.png`` for each image, with a progress line.

    The index map is a palette PNG: its pixel values are class indices, and it shows their colours.

    Args:
        segment: What labels an image.
        images: Files to read.
        out_dir: Folder to write to.
        opacity: Of the colours over the image, 0 to 1.

    Returns:
        What went wrong with the images that were skipped, each named.

    Raises:
        UserError: A result can't be written, or would overwrite an input.
    """
    out_dir = Path(out_dir)
    folders = {(out_dir / kind).resolve() for kind in ('overlay', 'index')}
    if any(image.parent.resolve() in folders for image in images):
        raise UserError(f'{out_dir} would overwrite the images; choose another folder')
    failures = []
    for image_path, name in zip(progress(images), output_names(images), strict=True):
        try:
            pixels = segment.pixels(image_path)
            labels = segment(pixels)
        except Exception as error:  # decoders and runtimes raise all kinds; the others still count
            message = str(error) or type(error).__name__
            known = isinstance(error, UserError) and str(image_path) in message
            failures.append(message if known else f'{image_path} ({message})')
            continue
        indexed = Image.fromarray(labels)
        indexed.putpalette(segment.colours.tobytes())  # mode L becomes P
        overlay = segment.overlay(pixels, labels, opacity)
        write_result(out_dir / 'overlay' / name, _png(overlay))
        write_result(out_dir / 'index' / name, _png(indexed))
    return failures


def progress(items: Sequence[Path], file: TextIO | None = None) -> Iterator[Path]:
    """Go through items, and say on one line of ``file`` (standard error) how many are done."""
    file = file or sys.stderr
    start = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        file.write(f'[{done}/{len(items)}] elapsed: {time.monotonic() - start:.0f}s\r')
        file.flush()
    file.write('\n')


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format='PNG')
    return data.getvalue()


def predict(
    segment: Segmenter, images: Sequence[Path], out_dir: str | Path, opacity: float = 0.5
) -> int:
    """Segment images from files, all that can be.

    Returns:
        How many images were segmented.

    Raises:
        UserError: Bad input; or, after all others are done, images that could not be segmented.
    """
    failures = predict_images(segment, images, out_dir, opacity)
    if failures:
        raise UserError(
            f'{len(failures)} of {len(images)} images could not be segmented: {"; ".join(failures)}'
        )
    return len(images)


def check_output(out_dir: str | Path, opacity: float) -> None:
    """UserError where results can't be written as asked for; nothing is made."""
    if not 0 <= opacity <= 1:
        raise UserError(f'opacity must be from 0 to 1, got {opacity}')
    if os.path.exists(out_dir) and not os.path.isdir(out_dir):
        raise UserError(f'{out_dir} is a file; choose another folder')


def predict_video(
    segment: Segmenter,
    source: str | Path,
    out_dir: str | Path,
    opacity: float = 0.5,
    show: bool = False,
    limit: int | None = None,
) -> tuple[int, Path]:
    """Write the overlay of each frame of a video or camera to ``<name>.mp4``.

    The file gets its name when it is whole; interrupting a camera (Ctrl-C) ends it well.

    Args:
        segment: What labels an image.
        source: A video file, or a camera's number.
        out_dir: Folder to write to.
        opacity: Of the colours over the frames, 0 to 1.
        show: Open a window beside; q ends it.
        limit: Frames to take; by default all that come.

    Returns:
        How many frames were written, and the file.

    Raises:
        UserError: The source has no frames, a window can't be opened, or a file not written.
    """
    cv2 = require('cv2', 'opencv-python', 'a video')
    source = os.fspath(source)
    camera = source.isdecimal()
    if limit is not None and limit < 1:
        raise UserError(f'limit must be at least 1, got {limit}')
    if not camera and not os.path.isfile(source):
        raise UserError(f'no video {source}; check the path')
    target = Path(out_dir) / (f'camera{source}.mp4' if camera else f'{Path(source).stem}.mp4')
    if not camera and target.resolve() == Path(source).resolve():
        raise UserError(f'{out_dir} would overwrite the video; choose another folder')
    capture = cv2.VideoCapture(int(source) if camera else source)
    temporary, writer, count = temporary_name(target), None, 0
    try:
        for frame in _frames(capture, limit):
            overlay = segment.overlay(frame, segment(frame), opacity)
            painted = np.asarray(overlay)[..., ::-1].copy()  # BGR
            if writer is None:
                target.parent.mkdir(parents=True, exist_ok=True)
                rate = capture.get(cv2.CAP_PROP_FPS) or _UNKNOWN_RATE
                code = cv2.VideoWriter.fourcc(*_CODEC)
                writer = cv2.VideoWriter(os.fspath(temporary), code, rate, overlay.size)
                if not writer.isOpened():
                    raise UserError(f"can't write {target}; choose another folder")
            writer.write(painted)
            count += 1
            if show and _closed(cv2, painted):
                break
        if writer is None:
            what = f'camera {source}' if camera else source
            raise UserError(f'no frame comes from {what}; is it a video, and not in use elsewhere?')
        writer.release()
        os.replace(temporary, target)
    finally:
        capture.release()
        temporary.unlink(missing_ok=True)
    return count, target


def _frames(capture: Any, limit: int | None) -> Iterable[Any]:
    """RGB frames, until there are no more, enough, or somebody presses Ctrl-C."""
    count = 0
    try:
        while limit is None or count < limit:
            ok, frame = capture.read()
            if not ok:
                return
            yield frame[..., ::-1]
            count += 1
    except KeyboardInterrupt:
        return


def _closed(cv2: Any, painted: Any) -> bool:
    try:
        cv2.imshow('ssnet_mm', painted)
        return cv2.waitKey(1) & 0xFF == ord('q')
    except cv2.error as error:
        raise UserError(
            'showing frames needs a display, and an OpenCV built with windows'
        ) from error
