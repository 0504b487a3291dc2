"""Train a segmentor from a config file."""

from __future__ import annotations

import argparse

from ssnet_mm.commands.arguments import add_config_arguments, add_run_arguments, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_config_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument(
        '--resume', action='store_true', help='go on from the last checkpoint in the work dir'
    )
    parser.add_argument(
        '--tensorboard', action='store_true', help='write curves for TensorBoard as well'
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision: float16 on CUDA, bfloat16 on CPUs that are fast in it',
    )
    parser.add_argument(
        '--amp-dtype',
        choices=['float16', 'bfloat16'],
        help='mixed precision of this type, on any CPU',
    )


def main(args: argparse.Namespace) -> None:
    """Train; exit code 2 and one line where the input is at fault."""
    from ssnet_mm.engine import launch

    # precedence: flags, then --cfg-options, then the config
    cfg = load_config(args)
    launch.apply_run_arguments(cfg, args)
    notes = launch.use_amp(cfg, args.amp_dtype) if args.amp or args.amp_dtype else []
    if args.tensorboard:
        launch.use_tensorboard(cfg)
    if args.resume:
        cfg.resume = True
    launch.run(cfg, 'train', skip_data_check=args.skip_data_check, notes=notes)
