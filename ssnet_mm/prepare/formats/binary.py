"""Masks of black and white: one class, and the rest."""

from __future__ import annotations

from functools import partial

import numpy as np

from ssnet_mm.errors import UserError, few
from ssnet_mm.prepare.formats.index import mask_item
from ssnet_mm.prepare.labels import BACKGROUND
from ssnet_mm.prepare.masks import inner_counts, is_area, read_grey, survey, value_counts
from ssnet_mm.prepare.source import (
    VOID,
    Annotations,
    BadAnnotationError,
    Folder,
    Mask,
    Options,
    Pair,
    Size,
    pair_up,
)


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    kind, why = survey(folder)
    return why if kind == 'binary' else ''


def read(folder: Folder, options: Options) -> Annotations:
    """Brighter than half is the object; so edges that are grey, or a JPEG's, do no harm."""
    classes = list(options.classes) or ['object']
    if len(classes) == 1:
        classes.insert(0, BACKGROUND)
    if len(classes) > 2:
        raise UserError(
            f'--classes names {len(classes)}, and the masks are black and white; name the object, '
            'or the background and the object'
        )
    try:
        void = [int(value) for value in options.void]
    except ValueError as error:
        raise UserError(f'--void {few(options.void)}: name the grey level, 0 to 255') from error
    pairs, faults = pair_up(folder)
    items = [mask_item(pair, partial(_draw, pair, void)) for pair in pairs]
    return Annotations(classes, items, faults=faults)


def _draw(pair: Pair, void: list[int], size: Size) -> Mask:
    grey = read_grey(pair.mask)
    brightest = grey.max(initial=0)
    white = 65535 if brightest > 255 else 255 if brightest > 1 else 1
    inner = inner_counts(grey)
    for value, count in value_counts(grey).items():
        # JPEG has areas near black and white
        between = white / 16 < value < white - white / 16 and value not in void
        if between and is_area(count, inner.get(value, 0)):
            raise BadAnnotationError(
                f'{count} pixels of grey {value}, between black and white; paint them as either, '
                f'leave them out with --void {value}, or read all levels as classes with --format '
                'colours'
            )
    mask = (grey > white // 2).astype(np.uint8)
    mask[np.isin(grey, void)] = VOID
    return mask
