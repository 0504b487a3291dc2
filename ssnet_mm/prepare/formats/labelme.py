"""LabelMe: a JSON file a photo, with shapes."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ssnet_mm.limits import MAX_PIXELS, open_image
from ssnet_mm.prepare.drawing import check_points, shape_area
from ssnet_mm.prepare.labels import (
    ClassNames,
    fingerprint,
    leave_unmarked,
    read_names,
    unmet_void,
)
from ssnet_mm.prepare.source import (
    Annotations,
    BadAnnotationError,
    Folder,
    Item,
    Mask,
    Options,
    Size,
    frame_of_sides,
    key_of,
    split_of,
    stem_of,
)

_SNIFFED = 5  # files that are looked into to tell the format


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    names = folder.having('.json')
    for name in names[:_SNIFFED]:
        try:
            if _is_labelme(folder.read_json(name)):
                return f'{name} has "shapes", of {len(names)} JSON files'
        except BadAnnotationError:
            continue
    return ''


def read(folder: Folder, options: Options) -> Annotations:
    """The photos that the JSON files are about; a later shape covers an earlier one."""
    found: set[str] = set()
    rows: list[tuple[str, str, dict[str, Any]]] = []
    result = Annotations([], [])
    for name in folder.having('.json'):
        where = str(folder.root / name)
        try:
            content = folder.read_json(name)
            if not _is_labelme(content):
                raise BadAnnotationError('is JSON of another kind than LabelMe; move it elsewhere')
            light = _check(content)
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        rows.append((name, where, light))
    folder.expect((light['reference'], name) for name, _, light in rows)
    located = []
    for name, where, light in rows:
        try:
            image, embedded = _find(folder, name, light)
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        found.update(light['labels'])
        located.append((name, where, light, image, embedded))
    names = ClassNames(options.classes or _listed(folder), found, options.void)
    result.classes = names.classes
    used: dict[str, str] = {}
    for name, where, light, image, embedded in located:
        if image in used:
            result.faults.append(f'{where}: {used[image]} is about the same photo; keep one')
            continue
        used[image] = where
        result.items.append(
            Item(
                key=key_of(image),
                image=folder.root / image,
                where=where,
                draw=_drawer(folder, name, names),
                state=partial(str, light['state']),
                frame=light['frame'],
                split=split_of(name) or split_of(image),
                data=partial(_embedded, folder, name) if embedded else None,
            )
        )
    result.notes += unmet_void(options.void, found)
    result.notes += leave_unmarked([n for n in folder.images if n not in used])
    return result


def _is_labelme(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get('shapes'), list)


def _listed(folder: Folder) -> list[str]:
    """LabelMe's own labels.txt."""
    path = folder.root / 'labels.txt'
    return read_names(path) if path.is_file() else []


def _check(content: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be known of a file before its shapes are drawn."""
    reference = content.get('imagePath')
    if not isinstance(reference, str) or not reference:
        raise BadAnnotationError('names no photo (imagePath); save it again')
    labels = []
    for shape in content['shapes']:
        if not isinstance(shape, Mapping):
            raise BadAnnotationError('a shape that is no object; save it again')
        if isinstance(shape.get('label'), str):
            labels.append(shape['label'])
    sides = content.get('imageWidth'), content.get('imageHeight')
    frame = frame_of_sides(*sides)
    state = fingerprint([content['shapes'], sides])
    embedded = isinstance(content.get('imageData'), str)
    return dict(reference=reference, embedded=embedded, labels=labels, frame=frame, state=state)


def _find(folder: Folder, name: str, light: Mapping[str, Any]) -> tuple[str, bool]:
    """The photo that a JSON file is about, and whether that is in the file itself."""
    try:
        return folder.find_image(light['reference'], name), False
    except BadAnnotationError:
        if not light['embedded']:
            raise
        return stem_of(name) + '.png', True  # named after the JSON file


def _embedded(folder: Folder, name: str) -> bytes:
    try:
        return base64.b64decode(folder.read_json(name)['imageData'], validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadAnnotationError('its imageData is damaged; put the photo beside it') from error


def _drawer(folder: Folder, name: str, names: ClassNames) -> Callable[[Size], Mask]:
    def draw(size: Size) -> Mask:
        mask = np.zeros((size[1], size[0]), np.uint8)
        for shape in folder.read_json(name)['shapes']:
            index = names.index(shape.get('label'))
            kind = shape.get('shape_type') or 'polygon'
            if kind == 'mask':
                _paste(mask, shape, index)
            else:
                mask[shape_area(size, shape.get('points'), kind)] = index
        return mask

    return draw


def _paste(mask: Mask, shape: Mapping[str, Any], index: int) -> None:
    """A shape that is a PNG, from its upper left corner."""
    size = mask.shape[1], mask.shape[0]
    corners = check_points(shape.get('points'), size, 'mask')
    x, y = (math.floor(v) for v in corners[0])
    try:
        data = base64.b64decode(shape.get('mask') or '', validate=True)
        area = np.asarray(open_image(io.BytesIO(data), MAX_PIXELS))
    except Exception as error:  # whatever Pillow raises
        raise BadAnnotationError('a shape whose mask is damaged; draw it again') from error
    if (
        x < 0
        or y < 0
        or area.ndim != 2
        or x + area.shape[1] > size[0]
        or y + area.shape[0] > size[1]
    ):
        raise BadAnnotationError(f'a mask at {x},{y} that reaches beyond the image; draw it again')
    mask[y : y + area.shape[0], x : x + area.shape[1]][area > 0] = index
