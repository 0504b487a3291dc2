"""What a test has counted, and the scores that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BOUNDARY_RATIO = 0.02  # of an image's diagonal: how wide a band along the boundaries is


def boundary_band(labels: NDArray, width: int) -> NDArray[np.bool_]:
    """The pixels of a label map that are at most ``width`` pixels away from another label.

    What lies outside the image counts as another label. Distances are those of a square window,
    as a mask's are that is eroded by 3x3 ``width`` times: the band of each class is what such an
    erosion takes from its mask (``mask_to_boundary`` of
    https://github.com/bowenc0221/boundary-iou-api).

    Args:
        labels: (H, W), of values up to 65535.
        width: At least 1.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    labels = np.ascontiguousarray(labels, np.uint16)
    band = cv2.erode(labels, window) != cv2.dilate(labels, window)
    for edge in (band[:width], band[-width:], band[:, :width], band[:, -width:]):
        edge[:] = True
    return band


def count(
    prediction: NDArray,
    truth: NDArray,
    num_classes: int,
    ignore_index: int,
    boundary_ratio: float = BOUNDARY_RATIO,
) -> NDArray[np.int64]:
    """Count one image's pixels.

    The sum over images is what ``Scores`` takes. Void pixels are left out of both label maps before
    boundaries are looked for, so that a perfect prediction has a Boundary IoU of 100%.

    Args:
        prediction: (H, W); what is no class counts as wrong.
        truth: (H, W), of classes and ``ignore_index``.
        num_classes: How many classes there are.
        ignore_index: The label of void pixels.
        boundary_ratio: Width of the band along boundaries, as a share of the image's diagonal.

    Returns:
        A row for each class: the confusion, with a column for each class that was predicted and
        one for what is no class; then pixels within the bands: of both label maps, of the truth's,
        of the prediction's.
    """
    valid = truth != ignore_index
    strange = (prediction < 0) | (prediction >= num_classes)
    prediction = np.where(strange, num_classes, prediction)
    columns = num_classes + 1
    pairs = truth[valid].astype(np.int64) * columns + prediction[valid]
    confusion = np.bincount(pairs, minlength=num_classes * columns).reshape(-1, columns)

    void = num_classes + 1
    truth, prediction = np.where(valid, truth, void), np.where(valid, prediction, void)
    width = max(1, round(boundary_ratio * float(np.hypot(*truth.shape))))
    bands = [boundary_band(labels, width) for labels in (truth, prediction)]
    both = bands[0] & bands[1] & (truth == prediction)
    inside = [truth[both], truth[bands[0]], prediction[bands[1]]]
    counts = [np.bincount(part, minlength=void + 1)[:num_classes] for part in inside]
    return np.column_stack([confusion, *counts])


@dataclass(frozen=True)
class Scores:
    """The scores of a test, in percent; NaN where there is nothing to divide by.

    Args:
        classes: Names, by index.
        counts: Sum of what ``count`` gives for each image.
        images: How many there were.
    """

    classes: Sequence[str]
    counts: NDArray[np.int64]
    images: int

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Pixels: a row for each class of the truth, a column for each that was predicted.

        A last column, of what was predicted and is no class, is there only if there is such.
        """
        confusion = self.counts[:, : len(self.classes) + 1]
        return confusion if confusion[:, -1].any() else confusion[:, :-1]

    def columns(self) -> dict[str, NDArray]:
        """Values for each class.

        ``IoU`` is intersection over union; ``accuracy`` what mmseg calls ``Acc``, the share of a
        class' pixels that were found, which is its ``recall``; ``precision`` the share of what was
        taken for a class that belongs to it, 0 if the class is there and nothing was taken for it.
        ``boundary_IoU`` is the IoU of the inner bands along the boundaries of truth and prediction
        (Boundary IoU, https://arxiv.org/abs/2103.16562), added up over all images like the IoU.
        ``support`` and ``predicted`` are pixels.
        """
        num = len(self.classes)
        confusion, bands = self.counts[:, : num + 1], self.counts[:, num + 1 :].T
        hits = confusion.diagonal()
        support, predicted = confusion.sum(1), confusion[:, :num].sum(0)
        recall = _percent(hits, support)
        return {
            'IoU': _percent(hits, support + predicted - hits),
            'accuracy': recall,
            'precision': np.where((support > 0) & (predicted == 0), 0, _percent(hits, predicted)),
            'recall': recall,
            'boundary_IoU': _percent(bands[0], bands[1] + bands[2] - bands[0]),
            'support': support,
            'predicted': predicted,
        }

    def means(self) -> dict[str, float]:
        """``aAcc``, the share of all pixels that are right, and means over the classes."""
        columns = self.columns()
        hits, support = self.confusion.diagonal().sum(), self.confusion.sum()
        means = {'aAcc': float(_percent(hits, support))}
        for name, key in (
            ('mIoU', 'IoU'),
            ('mAcc', 'accuracy'),
            ('mPrecision', 'precision'),
            ('mRecall', 'recall'),
            ('mBoundaryIoU', 'boundary_IoU'),
        ):
            known = columns[key][~np.isnan(columns[key])]
            means[name] = float(known.mean()) if known.size else float('nan')
        return means

    def rows(self) -> list[dict[str, Any]]:
        """``columns``, class by class, with index and name; None in the place of NaN."""
        columns = self.columns()
        return [
            {'index': i, 'class': name, **{key: _plain(c[i]) for key, c in columns.items()}}
            for i, name in enumerate(self.classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            'images': self.images,
            'pixels': int(self.confusion.sum()),
            **{key: _plain(value) for key, value in self.means().items()},
            'classes': self.rows(),
            'confusion': self.confusion.tolist(),
        }


def _percent(part: Any, whole: Any) -> Any:
    with np.errstate(invalid='ignore'):
        return 100 * np.divide(part, whole)


def _plain(value: Any) -> int | float | None:
    """As JSON takes it, with four digits after the point."""
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else round(float(value), 4)
