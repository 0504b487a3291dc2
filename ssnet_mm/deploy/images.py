"""Images and label maps as arrays, whatever they come from.

What is not plain RGB means here what OpenCV, with which mmseg's test pipeline reads, makes of it;
docs/deployment.md has the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS, TURNS, open_image, orientation_of, read_unmapped
from ssnet_mm.palette import voc_palette

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Labels = NDArray[Any]  # uint8, or uint16 beyond 256 classes; (H, W), class indices
Maps = tuple[NDArray[Any], ...]  # labels, and where asked for, float32 of their probabilities
ImageLike = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | Pixels

_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
_DEEP_GREY = ('PNG', 'PPM')  # formats whose grey values have 16 bits at most
_BITS_PER_SAMPLE, _WHITE_IS_ZERO, _EXTRA_SAMPLES = 258, 262, 338  # tags of TIFF; 0: it is
_PIXELS = 1 << 23  # converted at once, so that a large image is in memory no more than twice


def read_image(
    source: str | os.PathLike[str] | BinaryIO, max_pixels: int | None = MAX_PIXELS
) -> Pixels:
    """Read a file, upright as its metadata says; its decoder may raise anything.

    ValueError where it declares more than ``max_pixels``.
    """
    with open_image(source, max_pixels) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image, upright: bool = True) -> Pixels:
    """The pixels of a PIL image, by default turned as its EXIF data say; 16 bits become 8.

    UserError where grey levels are not defined: 32-bit values, other colour spaces.
    """
    check_mode(image)
    read_unmapped(image)
    _read_unstretched(image)
    image.load()  # raises where the file is cut short
    tags: Any = getattr(image, 'tag_v2', {})
    # without the tag libtiff takes the colours for multiplied already, as OpenCV writes RGBA
    opacity = image.mode == 'RGBA' and _EXTRA_SAMPLES in tags
    inverted = tags.get(_WHITE_IS_ZERO) == 0  # what Pillow does itself, but not in 16 bits
    background = _background(image)
    kind = image.format
    orientation = orientation_of(image) if upright else 1
    if orientation != 1:
        image = image.transpose(TURNS[orientation])
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows in bands_of_rows(image.height, max(1, _PIXELS // image.width)):
        part = image.crop((0, rows.start, image.width, rows.stop))
        if image.mode.startswith('I'):  # which Pillow would clip
            pixels[rows] = (np.asarray(part) >> 8).astype(np.uint8)[..., None] ^ (255 * inverted)
        elif opacity:  # libtiff gives colours times opacity
            values = np.asarray(part).astype(np.uint16)
            pixels[rows] = (values[..., :3] * values[..., 3:] + 127) // 255
        elif image.mode == 'CMYK' and kind == 'JPEG':  # as OpenCV's own formula does
            ink = np.asarray(part).astype(np.uint16)
            light = 255 - ink[..., 3:]
            pixels[rows] = light - (ink[..., :3] * light >> 8)
        else:
            pixels[rows] = np.asarray(part.convert('RGB'))
        if background is not None:
            pixels[rows][np.asarray(part) == image.info['transparency']] = background
    return pixels


def check_mode(image: Image.Image) -> None:
    """UserError where a PIL image has no 8-bit grey levels of a defined meaning."""
    if image.info.get('default_image'):
        raise UserError(
            'it is an animation beside a still image, and programs differ in which of them they '
            'show; save the one that is meant by itself'
        )
    bits = _bits(image)
    packed = image.mode.startswith('I;16') and bits not in (8, 16)
    if packed:
        raise UserError(
            f'grey levels of {bits} bits are not read by OpenCV; convert the image to 8 or 16'
        )
    deep = image.mode.startswith('I;16') or (image.mode == 'I' and image.format in _DEEP_GREY)
    if image.mode not in _MODES and not deep:
        raise UserError(
            f"values of Pillow's mode {image.mode} have no defined grey levels; convert the image "
            'to 8 or 16 unsigned bits of grey or RGB'
        )


def _read_unstretched(image: Image.Image) -> None:
    """Have Pillow read PGM and PPM of another largest value as OpenCV does.

    That one makes light only what is written in digits, and only up to 255; of larger values it
    takes the higher of two bytes.
    """
    if image.format != 'PPM' or not (tile := getattr(image, 'tile', None)):
        return
    decoder, box, offset, given = tile[0]
    if decoder not in ('ppm', 'ppm_plain'):
        return
    if not isinstance(given, tuple):  # of black and white, which has no largest value
        return
    mode, largest = given
    if decoder == 'ppm':
        deep = 'I;16B' if mode == 'L' else f'{mode};16B'
        image.tile = [('raw', box, offset, deep if largest > 255 else mode)]  # type: ignore[attr-defined]
    elif largest > 255:
        image.tile = [(decoder, box, offset, (mode, 65535))]  # type: ignore[attr-defined]


def _bits(image: Image.Image) -> int:
    bits: Any = getattr(image, 'tag_v2', {}).get(_BITS_PER_SAMPLE, (8,))
    return bits[0]


def _background(image: Image.Image) -> list[int] | None:
    """The colour that a GIF's transparent pixels have."""
    transparent = image.info.get('transparency')
    if image.format != 'GIF' or image.mode != 'P' or not isinstance(transparent, int):
        return None
    palette = image.getpalette() or []
    start = 3 * image.info.get('background', 0)
    return palette[start : start + 3] or None


def full_palette(palette: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.uint8]:
    """RGB colours of 256 labels or more: those given if there is one a class, then VOC's."""
    colours = np.resize(voc_palette(), (max(256, num_classes), 3))  # again from the start
    given = np.array(palette, np.uint8).reshape(-1, 3)[: len(colours)]
    if len(given) >= num_classes:
        colours[: len(given)] = given
    return colours


def label_type(num_classes: int) -> type[Any]:
    """The smallest unsigned integer that holds so many labels."""
    return np.uint8 if num_classes <= 256 else np.uint16


def bands_of_rows(height: int, rows: int) -> Iterator[slice]:
    """Slices of so many rows, down an image."""
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))
