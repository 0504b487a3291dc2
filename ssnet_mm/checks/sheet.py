"""A contact sheet: images with their masks' colours over them, as the pipeline reads both."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import mmcv
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from ssnet_mm.checks.facts import unfit
from ssnet_mm.checks.scan import Split
from ssnet_mm.palette import voc_palette

VOID = (224, 224, 192)  # VOC's own colour for what is not scored
COLUMNS, WIDTH, HEIGHT, LINE = 4, 240, 360, 14  # of the sheet; of a cell, of a line of text: pixels


def contact_sheet(splits: Sequence[Split], num: int = 12) -> bytes | None:
    """Draw some images of each data set, evenly spread, below the classes' colours.

    Below each image it stands again with the colours of its mask over it. A mask of another size
    lies at the upper left, where training would find it. What can't be read is left out.

    Args:
        splits: The data sets; those not on this disk are left out.
        num: How many images of each, at most.

    Returns:
        A PNG file's content, or None if there is nothing to draw.
    """
    cells = []
    for split in splits:
        if not split.local or None in split.readers:
            continue
        total = len(split.dataset)
        for i in (k * total // min(num, total) for k in range(min(num, total))):
            info = split.dataset.get_data_info(i)
            try:
                if not unfit(info['img_path']) and not unfit(info['seg_map_path']):
                    cells.append((info['img_path'], _overlay(split, info)))
            except Exception:  # the checks say what is wrong with it
                continue
    if not cells:
        return None
    names = [*splits[0].classes, 'void']
    colours = [*_palette(splits[0])[: len(names) - 1].tolist(), VOID]
    top = -(-len(names) // COLUMNS) * LINE + LINE
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new('RGB', (COLUMNS * WIDTH, top + rows * (HEIGHT + LINE)), 'white')
    draw = ImageDraw.Draw(sheet)
    for i, (name, colour) in enumerate(zip(names, colours)):
        x, y = i % COLUMNS * WIDTH, i // COLUMNS * LINE
        draw.rectangle((x + 2, y + 2, x + 20, y + LINE - 2), tuple(colour), 'black')
        draw.text((x + 26, y + 1), str(name)[:32], fill='black')
    for i, (path, picture) in enumerate(cells):
        x, y = i % COLUMNS * WIDTH, top + i // COLUMNS * (HEIGHT + LINE)
        draw.text((x + 2, y + 1), os.path.basename(path)[-38:], fill='black')
        sheet.paste(picture, (x + (WIDTH - picture.width) // 2, y + LINE))
    data = io.BytesIO()
    sheet.save(data, 'PNG')
    return data.getvalue()


def _overlay(split: Split, info: dict) -> Image.Image:
    """The image, below it again with its mask over it; at most a cell large."""
    read_image, read_mask = split.readers
    assert read_image is not None and read_mask is not None
    pixels = mmcv.imread(info['img_path'], read_image.flag, backend=read_image.backend)
    if pixels.ndim == 3:  # not asked for as RGB: of some flags mmcv gives BGR all the same
        pixels = np.ascontiguousarray(pixels[..., 2::-1])
    mask = mmcv.imread(info['seg_map_path'], 'unchanged', backend=read_mask.backend).squeeze()
    image = Image.fromarray(pixels).convert('RGB')
    if mask.ndim == 2:
        labels = np.array([split.label(value) for value in range(256)])
        colours = Image.fromarray(_palette(split)[labels[mask.astype(np.uint8)]])
    else:
        colours = Image.fromarray(mask[..., 2::-1].astype(np.uint8))  # a colour picture itself
    over = image.copy()
    over.paste(Image.blend(image.crop((0, 0, *colours.size)), colours, 0.6), (0, 0))
    both = Image.new('RGB', (image.width, 2 * image.height))
    both.paste(image, (0, 0))
    both.paste(over, (0, image.height))
    return ImageOps.contain(both, (WIDTH - 4, HEIGHT - 4))


def _palette(split: Split) -> np.ndarray:
    """A colour for each label, (256, 3) uint8."""
    palette = voc_palette()
    given = np.asarray(split.dataset.metainfo.get('palette') or [], np.uint8).reshape(-1, 3)
    first = max(split.num_classes - len(given), 0)  # the background has no colour beside one name's
    palette[first : first + len(given)] = given
    palette[split.ignore_index] = VOID
    return palette
