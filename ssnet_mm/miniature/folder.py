"""Writes the miniature, whole or not at all, and never over anything that it did not write."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.files import temporary_folder, writing
from ssnet_mm.palette import voc_palette

from .drawing import SPLITS, VERSION, draw_sample

METADATA = 'miniature.json'
Sample = tuple[str, int]  # split, number
MIN_SIDE, MAX_SIDE, MAX_IMAGES = 32, 2048, 100_000


def _parameters(num_train: int, num_val: int, size: Sequence[int], seed: int) -> dict[str, Any]:
    """What the metadata file says of a miniature, checked."""
    for name, count in (('training', num_train), ('validation', num_val)):
        if not 1 <= count <= MAX_IMAGES:
            raise UserError(f'expected 1 to {MAX_IMAGES} {name} images, got {count}')
    if len(size) != 2 or not all(MIN_SIDE <= side <= MAX_SIDE for side in size):
        limits, given = f'{MIN_SIDE} to {MAX_SIDE}', 'x'.join(map(str, size))
        raise UserError(f'expected a width and height of {limits} pixels, got {given}')
    if seed < 0:
        raise UserError(f'expected a seed of 0 or more, got {seed}')
    numbers = dict(num_train=num_train, num_val=num_val, size=list(size), seed=seed)
    return dict(made_by='ssnet_mm', version=VERSION, **numbers)


def _read_metadata(root: Path) -> dict[str, Any] | None:
    """The parameters of the miniature in the folder ``root``; None if it holds none."""
    try:
        found = json.loads((root / METADATA).read_text(encoding='utf-8'))
        wanted = _parameters(found['num_train'], found['num_val'], found['size'], found['seed'])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, UserError):
        return None
    ours = found.keys() == wanted.keys() and found['made_by'] == wanted['made_by']
    return found if ours else None


def _samples(parameters: dict[str, Any]) -> list[Sample]:
    return [(split, i) for split in SPLITS for i in range(parameters[f'num_{split}'])]


def _contents(parameters: dict[str, Any]) -> set[str]:
    """Every file and folder of a miniature, relative to its root."""
    lists = {f'ImageSets/Segmentation/{name}.txt' for name in (*SPLITS, 'trainval')}
    names = [f'{split}_{i:05d}' for split, i in _samples(parameters)]
    images = {f'JPEGImages/{name}.jpg' for name in names}
    masks = {f'SegmentationClass/{name}.png' for name in names}
    folders = {'JPEGImages', 'SegmentationClass', 'ImageSets', 'ImageSets/Segmentation'}
    return {METADATA} | lists | images | masks | folders


def _is_drawn(root: Path, wanted: dict[str, Any], overwrite: bool) -> bool:
    """Whether ``root`` holds what is wanted already; UserError if it can't be drawn there."""
    if not os.path.exists(root):
        return False
    if not os.path.isdir(root):
        raise UserError(f'{root} is a file: choose another folder')
    there = {path.relative_to(root).as_posix() for path in root.rglob('*')}
    if not there:
        return False
    found = _read_metadata(root)
    if found is None:
        raise UserError(f'{root} holds something else than a miniature: choose another folder')
    if overwrite:
        if foreign := sorted(there - _contents(found)):
            raise UserError(f'{root / foreign[0]} is not of the miniature: move it elsewhere first')
        return False
    if differing := [f'{k} {found[k]} instead of {v}' for k, v in wanted.items() if found[k] != v]:
        raise UserError(
            f'{root} holds a miniature with {", ".join(differing)}: set overwrite to replace it, '
            'or choose another folder'
        )
    if missing := sorted(_contents(found) - there):
        raise UserError(f'{root / missing[0]} is missing: set overwrite to draw all anew')
    return True


def _write(root: Path, parameters: dict[str, Any], samples: Iterable[Sample]) -> None:
    """Write a whole miniature into the folder ``root``, which must not exist."""
    lists = root / 'ImageSets' / 'Segmentation'
    for folder in (lists, root / 'JPEGImages', root / 'SegmentationClass'):
        folder.mkdir(parents=True)
    palette = voc_palette().tobytes()
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split, i in samples:
        name = f'{split}_{i:05d}'
        names[split].append(name)
        image, mask = draw_sample(split, i, tuple(parameters['size']), parameters['seed'])
        Image.fromarray(image).save(root / 'JPEGImages' / f'{name}.jpg', quality=90)
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette)
        indexed.save(root / 'SegmentationClass' / f'{name}.png')
    names['trainval'] = [name for split in SPLITS for name in names[split]]
    for split, listed in names.items():
        (lists / f'{split}.txt').write_text('\n'.join(listed) + '\n', encoding='utf-8')
    (root / METADATA).write_text(json.dumps(parameters, indent=2) + '\n', encoding='utf-8')


def make_miniature(
    root: str | os.PathLike[str],
    num_train: int = 320,
    num_val: int = 80,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[list[Sample]], Iterable[Sample]] | None = None,
) -> bool:
    """Draw the miniature into a folder, whole or not at all.

    A larger miniature begins with the smaller one of the same seed. From 20 images up, a split
    holds every class.

    Args:
        root: Folder to make, or one that is empty or holds a miniature. A miniature of the same
            parameters is left as it is.
        num_train, num_val: Numbers of training and validation images.
        size: Width and height in pixels, 32 to 2048.
        seed: Seed of the drawing, 0 or more.
        overwrite: Draw anew over a miniature. A folder with any other file is never touched.
        progress: Wraps the list of samples to draw, as ``mmengine.track_iter_progress`` or
            ``tqdm.tqdm`` does.

    Returns:
        Whether anything was drawn: False if the same miniature was there already.

    Raises:
        UserError: The numbers make no sense, or the folder can't be written or holds other things.
    """
    wanted = _parameters(num_train, num_val, size, seed)
    samples = _samples(wanted)
    with writing(root):
        root = Path(root).resolve()
        if _is_drawn(root, wanted, overwrite):
            return False
        # beside the folder, so that renaming stays within one file system
        with temporary_folder(root) as scratch:
            new = scratch / 'new'
            _write(new, wanted, progress(samples) if progress else samples)
            _is_drawn(root, wanted, overwrite)  # someone may have written there meanwhile
            if (root / METADATA).exists():
                root.rename(scratch / 'old')
            new.rename(root)
    return True
