"""Masks that hold class numbers: palette or grey PNGs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from ssnet_mm.errors import UserError, few
from ssnet_mm.prepare.labels import read_names, unmet_void
from ssnet_mm.prepare.masks import (
    DEEP_VOID,
    check_palettes,
    file_state,
    open_mask,
    stored_values,
    survey,
)
from ssnet_mm.prepare.source import (
    MAX_CLASSES,
    VOID,
    Annotations,
    BadAnnotationError,
    Folder,
    Item,
    Mask,
    Options,
    Pair,
    Size,
    all_masks,
    pair_up,
    split_of,
)

_NAMES = ('classes.txt', 'classes', 'labels.txt')  # files that name the classes, a line each


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    kind, why = survey(folder)
    if kind != 'index':
        return ''
    check_palettes(all_masks(folder))
    return why


def read(folder: Folder, options: Options) -> Annotations:
    """Numbers as they are; where 0 is void, one lower."""
    try:
        void = {VOID, *DEEP_VOID, *(int(value) for value in options.void)}
    except ValueError as error:
        raise UserError(
            f'--void {few(options.void)}: the masks hold numbers, so name the number'
        ) from error
    pairs, faults = pair_up(folder)
    classes = list(options.classes) or _named(folder)
    seen: set[int] = set()
    good: list[Pair] = []
    for pair in pairs:
        try:
            seen |= _values(pair.mask, void, len(classes))
            good.append(pair)
        except BadAnnotationError as error:
            faults.append(f'{pair.mask}: {error}')
    if not classes:
        highest = max(seen - void, default=-1)
        classes = [f'class {i}' for i in range(highest + (0 if 0 in void else 1))]
        if len(classes) == 2:
            classes = ['background', 'object']
    items = [mask_item(pair, partial(_draw, pair, void, len(classes))) for pair in good]
    notes = unmet_void(options.void, map(str, seen))
    return Annotations(classes, items, faults=faults, notes=notes)


def mask_item(pair: Pair, draw: partial[Mask]) -> Item:
    """An item whose mask is a file."""
    state = partial(file_state, pair.mask)
    split = split_of(pair.key)
    return Item(pair.key, pair.image, str(pair.mask), draw, state, split=split, has_pixels=True)


def _named(folder: Folder) -> list[str]:
    for place in (folder.root, *([folder.masks, folder.masks.parent] if folder.masks else [])):
        for name in _NAMES:
            path = place / name
            if path.is_file():
                return read_names(path)
    return []


def _values(path: Path, void: set[int], num_classes: int) -> set[int]:
    """The numbers in a mask, which have to be classes or void."""
    values = stored_values(open_mask(path))
    if values is None:
        raise BadAnnotationError('is a colour picture, and others hold numbers; convert it')
    found = np.unique(values)
    if found.dtype.kind == 'f' and not (np.isfinite(found) & (found == np.floor(found))).all():
        raise BadAnnotationError('holds fractions, NaN or infinity; store whole class numbers')
    kept = [int(v) for v in found if int(v) not in void]
    shift = 1 if 0 in void else 0
    limit = num_classes or MAX_CLASSES
    outside = [v for v in kept if not 0 <= v - shift < limit]
    if outside:
        raise BadAnnotationError(
            f'holds {few(map(str, outside))}, where classes are {shift} to {limit - 1 + shift}; '
            'put it right, name more --classes, or leave values out with --void'
        )
    return set(map(int, found))


def _draw(pair: Pair, void: set[int], num_classes: int, size: Size) -> Mask:
    _values(pair.mask, void, num_classes)
    values = stored_values(open_mask(pair.mask))
    assert values is not None
    labels = values.astype(np.int64) - (1 if 0 in void else 0)
    labels[np.isin(values, list(void))] = VOID
    return labels.astype(np.uint8)
