"""Masks that are colour pictures; and CVAT's, which come with their table of colours."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.errors import UserError, few
from ssnet_mm.prepare.formats.index import mask_item
from ssnet_mm.prepare.labels import is_void, unmet_void
from ssnet_mm.prepare.masks import inner_counts, is_area, open_mask, survey, value_counts
from ssnet_mm.prepare.source import (
    MAX_CLASSES,
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

Colour = tuple[int, int, int]
_CVAT = 'labelmap.txt'
_TABLES = (_CVAT, 'label_colors.txt', 'class_dict.csv')  # CVAT's, CamVid's, a usual one
_FEW = 255  # colours that have to make up most of a mask, or it is a photo


def recognise(folder: Folder) -> str:
    """Why a folder is of this format; empty if it isn't."""
    kind, why = survey(folder)
    return why if kind == 'colours' and not recognise_cvat(folder) else ''


def recognise_cvat(folder: Folder) -> str:
    """Why a folder is an export of CVAT as segmentation masks; empty if it isn't."""
    path = _table_file(folder, (_CVAT,))
    return f'{path} names classes and colours' if path and survey(folder)[0] else ''


def read(folder: Folder, options: Options) -> Annotations:
    """Colours by a table, or those found; what is neither lies on edges, and is void."""
    pairs, faults = pair_up(folder)
    notes: list[str] = []
    table_file = _table_file(folder, _TABLES)
    given = dict(zip(options.classes, options.colours))
    table = read_table(table_file) if table_file and not given else dict(given)
    void = {_void_code(table, value) for value in options.void}
    void |= {code_of(colour) for name, colour in table.items() if is_void(name)}
    table = {name: colour for name, colour in table.items() if code_of(colour) not in void}
    if table_file and not given:
        notes.append(f'{table_file} names {len(table)} classes and colours')
        if options.classes and list(options.classes) != list(table):
            raise UserError(f'--classes differs from {table_file}; leave it out, or put that right')
    good: list[Pair] = []
    seen: dict[int, _Seen] = {}
    pixels = 0
    for pair in pairs:
        try:
            counts, interior = _count(pair.mask)
        except BadAnnotationError as error:
            faults.append(f'{pair.mask}: {error}')
            continue
        good.append(pair)
        pixels += sum(counts.values())
        for code, count in counts.items():
            seen.setdefault(code, _Seen()).add(count, interior.get(code, 0))
    new = list(options.classes)[len(given) :]
    if new or not table:
        counted = {code: s for code, s in seen.items() if code not in void}
        table.update(_propose(counted, new, {code_of(colour) for colour in given.values()}))
        shown = ', '.join(hex_of(code_of(colour)) for colour in table.values())
        notes.append(f'{len(table)} classes by the colours found, {shown}; --classes names them')
    if len(table) > MAX_CLASSES:
        raise UserError(f'{len(table)} classes, where {MAX_CLASSES} are the limit')
    codes = {code_of(colour): i for i, colour in enumerate(table.values())}
    if len(codes) < len(table):
        raise UserError('two classes have the same colour; give each its own')
    codes.update(dict.fromkeys(void, VOID))
    others = {code: s.count for code, s in seen.items() if code not in codes}
    if others:
        examples = few(hex_of(code) for code, _ in Counter(others).most_common(3))
        share = sum(others.values()) / max(pixels, 1)
        notes.append(f'{share:.2%} of the pixels are of edge colours ({examples}): void')
    met = [value for value in options.void if _void_code(table, value) in seen]
    notes += unmet_void(options.void, met)
    items = [mask_item(pair, partial(_draw, pair, codes)) for pair in good]
    found = [hex_of(code) for code in sorted(void)]
    return Annotations(list(table), items, list(table.values()), faults, notes, found)


def read_table(path: Path) -> dict[str, Colour]:
    """Names with colours, as CVAT (name:r,g,b::), CamVid (r g b name) or CSV (name,r,g,b) has them.

    Raises:
        UserError: A line is none of these.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); it is a text file") from error
    table: dict[str, Colour] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith('#'):
            continue
        name, colour = _row(text)
        if not colour:
            if number == 1:
                continue  # a heading
            raise UserError(f'{path} line {number}: {text[:60]!r} is no name with red, green, blue')
        if name in table:
            raise UserError(f'{path} line {number}: {name} stands there twice')
        table[name] = colour
    if not table:
        raise UserError(f'{path} names no colours; write a class a line, as in name:255,0,0')
    return table


def _row(text: str) -> tuple[str, Colour | None]:
    if match := re.fullmatch(r'(\d+)\s+(\d+)\s+(\d+)\s+(\S.*)', text):
        *numbers, name = match.groups()
    elif match := re.fullmatch(r'([^:]+):(\d+),\s*(\d+),\s*(\d+)(:.*)?', text):
        name, *numbers = match.groups()[:4]
    else:
        cells = next(csv.reader([text]))
        name, numbers = (cells[0], cells[1:4]) if len(cells) >= 4 else ('', [])
    values = [int(n) for n in numbers if n.strip().isdecimal()]
    if not name.strip() or len(values) != 3 or max(values) > 255:
        return '', None
    return name.strip(), (values[0], values[1], values[2])


def _table_file(folder: Folder, names: Sequence[str]) -> Path | None:
    places = [folder.root, *([folder.masks, folder.masks.parent] if folder.masks else [])]
    paths = [place / name for place in places for name in names]
    return next((path for path in paths if path.is_file()), None)


class _Seen:
    """Pixels of a colour, and those that have it on all four sides too."""

    def __init__(self) -> None:
        self.count = self.interior = 0

    def add(self, count: int, interior: int) -> None:
        self.count += count
        self.interior += interior

    @property
    def is_area(self) -> bool:
        return is_area(self.count, self.interior)


def read_codes(path: Path) -> NDArray[np.uint32]:
    """The colour of each pixel as one number, (H, W); where nothing is painted, black's.

    Raises:
        BadAnnotationError: It can't be used.
    """
    rgba = np.asarray(open_mask(path).convert('RGBA')).astype(np.uint32)
    codes = rgba[..., :3] @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    clear = rgba[..., 3] == 0
    if clear.all() and codes.any():
        raise BadAnnotationError('is transparent throughout; store it without transparency')
    codes[clear] = 0
    return codes


def _count(path: Path) -> tuple[dict[int, int], dict[int, int]]:
    """Pixels by colour, and inner ones by colour."""
    codes = read_codes(path)
    counts = value_counts(codes)
    if len(counts) > _FEW and sum(sorted(counts.values())[-_FEW:]) < 0.8 * codes.size:
        raise BadAnnotationError(f'has {len(counts)} colours, as a photo has; is it a mask?')
    return counts, inner_counts(codes)


def _propose(seen: Mapping[int, _Seen], names: Sequence[str], known: Set[int]) -> dict[str, Colour]:
    """Colours that are classes: those of areas, and of thin things that are no blend of areas.

    Args:
        seen: What was found.
        names: Of the classes; empty to name them by their colours.
        known: Colours of classes before these, which are left out.
    """
    areas = [code for code, s in seen.items() if s.is_area]
    if len(areas) <= MAX_CLASSES:
        colours = np.array([_rgb(code) for code in areas], float).reshape(-1, 3)
        # where more than two colours meet, blends are rare
        least = max(64, 1e-4 * sum(s.count for s in seen.values()))
        thin = [c for c, s in seen.items() if not s.is_area and s.count >= least]
        areas += [c for c in thin if not _is_blend(np.array(_rgb(c), float), colours)]
    if len(areas) > MAX_CLASSES:
        raise UserError(
            f'the masks have {len(areas)} colours; give the classes and theirs by --colours FILE'
        )
    areas = [code for code in areas if code not in known]
    # black first, then by frequency
    areas.sort(key=lambda code: (code != 0, -seen[code].count))
    shown = few(hex_of(code) for code in areas)
    more = ' more' if known else ''
    if names and len(names) != len(areas):
        raise UserError(
            f'--classes names {len(names)}{more}, and the masks have {len(areas)}{more} colours '
            f'({shown}); '
            'name as many, black first and then by frequency, or give a table by --colours FILE'
        )
    labels = names or ['background' if code == 0 else hex_of(code) for code in areas]
    return {label: _rgb(code) for label, code in zip(labels, areas)}


def _is_blend(colour: NDArray[np.float64], areas: NDArray[np.float64], near: float = 12) -> bool:
    """Whether a colour lies between two others."""
    for start in areas:
        along = areas - start
        length = (along**2).sum(1)
        share = ((colour - start) @ along.T) / np.maximum(length, 1)
        away = np.abs(start + share[:, None] * along - colour).max(1)
        if ((away < near) & (share > 0) & (share < 1)).any():
            return True
    return False


def _draw(pair: Pair, codes: Mapping[int, int], size: Size) -> Mask:
    read = read_codes(pair.mask)
    found, inverse = np.unique(read, return_inverse=True)
    labels = np.array([codes.get(code, VOID) for code in found.tolist()], np.uint8)
    for code, count in _strangers(read, codes):
        raise BadAnnotationError(
            f'{count} pixels of {hex_of(code)}, which is no colour of a class; put it right, add '
            f'it to the colours, or leave it out with --void {hex_of(code)}'
        )
    return labels[inverse].reshape(read.shape)


def _strangers(read: NDArray[np.uint32], codes: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Colours of areas that are no class."""
    counts = value_counts(read)
    for code, count in inner_counts(read).items():
        if code not in codes and is_area(counts[code], count):
            yield code, counts[code]


def _void_code(table: Mapping[str, Colour], value: str) -> int:
    """A colour that does not count: #rrggbb, or the name of one in the table."""
    if re.fullmatch(r'#?[0-9a-fA-F]{6}', value):
        return int(value.lstrip('#'), 16)
    if value in table:
        return code_of(table[value])
    raise UserError(f'--void {value}: expected a colour as #00ff00, or a name of the table')


def code_of(colour: Colour) -> int:
    """A colour as one number."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _rgb(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255


def hex_of(code: int) -> str:
    """A colour as #rrggbb."""
    return f'#{code:06x}'
