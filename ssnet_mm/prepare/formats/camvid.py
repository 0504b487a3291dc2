"""CamVid as it is shared: SegNet's 12 classes, or the original 32, both to the usual 11."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np

from ssnet_mm.errors import UserError
from ssnet_mm.prepare.formats.colours import code_of, hex_of, read_codes, read_table
from ssnet_mm.prepare.formats.index import mask_item
from ssnet_mm.prepare.masks import open_mask, stored_values
from ssnet_mm.prepare.source import (
    SPLITS,
    VOID,
    Annotations,
    BadAnnotationError,
    Folder,
    Item,
    Mask,
    Options,
    Pair,
    Size,
    stem_of,
)

# The classes with their colours, as in ssnet_mm.datasets.camvid, and the original classes of each:
# https://www.mathworks.com/help/vision/ug/semantic-segmentation-using-deep-learning.html.
_CLASSES = {
    'sky': ((128, 128, 128), 'Sky'),
    'building': ((128, 0, 0), 'Archway Bridge Building Tunnel Wall'),
    'pole': ((192, 192, 128), 'Column_Pole TrafficCone'),
    'road': ((128, 64, 128), 'LaneMkgsDriv LaneMkgsNonDriv Road'),
    'pavement': ((60, 40, 222), 'ParkingBlock RoadShoulder Sidewalk'),
    'tree': ((128, 128, 0), 'Tree VegetationMisc'),
    'sign symbol': ((192, 128, 128), 'Misc_Text SignSymbol TrafficLight'),
    'fence': ((64, 64, 128), 'Fence'),
    'car': ((64, 0, 128), 'Car OtherMoving SUVPickupTruck Train Truck_Bus'),
    'pedestrian': ((64, 64, 0), 'Animal CartLuggagePram Child Pedestrian'),
    'bicyclist': ((0, 128, 192), 'Bicyclist MotorcycleScooter'),
}
_ORIGINAL_VOID = 'Void'
_TABLE = 'label_colors.txt'


def read(folder: Folder, options: Options) -> Annotations:
    """Both layouts, told by their folders and files; the split is SegNet's."""
    if options.classes or options.void:
        raise UserError('CamVid has its own classes; leave --classes and --void out')
    names = list(_CLASSES)
    palette = [colour for colour, _ in _CLASSES.values()]
    table = next((n for n in folder.files if n.rpartition('/')[2] == _TABLE), '')
    if table:
        items, faults = _original(folder, table)
    else:
        items, faults = _segnet(folder)
    if not items:
        raise UserError(
            f'{folder.root} holds no CamVid that is known: neither train/ with trainannot/, nor '
            f'{_TABLE} with masks named *_L.png'
        )
    return Annotations(names, items, palette, faults)


def _segnet(folder: Folder) -> tuple[list[Item], list[str]]:
    """train/ with trainannot/, and so on; 11 is void."""
    items, faults = [], []
    for split in SPLITS:
        masks = {n.rpartition('/')[2]: n for n in folder.images if f'/{split}annot/' in f'/{n}'}
        for name in (n for n in folder.images if f'/{split}/' in f'/{n}'):
            mask = masks.get(name.rpartition('/')[2])
            if mask is None:
                faults.append(f'{folder.root / name}: has no mask in {split}annot/')
                continue
            key = stem_of(name.rpartition('/')[2])
            pair = Pair(key, folder.root / name, folder.root / mask)
            items.append(_item(pair, partial(_draw_segnet, pair), split))
    return items, faults


def _draw_segnet(pair: Pair, size: Size) -> Mask:
    values = stored_values(open_mask(pair.mask))
    if values is None or values.max(initial=0) > 11:
        raise BadAnnotationError('holds other than 0 to 11; is it a mask of the 12 classes?')
    return np.where(values == 11, VOID, values).astype(np.uint8)


def _original(folder: Folder, table: str) -> tuple[list[Item], list[str]]:
    """Colour pictures beside label_colors.txt; names of photos with _L."""
    colours = {name: code_of(colour) for name, colour in read_table(folder.root / table).items()}
    codes = {colours[_ORIGINAL_VOID]: VOID} if _ORIGINAL_VOID in colours else {}
    for i, (_, originals) in enumerate(_CLASSES.values()):
        for name in originals.split():
            if name not in colours:
                raise UserError(f'{folder.root / table} lacks {name}; fetch it again')
            codes[colours[name]] = i
    masks = {n.rpartition('/')[2]: n for n in folder.having('_l.png')}
    items, faults = [], []
    for name in folder.images:
        stem = stem_of(name.rpartition('/')[2])
        if name in masks.values() or not re.search(r'_f?\d+$', stem):
            continue
        mask = masks.get(f'{stem}_L.png')
        if mask is None:
            faults.append(f'{folder.root / name}: has no mask {stem}_L.png')
            continue
        pair = Pair(stem, folder.root / name, folder.root / mask)
        items.append(_item(pair, partial(_draw_original, pair, codes), split_of_frame(stem)))
    return items, faults


def _draw_original(pair: Pair, codes: dict[int, int], size: Size) -> Mask:
    read = read_codes(pair.mask)
    found, inverse = np.unique(read, return_inverse=True)
    unknown = [code for code in found.tolist() if code not in codes]
    if unknown:
        raise BadAnnotationError(f'holds {hex_of(unknown[0])}, which is no colour of {_TABLE}')
    labels = np.array([codes[code] for code in found.tolist()], np.uint8)
    return labels[inverse].reshape(read.shape)


def split_of_frame(name: str) -> str:
    """SegNet's split of the 701 frames, by sequence and number: 367, 101 and 233."""
    sequence, _, frame = name.partition('_')
    number = int(re.sub(r'\D', '', frame) or 0)
    if sequence == 'Seq05VD' or (sequence == '0001TP' and number > 8520):
        return 'test'
    # every second frame of a stretch that training has no frame of
    if sequence == '0016E5' and 7959 <= number <= 8159 and number % 2:
        return 'val'
    return 'train'


def _item(pair: Pair, draw: partial[Mask], split: str) -> Item:
    return replace(mask_item(pair, draw), split=split)
