"""What is to be segmented, and the names of what comes of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from ssnet_mm.deploy.predict.progress import say
from ssnet_mm.errors import UserError, few
from ssnet_mm.files import MAX_NAME, list_folder
from ssnet_mm.limits import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (
    '.3gp', '.avi', '.flv', '.m2ts', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.mts',
    '.ogv', '.ts', '.webm', '.wmv',
)  # fmt: skip

_MAX_STEM = MAX_NAME - len('.json')  # bytes, of the longest suffix of what is written


def find_images(
    path: str | Path,
    listing: TextIO | None = None,
    recursive: bool = False,
    leave_out: str | Path | None = None,
) -> list[Path]:
    """The image at a path, or the images in the folder at it, sorted.

    ``-`` reads paths from ``listing``, by default standard input, one a line. What a folder holds
    beside images is named on standard error.

    Args:
        path: An image, a folder or ``-``.
        listing: Paths, one a line.
        recursive: Whether the folders below count too: not hidden ones, nor links back to a folder
            that they are in.
        leave_out: Folder below that does not count, where results are written.

    Raises:
        UserError: There is nothing, or no image in the folder.
    """
    if os.fspath(path) == '-':
        lines = listing or sys.stdin
        # names need not be text
        raw = getattr(lines, 'buffer', None)
        names = map(os.fsdecode, raw) if raw else iter(lines)
        paths = [Path(name.strip()) for name in names if name.strip()]
        if any('\0' in os.fspath(path) for path in paths):
            raise UserError('standard input holds data, no paths; name the image, or give its path')
        if not paths:
            raise UserError('no image: standard input names none; give one path a line')
        return paths
    path = Path(path)
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise UserError(f'no image or folder {path}; check the path')
    images, others = [], []
    above = {os.path.realpath(leave_out)} if leave_out is not None else set()
    for item in list_folder(path, recursive, above):
        # a broken link is an image that can't be read, and named as such
        folder = os.path.isdir(item)
        if item.suffix.lower() in IMAGE_SUFFIXES and not folder:
            images.append(item)
        elif not item.name.startswith('.'):
            others.append(f'{item.relative_to(path)}{"/" if folder else ""}')
    if not images:
        unsearched = not recursive and any(name.endswith('/') for name in others)
        below = '; with recursive the folders below count too' if unsearched else ''
        raise UserError(f'no image in {path}; looked for {" ".join(IMAGE_SUFFIXES)}{below}')
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


def output_names(images: Sequence[Path], root: Path | None = None) -> list[str]:
    """PNG names for the results: the images' stems, or their full names where stems repeat.

    Where full names repeat too, as from several folders, a number follows. What would be too long
    a name is cut. Images below a folder ``root`` keep their folders.
    """
    folders = [image.parent.relative_to(root) if root else Path() for image in images]
    # some file systems ignore case
    stems = {str(folder / image.stem).lower() for folder, image in zip(folders, images)}
    names: list[str] = []
    taken: set[str] = set()
    for folder, image in zip(folders, images):
        base = image.stem if len(stems) == len(images) else image.name
        base = os.fsdecode(os.fsencode(base)[:_MAX_STEM])
        name, number = base, 2
        while str(folder / name).lower() in taken:
            end = f'_{number}'
            name = os.fsdecode(os.fsencode(base)[: _MAX_STEM - len(end)]) + end
            number += 1
        taken.add(str(folder / name).lower())
        names.append(str(folder / f'{name}.png'))
    return names


def check_output(out_dir: str | Path, opacity: float) -> None:
    """UserError where results can't be written as asked for; nothing is made."""
    if not 0 <= opacity <= 1:
        raise UserError(f'opacity must be from 0 to 1, got {opacity}')
    for folder in (Path(out_dir), *Path(out_dir).parents):
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise UserError(f'{folder} is a file; choose another folder')
