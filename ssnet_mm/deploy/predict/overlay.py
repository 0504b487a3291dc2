"""Labels painted over images, with a legend."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from ssnet_mm.deploy.images import Labels, Pixels
from ssnet_mm.deploy.predict.classes import class_names, labels_of
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError, require

_FONT, _OF_IMAGE = 12, 36  # size of letters: pixels at least, and the part of an image's short side
_INK, _EDGE = '#202020', '#707070'

Entry = tuple[str, tuple[int, ...]]  # a class and its colour


class Overlay:
    """Paints labels over images.

    Args:
        segment: What the labels are of.
        opacity: Of the colours, 0 to 1.
        legend: Whether names and colours of the classes follow below the image.
        transparent: Names of classes that are not painted.

    Raises:
        UserError: There is no class of such a name, or no font for the legend.
    """

    def __init__(
        self,
        segment: Segmenter,
        opacity: float = 0.5,
        legend: bool = False,
        transparent: Collection[str] = (),
    ) -> None:
        self.segment, self.opacity, self.legend = segment, opacity, legend
        self.names = class_names(segment)
        self.transparent = labels_of(segment, transparent)
        self.painted = [i for i in range(len(self.names)) if i not in self.transparent]
        self.font = _font_for([self.names[i] for i in self.painted]) if legend else None

    def __call__(
        self, pixels: Pixels, labels: Labels, present: Iterable[int] | None = None
    ) -> Image.Image:
        """The overlay; its legend lists the classes that are present, by default all."""
        picture = self.segment.overlay(pixels, labels, self.opacity, self.transparent)
        shown = set(self.painted if present is None else present)
        entries = [
            (self.names[i], tuple(self.segment.colours[i].tolist()))
            for i in self.painted
            if i in shown
        ]
        if not (self.legend and entries):
            return picture
        legend = _legend(picture.size, tuple(entries), self.font)
        whole = Image.new('RGB', (legend.width, picture.height + legend.height), 'white')
        whole.paste(picture)
        whole.paste(legend, (0, picture.height))
        return whole


@lru_cache(maxsize=8)  # of a video it stays the same
def _legend(
    size: tuple[int, int], entries: tuple[Entry, ...], font_file: str | None
) -> Image.Image:
    """A strip for below an image of a size: as wide, or wider where a name asks for it."""
    letters = max(_FONT, min(size) // _OF_IMAGE)
    font = ImageFont.truetype(font_file, letters) if font_file else ImageFont.load_default(letters)
    longest = max(font.getlength(name) for name, _ in entries)
    cell, row = math.ceil(longest + 2.5 * letters), math.ceil(1.6 * letters)
    columns = min(max(1, (size[0] - letters) // cell), len(entries))
    rows = math.ceil(len(entries) / columns)
    width, height = max(size[0], cell + letters), rows * row + letters
    # even sides remain even, as videos want them
    strip = Image.new('RGB', (width + (width - size[0]) % 2, height + height % 2), 'white')
    draw = ImageDraw.Draw(strip)
    for i, (name, colour) in enumerate(entries):
        x, y = letters + i // rows * cell, letters // 2 + i % rows * row
        top = y + (row - letters) // 2
        draw.rectangle((x, top, x + letters, top + letters), fill=colour, outline=_EDGE)
        draw.text((x + 1.5 * letters, y + row / 2), name, fill=_INK, font=font, anchor='lm')
    return strip


def _font_for(names: Sequence[str]) -> str | None:
    """The file of a font that has all letters of some names; None: Pillow's own, which has ASCII.

    UserError where there is no such font.
    """
    if all(name.isascii() for name in names):
        return None
    purpose = 'a legend with letters beyond ASCII'
    manager = require('matplotlib.font_manager', 'matplotlib', purpose)
    ft2font = require('matplotlib.ft2font', 'matplotlib', purpose)
    wanted = set(map(ord, ''.join(names)))
    upright = [
        font
        for font in manager.fontManager.ttflist
        if font.style == 'normal' and not font.name.startswith('Last Resort')  # has boxes for all
    ]
    # matplotlib's own first, regular weights before others
    upright.sort(key=lambda font: (font.name != 'DejaVu Sans', font.weight not in (400, 'normal')))
    for font in upright:
        if wanted <= ft2font.FT2Font(font.fname).get_charmap().keys():
            return font.fname
    raise UserError(
        f'no font here has all letters of {", ".join(names)}; install one, such as Noto Sans CJK, '
        'or leave the legend out'
    )
