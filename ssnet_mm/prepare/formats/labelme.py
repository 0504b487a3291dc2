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
from ssnet_mm.prepare.labels import ClassNames, fingerprint, leave_unmarked, read_names
from ssnet_mm.prepare.source import (
    Annotations,
    BadAnnotationError,
    Folder,
    Item,
    Mask,
    Options,
    Size,
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
            light = _check(folder, name, content)
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        found.update(light['labels'])
        rows.append((name, where, light))
    names = ClassNames(options.classes or _listed(folder), found, options.void)
    result.classes = names.classes
    used: dict[str, str] = {}
    for name, where, light in rows:
        image = light['image']
        if image in used:
            result.faults.append(f'{where}: {used[image]} is about the same photo; keep one')
            continue
        used[image] = where
        embedded = partial(_embedded, folder, name) if light['embedded'] else None
        result.items.append(
            Item(
                key=key_of(image),
                image=folder.root / image,
                where=where,
                draw=_drawer(folder, name, names),
                state=partial(str, light['state']),
                frame=light['frame'],
                split=split_of(name) or split_of(image),
                data=embedded,
            )
        )
    result.notes += leave_unmarked([n for n in folder.images if n not in used])
    return result


def _is_labelme(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get('shapes'), list)


def _listed(folder: Folder) -> list[str]:
    """LabelMe's own labels.txt."""
    path = folder.root / 'labels.txt'
    return read_names(path) if path.is_file() else []


def _check(folder: Folder, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be known of a file before its shapes are drawn."""
    reference = content.get('imagePath')
    if not isinstance(reference, str) or not reference:
        raise BadAnnotationError('names no photo (imagePath); save it again')
    embedded = False
    try:
        image = folder.find_image(reference, name)
    except BadAnnotationError:
        if not isinstance(content.get('imageData'), str):
            raise
        embedded, image = True, stem_of(name) + '.png'  # named after the JSON file
    labels = []
    for shape in content['shapes']:
        if not isinstance(shape, Mapping):
            raise BadAnnotationError('a shape that is no object; save it again')
        if isinstance(shape.get('label'), str):
            labels.append(shape['label'])
    sides = content.get('imageWidth'), content.get('imageHeight')
    frame = None
    if all(isinstance(side, int) and side > 0 for side in sides):
        frame = sides
    state = fingerprint([content['shapes'], sides])
    return dict(image=image, embedded=embedded, labels=labels, frame=frame, state=state)


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
