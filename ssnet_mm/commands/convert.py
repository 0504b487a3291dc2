"""Turn VGG16 or FCN weights of another origin into a checkpoint of ours."""

from __future__ import annotations

import argparse

from ssnet_mm.commands.arguments import add_options, load_config
from ssnet_mm.files import named_file

# the keys of SOURCES and INPUTS of ssnet_mm.weights, which takes seconds to import
SOURCES = (
    'timm',
    'torchvision',
    'mmpretrain',
    'keras',
    'keras_applications',
    'hed',
    'caffe',
    'ssnet_mm',
)
INPUTS = ('imagenet', 'caffe', 'ssnet', 'unit')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'file', metavar='FILE', type=named_file,
        help='file of weights, of any known format, or one that names it, as WORK_DIR/best',
    )  # fmt: skip
    parser.add_argument('dest', metavar='DEST', help='checkpoint to write: .pth or .safetensors')
    parser.add_argument(
        '--from',
        dest='source',
        default='auto',
        choices=['auto', *SOURCES],
        help='whose weights they are',
    )
    parser.add_argument(
        '--config',
        help='write the whole net of this config, which test loads; without it only what '
        'was converted is written',
    )
    add_options(parser, help='as in train')
    parser.add_argument(
        '--factorize',
        action='store_true',
        help='split dense convolutions into the closest separable ones (FastFCN8 from FCN8)',
    )
    parser.add_argument(
        '--skip',
        nargs='+',
        default=[],
        metavar='NAME',
        help='with --config: beginnings of parameter names that stay as the net is built, as '
        'backbone.fc6',
    )
    parser.add_argument(
        '--bn-batches',
        type=int,
        default=0,
        metavar='N',
        help='with --config: measure batch norm on N batches of its training images (no labels are '
        'read); layers from weights without batch norm, and factorised ones, are fitted to them',
    )
    parser.add_argument(
        '--num-classes',
        type=int,
        metavar='N',
        help='without --config: make the score layers anew for N classes',
    )
    parser.add_argument(
        '--bn-eps',
        type=float,
        metavar='E',
        help='without --config: epsilon of the batch norm that will take the weights (default: '
        "1e-3, our configs')",
    )
    parser.add_argument(
        '--input',
        choices=INPUTS,
        help="the images that the weights expect, where they are not the source's usual ones",
    )
    parser.add_argument(
        '--card',
        metavar='REPORT',
        help='with --config: write a model card beside DEST (.md), from the report.json that test '
        '--report wrote of FILE',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace DEST')


def main(args: argparse.Namespace) -> None:
    from ssnet_mm.weights.convert import convert_weights

    conversion = convert_weights(
        args.file,
        args.dest,
        args.source,
        cfg=load_config(args) if args.config else None,
        num_classes=args.num_classes,
        factorize=args.factorize,
        bn_eps=args.bn_eps,
        bn_batches=args.bn_batches,
        skip=args.skip,
        input=args.input,
        scores=args.card,
        overwrite=args.overwrite,
    )
    print(conversion.account())
    print(f'{args.dest}: written')
