"""Draw image, truth and prediction side by side for some of a config's validation images."""

from __future__ import annotations

import argparse

from ssnet_mm.commands.arguments import add_checkpoint, add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument(
        '--out', default='predictions.png', metavar='FILE', help='picture to write (%(default)s)'
    )
    parser.add_argument(
        '--num', type=int, default=6, metavar='N', help='how many images (%(default)s)'
    )
    parser.add_argument('--device', help='as torch names it (cuda where there is one, else cpu)')


def main(args: argparse.Namespace) -> None:
    from ssnet_mm.engine.config.options import parse_options
    from ssnet_mm.visualization import show_predictions

    options = parse_options(args.cfg_options)
    shown = show_predictions(args.config, args.checkpoint, args.out, args.num, args.device, options)
    print(f'{shown} images drawn: {args.out}')
