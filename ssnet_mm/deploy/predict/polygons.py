"""The regions of a label map as polygons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.deploy.images import Labels
from ssnet_mm.errors import UserError, require

Points = NDArray[np.int32]  # (N, 2) of x and y


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


class Region(NamedTuple):
    """Pixels of one class that are connected by their sides.

    Args:
        label: Its class.
        area: In pixels.
        box: x, y, width and height.
        parts: Polygons that make it up, of half pixels: an even x is the left half of pixel x / 2,
            an odd one the right half.
        cuts: The x along which it was cut into parts.
        tolerance: As for :class:`Outline`.
    """

    label: int
    area: int
    box: tuple[int, int, int, int]
    parts: list[Points]
    cuts: list[int]
    tolerance: float

    def corners(self) -> list[Points]:
        """The parts along the edges of pixels, which go from (x, y) to (x + 1, y + 1)."""
        return [self._simplified(part, (part + 1) // 2) for part in self.parts]

    def centres(self) -> list[Points]:
        """The parts through the outermost pixels; these may all be on a line, or one."""
        return [self._simplified(part, part // 2) for part in self.parts]

    def _simplified(self, part: Points, points: Points) -> Points:
        """Fewer points, or all where too few would be left; parts go on fitting each other."""
        fixed = np.flatnonzero(np.isin((part[:, 0] + 1) // 2, self.cuts))
        if len(fixed):  # what is on a cut stays, and each chain between is on its own
            ring = np.roll(points, -fixed[0], axis=0)
            ring = np.concatenate([ring, ring[:1]])
            ends = [*(fixed - fixed[0]).tolist(), len(points)]
            chains = [self._fewer(ring[a : b + 1], False)[:-1] for a, b in pairwise(ends)]
            kept = np.concatenate(chains)
        else:
            kept = self._fewer(points, True)
        return kept if len(kept) > 2 else points

    def _fewer(self, points: Points, closed: bool) -> Points:
        return _cv2().approxPolyDP(points.astype(np.int32)[:, None], self.tolerance, closed)[:, 0]


def regions(outline: Outline, labels: Labels, present: Iterable[int]) -> Iterator[Region]:
    """Regions of a label map, class by class of those that are present."""
    cv2 = _cv2()
    for label in sorted(outline.labels.intersection(present)):
        mask = (labels == label).astype(np.uint8)
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for i in range(1, count):  # 0 is what is not of the class
            x, y, width, height, area = boxes[i].tolist()
            if area >= outline.min_area:
                mask = numbers[y : y + height, x : x + width] == i
                parts, cuts = _parts(mask, outline.min_area)
                parts = [part + np.array((2 * x, 2 * y), np.int32) for part in parts]
                cuts = [x + cut for cut in cuts]
                yield Region(label, area, (x, y, width, height), parts, cuts, outline.tolerance)


def _parts(mask: NDArray[np.bool_], min_area: int) -> tuple[list[Points], list[int]]:
    """Polygons, in half pixels; and the x of cuts through holes, which polygons can't have."""
    cv2 = _cv2()
    halves = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    found, tree = cv2.findContours(halves, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [contour[:, 0] for contour, row in zip(found, tree[0]) if row[3] < 0]
    inner = [contour[:, 0] for contour, row in zip(found, tree[0]) if row[3] >= 0]
    holes = [hole for hole in inner if cv2.contourArea((hole + 1) // 2) >= min_area]
    if not holes:
        return outer, []
    # through the middle one, so that there are few cuts of cuts
    middles = sorted((hole[:, 0].min() + hole[:, 0].max() + 1) // 4 for hole in holes)
    cut = int(middles[len(middles) // 2])
    left, cuts = _parts(mask[:, :cut], min_area)
    right, more = _parts(mask[:, cut:], min_area)
    moved = [part + np.array((2 * cut, 0), np.int32) for part in right]
    return left + moved, [*cuts, cut, *(cut + x for x in more)]


def _cv2() -> Any:
    return require('cv2', 'opencv-python', 'polygons')
