"""Train a segmentor from a config file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssnet_mm.engine import launch
from ssnet_mm.errors import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    launch.add_config_arguments(parser)
    launch.add_run_arguments(parser)
    parser.add_argument(
        '--resume', action='store_true', help='go on from the last checkpoint in the work dir'
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision: float16 on CUDA, bfloat16 on CPUs that are fast in it',
    )
    parser.add_argument(
        '--amp-dtype', choices=launch.AMP_DTYPES, help='mixed precision of this type, on any CPU'
    )
    return parser.parse_args(argv)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Train; exit code 2 and one line where the input is at fault."""
    args = parse_args(argv)
    # precedence: flags, then --cfg-options, then the config
    cfg = launch.load_config(args.config, args.cfg_options)
    launch.apply_run_arguments(cfg, args)
    notes = launch.use_amp(cfg, args.amp_dtype) if args.amp or args.amp_dtype else []
    if args.resume:
        cfg.resume = True
    launch.run(cfg, 'train', skip_data_check=args.skip_data_check, notes=notes)


if __name__ == '__main__':
    main()
