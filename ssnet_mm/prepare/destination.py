"""The folder that is made: VOC's layout, and a record of what was put there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.files import MAX_NAME, make_folder, write_result
from ssnet_mm.limits import parse_json
from ssnet_mm.palette import voc_palette
from ssnet_mm.prepare.source import MAX_JSON, SPLITS, VOID, Mask

RECORD = 'prepared.json'
CLASSES = 'classes.txt'
_VERSION = 1
_VOID_COLOUR = (224, 224, 192)  # VOC's


@dataclass
class Entry:
    """What is known of an image that was put there.

    Args:
        source: Its path in the source.
        digest: Of the photo.
        state: Of its annotation.
        split: 'train', 'val' or 'test'.
    """

    source: str
    digest: str
    state: str
    split: str


@dataclass
class Record:
    """What was put into a folder, and how; it is written before the files are.

    Args:
        suffix: Of the photos: 'jpg' or 'png'.
        classes: Names by index.
        palette: RGB by class.
        void: Names, numbers or colours that did not count.
        images: By name.
    """

    suffix: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    void: list[str]
    images: dict[str, Entry] = field(default_factory=dict)


class Destination:
    """A folder in VOC's layout.

    Args:
        root: The folder: new, empty, or made here before.

    Raises:
        UserError: It holds other things.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if os.path.exists(root) and not os.path.isdir(root):
            raise UserError(f'{root} is a file: name another folder')
        self.record = _read_record(root / RECORD)
        if self.record is None and os.path.isdir(root) and _holds_files(root):
            raise UserError(
                f'{root} holds other files, which are left alone: name a new or an empty folder'
            )

    def image(self, name: str) -> Path:
        assert self.record is not None
        return self.root / 'JPEGImages' / f'{name}.{self.record.suffix}'

    def mask(self, name: str) -> Path:
        return self.root / 'SegmentationClass' / f'{name}.png'

    def list_file(self, split: str) -> Path:
        return self.root / 'ImageSets' / 'Segmentation' / f'{split}.txt'

    def is_done(self, name: str) -> bool:
        """Whether an image and its mask are there."""
        return self.image(name).is_file() and self.mask(name).is_file()

    def begin(self, record: Record) -> None:
        """Note what is going to be written."""
        self.record = record
        make_folder(self.root)
        content = dict(made_by='ssnet_mm prepare', version=_VERSION, **asdict(record))
        write_result(self.root / RECORD, json.dumps(content, indent=1).encode())

    def write(self, name: str, photo: bytes, mask: Mask) -> None:
        """Write an image and its mask; one of the two that is there may be of another state."""
        assert self.record is not None
        write_result(self.mask(name), encode_mask(mask, self.record.palette))
        write_result(self.image(name), photo)

    def finish(self) -> Counter[str]:
        """Write the lists of the images that are there, and the classes; count them by split."""
        assert self.record is not None
        names = {split: list[str]() for split in SPLITS}
        for name, entry in self.record.images.items():
            if self.is_done(name):
                names[entry.split].append(name)
        for split, listed in names.items():
            if listed or split != 'test':
                text = ''.join(f'{name}\n' for name in sorted(listed))
                _write_changed(self.list_file(split), text)
        _write_changed(self.root / CLASSES, ''.join(f'{name}\n' for name in self.record.classes))
        return Counter({split: len(listed) for split, listed in names.items()})


def _holds_files(root: Path) -> bool:
    return any(not path.name.startswith('.') for path in root.iterdir())


def _write_changed(path: Path, text: str) -> None:
    data = text.encode()
    if not path.is_file() or path.read_bytes() != data:
        write_result(path, data)


def encode_mask(mask: Mask, palette: list[tuple[int, int, int]]) -> bytes:
    """An index PNG with the classes' colours."""
    colours = voc_palette()
    colours[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    colours[VOID] = _VOID_COLOUR
    image = Image.fromarray(mask)
    image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def _read_record(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = parse_json(path.read_bytes(), MAX_JSON)
        if content.pop('made_by') != 'ssnet_mm prepare' or content.pop('version') != _VERSION:
            raise ValueError('of another version')
        content['images'] = {n: Entry(**row) for n, row in content['images'].items()}
        content['palette'] = [(r, g, b) for r, g, b in content['palette']]
        return Record(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} can't be read ({error}); prepare into another folder") from error


def name_for(key: str, taken: set[str]) -> str:
    """A file name for an image, made of its path; unlike those taken, in upper or lower case."""
    name = re.sub(r'[^\w.+@()-]+', '_', key.replace('/', '_')).strip('._-') or 'image'
    mark = hashlib.blake2b(key.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()
    room = MAX_NAME - 48  # for a suffix, and for what is put around it while it is written
    if len(os.fsencode(name)) > room:
        name = os.fsencode(name)[:room].decode('utf-8', 'ignore') + f'-{mark}'
    if name.casefold() in taken:
        name = f'{name}-{mark}'
    number = 2
    while name.casefold() in taken:
        name, number = f'{name}-{number}', number + 1
    return name
