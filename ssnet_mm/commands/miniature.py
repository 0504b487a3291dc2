"""Draw the miniature data set: VOC's layout and 21 classes, made in seconds."""

from __future__ import annotations

import argparse
import sys
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'root', nargs='?', default='data/miniature', help='folder to make (%(default)s)'
    )
    parser.add_argument(
        '--train', type=int, default=320, metavar='N', help='training images (%(default)s)'
    )
    parser.add_argument(
        '--val', type=int, default=80, metavar='N', help='validation images (%(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 128),
        metavar=('W', 'H'),
        help='in pixels (128 128)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, metavar='S', help='seed of the drawing (%(default)s)'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace another miniature')


def main(args: argparse.Namespace) -> None:
    from mmengine.utils import track_iter_progress

    from ssnet_mm.miniature.folder import make_miniature

    drawn = make_miniature(
        args.root,
        num_train=args.train,
        num_val=args.val,
        size=args.size,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=partial(track_iter_progress, file=sys.stderr),
    )
    print(f'{args.root}: ' + ('drawn' if drawn else 'is there already, left as it is'))
