"""Masks of black and white: one class, and the rest."""

from __future__ import annotations

from functools import partial

import numpy as np

from ssnet_mm.errors import UserError, few
from ssnet_mm.prepare.formats.index import mask_item
from ssnet_mm.prepare.labels import BACKGROUND
from ssnet_mm.prepare.masks import read_grey, survey
from ssnet_mm.prepare.source import (
    VOID,
    Annotations,
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
    mask = (grey > (127 if grey.max(initial=0) > 1 else 0)).astype(np.uint8)
    mask[np.isin(grey, void)] = VOID
    return mask
