"""Segment an image or a folder of images: a colour overlay and an index PNG for each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssnet_mm.engine.launch import add_config_arguments, load_config
from ssnet_mm.engine.predict import predict
from ssnet_mm.errors import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file; every weight must fit the model')
    parser.add_argument('source', metavar='IMAGE_OR_FOLDER')
    parser.add_argument(
        '--out-dir', required=True, metavar='DIR', help='gets overlay/<name>.png, index/<name>.png'
    )
    parser.add_argument('--device', help='cpu or cuda:0 (default: CUDA where there is some)')
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='of the colours, 0 to 1 (default: 0.5)'
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Predict; exit code 2 and one line where the input is at fault."""
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    count = predict(cfg, args.checkpoint, args.source, args.out_dir, args.device, args.opacity)
    print(f'{count} images segmented: {args.out_dir}/overlay and {args.out_dir}/index')


if __name__ == '__main__':
    main()
