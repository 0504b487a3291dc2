"""What is written of an image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ssnet_mm.deploy.images import Labels, Maps, Pixels
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.files import write_result

_COMPRESSION = 3  # of PNG: a third of the default's time, a tenth more bytes


def write_image(
    segment: Segmenter, pixels: Pixels, maps: Maps, out_dir: Path, name: str, opacity: float
) -> tuple[float, float]:
    """Write an image's files; how sure its labels are: the mean, and the share below a half."""
    labels, *scores = maps

    def save(kind: str, picture: Image.Image) -> None:
        png = io.BytesIO()
        picture.save(png, format='PNG', compress_level=_COMPRESSION)
        write_result(out_dir / kind / name, png.getvalue())

    # of large images one at a time
    save('overlay', segment.overlay(pixels, labels, opacity))
    save('index', _indexed(segment, labels))
    for one in scores:
        save('confidence', Image.fromarray((one * np.float32(255)).round().astype(np.uint8)))
        return float(one.mean(dtype=np.float64)), float((one < 0.5).mean())
    return 1.0, 0.0


def write_ranking(path: Path, sure: Mapping[Path, tuple[float, float]]) -> None:
    """Write a CSV of how sure the labels of images are, the least sure ones first."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(['image', 'mean_confidence', 'share_below_half'])
    for image, (mean, below) in sorted(sure.items(), key=lambda item: item[1]):
        writer.writerow([os.fspath(image), f'{mean:.4f}', f'{below:.4f}'])
    write_result(path, table.getvalue().encode(errors='surrogateescape'))


def _indexed(segment: Segmenter, labels: Labels) -> Image.Image:
    first = getattr(segment.session, 'first_index', 0)
    if first + segment.session.num_classes > 256:
        return Image.fromarray(labels.astype(np.uint16) + np.uint16(first))
    indexed = Image.fromarray(labels + np.uint8(first))
    # mode L becomes P
    indexed.putpalette(bytes(3 * first) + segment.colours.tobytes()[: 3 * (256 - first)])
    return indexed
