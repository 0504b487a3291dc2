"""From what people have to VOC's layout: one pass to look, one to write, the checks at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from mmengine.registry import DefaultScope
from mmseg.datasets import BaseSegDataset
from numpy.typing import NDArray

from ssnet_mm.checks import Report, Split, check_splits
from ssnet_mm.errors import UserError, few
from ssnet_mm.palette import voc_palette
from ssnet_mm.prepare.destination import Destination, Entry, Record, name_for
from ssnet_mm.prepare.formats import FORMATS, recognise
from ssnet_mm.prepare.formats.colours import Colour, code_of, hex_of, read_table
from ssnet_mm.prepare.photos import UNCLEAR, Photo, encode, frame_of, read_photo, upright
from ssnet_mm.prepare.settings import Settings
from ssnet_mm.prepare.source import (
    SPLITS,
    Annotations,
    BadAnnotationError,
    Folder,
    Item,
    Mask,
    Options,
    listed_splits,
)
from ssnet_mm.prepare.splits import Candidate, assign, read_val

T = TypeVar('T')


@dataclass(frozen=True)
class Prepared:
    """What came of it.

    Args:
        root: The folder made.
        record: What it holds.
        counts: Images by split.
        faults: A line for each file that was left out.
        splits: Its data sets, training first.
        report: Of the checks that training makes, over them.
    """

    root: Path
    record: Record
    counts: Counter[str]
    faults: list[str]
    splits: list[Split]
    report: Report


def prepare(
    source: Path, dest: Path, settings: Settings | None = None, say: Callable[[str], None] = print
) -> Prepared:
    """Put photos and masks into VOC's layout; what is there already stays as it is.

    Args:
        source: Folder of photos and annotations.
        dest: Folder to make, or one that was made before: then only what is new is added.
        settings: How.
        say: Takes what the user should read, a line each.

    Raises:
        UserError: Nothing can be made of it, or the folder can't be written.
    """
    settings = settings or Settings()
    val = read_val(settings.val) if settings.val else None
    for given in filter(None, (source, settings.masks)):
        _check_apart(given, dest)
    destination = Destination(dest)
    before = destination.record
    folder = Folder(source, settings.masks)
    if settings.format:
        chosen, why = FORMATS[settings.format], 'as --format says'
    else:
        chosen, why = recognise(folder)
    say(f'{source}: {chosen.title} ({why})')
    found = chosen.read(folder, _options(settings, before))
    faults = list(found.faults)
    for note in found.notes:
        say(f'note: {note}')
    for reference, image in list(folder.elsewhere.items())[:1]:
        say(
            f'note: {len(folder.elsewhere)} annotations name a photo in a folder that is not '
            f'there, and are taken for one of its name: {reference} for {image}'
        )
    masks = settings.masks
    if masks and found.items and not any(Path(i.where).is_relative_to(masks) for i in found.items):
        raise UserError(
            f'--masks {masks}: {chosen.title} reads none; leave it out, or say another --format'
        )
    if not found.items:
        more = f'; the first of {len(faults)} faults: {faults[0]}' if faults else ''
        raise UserError(f'{source} holds no photo with an annotation{more}')
    if len(found.classes) < 2:
        raise UserError(
            f'the masks hold one class alone, {few(found.classes)}, and a network tells at least '
            'two from each other; give masks of two or more, or name those to come by --classes'
        )
    photos, bad = _look(found.items)
    faults += bad
    suffix = _suffix(settings, before, photos)
    record = Record(
        suffix,
        found.classes,
        found.palette or _palette(len(found.classes), before),
        found.void or list(settings.void or (before.void if before else ())),
        dict(before.images) if before else {},
    )
    if before and found.classes[: len(before.classes)] != before.classes:
        raise UserError(
            f'{dest} was made with the classes {", ".join(before.classes)}, and now they are '
            f'{", ".join(found.classes)}; name another folder, or --classes as they were, new ones '
            'last'
        )
    for name, was, now in zip(found.classes, before.palette if before else (), found.palette):
        if was != now:
            raise UserError(
                f'{dest} was made with {hex_of(code_of(was))} for {name}, and now it is '
                f'{hex_of(code_of(now))}; name another folder, or give each class its colour'
            )
    items, named, changed = _name(found, folder, photos, record)
    listed = listed_splits(folder)
    if listed and not any(item.key in listed for item in items.values()):
        say('note: the lists in ImageSets name none of the photos, and do not count')
    for line in _assign(record, before, items, named, listed, val, settings.seed):
        say(line)
    destination.begin(record)
    made = {name for name in items if not destination.is_done(name)}
    bad, encoded = _write(destination, items, settings.exif)
    faults += bad
    if encoded:
        kind = 'PNG' if suffix == 'png' else 'JPEG (quality 95; --images png keeps them exact)'
        say(f'note: {encoded} photos were turned upright or were of another format: now {kind}')
    changed = [name for name in changed if name not in made]
    if changed:
        say(
            f'note: {len(changed)} changed since they were prepared, and are left as they were: '
            f'{few(changed)}; delete them from {dest} to have them made anew'
        )
    counts = +destination.finish()
    if not counts:
        raise UserError(f'no image could be prepared; the first of {len(faults)}: {faults[0]}')
    parts = {split: 'SegmentationClass' for split in SPLITS if counts[split]}
    splits = made_splits(dest, parts, record.classes, record.palette, suffix)
    return Prepared(dest, record, counts, faults, splits, check_splits(splits))


def _check_apart(source: Path, dest: Path) -> None:
    inner, outer = dest.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UserError(f'{dest} and {source} lie in one another; name a folder elsewhere')


def _options(settings: Settings, before: Record | None) -> Options:
    if settings.colours:
        table = read_table(settings.colours)
        if settings.classes:
            raise UserError('--colours names the classes too; leave --classes out')
        return Options(list(table), list(table.values()), settings.void)
    if before:
        # new ones may follow, whose colours are found
        classes = settings.classes or before.classes
        return Options(classes, before.palette, settings.void or before.void)
    return Options(settings.classes, (), settings.void)


def _palette(classes: int, before: Record | None) -> list[Colour]:
    """For what has no colours of its own: those that it has, then VOC's."""
    known = before.palette if before else []
    return [*known, *(tuple(c) for c in voc_palette()[len(known) : classes].tolist())]


@dataclass(frozen=True)
class _Look:
    """What is kept of a photo between the passes."""

    digest: str
    format: str
    small: NDArray[np.float32] | None


def _look(items: Sequence[Item]) -> tuple[dict[int, _Look], list[str]]:
    """Read every photo; by the item's number what it is, and a line for each that is no photo."""
    looks, faults = {}, []
    for i, item in enumerate(progress(items, 'photos')):
        try:
            photo = read_photo(item)
            looks[i] = _Look(photo.facts.digest, photo.facts.format, photo.small())
        except BadAnnotationError as error:
            faults.append(f'{item.image}: {error}')
    if not looks:
        raise UserError(f'no photo can be read; the first of {len(faults)}: {faults[0]}')
    return looks, faults


def _suffix(settings: Settings, before: Record | None, looks: dict[int, _Look]) -> str:
    """JPEG where there is one: photos that are lossy anyway would take the space of PNG."""
    if before:
        if settings.images not in ('', before.suffix):
            raise UserError(f'--images {settings.images}: the folder holds {before.suffix} files')
        return before.suffix
    lossy = any(look.format in ('JPEG', 'MPO') for look in looks.values())
    return settings.images or ('jpg' if lossy else 'png')


def _name(
    found: Annotations, folder: Folder, looks: dict[int, _Look], record: Record
) -> tuple[dict[str, Item], dict[str, _Look], list[str]]:
    """Items and looks by the name they get, entered into the record; those changed since."""
    names = {entry.source: name for name, entry in record.images.items()}
    taken = {name.casefold() for name in record.images}
    items, named, changed = {}, {}, []
    for i, look in looks.items():
        item = found.items[i]
        source = item.image.relative_to(folder.root).as_posix()
        name = names.get(source)
        if name is None:
            name = name_for(item.key, taken)
            taken.add(name.casefold())
            record.images[name] = Entry(source, look.digest, item.state(), item.split)
        else:
            entry = record.images[name]
            now = look.digest, item.state()
            if now != (entry.digest, entry.state):
                changed.append(name)
        items[name], named[name] = item, look
    return items, named, changed


def _assign(
    record: Record,
    before: Record | None,
    items: dict[str, Item],
    looks: Mapping[str, _Look],
    listed: Mapping[str, str],
    val: float | list[str] | None,
    seed: int,
) -> Iterator[str]:
    """Set the splits of the record; a line on how, and for each image left out."""
    old = before.images if before else {}
    candidates = {
        name: Candidate(
            entry.source.rpartition('.')[0],
            entry.digest,
            (items[name].split or listed.get(items[name].key, '')) if name in items else '',
            old[name].split if name in old else '',
            looks[name].small if name in looks else None,
        )
        for name, entry in record.images.items()
    }
    splits, how, notes = assign(candidates, val, seed)
    yield f'split: {how}' + (f'; {len(old)} images keep theirs' if old else '')
    for note in notes:
        yield f'note: {note}'
    for name in [name for name in record.images if name not in splits]:
        del record.images[name]
        items.pop(name, None)
    record.images.update({n: replace(record.images[n], split=s) for n, s in splits.items()})


def _write(destination: Destination, items: dict[str, Item], exif: str) -> tuple[list[str], int]:
    """Write what is missing; a line for each fault, and how many photos were encoded anew."""
    record = destination.record
    assert record is not None
    faults, encoded = [], 0
    todo = [(name, item) for name, item in items.items() if not destination.is_done(name)]
    for name, item in progress(todo, 'masks'):
        try:
            photo = read_photo(item)
            mask = _mask(item, photo, exif)
        except BadAnnotationError as error:
            faults.append(f'{item.where}: {error}')
            continue
        record.images[name] = replace(
            record.images[name], digest=photo.facts.digest, state=item.state()
        )
        data, anew = encode(photo, record.suffix)
        encoded += anew
        destination.write(name, data, mask)
    destination.begin(record)  # what was made anew has another state
    return faults, encoded


def _mask(item: Item, photo: Photo, exif: str) -> Mask:
    if item.has_pixels:
        return upright(item.draw(photo.facts.size), photo, exif)
    frame = frame_of(item, photo, exif)
    if frame is None:
        raise BadAnnotationError(UNCLEAR)
    if frame not in (photo.facts.size, photo.facts.stored_size):
        width, height = photo.facts.size
        raise BadAnnotationError(
            f'was made on an image of {frame[0]}x{frame[1]}, and the photo has {width}x{height}; '
            'was it scaled since?'
        )
    return upright(item.draw(frame), photo, exif)


def made_splits(
    root: Path,
    parts: Mapping[str, str],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    suffix: str,
) -> list[Split]:
    """The data sets in a folder, as checks take them.

    Args:
        root: Folder in VOC's layout.
        parts: The folder of masks by list, as in 'train': 'SegmentationClass'.
        classes, palette: Names and RGB by index.
        suffix: Of the photos.
    """
    with DefaultScope.overwrite_default_scope('mmseg'):
        return [
            Split(
                f'{name}.txt',
                BaseSegDataset(
                    ann_file=f'ImageSets/Segmentation/{name}.txt',
                    img_suffix=f'.{suffix}',
                    seg_map_suffix='.png',
                    metainfo=dict(classes=tuple(classes), palette=list(palette)),
                    data_root=str(root),
                    data_prefix=dict(img_path='JPEGImages', seg_map_path=masks),
                    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
                    serialize_data=False,
                ),
                len(classes),
            )
            for name, masks in parts.items()
        ]


def progress(items: Sequence[T], what: str) -> Iterable[T]:
    """A line on standard error, for what takes longer than two seconds."""
    start = shown = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - start > 2 and now - shown > 0.5:
            shown = now
            sys.stderr.write(f'\r{what} [{number}/{len(items)}]')
            sys.stderr.flush()
    if shown > start:
        sys.stderr.write('\n')
