"""From photos and masks to a trained, tested and exported network, and a report of it.

Prepares the data ("ssnet_mm prepare --help" tells from what), writes a config for them and this
machine, trains, tests, draws, exports, and writes OUT/report.html. Called again it goes on where it
ended.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ssnet_mm.commands.prepare import add_source_arguments, settings_of
from ssnet_mm.errors import UserError

NETS = ('fastfcn8', 'fastfcn8-slim', 'fcn8')  # as in ssnet_mm.fit, which takes long to import


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('photos', type=Path, help='folder of photos, with their annotations or')
    parser.add_argument(
        'masks_folder', nargs='?', type=Path, metavar='MASKS', help='those in a folder of their own'
    )
    parser.add_argument('--net', choices=NETS, default='', help=f'({NETS[0]})')
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        '--minutes', type=float, default=8, metavar='M', help='for all of it (%(default)s)'
    )
    length.add_argument('--iters', type=int, metavar='N', help='iterations, instead of minutes')
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help="(default: work_dirs/fit_ and the photos' folder)"
    )
    add_source_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what makes no sense before the toolbox is imported."""
    if args.masks_folder and args.masks:
        raise UserError('MASKS and --masks name the same thing; leave one out')
    if not 0 < args.minutes < 1e5:
        raise UserError(f'--minutes {args.minutes:g}: expected more than 0')
    if args.iters is not None and args.iters < 2:
        raise UserError(f'--iters {args.iters}: expected 2 or more')


def main(args: argparse.Namespace) -> None:
    """Fit; exit code 2 and one line where the input is at fault."""
    from ssnet_mm.fit.steps import Fit, fit

    args.masks = args.masks_folder or args.masks
    out = args.out or Path('work_dirs') / f'fit_{args.photos.resolve().name}'
    task = Fit(args.photos, out, settings_of(args), args.net, args.minutes, args.iters)
    print(f'\nreport: {fit(task)}')
