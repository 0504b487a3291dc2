"""Label Studio: a JSON export (brushes, polygons, ...), or its brush PNGs beside one."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.errors import few
from ssnet_mm.limits import IMAGE_SUFFIXES
from ssnet_mm.prepare.drawing import ellipse_area, shape_area
from ssnet_mm.prepare.labels import ClassNames, fingerprint, leave_unmarked, unmet_void
from ssnet_mm.prepare.masks import file_state, read_grey
from ssnet_mm.prepare.source import (
    MAX_JSON,
    UNREAD_SUFFIXES,
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
)

_UPLOADED = re.compile(r'^[0-9a-f]{8}-')  # put before the names of uploaded files
_SHAPES = {  # what has an area, and the keys that tell it
    'brush': {'rle'},
    'polygon': {'points'},
    'ellipse': {'x', 'y', 'radiusX', 'radiusY'},
    'rectangle': {'x', 'y', 'width', 'height'},
}
_BRUSH = re.compile(
    r'task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[\w@.]*-(?P<tag>[^-]+)-(?P<label>.+)'
    r'-\d+\.png',
    re.IGNORECASE,
)


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    for name in folder.having('.json')[:5]:
        try:
            tasks = _tasks(folder.read_json(name))
        except BadAnnotationError:
            continue
        if any(_results(task) for task in tasks):
            return f'{name} is a list of {len(tasks)} tasks with results'
    return ''


def recognise_png(folder: Folder) -> str:
    """Why a folder holds brush PNGs; empty if it doesn't, or the JSON export says more."""
    names = _brushes(folder)
    if not names or recognise(folder):
        return ''
    return f'{sum(map(len, names.values()))} files named as {next(iter(names.values()))[0]}'


def read(folder: Folder, options: Options) -> Annotations:
    """The photos of the tasks; a later region covers an earlier one."""
    result = Annotations([], [])
    rows: list[tuple[str, str, Mapping[str, Any], list[Any]]] = []
    found: set[str] = set()
    for name in folder.having('.json'):
        where = str(folder.root / name)
        try:
            tasks = _tasks(folder.read_json(name))
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        if not tasks:
            result.notes.append(f'{name} is JSON of another kind, and left aside')
        several = 0
        for task in tasks:
            annotations = _annotations(task)
            several += len(annotations) > 1
            results = annotations[-1] if annotations else []
            if annotations:
                found.update(label for r in results for label in _labels(r) if label)
                rows.append((where, str(task.get('id')), task, results))
        if several:
            result.notes.append(
                f'{name}: of several annotations of a task ({several}) the last counts'
            )
    names = ClassNames(options.classes, found, options.void)
    result.classes = names.classes
    used: dict[str, str] = {}
    for _, _, task, results in rows:
        with suppress(BadAnnotationError):  # told below
            folder.expect([(_path_of(_reference(task, results)), '')])
    for where, number, task, results in rows:
        try:
            image = _find(folder, _reference(task, results))
            if image in used:
                raise BadAnnotationError(f'task {used[image]} is about {image} too; keep one')
            frame = _frame(results)
        except BadAnnotationError as error:
            result.faults.append(f'{where}, task {number}: {error}')
            continue
        used[image] = number
        result.items.append(
            Item(
                key=key_of(image),
                image=folder.root / image,
                where=f'{where}, task {number}',
                draw=_drawer(results, names),
                state=partial(fingerprint, results),
                frame=frame,
                split=split_of(image),
            )
        )
    result.notes += unmet_void(options.void, found)
    result.notes += leave_unmarked([n for n in folder.images if n not in used])
    return result


def read_png(folder: Folder, options: Options) -> Annotations:
    """The brush PNGs of each task; which photo a task is about says the JSON or CSV export."""
    result = Annotations([], [])
    brushes = _brushes(folder)
    found = {m['label'] for names in brushes.values() for m in map(_match, names) if m}
    names = ClassNames(options.classes, found, options.void)
    result.classes = names.classes
    references = dict(_task_table(folder))
    used: dict[str, str] = {}
    for task, files in brushes.items():
        where = str(folder.root / files[0])
        try:
            if task not in references:
                raise BadAnnotationError(
                    f"which photo task {task} is about is not told; put Label Studio's CSV or "
                    'JSON export of the same project beside the PNGs'
                )
            image = _find(folder, references[task])
            if image in used:
                raise BadAnnotationError(f'task {used[image]} is about {image} too; keep one')
        except BadAnnotationError as error:
            result.faults.append(f'{where}: {error}')
            continue
        last = max(int(m['annotation']) for m in map(_match, files) if m)
        kept = [f for f in files if (m := _match(f)) and int(m['annotation']) == last]
        if len(kept) < len(files):
            result.notes.append(f'task {task} has several annotations, the last counts')
        used[image] = task
        paths = [folder.root / name for name in kept]
        result.items.append(
            Item(
                key=key_of(image),
                image=folder.root / image,
                where=where,
                draw=_png_drawer(paths, names),
                state=partial(_joint_state, paths),
                split=split_of(image),
                has_pixels=True,
            )
        )
    photos = [n for n in folder.images if n not in used and not _match(n)]
    result.notes += unmet_void(options.void, found)
    result.notes += leave_unmarked(photos)
    return result


def _tasks(content: Any) -> list[Mapping[str, Any]]:
    rows = content if isinstance(content, list) else []
    return [row for row in rows if isinstance(row, Mapping) and _references(row)]


def _references(task: Mapping[str, Any]) -> dict[str, str]:
    """Paths or URLs of photos: in ``data`` of the JSON export, at the top of JSON-MIN and CSV."""
    data = task.get('data')
    values = data if isinstance(data, Mapping) else task
    return {
        str(key): value
        for key, value in values.items()
        if isinstance(value, str)
        and _path_of(value).lower().endswith((*IMAGE_SUFFIXES, *UNREAD_SUFFIXES))
    }


def _reference(task: Mapping[str, Any], results: Sequence[Any] = ()) -> str:
    """The photo that results are on: of several the one that they name, else ``image``."""
    found = _references(task)
    named = {r['to_name'] for r in results if _is_region(r) and isinstance(r.get('to_name'), str)}
    if len(named) > 1:
        raise BadAnnotationError(
            f'has regions on several images, {few(sorted(named))}; annotate one image a task'
        )
    chosen = [name for name in (*named, 'image') if name in found][:1] or list(found)
    if len(chosen) > 1:
        raise BadAnnotationError(
            f'names several images, {few(chosen)}, and not on which the regions are; annotate one '
            'image a task'
        )
    return found[chosen[0]]


def _annotations(task: Mapping[str, Any]) -> list[list[Any]]:
    """The results of each annotation that was not cancelled."""
    rows = task.get('annotations', task.get('completions'))
    if isinstance(rows, list):
        kept = [row for row in rows if isinstance(row, Mapping) and not row.get('was_cancelled')]
        return [row['result'] for row in kept if isinstance(row.get('result'), list)]
    results = _results(task)
    return [results] if results else []


def _results(task: Mapping[str, Any]) -> list[Any]:
    rows = task.get('annotations', task.get('completions'))
    if isinstance(rows, list):
        return [r for results in _annotations(task) for r in results]
    lists = [value for value in task.values() if isinstance(value, list)]
    return [r for rows in lists for r in rows if _is_region(r)]


def _label_key(result: Any) -> str:
    """As in ``polygonlabels``, or ``labels`` where shape and label are chosen apart."""
    return next((key for key in _value(result) if str(key).endswith('labels')), '')


def _is_region(result: Any) -> bool:
    """Whether it marks a part of an image as a class; not a choice, a relation or a text."""
    return isinstance(result, Mapping) and bool(_label_key(result))


def _shape_of(result: Any) -> str:
    value, key = _value(result), _label_key(result)
    named = key.removesuffix('labels')
    if named in _SHAPES:
        return named
    return next((shape for shape, keys in _SHAPES.items() if keys <= value.keys()), '')


def _value(result: Any) -> Mapping[str, Any]:
    if not isinstance(result, Mapping):
        return {}
    value = result.get('value', result)
    return value if isinstance(value, Mapping) else {}


def _labels(result: Any) -> list[str]:
    labels = _value(result).get(_label_key(result), [])
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def _path_of(reference: str) -> str:
    """Without what a URL asks for; of ``/data/local-files/?d=folder/a.jpg`` that."""
    path, _, query = reference.partition('?')
    return parse_qs(query).get('d', [path])[0]


def _find(folder: Folder, reference: str) -> str:
    path = _path_of(reference)
    try:
        return folder.find_image(path)
    except BadAnnotationError:
        name = path.rpartition('/')[2]
        if not _UPLOADED.match(name):
            raise
        return folder.find_image(_UPLOADED.sub('', name))


def _frame(results: Sequence[Any]) -> Size | None:
    for result in results:
        if isinstance(result, Mapping):
            sides = result.get('original_width'), result.get('original_height')
            if frame := frame_of_sides(*sides):
                return frame
    return None


def _drawer(results: Sequence[Any], names: ClassNames) -> Callable[[Size], Mask]:
    def draw(size: Size) -> Mask:
        mask = np.zeros((size[1], size[0]), np.uint8)
        for result in results:
            if not _is_region(result):
                continue
            shape = _shape_of(result)
            if not shape:
                raise BadAnnotationError(
                    f'a region of {_label_key(result)}, which has no area that is read; draw it as '
                    'a polygon, brush, rectangle or ellipse, or delete it'
                )
            labels = _labels(result)
            index = names.index(labels[0] if labels else None)
            if result.get('image_rotation'):
                raise BadAnnotationError('was rotated in Label Studio; turn the photo itself')
            mask[_area(_value(result), shape, size)] = index
        return mask

    return draw


def _area(value: Mapping[str, Any], kind: str, size: Size) -> NDArray[np.bool_]:
    if kind == 'brush':
        return _brush_area(value.get('rle'), size)
    if kind == 'polygon':
        return shape_area(size, _pixels(value.get('points'), size), 'polygon')
    numbers = [value.get(key, 0) for key in ('x', 'y', 'width', 'height', 'rotation')]
    numbers += [value.get(key, 0) for key in ('radiusX', 'radiusY')]
    if not all(isinstance(n, (int, float)) and abs(n) < 1e6 for n in numbers):
        raise BadAnnotationError(f'a {kind} without its numbers; draw it again')
    x, y, width, height, degrees, rx, ry = numbers
    across, down = size[0] / 100, size[1] / 100
    if kind == 'ellipse':
        return ellipse_area(size, (x * across, y * down), (rx * across, ry * down), degrees)
    # turned around its upper left corner
    turn = np.radians(degrees)
    cos, sin = np.cos(turn), np.sin(turn)
    w, h = width * across, height * down
    corners = [(0, 0), (w, 0), (w, h), (0, h)]
    points = [[x * across + a * cos - b * sin, y * down + a * sin + b * cos] for a, b in corners]
    return shape_area(size, points, 'polygon')


def _pixels(points: Any, size: Size) -> Any:
    """Percent to pixels."""
    try:
        return [[x * size[0] / 100, y * size[1] / 100] for x, y in points]
    except (TypeError, ValueError):
        return points  # which is told


def _brush_area(rle: Any, size: Size) -> NDArray[np.bool_]:
    values = decode_rle(rle, 4 * size[0] * size[1])
    return values.reshape(size[1], size[0], 4)[..., 3] > 127  # the opacity


def decode_rle(rle: Any, length: int) -> NDArray[np.uint8]:
    """Unpack Label Studio's run lengths.

    The format is rle-pack's (https://github.com/thi-ng/umbrella): in bits, the number of values
    (32), their size less 1 (5), four sizes of counts less 1 (4 each); then runs: whether the value
    repeats (1), which of the sizes (2), the count less 1, the value or as many values.

    Args:
        rle: Bytes, as a list.
        length: How many values there have to be.

    Raises:
        BadAnnotationError: There are not, or it is damaged.
    """
    damaged = BadAnnotationError('brush strokes that are damaged or cut short; export them again')
    try:
        bits = np.unpackbits(np.array(rle if isinstance(rle, list) else None, np.uint8))
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged from error
    text = bits.tobytes().translate(bytes([48, 49]) + bytes(254)).decode()
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > len(text):
            raise damaged
        return int(text[position - count : position], 2)

    if take(32) != length:
        raise BadAnnotationError('brush strokes of an image of another size; annotate it again')
    size = take(5) + 1
    counts = [take(4) + 1 for _ in range(4)]
    if size > 8:
        raise damaged
    out = np.empty(length, np.uint8)
    done = 0
    powers = 1 << np.arange(size)[::-1]
    while done < length:
        repeats = take(1)
        end = done + 1 + take(counts[take(2)])
        if end > length:
            raise damaged
        if repeats:
            out[done:end] = take(size)
        else:
            stop = position + size * (end - done)
            if stop > len(text):
                raise damaged
            out[done:end] = bits[position:stop].reshape(-1, size) @ powers
            position = stop
        done = end
    return out


def _match(name: str) -> re.Match[str] | None:
    return _BRUSH.fullmatch(name.rpartition('/')[2])


def _brushes(folder: Folder) -> dict[str, list[str]]:
    """Brush PNGs by task."""
    found = defaultdict(list)
    for name in folder.having('.png'):
        if match := _match(name):
            found[match['task']].append(name)
    return dict(found)


def _task_table(folder: Folder) -> Iterator[tuple[str, str]]:
    """Tasks with their photos, from exports that list both."""
    for name in folder.having('.json'):
        try:
            for task in _tasks(folder.read_json(name)):
                yield str(task.get('id')), _reference(task)
        except BadAnnotationError:
            continue
    for name in folder.having('.csv'):
        with open(folder.root / name, encoding='utf-8-sig', errors='replace', newline='') as file:
            csv.field_size_limit(MAX_JSON)  # brush strokes stand in one
            with suppress(csv.Error, BadAnnotationError):
                for row in csv.DictReader(file):
                    cells = {k: v for k, v in row.items() if k and isinstance(v, str)}
                    if cells.get('id') and _references(cells):
                        yield cells['id'], _reference(cells)


def _png_drawer(paths: Sequence[Path], names: ClassNames) -> Callable[[Size], Mask]:
    """Nothing says in which order they were painted: a smaller area covers a larger one."""

    def draw(size: Size) -> Mask:
        areas: list[tuple[int, int, NDArray[np.bool_]]] = []
        for path in paths:
            match = _match(path.name)
            grey = read_grey(path)
            if areas and grey.shape != areas[0][2].shape:
                raise BadAnnotationError(f'{path.name} has another size; export them again')
            area = grey > 127
            areas.append((int(area.sum()), names.index(match['label'] if match else None), area))
        mask = np.zeros(areas[0][2].shape, np.uint8)
        for _, index, area in sorted(areas, key=lambda row: -row[0]):
            mask[area] = index
        return mask

    return draw


def _joint_state(paths: Sequence[Path]) -> str:
    return fingerprint([file_state(path) for path in paths])
