"""Segment images from files and frames from videos: overlays, and index maps for images."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
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

    ``-`` reads paths from ``listing``, by default standard input, one a line. UserError where there
    is nothing, or a folder without images.
    """
    if os.fspath(path) == '-':
        listed = [Path(line.strip()) for line in listing or sys.stdin if line.strip()]
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
    stems = {image.stem.lower() for image in images}  # some file systems ignore case
    names: list[str] = []
    taken: set[str] = set()
    for image in images:
        base = image.stem if len(stems) == len(images) else image.name
        name, number = base, 2
        while name.lower() in taken:
            name, number = f'{base}_{number}', number + 1
        taken.add(name.lower())
        names.append(f'{name}.png')
    return names


def check_output(out_dir: str | Path, opacity: float) -> None:
    """UserError where results can't be written as asked for; nothing is made."""
    if not 0 <= opacity <= 1:
        raise UserError(f'opacity must be from 0 to 1, got {opacity}')
    if os.path.exists(out_dir) and not os.path.isdir(out_dir):
        raise UserError(f'{out_dir} is a file; choose another folder')


def predict_images(
    segment: Segmenter, images: Sequence[Path], out_dir: str | Path, opacity: float = 0.5
) -> list[str]:
    """Write ``overlay/<name>.png`` and ``index/<name>.png`` for each image, with a progress line.

    The index map is a palette PNG: its pixel values are class indices, and it shows their colours.
    Of a model trained with ``reduce_zero_label`` they are those of the annotations, from 1 on, as
    tools/test.py --out writes them.

    Returns:
        What went wrong with the images that were skipped, each named.
    """
    out_dir = Path(out_dir)
    folders = {(out_dir / kind).resolve() for kind in ('overlay', 'index')}
    if any(image.parent.resolve() in folders for image in images):
        raise UserError(f'{out_dir} would overwrite the images; choose another folder')
    failures = []
    for image_path, name in zip(_progress(images), output_names(images), strict=True):
        try:
            pixels = segment.pixels(image_path)
            labels = segment(pixels)
        except Exception as error:  # decoders and runtimes raise all kinds; the others still count
            message = str(error) or type(error).__name__
            known = isinstance(error, UserError) and str(image_path) in message
            failures.append(message if known else f'{image_path} ({message})')
            continue
        first = getattr(segment.session, 'first_index', 0)
        indexed = Image.fromarray(labels + np.uint8(first))
        # mode L becomes P
        indexed.putpalette(bytes(3 * first) + segment.colours.tobytes()[: 3 * (256 - first)])
        overlay = segment.overlay(pixels, labels, opacity)
        for kind, picture in (('overlay', overlay), ('index', indexed)):
            png = io.BytesIO()
            picture.save(png, format='PNG')
            write_result(out_dir / kind / name, png.getvalue())
    return failures


def _progress(items: Sequence[Path]) -> Iterator[Path]:
    """Go through items, and say on one line of standard error how many are done."""
    start = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        line = f'[{done}/{len(items)}] elapsed: {time.monotonic() - start:.0f}s'
        print(line, end='\r', file=sys.stderr, flush=True)
    print(file=sys.stderr)


def predict_video(
    segment: Segmenter,
    source: str | Path,
    out_dir: str | Path,
    opacity: float = 0.5,
    show: bool = False,
    limit: int | None = None,
) -> tuple[int, Path]:
    """Write the overlay of each frame of a video or camera to ``<name>.mp4``.

    The file gets its name when it is whole; the ``limit`` of frames, Ctrl-C, or q in the window
    that ``show`` opens end it well.

    Returns:
        How many frames were written, and the file.
    """
    cv2 = require('cv2', 'opencv-python', 'a video')
    source = os.fspath(source)
    camera = source.isdecimal()
    if limit is not None and limit < 1:
        raise UserError(f'limit must be at least 1, got {limit}')
    if not camera and not os.path.isfile(source):
        raise UserError(f'no video {source}; check the path')
    target = Path(out_dir) / (f'camera{source}.mp4' if camera else f'{Path(source).stem}.mp4')
    if target.resolve() == Path(source).resolve():
        raise UserError(f'{out_dir} would overwrite the video; choose another folder')
    capture = cv2.VideoCapture(int(source) if camera else source)
    temporary, writer, count = temporary_name(target), None, 0
    try:
        with suppress(KeyboardInterrupt):
            while count != limit:
                ok, frame = capture.read()
                if not ok:
                    break
                pixels = frame[..., ::-1]  # RGB
                overlay = segment.overlay(pixels, segment(pixels), opacity)
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


def _closed(cv2: Any, painted: Any) -> bool:
    """Show a frame; whether q was pressed."""
    try:
        cv2.imshow('ssnet_mm', painted)
        return cv2.waitKey(1) & 0xFF == ord('q')
    except cv2.error as error:
        raise UserError(
            'showing frames needs a display, and an OpenCV built with windows'
        ) from error
