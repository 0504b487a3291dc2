"""Draw the miniature data set: VOC's layout and 21 classes, made in seconds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from mmengine.utils import track_iter_progress

from ssnet_mm.errors import exit_on_user_error
from ssnet_mm.miniature.folder import make_miniature


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('root', nargs='?', default='data/miniature', help='folder to make')
    parser.add_argument('--train', type=int, default=320, metavar='N', help='training images')
    parser.add_argument('--val', type=int, default=80, metavar='N', help='validation images')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(128, 128), metavar=('W', 'H'), help='in pixels'
    )
    parser.add_argument('--seed', type=int, default=0, metavar='S', help='seed of the drawing')
    parser.add_argument('--overwrite', action='store_true', help='replace another miniature')
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
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


if __name__ == '__main__':
    main()
