"""The regions of a label map as polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.deploy.images import Labels
from ssnet_mm.errors import UserError, require

Points = NDArray[np.int32]  # (N, 2) of x and y


class Region(NamedTuple):
    """Pixels of one class that are connected by their sides.

    Args:
        label: Its class.
        area: In pixels.
        box: x, y, width and height.
        parts: The polygons that make it up, of half pixels: x is the left half of pixel x // 2
            where it is even, and its right half where it is odd.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    parts: list[Points]

    def corners(self, outline: Outline) -> list[Points]:
        """The parts' polygons along the edges of pixels, which span (x, y) to (x + 1, y + 1)."""
        return [outline.simplified((part + 1) // 2) for part in self.parts]

    def centres(self, outline: Outline) -> list[Points]:
        """The parts' polygons through the outermost pixels; of thin parts all may be on a line."""
        return [outline.simplified(part // 2) for part in self.parts]


@dataclass(frozen=True)
class Outline:
    """How regions become polygons.

    Args:
        labels: Classes that do.
        tolerance: How many pixels a polygon may be off, to have fewer points.
        min_area: Regions, and holes in them, of fewer pixels are left out.
    """

    labels: frozenset[int]
    tolerance: float = 1.0
    min_area: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float('inf'):
            raise UserError(f'tolerance must be 0 or more pixels, got {self.tolerance}')
        if self.min_area < 1:
            raise UserError(f'min_area must be at least 1 pixel, got {self.min_area}')

    def regions(self, labels: Labels, present: Iterable[int]) -> Iterator[Region]:
        """Regions of the classes that are present, class by class."""
        cv2 = _cv2()
        for label in sorted(self.labels.intersection(present)):
            mask = (labels == label).astype(np.uint8)
            count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
            for i in range(1, count):  # 0 is what is not of the class
                x, y, width, height, area = boxes[i].tolist()
                if area >= self.min_area:
                    mask = numbers[y : y + height, x : x + width] == i
                    parts = [part + (2 * x, 2 * y) for part in self._parts(mask)]
                    yield Region(label, area, (x, y, width, height), parts)

    def _parts(self, mask: NDArray[np.bool_]) -> list[Points]:
        """Polygons, in half pixels; a region with holes is cut through them, into several."""
        cv2 = _cv2()
        halves = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        found, tree = cv2.findContours(halves, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        contours = [contour[:, 0] for contour in found]
        inner = [contour for contour, row in zip(contours, tree[0]) if row[3] >= 0]
        holes = [hole for hole in inner if cv2.contourArea((hole + 1) // 2) >= self.min_area]
        if not holes:
            return [contour for contour, row in zip(contours, tree[0]) if row[3] < 0]
        middles = sorted((hole[:, 0].min() + hole[:, 0].max() + 1) // 4 for hole in holes)
        column = middles[len(middles) // 2]
        left, right = self._parts(mask[:, :column]), self._parts(mask[:, column:])
        return left + [part + (2 * column, 0) for part in right]

    def simplified(self, points: Points) -> Points:
        """Fewer points, or all where too few would be left."""
        kept = _cv2().approxPolyDP(points.astype(np.int32)[:, None], self.tolerance, True)[:, 0]
        return kept if len(kept) > 2 else points


def _cv2() -> Any:
    return require('cv2', 'opencv-python', 'polygons')
