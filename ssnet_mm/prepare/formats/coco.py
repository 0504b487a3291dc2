"""COCO: one JSON file with the annotations of many photos, as polygons or run lengths."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.errors import require
from ssnet_mm.prepare.drawing import check_points
from ssnet_mm.prepare.labels import ClassNames, clean, fingerprint, leave_unmarked, unmet_void
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
    whole,
)

_KEYS = {'images', 'annotations', 'categories'}
_IDS = ('id', 'image_id', 'category_id')
_FAR = 1e5  # pycocotools walks along edges: beyond, that takes memory and time


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    for name in folder.having('.json')[:5]:
        try:
            content = folder.read_json(name)
        except BadAnnotationError:
            continue
        if isinstance(content, Mapping) and content.keys() >= _KEYS:
            return f'{name} has "images", "annotations" and "categories"'
    return ''


def read(folder: Folder, options: Options) -> Annotations:
    """The photos that the JSON files list; a smaller area covers a larger one."""
    result = Annotations([], [])
    files: list[tuple[str, Mapping[str, Any]]] = []
    for name in folder.having('.json'):
        try:
            content = folder.read_json(name)
        except BadAnnotationError as error:
            result.faults.append(f'{folder.root / name}: {error}')
            continue
        if isinstance(content, Mapping) and content.keys() >= _KEYS:
            files.append((name, content))
        else:
            result.notes.append(f'{name} is JSON of another kind, and left aside')
    found: dict[str, None] = {}  # in the order of their numbers
    categories: list[dict[Any, str]] = []
    for name, content in files:
        rows = [c for c in _objects(content['categories']) if isinstance(c.get('name'), str)]
        rows.sort(key=lambda row: row['id'] if isinstance(row.get('id'), int) else 0)
        categories.append({row['id']: row['name'] for row in rows if _hashable(row.get('id'))})
        found.update(dict.fromkeys(row['name'] for row in rows))
        given = content['categories']
        if not isinstance(given, list) or len(categories[-1]) < len(given):
            result.faults.append(
                f'{folder.root / name}: categories without name, or with one id; put them right'
            )
    names = ClassNames(options.classes, (), options.void)
    if not options.classes:
        kept = ClassNames((), found, options.void).classes  # without background and void names
        ordered = [name for name in dict.fromkeys(map(clean, found)) if name in kept[1:]]
        names = ClassNames([kept[0], *ordered], (), options.void)
    result.classes = names.classes
    used: dict[str, str] = {}
    folder.expect(
        (row['file_name'], name)
        for name, content in files
        for row in _objects(content['images'])
        if isinstance(row.get('file_name'), str)
    )
    for (name, content), table in zip(files, categories):
        _read_file(folder, name, content, table, names, used, result)
    result.notes += unmet_void(options.void, found)
    result.notes += leave_unmarked([n for n in folder.images if n not in used])
    return result


def _read_file(
    folder: Folder,
    name: str,
    content: Mapping[str, Any],
    categories: Mapping[Any, str],
    names: ClassNames,
    used: dict[str, str],
    result: Annotations,
) -> None:
    where = str(folder.root / name)
    images = _objects(content['images'])
    counts = Counter(row.get('id') for row in images if _hashable(row.get('id')))
    by_image: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for row in _objects(content['annotations']):
        number = row.get('image_id')
        if not _hashable(number) or number not in counts:
            result.faults.append(
                f'{where}: annotation {row.get("id")} is of image {number!r}, which is not listed'
            )
        else:
            by_image[number].append(row)
    for row in images:
        number, file_name = row.get('id'), row.get('file_name')
        try:
            if not isinstance(file_name, str):
                raise BadAnnotationError(f'image {number} has no file_name; export it again')
            image = folder.find_image(file_name, name)
            if not _hashable(number) or counts[number] > 1:
                raise BadAnnotationError(f'{file_name} has the id {number}, and so has another')
            if image in used:
                raise BadAnnotationError(f'{file_name} is in {used[image]} too; keep one')
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        used[image] = name
        sides = row.get('width'), row.get('height')
        result.items.append(
            Item(
                key=key_of(image),
                image=folder.root / image,
                where=f'{where}, {file_name}',
                draw=_drawer(by_image[number], categories, names),
                state=partial(fingerprint, [by_image[number], sides]),
                frame=frame_of_sides(*sides),
                split=split_of(name, stem=True) or split_of(image),
            )
        )


def _objects(rows: Any) -> list[Mapping[str, Any]]:
    """The rows of a list, with numbers that some tools write as text as numbers."""
    found = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    return [{**row, **{key: whole(row[key]) for key in _IDS if key in row}} for row in found]


def _hashable(value: Any) -> bool:
    return isinstance(value, (int, str))


def _drawer(
    rows: Sequence[Mapping[str, Any]], categories: Mapping[Any, str], names: ClassNames
) -> Callable[[Size], Mask]:
    def draw(size: Size) -> Mask:
        areas = []
        for row in rows:
            number = row.get('category_id')
            if not _hashable(number) or number not in categories:
                raise BadAnnotationError(
                    f'annotation {row.get("id")} is of category {number!r}, which is not listed'
                )
            try:
                area = _area(row.get('segmentation'), size)
            except BadAnnotationError as error:
                raise BadAnnotationError(f'annotation {row.get("id")}: {error}') from error
            areas.append((int(area.sum()), names.index(categories[number]), np.packbits(area)))
        mask = np.zeros(size[0] * size[1], np.uint8)
        for _, index, packed in sorted(areas, key=lambda area: -area[0]):
            mask[np.unpackbits(packed, count=mask.size) > 0] = index
        return mask.reshape(size[1], size[0])

    return draw


def _area(segmentation: Any, size: Size) -> NDArray[np.bool_]:
    if isinstance(segmentation, Mapping):
        return _runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise BadAnnotationError('has no segmentation (a box alone?); draw its outline')
    polygons = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) % 2 or len(flat) < 6:
            raise BadAnnotationError(
                'a polygon that is no list of three or more x, y; delete it or draw it again'
            )
        check_points([flat[i : i + 2] for i in range(0, len(flat), 2)], size, 'polygon')
        polygons.append(np.clip(np.asarray(flat, float), -_FAR, _FAR).tolist())
    coco = require('pycocotools.mask', 'pycocotools', "reading COCO's polygons")
    runs = coco.frPyObjects(polygons, size[1], size[0])
    return coco.decode(coco.merge(runs)).astype(bool)


def _runs(segmentation: Mapping[str, Any], size: Size) -> NDArray[np.bool_]:
    """Run lengths, column by column, off first.

    pycocotools leaves pixels unset where they end early, so they are added up here.
    """
    counts, declared = segmentation.get('counts'), segmentation.get('size')
    if declared != [size[1], size[0]]:
        raise BadAnnotationError(
            f'run lengths of a {declared} (height, width) image, which has {[size[1], size[0]]}'
        )
    if isinstance(counts, str):
        counts = _unpack(counts)
    counts = counts if isinstance(counts, list) else []
    good = all(type(n) is int and n >= 0 for n in counts)
    if not good or sum(counts) != size[0] * size[1]:
        raise BadAnnotationError('run lengths that do not add up to the image; export it again')
    values = np.arange(len(counts)) % 2 > 0
    return np.repeat(values, counts).reshape(size[0], size[1]).T


def _unpack(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a character, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return []
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return [] if shift else counts
