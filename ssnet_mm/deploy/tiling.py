"""Large images in overlapping tiles: logits are averaged where tiles overlap, as in mmseg.

Tiles lie as in the ``slide_inference`` of mmseg's segmentors, and the labels are the same but for
rounding. Unlike there, no map of all logits is made: what no later tile reaches is labelled at
once, so that memory is needed for the overlaps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.deploy.images import Maps
from ssnet_mm.errors import UserError

Logits = NDArray[np.float32]


class Window(NamedTuple):
    """A tile's place in the network's input."""

    rows: slice
    columns: slice


class Tiling(NamedTuple):
    """How an image is cut, in pixels of the network's input."""

    size: int
    overlap: int


class _Block(NamedTuple):
    """Logits (C, h, w) that are final."""

    top: int
    left: int
    logits: Logits


def make_tiling(tile: int | None, overlap: int | None) -> Tiling | None:
    """Check the sizes; the default overlap is an eighth of the tile."""
    if tile is None:
        if overlap is not None:
            raise UserError(f'overlap {overlap} is that of tiles; give tile as well')
        return None
    for name, number in (('tile', tile), ('overlap', overlap)):
        if number is not None and not isinstance(number, Integral):
            raise UserError(f'{name} must be a whole number of pixels, got {number!r}')
    if tile < 1:
        raise UserError(f'tile must be at least 1, got {tile}')
    overlap = tile // 8 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise UserError(f'overlap must be from 0 to below the tile of {tile}, got {overlap}')
    return Tiling(tile, overlap)


def label_tiles(
    run: Callable[[list[Window]], Logits],
    tiling: Tiling,
    batch_size: int,
    size: tuple[int, int],
    original: tuple[int, int],
    maps: Maps,
    decided: Callable[[Logits], Maps],
    align_corners: bool,
) -> Maps:
    """Fill ``maps``, of the ``original`` size, from an input's tiles.

    Args:
        run: From windows to their logits, (N, C, height, width) at the windows' own size.
        tiling: Of the input.
        batch_size: How many windows run at once.
        size: Height and width of the input.
        original: Those of the image.
        maps: Labels, and what else is wanted of each pixel.
        decided: From logits (C, h, w) to these.
        align_corners: Of resizing logits to the image.
    """

    def fill(rows: slice, columns: slice, logits: Logits) -> None:
        for whole, part in zip(maps, decided(logits), strict=True):
            whole[rows, columns] = part

    blocks = _blocks(run, tiling, batch_size, size)
    if size == original:
        for top, left, logits in blocks:
            height, width = logits.shape[1:]
            fill(slice(top, top + height), slice(left, left + width), logits)
        return maps
    down, across = (Taps(size[i], original[i], align_corners) for i in (0, 1))
    above: Logits | None = None  # the last row of the blocks above
    beside: Logits | None = None  # the last column of the block before
    for top, left, logits in blocks:
        channels, height, width = logits.shape
        if above is None:
            above = np.empty((channels, 1, size[1] + 1), np.float32)
        # with a margin of one, since a pixel of the image lies between two of the input
        wide = np.empty((channels, height + 1, width + 1), np.float32)
        wide[:, 1:, 1:] = logits
        wide[:, 0] = above[:, 0, left : left + width + 1] if top else wide[:, 1]
        wide[:, :, 0] = wide[:, :, 1] if not left or beside is None else beside
        beside = wide[:, :, -1].copy()
        # above[x + 1] is column x; the one at `left` is the margin of this block, still of above
        above[:, 0, left + 1 : left + width + 1] = logits[:, -1]
        rows, columns = down.between(top, top + height), across.between(left, left + width)
        for start in range(rows.start, rows.stop, 128):
            part = slice(start, min(start + 128, rows.stop))
            rows_mixed = down.mix(wide, part, top - 1, 1)
            fill(part, columns, across.mix(rows_mixed, columns, left - 1, 2))
    return maps


def _starts(length: int, tiling: Tiling) -> list[int]:
    """Where tiles begin; the last one is moved back into the image."""
    stride = tiling.size - tiling.overlap
    count = max(length - tiling.size + stride - 1, 0) // stride + 1
    return [max(min(i * stride, length - tiling.size), 0) for i in range(count)]


def _counts(length: int, tile: int, starts: list[int]) -> Logits:
    counts = np.zeros(length, np.float32)
    for start in starts:
        counts[start : start + tile] += 1
    return counts


def _blocks(
    run: Callable[[list[Window]], Logits], tiling: Tiling, batch_size: int, size: tuple[int, int]
) -> Iterator[_Block]:
    """Means of the tiles' logits, from left to right and row by row; they cover the input."""
    tops, lefts = (_starts(length, tiling) for length in size)
    tile_height, tile_width = min(tiling.size, size[0]), min(tiling.size, size[1])
    across, down = _counts(size[1], tile_width, lefts), _counts(size[0], tile_height, tops)
    carried: Logits | None = None  # sums of the tiles above, from this row of tiles on
    for i, top in enumerate(tops):
        bottom = tops[i + 1] if i + 1 < len(tops) else size[0]  # rows to here are final
        rest = top + tile_height - bottom
        below: Logits | None = None
        sums: Logits | None = None  # of this row's tiles, from the current one on
        place = slice(top, top + tile_height)
        tiles = _run_in_batches(
            run, [Window(place, slice(x, x + tile_width)) for x in lefts], batch_size
        )
        for j, (left, logits) in enumerate(zip(lefts, tiles, strict=True)):
            if sums is None:
                sums = logits.copy()
            else:
                moved = left - lefts[j - 1]
                sums[:, :, : tile_width - moved] = sums[:, :, moved:].copy()
                sums[:, :, tile_width - moved :] = 0
                sums += logits
            right = lefts[j + 1] if j + 1 < len(lefts) else size[1]  # columns to here are final
            done = sums[:, :, : right - left].copy()
            if carried is not None:
                done[:, : carried.shape[1]] += carried[:, :, left:right]
            if rest:
                if below is None:
                    below = np.empty((done.shape[0], rest, size[1]), np.float32)
                below[:, :, left:right] = done[:, bottom - top :]
            mean = done[:, : bottom - top]
            mean /= down[top:bottom, None] * across[left:right]
            yield _Block(top, left, mean)
        carried = below


def _run_in_batches(
    run: Callable[[list[Window]], Logits], windows: list[Window], batch_size: int
) -> Iterator[Logits]:
    for i in range(0, len(windows), batch_size):
        yield from run(windows[i : i + batch_size])


class Taps:
    """Bilinear resizing of one direction: the two neighbours of each place, and their shares."""

    def __init__(self, given: int, wanted: int, align_corners: bool) -> None:
        place = np.arange(wanted, dtype=np.float64)
        if align_corners:
            place *= (given - 1) / max(wanted - 1, 1)
        else:
            place = ((place + 0.5) * given / wanted - 0.5).clip(0, given - 1)
        self.last = np.ceil(place).astype(np.int64).clip(0, given - 1)
        # of the last neighbour; the one before it has the rest
        self.share = (1 - (self.last - place)).astype(np.float32)

    def between(self, start: int, stop: int) -> slice:
        """The places whose last neighbour is in a range."""
        found = np.searchsorted(self.last, [start, stop])
        return slice(int(found[0]), int(found[1]))

    def mix(self, values: Logits, places: slice, start: int, axis: int) -> Logits:
        """Values at places, of an array that begins at ``start``, along an axis."""
        last, share = self.last[places] - start, self.share[places]
        share = share.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return values.take(last, axis) * share + values.take(last - 1, axis) * (1 - share)
