"""Colours of classes: what is a list of them, and Pascal VOC's for what has none of its own."""

from math import isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST = 1000  # colours


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colour map, (256, 3) uint8 RGB: bit 3k+c of an index is bit 7-k of its channel c."""
    index = np.arange(256)[:, None]
    bits = [((index >> 3 * k + np.arange(3)) & 1) << 7 - k for k in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)


def is_palette(palette: Any) -> bool:
    """Whether it is a list of RGB colours, 0 to 255, and no longer than a checkpoint's may be."""
    rows = palette.tolist() if hasattr(palette, 'tolist') else palette
    return (
        isinstance(rows, (list, tuple))
        and len(rows) <= _LONGEST
        and all(
            isinstance(row, (list, tuple, np.ndarray))
            and len(row) == 3
            and all(_is_level(n) for n in row)
            for row in rows
        )
    )


def _is_level(value: Any) -> bool:
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and isfinite(value) and 0 <= value < 256
