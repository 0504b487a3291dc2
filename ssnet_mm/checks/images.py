"""Checks of images, alone and beside their masks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ssnet_mm.checks.facts import Facts
from ssnet_mm.checks.finding import Fault
from ssnet_mm.checks.scan import Sample
from ssnet_mm.limits import IMAGE_FORMATS, IMAGE_SUFFIXES

_FORMATS = {**IMAGE_FORMATS, 'MPO': IMAGE_FORMATS['JPEG']}  # a JPEG of several pictures


def missing_images(sample: Sample) -> Iterator[Fault]:
    """A wrong suffix is the usual reason, so files of other suffixes are looked for."""
    if sample.image.missing:
        yield Fault(sample.image_path + _otherwise_named(sample.image_path))


def missing_masks(sample: Sample) -> Iterator[Fault]:
    """The same for masks."""
    if sample.mask.missing:
        yield Fault(sample.mask_path + _otherwise_named(sample.mask_path))


def _otherwise_named(path: str) -> str:
    """A file that may be meant: the same name with another suffix."""
    stem = os.path.splitext(path)[0]
    stems = stem, os.path.splitext(stem)[0]  # a list may name the suffix, too
    suffixes = [*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES)]
    for candidate in (start + suffix for start in stems for suffix in suffixes):
        if candidate != path and os.path.isfile(candidate):
            return f' (but there is {os.path.basename(candidate)})'
    name = os.path.basename(path)
    return ' (the list has two columns?)' if len(name.split()) > 1 else ''


def unreadable_images(sample: Sample) -> Iterator[Fault]:
    """Damaged, empty, a folder, something else: the file says which."""
    if sample.image.problem and not sample.image.missing:
        yield Fault(f'{sample.image_path} {sample.image.problem}')


def unreadable_masks(sample: Sample) -> Iterator[Fault]:
    """The same for masks."""
    if sample.mask.problem and not sample.mask.missing:
        yield Fault(f'{sample.mask_path} {sample.mask.problem}')


def other_content(sample: Sample) -> Iterator[Fault]:
    """Decoders go by the content; other programs may not."""
    for path, facts in ((sample.image_path, sample.image), (sample.mask_path, sample.mask)):
        suffix = os.path.splitext(path)[1].lower()
        known = any(suffix in suffixes for suffixes in _FORMATS.values())
        if known and facts.format in _FORMATS and suffix not in _FORMATS[facts.format]:
            yield Fault(f'{path} ({facts.format})')


def sizes_differ(sample: Sample) -> Iterator[Fault]:
    """Training would pad or crop both from the upper left, and shift the labels."""
    image, mask = sample.image, sample.mask
    if _both_read(sample) and image.size != mask.size and not _turned_apart(image, mask):
        yield Fault(
            f'{sample.image_path} {_text(image.size)} with {sample.mask_path} {_text(mask.size)}'
        )


def turned_apart(sample: Sample) -> Iterator[Fault]:
    """EXIF's orientation is applied to images, never to masks."""
    if _both_read(sample) and _turned_apart(sample.image, sample.mask):
        yield Fault(
            f'{sample.image_path} turned by EXIF to {_text(sample.image.size)} with '
            f'{sample.mask_path} {_text(sample.mask.size)}'
        )


def turned_perhaps(sample: Sample) -> Iterator[Fault]:
    """The size does not tell whether a mask shows the turned image."""
    image, mask = sample.image, sample.mask
    if (
        _both_read(sample)
        and image.orientation != 1
        and image.size == mask.size
        and (image.orientation <= 4 or mask.size[0] == mask.size[1])
        and not _turned_apart(image, mask)
    ):
        yield Fault(f'{sample.image_path} (orientation {image.orientation})')


def _turned_apart(image: Facts, mask: Facts) -> bool:
    if image.orientation == 1:
        return False
    if image.size != mask.size:
        return image.orientation > 4 and image.stored_size == mask.size
    # a mask with the image's own mark was stored as the image is, and is not turned with it
    ambiguous = image.orientation <= 4 or mask.size[0] == mask.size[1]
    return ambiguous and mask.orientation == image.orientation


def _both_read(sample: Sample) -> bool:
    return sample.image.size != (0, 0) and sample.mask.size != (0, 0)


def _text(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def deep_images(sample: Sample) -> Iterator[Fault]:
    """mmcv keeps the upper 8 bits: a 12-bit photo in 16 bits is nearly black."""
    image = sample.image
    if image.cut:
        yield Fault(f'{sample.image_path} ({image.bits} bits, read as 0..{image.brightest})')


def transparent_images(sample: Sample) -> Iterator[Fault]:
    """mmcv drops the alpha channel; the colours beneath can be anything."""
    if sample.image.transparent and _read_as_colour(sample):
        yield Fault(sample.image_path)


def print_colours(sample: Sample) -> Iterator[Fault]:
    """Without a colour profile there is no one way from CMYK to RGB."""
    if sample.image.mode == 'CMYK':
        yield Fault(sample.image_path)


def _read_as_colour(sample: Sample) -> bool:
    reader = sample.split.readers[0]
    return reader is not None and reader.flag.startswith(('color', 'grayscale'))
