"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ssnet_mm.errors import UserError
from ssnet_mm.files import named_file


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and --cfg-options, which :func:`load_config` takes."""
    parser.add_argument('config', help='config file, or the name of one of ours')
    add_options(parser)


def add_options(
    parser: argparse.ArgumentParser,
    help: str = 'override settings of the config, as in train_dataloader.batch_size=8 or '
    'key="[(1,2),(3,4)]" (quoted, without spaces)',
) -> None:
    """Add --cfg-options."""
    parser.add_argument('--cfg-options', nargs='+', type=_pair, metavar='KEY=VALUE', help=help)


def check_png(path: str) -> None:
    """UserError where a picture's name promises another format."""
    if Path(path).suffix.lower() != '.png':
        raise UserError(f'cannot write {path}: the name must end in .png')


def _pair(word: str) -> str:
    """Of ``--cfg-options``; what the value means is found out where mmengine is imported."""
    if not word.partition('=')[1]:
        raise argparse.ArgumentTypeError(f'expected key=value pairs, got {word}')
    return word


def load_config(args: argparse.Namespace) -> Any:
    """The config that CONFIG and --cfg-options ask for."""
    from ssnet_mm.engine.config import load_config
    from ssnet_mm.engine.config.options import parse_options

    return load_config(args.config, parse_options(args.cfg_options))


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add CHECKPOINT."""
    parser.add_argument(
        'checkpoint', type=named_file,
        help='checkpoint file, or one that names it, as WORK_DIR/best; every weight must fit',
    )  # fmt: skip


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --work-dir, --launcher, --skip-data-check and --local_rank."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='do not read all images and masks before the start',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], help='who starts the processes'
    )
    # torch.distributed.launch writes it either way, torchrun sets the environment instead
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
