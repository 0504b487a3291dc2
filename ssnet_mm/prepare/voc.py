"""Pascal VOC 2012 and SBD, as their archives are or unpack, to the layout of our configs.

Sources: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar) and
http://home.bharathh.info/pubs/codes/SBD/download.html (benchmark.tgz).
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
from mmseg.datasets import PascalVOCDataset

from ssnet_mm.checks import check_splits
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import write_result
from ssnet_mm.prepare.destination import encode_mask
from ssnet_mm.prepare.run import made_splits
from ssnet_mm.prepare.source import BadAnnotationError, Folder, Mask

_IMAGES = re.compile(r'(?:VOC2012/JPEGImages|dataset/img)/([^/]+)\.jpg$')
_MASKS = re.compile(r'VOC2012/SegmentationClass/([^/]+)\.png$')
_EXTRA = re.compile(r'dataset/cls/([^/]+)\.mat$')
_LISTS = re.compile(r'VOC2012/ImageSets/Segmentation/(train|val)\.txt$')
_LARGEST = 32 << 20  # bytes of a member; the largest photo has less than one MiB
_USUAL = {'train': 1464, 'val': 1449, 'aug': 9118}


def prepare_voc(source: Path, dest: Path, say: Callable[[str], None] = print) -> list[str]:
    """Put VOC 2012 and, where it is there, SBD together; what is there already stays as it is.

    Args:
        source: Folder with the archives, or what they unpack to; ``dest`` may be VOCdevkit/VOC2012
            in it.
        dest: Folder to make, with SegmentationClassAug, aug.txt and trainaug.txt where SBD is.
        say: Takes what the user should read, a line each.

    Returns:
        A line for each file that was left out, and for each error that the checks found.

    Raises:
        UserError: VOC is not there, or the folder can't be written.
    """
    folder = Folder(source)
    archives = folder.having('.tar', '.tgz', '.tar.gz')
    stores: list[_Unpacked | _Archive] = [_Unpacked(folder)]
    stores += [_Archive(source / name) for name in archives]
    names, lists = _look(stores)
    found = {
        pattern: {m[1] for name in names if (m := pattern.search(name))}
        for pattern in (_IMAGES, _MASKS, _EXTRA)
    }
    if len(lists) < 2:
        raise UserError(
            f'{source} holds no VOC 2012: put VOCtrainval_11-May-2012.tar there, or the VOCdevkit '
            'that it unpacks to; and benchmark.tgz (SBD) or its benchmark_RELEASE beside it'
        )
    lists['aug'] = sorted(found[_EXTRA] - {*lists['train'], *lists['val']})
    counts = ', '.join(f'{len(listed)} {name}' for name, listed in lists.items())
    say(f'{source}: VOC 2012{" and SBD" if found[_EXTRA] else ", without SBD"} ({counts})')
    for name, listed in lists.items():
        if len(listed) != _USUAL[name] and (name != 'aug' or listed):
            say(f'note: {len(listed)} images in {name}, where the whole set has {_USUAL[name]}')
    scored = {*lists['train'], *lists['val']}
    faults = _write(stores, dest, scored, set(lists['aug']))
    done: dict[str, list[str]] = {}
    for name in ('train', 'val'):
        done[name] = _complete(dest, 'SegmentationClass', lists[name], faults)
    parts = dict.fromkeys(done, 'SegmentationClass')
    if lists['aug']:
        done['aug'] = _complete(dest, 'SegmentationClassAug', lists['aug'], faults)
        done['trainaug'] = [*done['train'], *done['aug']]
        parts = {'trainaug': 'SegmentationClassAug', 'val': 'SegmentationClass'}
    done['trainval'] = sorted([*done['train'], *done['val']])
    for name, listed in done.items():
        _write_list(dest / 'ImageSets' / 'Segmentation' / f'{name}.txt', listed, say)
    classes, palette = (PascalVOCDataset.METAINFO[key] for key in ('classes', 'palette'))
    report = check_splits(made_splits(dest, parts, classes, palette, 'jpg'))
    for finding in report.findings:
        say(f'{finding.check.severity}: {finding}')
    for line in faults:
        say(f'left out: {line}')
    written = ', '.join(f'{len(listed)} {name}' for name, listed in done.items())
    say(f'{dest}: {written}')
    return faults + [str(finding) for finding in report.errors]


class _Unpacked:
    """Files as they lie in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def names(self) -> Iterator[str]:
        # a path from above the folder, which may be VOC2012 or dataset itself
        return (f'{self._folder.root.resolve().name}/{name}' for name in self._folder.files)

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        for name, path in zip(self.names(), self._folder.files):
            if wanted(name):
                yield name, (self._folder.root / path).read_bytes()


class _Archive:
    """Files in a tar archive, read from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Iterator[str]:
        return (member.name for member, _ in self._members())

    def read(self, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        for member, archive in self._members():
            if wanted(member.name):
                if member.size > _LARGEST:
                    raise UserError(f'{self._path}: {member.name} has {member.size} bytes')
                file = archive.extractfile(member)
                assert file is not None  # for it is a regular file
                yield member.name, file.read()

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        try:
            with tarfile.open(self._path, 'r|*') as archive:
                for member in archive:
                    if member.isreg():
                        yield member, archive
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(
                f'{self._path} is damaged or cut short ({error}); fetch it again'
            ) from error


def _look(stores: Collection[_Unpacked | _Archive]) -> tuple[list[str], dict[str, list[str]]]:
    """All names, and VOC's own lists."""
    names: list[str] = []
    lists: dict[str, list[str]] = {}

    def note(name: str) -> bool:
        names.append(name)
        return bool(_LISTS.search(name))

    for store in stores:
        for name, data in store.read(note):
            match = _LISTS.search(name)
            assert match is not None
            lists[match[1]] = data.decode('utf-8', 'replace').split()
    return names, {name: lists[name] for name in ('train', 'val') if name in lists}


def _write(
    stores: Collection[_Unpacked | _Archive], dest: Path, scored: set[str], extra: set[str]
) -> list[str]:
    """Write what is missing; a line for each fault."""
    faults: list[str] = []

    def targets(name: str) -> list[Path]:
        if (match := _IMAGES.search(name)) and match[1] in scored | extra:
            paths = [dest / 'JPEGImages' / f'{match[1]}.jpg']
        elif (match := _MASKS.search(name)) and match[1] in scored:
            folders = ['SegmentationClass', *(['SegmentationClassAug'] if extra else [])]
            paths = [dest / folder / f'{match[1]}.png' for folder in folders]
        elif (match := _EXTRA.search(name)) and match[1] in extra:
            paths = [dest / 'SegmentationClassAug' / f'{match[1]}.png']
        else:
            paths = []
        return [path for path in paths if not path.exists()]

    for store in stores:
        for name, data in store.read(lambda name: bool(targets(name))):
            try:
                if name.endswith('.mat'):
                    data = encode_mask(_read_mat(data), [])
            except BadAnnotationError as error:
                faults.append(f'{name}: {error}')
                continue
            for path in targets(name):
                write_result(path, data)
    return faults


def _read_mat(data: bytes) -> Mask:
    """The class of each pixel, from SBD's MATLAB files."""
    reader = require('scipy.io', 'scipy', "reading SBD's .mat files")
    try:
        content = reader.loadmat(io.BytesIO(data), variable_names=['GTcls'])
        mask = np.asarray(content['GTcls']['Segmentation'][0, 0])
        if mask.ndim != 2 or mask.max(initial=0) > 20:
            raise ValueError('it holds no mask of 21 classes')
        return np.ascontiguousarray(mask, np.uint8)
    except Exception as error:  # whatever scipy raises
        raise BadAnnotationError(f"damaged, or none of SBD's ({error}); fetch it again") from error


def _complete(dest: Path, folder: str, names: list[str], faults: list[str]) -> list[str]:
    """Those of some names whose photo and mask are there."""
    there = []
    for name in names:
        paths = dest / 'JPEGImages' / f'{name}.jpg', dest / folder / f'{name}.png'
        missing = next((path for path in paths if not path.is_file()), None)
        if missing:
            faults.append(f'{name}: no {missing}')
        else:
            there.append(name)
    return there


def _write_list(path: Path, names: list[str], say: Callable[[str], None]) -> None:
    if not path.exists():
        write_result(path, ''.join(f'{name}\n' for name in names).encode())
    elif path.read_text(encoding='utf-8', errors='replace').split() != names:
        say(f'note: {path} lists other images, and is left as it is')
