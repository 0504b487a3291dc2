"""Export a checkpoint to one file for ONNX Runtime, OpenVINO or torch.export, and check it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssnet_mm.commands.arguments import add_checkpoint, add_config_arguments, load_config
from ssnet_mm.deploy.runtimes import FORMATS, PRECISIONS
from ssnet_mm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_config_arguments(parser)
    add_checkpoint(parser)
    parser.add_argument('--format', required=True, choices=list(FORMATS))
    parser.add_argument(
        '--out', metavar='FILE', help="(default: the config's name with .onnx, .xml or .pt2)"
    )
    parser.add_argument(
        '--end-to-end', action='store_true',
        help='from uint8 RGB images (N, H, W, 3) to uint8 labels (N, H, W); otherwise from '
        'normalised float images (N, 3, H, W) to logits',
    )  # fmt: skip
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32', help='(%(default)s)')
    parser.add_argument(
        '--calibrate', metavar='FOLDER', help='images for int8; some hundred of the training data'
    )
    parser.add_argument(
        '--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'),
        help='of the example image; the file takes any (512 512)',
    )  # fmt: skip
    parser.add_argument(
        '--verify', nargs='?', const='val', choices=['val', 'test'],
        help="mIoU of model and file on the config's data (val)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """Export; exit code 2 and one line where the input is at fault."""
    from ssnet_mm.deploy.check import verify
    from ssnet_mm.deploy.export import export
    from ssnet_mm.deploy.model import load_model
    from ssnet_mm.deploy.predict import find_images

    cfg = load_config(args)
    out = args.out or Path(args.config).stem + FORMATS[args.format].suffix
    calibration = find_images(args.calibrate) if args.calibrate else None
    if min(args.size) < 1:
        raise UserError(f'--size must be positive, got {args.size}')
    model = load_model(cfg, args.checkpoint, 'cpu')
    report = export(
        model, out, args.format, precision=args.precision, end_to_end=args.end_to_end,
        size=tuple(args.size), calibration=calibration,
    )  # fmt: skip
    print(f'{out}: {report}')
    if args.verify:
        for name, scores in verify(model, out, args.verify).items():
            print(f'mIoU on {args.verify}, {name}: {scores["mIoU"]:.2f}%')
