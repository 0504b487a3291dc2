"""Pascal VOC's colour map, for what has no colours of its own."""

import numpy as np
from numpy.typing import NDArray


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colour map, (256, 3) uint8 RGB: bit 3k+c of an index is bit 7-k of its channel c."""
    index = np.arange(256)[:, None]
    bits = [((index >> 3 * k + np.arange(3)) & 1) << 7 - k for k in range(8)]
    return np.sum(bits, axis=0).astype(np.uint8)
