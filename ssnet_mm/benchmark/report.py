"""Benchmark results as tables and as a bar chart."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first is set left."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ['-' * widths[0], *['-' * (width - 1) + ':' for width in widths[1:]]]
    aligned = [
        [line[0].ljust(widths[0]), *[c.rjust(w) for c, w in zip(line[1:], widths[1:])]]
        for line in lines
    ]
    aligned.insert(1, rule)
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in aligned)


def short(number: float | None, scale: float = 1.0) -> str:
    """Three figures, or all before the point; a dash for None."""
    if number is None:
        return '-'
    number /= scale
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f'{number:,.{digits}f}'


def table(results: Sequence[Result]) -> str:
    """A Markdown table of what ``benchmark.run`` returns; failed rows follow with their reasons."""
    training = any(result['backend'] == 'train' for result in results)
    end_to_end = any(result['end_to_end_ms'] for result in results)
    head = ['config', 'backend', 'precision', 'params M', 'MACs G', 'ms median', 'ms p95']
    head += ['end to end ms'] * end_to_end + ['images/s', 'ratio']
    head += ['held MiB/image'] * training + ['peak MiB']
    rows, failures = [], []
    for result in results:
        latency = result['latency_ms'] or {}
        row = [Path(result['config']).stem, result['backend'], result['precision']]
        row += [short(result['params'], 1e6), short(result['macs'], 1e9)]
        row += [short(latency.get('median')), short(latency.get('p95'))]
        if end_to_end:
            row.append(short((result['end_to_end_ms'] or {}).get('median')))
        ratio = result['ratio']
        row += [short(result['images_per_s']), '-' if ratio is None else f'{ratio:.3f}']
        row += [short(result['held_mib'])] * training + [short(result['peak_mib'])]
        if result['error']:
            row[5] = 'failed'
            failures.append(f'failed: {", ".join(row[:3])}: {result["error"]}')
        rows.append(row)
    return '\n'.join([markdown(head, rows), *failures])


def layer_table(result: Result) -> str:
    """A Markdown table of one network's layers, as ``benchmark.run_layers`` returns them."""
    total = sum(layer['ms'] for layer in result['layers'])
    head = ['layer', 'MACs M', 'ms', '% of time', 'GFLOP/s', '% of peak', 'limit ms', 'bound by']
    rows = [
        [
            layer['name'],
            short(layer['macs'], 1e6),
            short(layer['ms']),
            f'{100 * layer["ms"] / total:.1f}',
            short(layer['gflops']),
            f'{100 * layer["peak_share"]:.0f}',
            short(layer['limit_ms']),
            layer['bound'] or '-',
        ]
        for layer in result['layers']
    ]
    limit = sum(layer['limit_ms'] or 0 for layer in result['layers'])
    macs = sum(layer['macs'] for layer in result['layers'])
    speed = 2e-6 * macs / total
    share = f'{100 * speed / result["peak_gflops"]:.0f}'
    rows.append(['total', short(macs, 1e6), short(total), '100.0', short(speed), share])
    rows[-1] += [short(limit), '-']
    title = (
        f'{Path(result["config"]).stem}, {result["backend"]}: the machine does '
        f'{short(result["peak_gflops"])} GFLOP/s in a matrix product and moves '
        f'{short(result["bandwidth_gb_s"])} GB/s'
    )
    return f'{title}\n\n{markdown(head, rows)}'


def chart(results: Sequence[Result], title: str) -> bytes:
    """A PNG of two bar charts side by side: latency (a whisker up to p95) and peak memory.

    Rows that failed say so in place of a bar.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import (
        Figure,
    )  # not pyplot, which has a global state and may open windows

    labels = [f'{Path(r["config"]).stem}\n{r["backend"]}, {r["precision"]}' for r in results]
    figure = Figure(figsize=(11, 1.4 + 0.5 * len(results)), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    configs = list(dict.fromkeys(result['config'] for result in results))
    colours = [f'C{configs.index(result["config"]) % 10}' for result in results]
    places = list(range(len(results)))

    medians = [(r['latency_ms'] or {}).get('median', 0.0) for r in results]
    tails = [(r['latency_ms'] or {}).get('p95', 0.0) - m for r, m in zip(results, medians)]
    left.barh(places, medians, color=colours, xerr=([0.0] * len(tails), tails), ecolor='0.3')
    for place, result, median, tail in zip(places, results, medians, tails):
        ratio = '' if result['ratio'] is None else f'  ({result["ratio"]:.2f}x)'
        text = ' failed' if result['error'] else f'  {short(median)}{ratio}'
        left.text(median + tail, place, text, va='center', fontsize=9)
    training = any(result['backend'] == 'train' for result in results)
    what = 'a training step' if training else 'the network alone'
    left.set_xlabel(f'ms for {what}, batch {results[0]["batch"]}: median, whisker to p95')
    left.set_yticks(places, labels, fontsize=9)
    left.invert_yaxis()

    peaks = [result['peak_mib'] or 0.0 for result in results]
    right.barh(places, peaks, color=colours)
    for place, result in zip(places, results):
        peak = result['peak_mib']
        right.text(peak or 0.0, place, f'  {short(peak)}', va='center', fontsize=9)
    right.set_xlabel('peak memory, MiB')
    for axes, longest in ((left, max(map(sum, zip(medians, tails)))), (right, max(peaks))):
        axes.set_xlim(0, longest * 1.3 or 1)  # room for the numbers
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format='png')
    return png.getvalue()
