"""What a folder of photos and annotations holds, before anything is written."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.errors import UserError
from ssnet_mm.files import list_folder
from ssnet_mm.limits import IMAGE_SUFFIXES, parse_json

UNREAD_SUFFIXES = (
    '.arw', '.avif', '.cr2', '.cr3', '.dng', '.heic', '.heif', '.jp2', '.jxl', '.nef', '.psd',
    '.tga',
)  # fmt: skip
VOID = 255
MAX_CLASSES = 255  # 0 to 254
MAX_JSON = 512 << 20  # bytes; as Python objects they take several times as much
SPLITS = ('train', 'val', 'test')
_SPLIT_WORDS = {
    'train': 'train', 'training': 'train',
    'val': 'val', 'valid': 'val', 'validation': 'val', 'eval': 'val', 'evaluation': 'val',
    'test': 'test', 'testing': 'test',
}  # fmt: skip

Mask = NDArray[np.uint8]
Size = tuple[int, int]  # width, height


class BadAnnotationError(Exception):
    """One image can't be prepared: what is wrong, and how to mend it, without the file's name."""


@dataclass(frozen=True)
class Options:
    """What the user says of a source, beyond the folder.

    Args:
        classes: Names of the classes by index; empty where the source has to tell.
        colours: RGB of the first of them, of masks that are colour pictures; the others' are found.
        void: Values, colours or names that do not count, beside those that a format has anyway.
    """

    classes: Sequence[str] = ()
    colours: Sequence[tuple[int, int, int]] = ()
    void: Sequence[str] = ()


@dataclass(frozen=True)
class Item:
    """An image, and the way to its mask.

    Args:
        key: Path in the source without suffix, which a name is made of.
        image: The image's file, for messages where ``data`` is given.
        where: The file that says what is where on the image, for messages.
        draw: Gives the mask, for images of the size it is given; it may raise BadAnnotationError.
        state: Changes when the annotation does.
        frame: Size of the image that the annotation was made on, where it says so.
        split: 'train', 'val' or 'test' where the source says so.
        data: Content of the image, where it has no file.
        has_pixels: Whether the annotation is an image itself, of a size of its own.
    """

    key: str
    image: Path
    where: str
    draw: Callable[[Size], Mask]
    state: Callable[[], str]
    frame: Size | None = None
    split: str = ''
    data: Callable[[], bytes] | None = None
    has_pixels: bool = False


@dataclass
class Annotations:
    """What a format reads from a folder.

    Args:
        classes: Names by index.
        items: One an image.
        palette: RGB by class; VOC's colours where empty.
        faults: A line for each file that can't be used.
        notes: What the user should know, a line each.
        void: What does not count, for a later run to do the same.
    """

    classes: list[str]
    items: list[Item]
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    void: list[str] = field(default_factory=list)


class Folder:
    """All files below a folder, listed once, by links too; without hidden ones and macOS' own.

    Args:
        root: The folder.
        masks: Another folder, where the masks are.
    """

    def __init__(self, root: Path, masks: Path | None = None) -> None:
        if not os.path.isdir(root):
            what = 'is a file; unpack archives' if os.path.exists(root) else 'no such folder'
            raise UserError(f'{root}: {what}; name the folder that holds photos and annotations')
        self.root = root
        self.masks = masks
        self._fits: dict[str, int] = {}
        self.elsewhere: dict[str, str] = {}  # images in another folder than a reference says
        found = (path for path in list_folder(root, recursive=True) if not os.path.isdir(path))
        self.files = [  # relative to the root, with slashes
            path.as_posix()
            for path in (path.relative_to(root) for path in found)
            if not path.name.startswith('.') and '__MACOSX' not in path.parts
        ]

    def having(self, *suffixes: str) -> list[str]:
        """Files with one of some suffixes, in upper or lower case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    @cached_property
    def images(self) -> list[str]:
        return self.having(*IMAGE_SUFFIXES)

    @cached_property
    def unread(self) -> list[str]:
        """Photos by their names, of formats that Pillow does not read everywhere."""
        return self.having(*UNREAD_SUFFIXES)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self.images:
            found[_folded(name.rpartition('/')[2])].append(name)
        return dict(found)

    def expect(self, references: Iterable[tuple[str, str]]) -> None:
        """Have each image found by none but the references that fit it best.

        Else an annotation of a photo that is missing would be taken for another's of its name.

        Args:
            references: All that are to be looked for, with the annotation's own file.
        """
        for reference, beside in references:
            with suppress(BadAnnotationError):
                image = self.find_image(reference, beside)
                fit = self._fit(image, _parts(reference), beside)
                self._fits[image] = max(fit, self._fits.get(image, 0))
        self.elsewhere.clear()  # of references that fit less well than others

    def _fit(self, image: str, parts: Sequence[str], beside: str) -> int:
        if _folded(image) == _folded(str(PurePosixPath(beside).parent / parts[-1])):
            return sys.maxsize
        return _shared_tail(image.split('/'), parts)

    def find_image(self, reference: str, beside: str = '') -> str:
        """The image that an annotation refers to, which must be below the root.

        Args:
            reference: A path or URL as other tools write it; of it the last part has to fit, and
                of several such images the one that shares more of the path.
            beside: The annotation's own file: an image in its folder goes first.

        Raises:
            BadAnnotationError: There is none, or it is not clear which.
        """
        parts = _parts(reference)
        found = self._by_name.get(_folded(parts[-1]), []) if parts else []
        fits = [self._fit(name, parts, beside) for name in found]
        best = max(fits, default=0)
        found = [name for name, fit in zip(found, fits) if fit == best]
        if len(found) == 1 and best >= self._fits.get(found[0], 0):
            if best == 1 < len(parts) and parts[0] not in ('/', '..') and '/' in found[0]:
                self.elsewhere[reference] = found[0]
            return found[0]
        if len(found) > 1:
            raise BadAnnotationError(
                f'names {reference}, and {found[0]} and {found[1]} both fit; keep one of them'
            )
        if parts and any(n.rpartition('/')[2].lower() == parts[-1].lower() for n in self.unread):
            raise BadAnnotationError(
                f'names {reference}, of a format that is not read; make it a JPEG, and name that'
            )
        raise BadAnnotationError(f'names an image that is not there, {reference}; put it there')

    def read_json(self, name: str) -> Any:
        """Parse a JSON file.

        Raises:
            BadAnnotationError: It can't be read, or is none.
        """
        path = self.root / name
        try:
            if path.stat().st_size > MAX_JSON:
                raise ValueError(f'more than {MAX_JSON >> 20} MiB; split it')
            return parse_json(path.read_bytes(), MAX_JSON)
        except OSError as error:
            raise BadAnnotationError(f"can't be read ({error.strerror or error})") from error
        except ValueError as error:  # UnicodeDecodeError is one
            empty = path.stat().st_size == 0
            reason = 'it is empty' if empty else str(error)
            raise BadAnnotationError(f'is not JSON ({reason}); export it again') from error


def listed_splits(folder: Folder) -> dict[str, str]:
    """Keys of images with their split, of lists as VOC's layout has them."""
    found: dict[str, str] = {}
    for name in folder.having('.txt'):
        if match := re.fullmatch(r'(|.*/)ImageSets/Segmentation/(train|val|test)\.txt', name):
            text = (folder.root / name).read_text(encoding='utf-8-sig', errors='replace')
            lines = filter(None, map(str.strip, text.splitlines()))
            found.update((key_of(f'{match[1]}{line}.jpg'), match[2]) for line in lines)
    return found


def _folded(name: str) -> str:
    """Without case, and umlauts as one character each, which macOS takes apart."""
    return unicodedata.normalize('NFC', name).lower()


def whole(value: Any) -> Any:
    """A number that some tools write as 3.0 or "3", as an int; another value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if isinstance(value, str) and re.fullmatch(r'[0-9]{1,18}', value) else value


def frame_of_sides(*sides: Any) -> Size | None:
    """Width and height that an annotation tells, if it does."""
    numbers = [whole(side) for side in sides]
    good = all(type(side) is int and side > 0 for side in numbers)
    return (numbers[0], numbers[1]) if good else None


def _parts(reference: str) -> tuple[str, ...]:
    return PurePosixPath(unquote(reference).replace('\\', '/')).parts


def _shared_tail(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for x, y in zip(reversed(a), reversed(b)):
        if _folded(x) != _folded(y):
            break
        count += 1
    return count


def split_of(name: str, *, stem: bool = False) -> str:
    """The split that the folders of a path name; with ``stem``, or its file ('..._train2017')."""
    parts = name.lower().split('/')
    words = parts[:-1]
    if stem:
        named = re.split(r'[^a-z]+', parts[-1].rpartition('.')[0])
        if len({_SPLIT_WORDS[word] for word in named if word in _SPLIT_WORDS}) == 1:
            words += named  # 'train_val' is neither
    return next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), '')


def stem_of(name: str) -> str:
    """A path without the suffix."""
    return name.rpartition('.')[0] if '.' in name.rpartition('/')[2] else name


# Folders that people and tools put the two in, and what they add to a mask's name.
_IMAGE_FOLDERS = {
    'image', 'images', 'img', 'imgs', 'input', 'inputs', 'jpegimages', 'photo', 'photos', 'rgb',
}  # fmt: skip
_MASK_FOLDERS = {
    'ann', 'annot', 'annotation', 'annotations', 'ground_truth', 'groundtruth', 'gt', 'label',
    'labels', 'mask', 'masks', 'seg', 'segmentation', 'segmentations', 'segmentationclass',
    'target', 'targets',
}  # fmt: skip
_OTHER_FOLDERS = {'segmentationobject', 'segmentationclassvisualization'}  # of instances, painted
_MASK_ENDING = re.compile(r'[-_. ](mask|masks|label|labels|seg|segmentation|gt|l)$', re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """An image and the file of its mask; the key is what their paths have in common."""

    key: str
    image: Path
    mask: Path


def pair_up(folder: Folder) -> tuple[list[Pair], list[str]]:
    """Images with their masks, by folders and names; and a line for each that stays alone."""
    masks = folder.masks
    faults: list[str] = []
    if masks is None:
        images = _by_key(folder.root, _photos(folder), None, faults)
        found = _by_key(folder.root, mask_files(folder), images, faults)
    else:
        inside = masks.resolve()
        paths = ((n, (folder.root / n).resolve()) for n in folder.images)
        listed = [n for n, path in paths if inside not in path.parents]
        images = _by_key(folder.root, listed, None, faults)
        found = _by_key(masks, _inside(masks), images, faults)
        if not found:
            raise UserError(f'{masks} holds no masks; they are image files, one a photo')
    stems = _unique_tails(images), _unique_tails(found)
    pairs, used = [], set()
    for key, image in images.items():
        tail = key.rpartition('/')[2]
        mask = found.get(key)
        if mask is None and stems[0].get(tail) == key and tail in stems[1]:
            mask = found[stems[1][tail]]  # in folders of another structure
        if mask is None:
            faults.append(f'{image}: has no mask; make one, or move it elsewhere')
        else:
            used.add(mask)
            pairs.append(Pair(key, image, mask))
    others = {key_of(name): name for name in folder.unread}
    for key, mask in found.items():
        if mask not in used:
            other = others.get(key)
            mend = f'{other} is of a format that is not read, make it a JPEG' if other else ''
            faults.append(f'{mask}: a mask without a photo; {mend or "put the photo there"}')
    return pairs, faults


def _inside(masks: Path) -> list[str]:
    """The masks of a folder that is said to hold them."""
    other = Folder(masks)
    by_place = [n for n in other.images if _is_mask(n) and not _left_out(n)]
    return by_place or [n for n in other.images if not _left_out(n)]


def all_masks(folder: Folder) -> list[Path]:
    """Every file that is a mask, with or without a photo."""
    if folder.masks is not None:
        return [folder.masks / name for name in _inside(folder.masks)]
    return [folder.root / name for name in mask_files(folder)]


def _by_key(
    root: Path, names: Iterable[str], photos: Mapping[str, Path] | None, faults: list[str]
) -> dict[str, Path]:
    """Files by what an image and its mask have in common; a line for two that have the same.

    Args:
        root: Folder of the files.
        names: Their paths in it.
        photos: Those found before, for masks; None for photos themselves.
        faults: Takes the lines.
    """
    found: dict[str, Path] = {}
    tails = {key.rpartition('/')[2] for key in photos or ()}
    for name in names:
        key = key_of(name)
        if photos is not None and key.rpartition('/')[2] not in tails:
            key = key_of(name, mask=True)  # no photo is named x_mask, so that x is meant
        if key in found:
            what = 'photo' if photos is None else 'mask'
            faults.append(f'{root / name}: {found[key]} is a {what} of that name too; keep one')
        else:
            found[key] = root / name
    return found


def _unique_tails(keys: Iterable[str]) -> dict[str, str]:
    tails: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        tails[key.rpartition('/')[2]].append(key)
    return {tail: keys[0] for tail, keys in tails.items() if len(keys) == 1}


def key_of(name: str, mask: bool = False) -> str:
    """A path without the suffix and the folders that say 'images' or 'masks'."""
    *folders, last = name.split('/')
    stem = stem_of(last)
    if mask:
        stem = _MASK_ENDING.sub('', stem)
    drop = _MASK_FOLDERS | _IMAGE_FOLDERS
    kept = '/'.join([*(f for f in folders if f.lower() not in drop), stem])
    return unicodedata.normalize('NFC', kept)


def mask_files(folder: Folder) -> list[str]:
    """Images that are masks: by their folder, by their ending, or beside a photo of their name."""
    by_place = [n for n in folder.images if _is_mask(n) and not _left_out(n)]
    if by_place:
        return by_place
    lossy = {stem_of(n) for n in folder.having('.jpg', '.jpeg')}
    return [n for n in folder.having('.png') if stem_of(n) in lossy]


def _photos(folder: Folder) -> Iterator[str]:
    masks = set(mask_files(folder))
    return (n for n in folder.images if n not in masks and not _left_out(n))


def _left_out(name: str) -> bool:
    return any(part in _OTHER_FOLDERS for part in name.lower().split('/')[:-1])


def _is_mask(name: str) -> bool:
    *folders, last = name.split('/')
    if any(f.lower() in _MASK_FOLDERS for f in folders):
        return True
    return bool(_MASK_ENDING.search(stem_of(last))) and not any(
        f.lower() in _IMAGE_FOLDERS for f in folders
    )
