"""Masks that are image files: what is stored in them, and what kind of masks they are."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssnet_mm.checks.facts import pages_of, palette_colours
from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS, open_image
from ssnet_mm.prepare.source import VOID, BadAnnotationError, Folder, all_masks

_LOOKED_AT = 60  # masks that tell the kind
DEEP_VOID = (-1, 65535)  # what 255 is in masks of more bits
_EDGES = 0.05  # share of the pixels that anti-aliasing may touch


def file_state(path: Path) -> str:
    """A short text that changes when a file does; empty where it can't be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
    except OSError:
        return ''


def open_mask(path: Path, *, lossy: bool = False) -> Image.Image:
    """Read a mask whole.

    Args:
        path: Its file.
        lossy: Whether JPEG will do.

    Raises:
        BadAnnotationError: It can't be used.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadAnnotationError(f"can't be read ({error.strerror or error})") from error
    if not data:
        raise BadAnnotationError('is empty (0 bytes); export it again')
    try:
        image = open_image(io.BytesIO(data), None)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
    except Exception as error:  # decoders raise all kinds
        raise BadAnnotationError(f'is no image, or damaged ({error}); export it again') from error
    if image.width * image.height > MAX_PIXELS:
        raise BadAnnotationError(f'has more than {MAX_PIXELS / 1e6:.0f} million pixels; shrink it')
    if image.format in ('JPEG', 'MPO') and not lossy:
        raise BadAnnotationError('is a JPEG, which changes values near edges; export it as PNG')
    if pages_of(image) > 1:
        raise BadAnnotationError(f'holds {pages_of(image)} pages; store each mask in its own file')
    if image.format == 'PNG' and image.mode in ('RGB', 'RGBA', 'LA') and data[24] == 16:
        # Pillow keeps the upper half of each
        raise BadAnnotationError('has 16 bits a channel; store class numbers as grey, 8 or 16 bits')
    if image.format == 'PNG' and image.mode == 'L' and data[24] < 8:
        # Pillow stretches grey levels of few bits to 0..255
        levels = np.asarray(image) // (255 // ((1 << data[24]) - 1))
        image = Image.fromarray(levels)
    return image


def stored_values(image: Image.Image) -> NDArray[Any] | None:
    """The number of each pixel, (H, W); None for a colour picture. White of 1 bit is 255."""
    array = np.asarray(image)
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.ndim == 3:
        grey, alpha = array[..., 0], array[..., -1]
        one_colour = (array[..., :-1] == array[:1, :1, :-1]).all()
        if image.mode in ('RGBA', 'LA') and one_colour and (alpha != alpha[:1, :1]).any():
            return alpha  # what is cut out of one colour
        if image.mode not in ('LA', 'PA') and (array[..., :3] != grey[..., None]).any():
            return None
        return grey
    return array


def read_grey(path: Path) -> NDArray[Any]:
    """The numbers of a mask that is no colour picture, of any number of bits.

    Raises:
        BadAnnotationError: It is one, or can't be used.
    """
    values = stored_values(open_mask(path, lossy=True))
    if values is None:
        raise BadAnnotationError('is a colour picture, and others are grey; see --format colours')
    return values


def value_counts(values: NDArray[Any]) -> dict[int, int]:
    """How many pixels have each value."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist()))


def inner_counts(values: NDArray[Any]) -> dict[int, int]:
    """Of each value the pixels whose neighbours above, below, left and right have it too."""
    middle = values[1:-1, 1:-1]
    same = (middle == values[:-2, 1:-1]) & (middle == values[2:, 1:-1])
    same &= (middle == values[1:-1, :-2]) & (middle == values[1:-1, 2:])
    return value_counts(middle[same])


def is_area(pixels: int, inner: int) -> bool:
    """Edges that are painted smoothly are a pixel wide, so they have hardly an interior."""
    return inner >= max(4, 0.05 * pixels)


def check_palettes(paths: Iterable[Path]) -> None:
    """See that a number has the same colour in all palettes, as it does where numbers are meant.

    Raises:
        UserError: It has not, so that the colours may be meant.
    """
    stored = {path: palette for path in paths if (palette := _stored_palette(path))}
    if len({*stored.values()}) < 2:
        return
    known: dict[int, tuple[str, Path]] = {}
    for path in stored:
        try:
            image = open_mask(path, lossy=True)
        except BadAnnotationError:
            continue  # told when it is read
        numbers = {*np.unique(np.asarray(image)).tolist()} - {VOID}
        for number, colour in palette_colours(image, sorted(numbers)).items():
            before, first = known.setdefault(number, (colour, path))
            if before != colour:
                raise UserError(
                    f'{path}: {number} is {colour} in its palette, and {before} in that of '
                    f'{first}; say what counts, the colours (--format colours) or the numbers '
                    '(--format index)'
                )


def _stored_palette(path: Path) -> bytes:
    """A mask's palette as its header has it; empty without one, and where it can't be read."""
    try:
        with open_image(path, None) as image:
            return bytes(image.palette.palette) if image.mode == 'P' and image.palette else b''
    except Exception:  # decoders raise all kinds
        return b''


@lru_cache(maxsize=4)
def survey(folder: Folder) -> tuple[str, str]:
    """Which kind of masks a folder holds: 'index', 'binary', 'colours' or none; and why.

    Raises:
        UserError: None of them can be read.
    """
    paths = all_masks(folder)
    if not paths:
        return '', ''
    counts: Counter[int] = Counter()
    inner: Counter[int] = Counter()
    looked, bad = 0, ''
    sample = paths[:: -(-len(paths) // _LOOKED_AT)]
    for path in sample:
        try:
            values = stored_values(open_mask(path, lossy=True))
        except BadAnnotationError as error:
            bad = bad or f'{path}: {error}'
            continue  # told when it is read
        if values is None:
            return 'colours', f'{len(paths)} masks, of which {path.name} is a colour picture'
        if values.dtype.kind == 'f':
            values = np.nan_to_num(values, posinf=0, neginf=0).astype(int)
        inner.update(inner_counts(values))
        counts.update(value_counts(values))
        looked += 1
    if not looked:
        raise UserError(f'{bad} (of {len(sample)} masks looked at none can be read)')
    between = sorted(set(counts) - {0, 255, *DEEP_VOID})
    share = sum(counts[v] for v in between) / sum(counts.values())
    shown = ', '.join(map(str, sorted(counts)[:6])) + (', ...' if len(counts) > 6 else '')
    why = f'{len(paths)} grey or palette masks with values {shown}'
    if counts.keys() in ({0, 255}, {255}, {0, 65535}, {65535}):
        return 'binary', why
    grey = [value for value in between if 16 <= value < 240]  # JPEG has areas near black and white
    soft = not is_area(sum(counts[v] for v in grey), sum(inner[v] for v in grey))
    if len(between) >= 8 and share < _EDGES and between[0] < 96 and between[-1] > 160 and soft:
        return 'binary', f'{why}, of which those between 0 and 255 are edges'
    if not between or not 40 < between[-1] < 256 or len(between) >= between[-1] / 3:
        return 'index', why
    return 'colours', f'{why}: few, and far apart'
