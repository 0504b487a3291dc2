"""Put photos and their annotations into the layout of Pascal VOC, checked and split.

SOURCE may hold masks (class numbers, black and white, colours), or an export of CVAT
("segmentation mask"), COCO, LabelMe or Label Studio. "prepare voc" merges VOC 2012 with SBD,
"prepare camvid" takes both shapes of CamVid. What is in DEST already stays as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from ssnet_mm.errors import UserError
from ssnet_mm.prepare.settings import Settings

EPILOG = 'Exit code 1: files were left out; 0: none; 2: wrong use, or nothing could be made.'
FORMATS = (  # as in ssnet_mm.prepare.formats, which takes long to import
    'index', 'binary', 'colours', 'cvat', 'coco', 'labelme', 'label-studio', 'label-studio-png',
    'camvid',
)  # fmt: skip
_SETTINGS = tuple(field.name for field in fields(Settings))
NAMED = {'voc': _SETTINGS, 'camvid': ('format',)}  # data sets, and what they say themselves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SOURCE, DEST and the options."""
    parser.usage = '%(prog)s [voc | camvid] SOURCE DEST [options]'
    parser.add_argument(
        'paths',
        nargs='+',
        metavar='SOURCE DEST',
        help='folder of photos and annotations; folder to make, or one made before, to which what '
        'is new is added',
    )
    add_source_arguments(parser)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is to say of a source."""
    parser.add_argument('--masks', type=Path, metavar='DIR', help='masks, if elsewhere')
    parser.add_argument('--format', choices=FORMATS, default='', help='if it is not recognised')
    parser.add_argument(
        '--classes',
        nargs='+',
        default=[],
        metavar='NAME',
        help='names by class number, or one file with a name a line',
    )
    parser.add_argument(
        '--colours',
        type=Path,
        metavar='FILE',
        help="classes of colour masks, a line each: NAME:255,0,0 (or CamVid's, or CSV)",
    )
    parser.add_argument(
        '--void',
        nargs='+',
        default=[],
        metavar='X',
        help='numbers, colours (#00ff00) or names that count neither in training nor in scores',
    )
    parser.add_argument(
        '--val',
        default='',
        metavar='SHARE|FILE',
        help='share of the images that validate, or a list of their names (as the source has it, '
        'or 0.2)',
    )
    parser.add_argument('--seed', type=int, default=0, help='of the split (%(default)s)')
    parser.add_argument(
        '--images',
        choices=('jpg', 'png'),
        default='',
        help='store photos as these (png where no photo is a JPEG)',
    )
    parser.add_argument(
        '--exif',
        choices=('upright', 'stored'),
        default='',
        help='of photos that EXIF turns: what annotations were made on, where sizes do not tell',
    )


def main(args: argparse.Namespace) -> None:
    """Prepare; exit code 1 where files were left out."""
    name, source, dest = _paths(args.paths)
    for setting in NAMED.get(name, ()):
        if getattr(args, setting):
            raise UserError(f'prepare {name} takes no --{setting}: {name} is a format, and says it')
    if name == 'voc':
        from ssnet_mm.prepare.voc import prepare_voc

        sys.exit(1 if prepare_voc(source, dest) else 0)
    from ssnet_mm.prepare.run import prepare

    if name:
        args.format = name
    prepared = prepare(source, dest, settings_of(args))
    tell(prepared.faults)
    for finding in prepared.report.findings:
        print(f'{finding.check.severity}: {finding}')
    counts = ', '.join(f'{count} {split}' for split, count in prepared.counts.items() if count)
    print(f'{dest}: {counts}; classes: {", ".join(prepared.record.classes)}')
    sys.exit(1 if prepared.faults or prepared.report.errors else 0)


def settings_of(args: argparse.Namespace) -> Settings:
    """The options as :func:`ssnet_mm.prepare.run.prepare` takes them."""
    given = {name: getattr(args, name) for name in _SETTINGS}
    return Settings(**dict(given, classes=_names(args.classes)))


def tell(faults: list[str]) -> None:
    """A line for each file that was left out."""
    for line in faults:
        print(f'left out: {" ".join(line.split())}', file=sys.stderr)


def _paths(paths: list[str]) -> tuple[str, Path, Path]:
    name = paths[0] if len(paths) == 3 and paths[0] in NAMED else ''
    rest = paths[1:] if name else paths
    if len(rest) != 2:
        raise UserError('expected SOURCE and DEST, or voc or camvid and both; see --help')
    return name, Path(rest[0]), Path(rest[1])


def _names(words: list[str]) -> list[str]:
    if len(words) == 1 and os.path.isfile(words[0]):
        from ssnet_mm.prepare.labels import read_names

        words = read_names(Path(words[0]))
    repeated = sorted({word for word in words if words.count(word) > 1})
    if repeated:
        raise UserError(f'--classes names {repeated[0]} twice')
    return list(words)
