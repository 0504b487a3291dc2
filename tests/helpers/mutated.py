"""Images that were damaged in copying, or on purpose."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {'jpg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP', 'bmp': 'BMP', 'tif': 'TIFF'}


def mutated_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write images of all formats, every fifth of them whole, the others changed at random."""
    rng = random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    folder.mkdir()
    paths = []
    for i in range(count):
        suffix, kind = rng.choice(list(FORMATS.items()))
        file = io.BytesIO()
        options = dict(compression='tiff_lzw') if kind == 'TIFF' and rng.random() < 0.5 else {}
        Image.fromarray(pixels).save(file, kind, **options)
        data = bytearray(file.getvalue())
        if i % 5:
            _change(data, rng)
        paths.append(folder / f'{i:04}.{suffix}')
        paths[-1].write_bytes(data)
    return paths


def _change(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 20))):
        how = rng.randrange(5)
        place = (
            rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(64, len(data)))
        )
        if how == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[place : place + 4] = rng.choice((b'\xff\xff\xff\xff', b'\0\0\0\0', b'\x7f\xff'))
        elif how == 2 and len(data) > 80:
            del data[max(40, place) :]
        elif how == 3:
            data[place:place] = rng.randbytes(rng.randrange(1, 40))
        else:
            data[place : place + 8] = rng.randbytes(8)
