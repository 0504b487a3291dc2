"""Export a checkpoint to one file for ONNX Runtime, OpenVINO, torch.export or a browser."""

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
    parser.add_argument('--format', required=True, choices=[*FORMATS, 'html'])
    parser.add_argument(
        '--out', metavar='FILE', help="(default: the config's name with .onnx, .xml, .pt2 or .html)"
    )
    parser.add_argument(
        '--end-to-end', action='store_true',
        help='from uint8 RGB images (N, H, W, 3) to uint8 labels (N, H, W); otherwise from '
        'normalised float images (N, 3, H, W) to logits',
    )  # fmt: skip
    parser.add_argument(
        '--scores', action='store_true',
        help="with --end-to-end: after the labels also each pixel's probability, float32 (N, H, W)",
    )  # fmt: skip
    parser.add_argument(
        '--calibrate-confidence', nargs='?', const='val', choices=['val', 'test'],
        help="fit the temperature of these probabilities on the config's data (val)",
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
    parser.add_argument(
        '--tolerance', type=float, metavar='POINTS', help='of this mIoU that the file may lose'
    )
    parser.add_argument(
        '--onnxruntime-web', metavar='FILE',
        help="for html: what 'npm pack' downloads (default: npm is asked for it, once)",
    )  # fmt: skip


def main(args: argparse.Namespace) -> None:
    """Export; exit code 2 and one line where the input is at fault."""
    from ssnet_mm.deploy import page
    from ssnet_mm.deploy.confidence import calibrate
    from ssnet_mm.deploy.export import export
    from ssnet_mm.deploy.model import load_model
    from ssnet_mm.deploy.predict import find_images

    cfg = load_config(args)
    suffix = page.SUFFIX if args.format == 'html' else FORMATS[args.format].suffix
    out = args.out or Path(args.config).stem + suffix
    calibration = find_images(args.calibrate) if args.calibrate else None
    if min(args.size) < 1:
        raise UserError(f'--size must be positive, got {args.size}')
    _refuse_unused(args)
    model = load_model(cfg, args.checkpoint, 'cpu')
    calibrated = None
    if args.calibrate_confidence:
        calibrated = calibrate(model, args.calibrate_confidence)
        print(f'confidence on {args.calibrate_confidence}: {calibrated}')
    common = dict(
        precision=args.precision, size=tuple(args.size), verify_on=args.verify,
        tolerance=args.tolerance,
    )  # fmt: skip
    if args.format == 'html':
        report = page.export_page(model, out, onnxruntime_web=args.onnxruntime_web, **common)
    else:
        report = export(
            model, out, args.format, end_to_end=args.end_to_end, scores=args.scores,
            calibration=calibration, calibrated=calibrated, **common,
        )  # fmt: skip
    print(f'{out}: {report}')
    for name, score in report.verified.items():
        print(f'mIoU on {args.verify}, {name}: {score:.2f}%')


def _refuse_unused(args: argparse.Namespace) -> None:
    """UserError for options that would do nothing."""
    page_only = {'--onnxruntime-web': args.onnxruntime_web}
    not_page = {
        '--end-to-end': args.end_to_end,
        '--scores': args.scores,
        '--calibrate': args.calibrate,
        '--calibrate-confidence': args.calibrate_confidence,
    }
    for option, given in (not_page if args.format == 'html' else page_only).items():
        if given:
            raise UserError(f'{option} has no use with --format {args.format}; leave it out')
