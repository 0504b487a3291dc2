"""Images and label maps as arrays, whatever they come from."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ssnet_mm.limits import MAX_PIXELS, open_image
from ssnet_mm.palette import voc_palette

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Labels = NDArray[np.uint8]  # (H, W), class indices
ImageLike = str | os.PathLike[str] | Image.Image | Pixels


def read_image(path: str | os.PathLike[str], max_pixels: int | None = MAX_PIXELS) -> Pixels:
    """Read a file, upright as its metadata says; its decoder may raise anything.

    ValueError where it declares more than ``max_pixels``.
    """
    with open_image(path, max_pixels) as image:
        image.load()  # raises where the file is cut short
        return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Pixels:
    """The pixels of a PIL image of any mode; 16 bits become 8."""
    if image.mode.startswith('I;16'):  # which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert('RGB'))


def full_palette(palette: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.uint8]:
    """RGB colours (256, 3): the given ones if there is one a class, then VOC's colour map."""
    colours = voc_palette()
    given = np.array(palette, np.uint8).reshape(-1, 3)[:256]
    if len(given) >= num_classes:
        colours[: len(given)] = given
    return colours
