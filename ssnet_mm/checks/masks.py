"""Checks of masks: is every stored number the class that is meant?"""

from __future__ import annotations

from collections.abc import Iterator

from ssnet_mm.checks.finding import Fault, number
from ssnet_mm.checks.scan import Sample


def colour_masks(sample: Sample) -> Iterator[Fault]:
    """The loss expects one number a pixel."""
    mask = sample.mask
    if not mask.colour:
        return
    reader = sample.split.readers[1]
    if mask.mode == 'P' and reader is not None:
        kind = f'a palette that {reader.backend} reads as colours; set imdecode_backend="pillow"'
    elif mask.grey:
        kind = f'{mask.mode}, whose channels are the same: one of them may be the indices'
    else:
        kind = mask.mode or 'several channels'
    yield Fault(f'{sample.mask_path} ({kind})')


def lossy_masks(sample: Sample) -> Iterator[Fault]:
    """Even values that happen to be classes are not the ones that were drawn."""
    if sample.mask.format in ('JPEG', 'MPO'):
        yield Fault(sample.mask_path)


def wrapping_masks(sample: Sample) -> Iterator[Fault]:
    """mmseg keeps the lower eight bits of a number: 256 becomes 0."""
    lost = {value: count for value, count in sample.mask.values if not _survives(value)}
    if lost:
        examples = ', '.join(f'{number(v)} is read as {_wrapped(v)}' for v in list(lost)[:2])
        yield Fault(f'{sample.mask_path} ({sample.mask.bits} bits: {examples})', lost)


def _survives(value: float) -> bool:
    whole = value == value and abs(value) != float('inf') and value == int(value)
    # -1 and 65535 are void in deep masks, and become 255, void, here
    return whole and (0 <= value <= 255 or value in (-1, 65535))


def _wrapped(value: float) -> str:
    whole = value == value and abs(value) != float('inf')
    return str(int(value) % 256) if whole else 'any number'


def deep_masks(sample: Sample) -> Iterator[Fault]:
    """Sound so far; the next one may hold a value above 255."""
    mask = sample.mask
    if mask.bits > 8 and not mask.colour and all(_survives(value) for value, _ in mask.values):
        yield Fault(f'{sample.mask_path} ({mask.bits} bits)')


def stretched_masks(sample: Sample) -> Iterator[Fault]:
    """Readers stretch grey levels of fewer than 8 bits to 0..255: of 4 bits, 1 becomes 17."""
    mask, reader = sample.mask, sample.split.readers[1]
    stretched = (2, 4) if reader and reader.backend == 'pillow' else (1, 2, 4)
    if mask.mode not in ('1', 'L') or mask.bits not in stretched:
        return
    # 0 stays; the highest level becomes 255, which is void as well where levels are many
    if any(value and (value != 255 or mask.bits == 1) for value, _ in mask.values):
        yield Fault(f'{sample.mask_path} ({mask.bits} bits a pixel)')


def values_outside(sample: Sample) -> Iterator[Fault]:
    """Told as they are stored, which is what an editor shows."""
    outside = {v: n for v, n in sample.mask.values if not sample.split.takes(sample.split.label(v))}
    if outside:
        yield Fault(sample.mask_path, outside)


def void_masks(sample: Sample) -> Iterator[Fault]:
    """A mask in which nothing counts."""
    if sample.labels and set(sample.labels) == {sample.split.ignore_index}:
        yield Fault(sample.mask_path)
