"""What the writers of outputs are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.deploy.images import Labels, Pixels, bands_of_rows
from ssnet_mm.deploy.predict.overlay import Overlay
from ssnet_mm.deploy.predict.polygons import Outline
from ssnet_mm.deploy.segmenter import Segmenter

_ROWS = 1024  # counted at once: numpy makes whole numbers of their labels


@dataclass(frozen=True)
class Task:
    """What is asked for, the same for all images.

    Args:
        segment: What the labels are of.
        out_dir: The folder to write to.
        kinds: Keys of ``outputs.OUTPUTS``.
        overlay: How labels are painted.
        outline: How they become polygons.
    """

    segment: Segmenter
    out_dir: Path
    kinds: Sequence[str]
    overlay: Overlay
    outline: Outline


@dataclass(frozen=True)
class Result:
    """An image with its labels.

    Args:
        path: Of the image.
        reference: The same, as seen from the folder of all images.
        name: Of its files: with folders, without suffix.
        pixels: (H, W, 3).
        labels: (H, W).
        scores: Probabilities of the labels (H, W), where they were asked for.
        counts: How many pixels each class has.
    """

    path: Path
    reference: str
    name: str
    pixels: Pixels
    labels: Labels
    scores: NDArray[np.float32] | None
    counts: NDArray[np.int64]

    @property
    def present(self) -> list[int]:
        """Labels of the classes it has."""
        return np.flatnonzero(self.counts).tolist()


def count_labels(labels: Labels, num_classes: int) -> NDArray[np.int64]:
    """How many pixels each class has."""
    counts = np.zeros(num_classes, np.int64)
    for rows in bands_of_rows(len(labels), _ROWS):
        counts += np.bincount(labels[rows].ravel(), minlength=num_classes)
    return counts
