"""Test (and evaluate) a segmentor."""

from __future__ import annotations

import argparse
from typing import Any

from ssnet_mm.commands.arguments import (
    add_checkpoint,
    add_config_arguments,
    add_run_arguments,
    load_config,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_config_arguments(parser)
    add_checkpoint(parser)
    add_run_arguments(parser)
    parser.add_argument('--out', metavar='DIR', help='write an index PNG per image')
    parser.add_argument(
        '--report', metavar='DIR',
        help='write scores of each class and the confusion matrix: report.json, classes.csv, '
        'confusion.csv, confusion.png',
    )  # fmt: skip
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', metavar='DIR', help='write painted predictions to DIR/vis_data/vis_image'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show waits (default: 2)'
    )
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='test the model as it is deployed, batch norms folded',
    )
    parser.add_argument(
        '--precision', choices=['fp32', 'bf16'], default='fp32', help='to compute in (%(default)s)'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')


def main(args: argparse.Namespace) -> None:
    """Test; exit code 2 and one line where the input is at fault."""
    from ssnet_mm.deploy import BFloat16Hook, FuseHook
    from ssnet_mm.engine import launch

    # precedence: flags, then --cfg-options, then the config
    cfg = load_config(args)
    launch.apply_run_arguments(cfg, args)
    cfg.load_from = args.checkpoint
    cfg.resume = False  # a config that resumes its training is tested like any other
    if args.show or args.show_dir:
        launch.paint_predictions(cfg, args.show, args.show_dir, args.wait_time)
    notes = launch.use_tta(cfg) if args.tta else []
    if args.out is not None:
        launch.write_predictions(cfg, args.out)
    if args.report is not None:
        launch.report_scores(cfg, args.report, args.checkpoint, _options(args))
    hooks: list[Any] = [FuseHook()] if args.fuse else []
    if args.precision == 'bf16':
        hooks.append(BFloat16Hook())
    launch.run(cfg, 'test', hooks, skip_data_check=args.skip_data_check, notes=notes)


def _options(args: argparse.Namespace) -> list[str]:
    """What the scores depend on, beside config and checkpoint, as it may be given again."""
    precision = [] if args.precision == 'fp32' else ['--precision', args.precision]
    flags = [f'--{name}' for name in ('fuse', 'tta') if getattr(args, name)]
    changes = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    return [*flags, *precision, *changes]
