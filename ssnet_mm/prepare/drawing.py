"""Shapes of annotation tools as areas of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ssnet_mm.prepare.source import BadAnnotationError, Size

_LINE_WIDTH, _POINT_RADIUS = 10, 5  # LabelMe's own, for what has no area
_CORNERS = {  # how many points a shape has; None: three or more
    'polygon': None, 'rectangle': 2, 'circle': 2, 'line': 2, 'linestrip': None, 'point': 1,
    'points': None, 'oriented_rectangle': 4,
}  # fmt: skip


def shape_area(size: Size, points: Any, kind: str) -> NDArray[np.bool_]:
    """The pixels of a shape, (H, W), as LabelMe itself draws it.

    Args:
        size: Of the image.
        points: [[x, y], ...] in pixels.
        kind: A polygon, rectangle (two corners), circle (centre and a point on it), line, ...

    Raises:
        BadAnnotationError: The points make no such shape, or it lies outside of the image.
    """
    if not isinstance(kind, str) or kind not in _CORNERS:
        raise BadAnnotationError(f'a shape of unknown kind, {kind!r}; draw it as a polygon')
    corners = check_points(points, size, kind)
    wanted = _CORNERS[kind]
    least = {'polygon': 3, 'linestrip': 2, 'points': 1}.get(kind, wanted or 0)
    if len(corners) < least or (wanted and len(corners) != wanted):
        raise BadAnnotationError(f'a {kind} of {len(corners)} points; delete it or draw it again')
    image = Image.new('1', size)
    draw = ImageDraw.Draw(image)
    if kind in ('polygon', 'oriented_rectangle'):
        draw.polygon(corners, fill=1, outline=1)
    elif kind == 'rectangle':
        (x0, y0), (x1, y1) = corners
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1, outline=1)
    elif kind == 'circle':
        _disc(draw, corners[0], math.dist(*corners))
    elif kind in ('line', 'linestrip'):
        draw.line(corners, fill=1, width=_LINE_WIDTH)
    else:
        for corner in corners:
            _disc(draw, corner, _POINT_RADIUS)
    return np.asarray(image)


def ellipse_area(
    size: Size, centre: tuple[float, float], radii: tuple[float, float], degrees: float
) -> NDArray[np.bool_]:
    """The pixels of an ellipse, turned clockwise."""
    turn = np.linspace(0, 2 * np.pi, 181)[:-1]
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], 1)
    return shape_area(size, points.tolist(), 'polygon')


def check_points(points: Any, size: Size, kind: str) -> list[tuple[float, float]]:
    """Points as pairs of numbers of which some lie on the image.

    Raises:
        BadAnnotationError: They are not such.
    """
    try:
        if any(isinstance(v, (str, bool)) for point in points for v in point):
            raise ValueError
        array = np.asarray(points, float)
        if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise BadAnnotationError(
            f'a {kind} whose points are not pairs of numbers, {str(points)[:60]}; draw it again'
        ) from error
    (left, top), (right, bottom) = array.min(0), array.max(0)
    if kind == 'circle':
        radius = math.dist(*array[:2]) if len(array) > 1 else 0
        left, top = array[0] - radius
        right, bottom = array[0] + radius
    if right < 0 or bottom < 0 or left >= size[0] or top >= size[1]:
        raise BadAnnotationError(
            f'a {kind} that lies outside of the {size[0]}x{size[1]} image, from x={left:g}, '
            f'y={top:g}; was the image scaled or turned after it was annotated?'
        )
    if kind not in ('mask', 'point') and 0 < max(right, bottom) <= 1 < min(size):
        raise BadAnnotationError(
            f'a {kind} within the first pixel, up to x={right:g}, y={bottom:g}; are these shares '
            f'of the sides? Multiply them by {size[0]} and {size[1]}'
        )
    # Beyond all images, so that drawing takes no longer
    return [(float(x), float(y)) for x, y in np.clip(array, -1e6, 1e6)]


def _disc(draw: ImageDraw.ImageDraw, centre: Sequence[float], radius: float) -> None:
    x, y = centre
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
