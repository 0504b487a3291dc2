"""Read every image and mask that a config names, and say what would spoil training or scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssnet_mm.engine import launch
from ssnet_mm.engine.preflight import check_whole_data
from ssnet_mm.errors import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Exit code 1: something would; 0: nothing; 2: wrong use.'
    )
    launch.add_config_arguments(parser)
    parser.add_argument(
        '--out',
        default='data_check.png',
        metavar='FILE',
        help='picture of some images and their masks to write (%(default)s)',
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    report, drawn = check_whole_data(launch.load_config(args.config, args.cfg_options), args.out)
    print('\n'.join(report.lines()))
    if drawn:
        print(f'images with their masks, to look at: {args.out}')
    sys.exit(1 if report.errors else 0)


if __name__ == '__main__':
    main()
