"""Read every image and mask that a config names, and say what would spoil training or scores."""

from __future__ import annotations

import argparse
import sys

from ssnet_mm.commands.arguments import add_config_arguments, load_config
from ssnet_mm.files import write_result

EPILOG = 'Exit code 1: something would; 0: nothing; 2: wrong use.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        '--out',
        default='data_check.png',
        metavar='FILE',
        help='picture of some images and their masks to write (%(default)s)',
    )


def main(args: argparse.Namespace) -> None:
    from ssnet_mm.checks import contact_sheet
    from ssnet_mm.engine.checkpoint import weights_only
    from ssnet_mm.engine.data import check_whole_data

    report = check_whole_data(load_config(args))
    print('\n'.join(report.lines()), flush=True)
    with weights_only():  # a data set's own transforms read the masks
        drawn = contact_sheet([totals.split for totals in report.totals])
    if drawn:
        write_result(args.out, drawn)
        print(f'images with their masks, to look at: {args.out}')
    sys.exit(1 if report.errors else 0)
