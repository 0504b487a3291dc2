"""Draw image, truth and prediction side by side for some of a config's validation images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssnet_mm.engine import launch
from ssnet_mm.errors import exit_on_user_error
from ssnet_mm.visualization import show_predictions


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file; every weight must fit the model')
    parser.add_argument(
        '--out', default='predictions.png', metavar='FILE', help='picture to write (%(default)s)'
    )
    parser.add_argument(
        '--num', type=int, default=6, metavar='N', help='how many images (%(default)s)'
    )
    parser.add_argument('--device', help='as torch names it (cuda where there is one, else cpu)')
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    shown = show_predictions(
        args.config, args.checkpoint, args.out, args.num, args.device, args.cfg_options
    )
    print(f'{shown} images drawn: {args.out}')


if __name__ == '__main__':
    main()
