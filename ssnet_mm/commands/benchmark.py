"""Compare segmentors side by side: parameters, multiply-adds, latency, images a second, memory.

Takes any mmseg config, ours or others, on synthetic images: no data and no checkpoint needed, and
nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

from ssnet_mm.benchmark.rows import PRECISIONS, RUNTIMES, Settings, plan
from ssnet_mm.commands.arguments import check_png
from ssnet_mm.errors import UserError
from ssnet_mm.files import write_result

EPILOG = """
configs of mmseg: mmseg::FOLDER/NAME.py names one that mmseg brings along; they lie under
  $(python -c "import mmseg; print(mmseg.__path__[0])")/.mim/configs
example: ssnet_mm benchmark fcn8_voc fastfcn8_voc \\
  mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py --num-classes 21 \\
  --backends torch fused --chart speed.png
On a CPU the backend torch runs as any script of mmseg does. The others keep the memory that they
free, as predict does, and training steps are those of train: memory kept, channels last. With
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment all rows keep it.
All rows are in memory at the same time. Exit code: 0 all rows were measured, 1 some failed, 2 the
input is at fault.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='config file, name of one of ours, or mmseg::FOLDER/NAME.py',
    )
    add('--checkpoint', nargs='+', default=[], metavar='FILE', help='weights, one file a config')
    add('--backends', nargs='+', choices=RUNTIMES, metavar='NAME',
        help=f'of {", ".join(RUNTIMES)} (default: torch)')  # fmt: skip
    add('--precision', nargs='+', choices=PRECISIONS, metavar='NAME',
        help=f'of {", ".join(PRECISIONS)} (default: fp32); with --train mixed precision, as '
        'train --amp-dtype')  # fmt: skip
    add('--shape', nargs=2, type=int, default=(512, 512), metavar=('H', 'W'), help='(512 512)')
    add('--batch', type=int, default=1, metavar='N', help='images a pass (1)')
    add('--num-classes', type=int, metavar='N', help="in all heads (the configs' own)")
    add('--threads', type=int, metavar='N', help="CPU threads of every backend (torch's)")
    add('--device', default='cpu', help='cpu or cuda:0 (cpu)')
    add('--rounds', type=int, default=20, metavar='N', help='timed passes of each row (20)')
    add(
        '--end-to-end',
        action='store_true',
        help='time the way from a JPEG file to its label map too',
    )
    add('--train', action='store_true', help='time a training step, with what it holds in memory')
    add('--layers', action='store_true', help='where the time goes, layer by layer')
    add('--json', metavar='FILE', help='write the results as a list of rows')
    add('--chart', metavar='FILE.png', help='draw latency and memory')


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together."""
    if args.train and (args.backends or args.end_to_end or args.layers):
        raise UserError('--train goes without --backends, --end-to-end and --layers')
    if args.train and 'int8' in (args.precision or ()):
        raise UserError('--train takes --precision fp32, fp16 and bf16')
    if args.layers and args.chart:
        raise UserError('--layers draws no chart')
    if args.layers and args.end_to_end:
        raise UserError('--layers times the network alone; leave --end-to-end out')
    if args.chart:
        check_png(args.chart)


def main(args: argparse.Namespace) -> None:
    """Measure and report; exit code 2 and one line where the input is at fault."""
    import torch

    from ssnet_mm.benchmark import compare, report

    settings = Settings(
        shape=tuple(args.shape),
        batch=args.batch,
        threads=torch.get_num_threads() if args.threads is None else args.threads,
        device=args.device,
        rounds=args.rounds,
        end_to_end=args.end_to_end,
        num_classes=args.num_classes,
    )
    rows = plan(
        args.configs,
        args.backends or ['torch'],
        args.precision or ['fp32'],
        args.checkpoint,
        args.train,
    )
    header = compare.describe_run(rows, settings)
    print(f'{header}\n', flush=True)
    say = partial(print, file=sys.stderr, flush=True)  # progress, apart from the results
    results: Any
    if args.layers:
        results = compare.run_layers(rows, settings, say)
        text = '\n\n'.join(map(report.layer_table, results))
    else:
        results = compare.run(rows, settings, say)
        text = report.table(results)
    print(f'{text}\n')
    if args.json:
        write_result(
            args.json, json.dumps([r.to_dict() for r in results], indent=2).encode() + b'\n'
        )
    if args.chart:
        write_result(args.chart, report.chart(results, header))
    if any(getattr(result, 'error', None) for result in results):
        sys.exit(1)
