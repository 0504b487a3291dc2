"""Segment images or a video with a checkpoint or an exported model.

CONFIG CHECKPOINT SOURCE runs a checkpoint, MODEL SOURCE an exported file (.onnx, .xml, .pt2) or
weights that name their config, as convert --config writes them.
SOURCE is an image, a folder of images, - (paths on standard input, one a line), a video, or a
camera's number. Images get a colour overlay, an index PNG and a row of areas.csv, videos and
cameras an overlay video.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ssnet_mm.commands import load_toolbox
from ssnet_mm.commands.arguments import add_options
from ssnet_mm.constants import WEIGHTS_SUFFIXES
from ssnet_mm.deploy import predict
from ssnet_mm.deploy.runtimes import format_of
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError
from ssnet_mm.files import named_file
from ssnet_mm.limits import MAX_PIXELS
from ssnet_mm.malloc import keep_freed_memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        'model',
        metavar='CONFIG|MODEL',
        help='config, exported model, or weights that name one of ours',
    )
    parser.add_argument(
        'checkpoint', nargs='?', type=named_file, help='for a config; every weight must fit'
    )
    parser.add_argument('source', metavar='SOURCE', help='image, folder, -, video or camera number')
    add_options(parser, help='override settings of the config')
    parser.add_argument(
        '--out-dir', required=True, metavar='DIR',
        help='gets overlay/<name>.png, index/<name>.png and areas.csv, or <name>.mp4',
    )  # fmt: skip
    parser.add_argument(
        '--recursive', action='store_true',
        help='a folder: with the folders below, which are kept in the output',
    )  # fmt: skip
    parser.add_argument('--device', help='cpu or cuda:0 (default: CUDA where there is some)')
    parser.add_argument('--threads', type=int, metavar='N', help='that the runtime may use')
    parser.add_argument(
        '--precision', choices=['fp32', 'bf16'],
        help="to compute in (default: a file's own; float32 for a config)",
    )  # fmt: skip
    parser.add_argument(
        '--max-pixels', type=int, metavar='N', help=f'skip images of more ({MAX_PIXELS})'
    )
    parser.add_argument(
        '--trust-model', action='store_true',
        help='run an exported model whatever is in it: a .pt2 may then run any code',
    )  # fmt: skip
    parser.add_argument('--no-fuse', action='store_true', help="run a config's model as it is")
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='of the colours, 0 to 1 (default: 0.5)'
    )
    parser.add_argument('--legend', action='store_true', help='names of the classes, below')
    parser.add_argument(
        '--transparent', nargs='+', default=[], metavar='CLASS',
        help='classes that are not painted, such as background',
    )  # fmt: skip
    parser.add_argument(
        '--confidence', action='store_true',
        help="images: each pixel's probability as well, confidence/<name>.png, and confidence.csv, "
        'which ranks the images by what to label next',
    )  # fmt: skip
    parser.add_argument(
        '--polygons', choices=predict.POLYGONS,
        help='images: for annotation tools, coco.json or labelme/<name>.json; neither the '
        'background nor transparent classes',
    )  # fmt: skip
    parser.add_argument(
        '--tolerance', type=float, metavar='PIXELS',
        help='that a polygon may be off, for fewer points to correct (1)',
    )  # fmt: skip
    parser.add_argument(
        '--min-area', type=int, metavar='N', help='no polygons for regions of fewer pixels (1)'
    )
    parser.add_argument(
        '--tile', type=int, metavar='N', help='large images in overlapping tiles of NxN pixels'
    )
    parser.add_argument('--overlap', type=int, metavar='N', help='of tiles (default: an eighth)')
    parser.add_argument(
        '--scale', type=float, nargs='+', metavar='S',
        help="instead of the test pipeline's Resize: a factor (1: as they are), or WIDTH HEIGHT",
    )  # fmt: skip
    parser.add_argument(
        '--batch-size', type=int, metavar='N', help='images of one size, or tiles, at once (1)'
    )
    parser.add_argument('--show', action='store_true', help='videos: in a window as well; q ends')
    parser.add_argument('--limit', type=int, metavar='N', help='videos: so many frames')


def _refuse_unused(args: argparse.Namespace) -> None:
    """UserError for options that would do nothing."""
    video = predict.is_video(args.source)
    exported = format_of(args.model) is not None
    for given, what, useless in (
        (args.cfg_options, '--cfg-options changes a config', exported),
        (args.no_fuse, '--no-fuse runs a config', exported),
        (args.show, '--show shows frames of a video', not video),
        (args.limit is not None, '--limit counts frames of a video', not video),
        (args.recursive, '--recursive searches a folder', not _is_folder(args.source)),
        (args.confidence, '--confidence ranks images', video),
        (args.polygons, '--polygons outlines images', video),
        (args.max_pixels is not None, '--max-pixels skips images', video),
        (args.batch_size is not None and not args.tile, '--batch-size runs images at once', video),
    ):
        if given and useless:
            source = args.model if exported and 'config' in what else args.source
            raise UserError(f'{what}, and {source} is none; leave it out')
    for name in _given(args, 'tolerance', 'min_area'):
        if not args.polygons:
            option = name.replace('_', '-')
            raise UserError(f'--{option} changes polygons; give --polygons too, or leave it out')


def _is_folder(source: str) -> bool:
    return source != '-' and os.path.isdir(source)


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options that were given: the others have their defaults where they are used."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def main(args: argparse.Namespace) -> None:
    """Predict; exit code 2 and one line where the input is at fault."""
    _refuse_unused(args)
    predict.check_output(args.out_dir, args.opacity)
    video = predict.is_video(args.source)
    images = []
    if not video:
        images = predict.find_images(args.source, recursive=args.recursive, leave_out=args.out_dir)
    model = args.model
    weights = args.checkpoint is None and Path(model).suffix in WEIGHTS_SUFFIXES
    if weights or (args.checkpoint is not None and format_of(model) is None):
        load_toolbox()
        from ssnet_mm.deploy.model import config_of
        from ssnet_mm.engine.config import load_config
        from ssnet_mm.engine.config.options import parse_options

        if weights:
            model, args.checkpoint = config_of(model), model
        model = load_config(model, parse_options(args.cfg_options))
    scale = args.scale and (args.scale[0] if len(args.scale) == 1 else tuple(args.scale))
    segment = Segmenter(
        model, args.checkpoint, device=args.device, threads=args.threads, fuse=not args.no_fuse,
        precision=args.precision, trust=args.trust_model, tile=args.tile, overlap=args.overlap,
        scale=scale, **_given(args, 'max_pixels', 'batch_size'),
    )  # fmt: skip
    if args.tile is None:  # large images come and go, and would be kept once by each thread
        keep_freed_memory()  # from here on every image takes the same again
    look = dict(legend=args.legend, transparent=args.transparent)
    if video:
        count, file = predict.predict_video(
            segment, args.source, args.out_dir, args.opacity, args.show, args.limit, **look
        )
        print(f'{count} frames segmented: {file}')
        return
    root = Path(args.source) if _is_folder(args.source) else None
    failures = predict.predict_images(
        segment, images, args.out_dir, args.opacity, args.confidence, root=root,
        polygons=args.polygons, **_given(args, 'tolerance', 'min_area'), **look,
    )  # fmt: skip
    if failures:
        for failure in failures if len(failures) > 3 else ():
            print(' '.join(failure.split()), file=sys.stderr)
        shown = '; '.join(failures) if len(failures) <= 3 else 'named above'
        raise UserError(f'{len(failures)} of {len(images)} images could not be segmented: {shown}')
    out = args.out_dir
    print(f'{len(images)} images segmented: {out}/overlay, {out}/index, {out}/areas.csv')
    if args.confidence:
        print(f'what to label next, first things first: {out}/confidence.csv')
    if args.polygons:
        print(f'for annotation tools: {out}/{args.polygons}{".json" * (args.polygons == "coco")}')
