"""What is to be segmented, and the names of what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ssnet_mm.deploy.predict.progress import say
from ssnet_mm.errors import UserError, few
from ssnet_mm.files import MAX_NAME

SUFFIXES = (
    '.bmp', '.gif', '.jfif', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.pnm', '.ppm',
    '.tif', '.tiff', '.webp', '.avif',
)  # fmt: skip
VIDEO_SUFFIXES = (
    '.3gp', '.avi', '.flv', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts',
    '.ogv', '.ts', '.webm', '.wmv',
)  # fmt: skip


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
        say(f'{len(others)} in {path} left out, no images by their names: {few(others)}')
    return images


def is_video(source: str | Path) -> bool:
    """Whether a source is a camera's number or names a video; what is a folder is neither."""
    return is_camera(source) or (
        Path(source).suffix.lower() in VIDEO_SUFFIXES and not os.path.isdir(source)
    )


def is_camera(source: str | Path) -> bool:
    """Whether a source is the number of a camera."""
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
