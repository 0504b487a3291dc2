"""Draw loss, validation loss, learning rate and mIoU of several trainings over each other.

A training that was stopped and resumed is one line.
"""

from __future__ import annotations

import argparse

from ssnet_mm.commands.arguments import check_png


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work directory or log')
    parser.add_argument(
        '--out', default='curves.png', metavar='FILE.png', help='picture to write (%(default)s)'
    )


def check_arguments(args: argparse.Namespace) -> None:
    check_png(args.out)


def main(args: argparse.Namespace) -> None:
    from ssnet_mm.files import write_result
    from ssnet_mm.results.charts import curves_chart
    from ssnet_mm.results.runs import read_run

    runs = [read_run(path) for path in args.runs]
    write_result(args.out, curves_chart(runs))
    for run in runs:
        # of equal ones the first, which is the checkpoint that was kept
        step, best = max(run.curves.get('mIoU', [(0, 0.0)]), key=lambda point: point[1])
        scored = f', best mIoU {best:.2f} at iteration {step}' if 'mIoU' in run.curves else ''
        last = max(curve[-1][0] for curve in run.curves.values())
        print(f'{run.name}: {last} iterations{scored}')
    print(f'curves: {args.out}')
