"""Benchmark results as tables and as a bar chart."""

from __future__ import annotations

import io
from collections.abc import Sequence

from .layers import REST, LayerTimes
from .rows import Result, milliseconds


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
    """A Markdown table of what ``compare.run`` returns; failed rows follow with their reasons."""
    training = any(result.row.training for result in results)
    end_to_end = any(result.end_to_end for result in results)
    head = ['config', 'backend', 'precision', 'params M', 'MACs G', 'ms median', 'ms p95']
    head += ['end to end ms'] * end_to_end + ['images/s', 'ratio']
    head += ['held MiB/image'] * training + ['peak MiB']
    rows, failures = [], []
    for result in results:
        latency = milliseconds(result.network) or {}
        row = [result.row.name, result.row.runtime, result.row.precision]
        row += [short(result.params, 1e6), short(result.macs, 1e9)]
        row += [short(latency.get('median')), short(latency.get('p95'))]
        if end_to_end:
            row.append(short((milliseconds(result.end_to_end) or {}).get('median')))
        row.append(short(result.images_per_s))
        row.append('-' if result.ratio is None else f'{result.ratio:.3f}')
        row += [short(result.held_mib)] * training + [short(result.peak_mib)]
        if result.error:
            row[5] = 'failed'
            failures.append(f'failed: {result.row.label}: {result.error}')
        rows.append(row)
    return '\n'.join([markdown(head, rows), *failures])


def layer_table(times: LayerTimes) -> str:
    """A Markdown table of one network's layers."""
    machine, costs = times.machine, times.costs
    counted = [cost for cost in costs if cost.name != REST]
    total = sum(cost.seconds for cost in costs)
    head = ['layer', 'MACs M', 'ms', '% of time', 'GFLOP/s', '% of peak', 'limit ms', 'bound by']

    def row(name: str, macs: int, seconds: float, limit: float | None, bound: str) -> list[str]:
        flops = 2 * macs / seconds if seconds else 0.0
        return [
            name,
            short(macs, 1e6),
            short(seconds, 1e-3),
            f'{100 * seconds / total:.1f}',
            short(flops, 1e9),
            f'{100 * flops / machine.flops:.0f}',
            short(limit, 1e-3),
            bound,
        ]

    rows = [
        row(cost.name, cost.macs, cost.seconds, cost.limit(machine), cost.bound(machine))
        if cost in counted
        else row(cost.name, cost.macs, cost.seconds, None, '-')
        for cost in costs
    ]
    limit = sum(cost.limit(machine) for cost in counted)
    rows.append(row('total', sum(cost.macs for cost in costs), total, limit, '-'))
    title = (
        f'{times.row.name}, {times.row.runtime}: the machine does {short(machine.flops, 1e9)} '
        f'GFLOP/s in a matrix product and moves {short(machine.bandwidth, 1e9)} GB/s'
    )
    return f'{title}\n\n{markdown(head, rows)}'


def chart(results: Sequence[Result], title: str) -> bytes:
    """A PNG of two bar charts side by side: latency (a whisker up to p95) and peak memory.

    Rows that failed say so in place of a bar.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, whose state is global, with windows perhaps

    labels = [f'{r.row.name}\n{r.row.runtime}, {r.row.precision}' for r in results]
    figure = Figure(figsize=(11, 1.4 + 0.5 * len(results)), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    configs = list(dict.fromkeys(result.row.config for result in results))
    colours = [f'C{configs.index(result.row.config) % 10}' for result in results]
    places = list(range(len(results)))

    times = [milliseconds(r.network) or {'median': 0.0, 'p95': 0.0} for r in results]
    medians = [t['median'] for t in times]
    tails = [t['p95'] - t['median'] for t in times]
    left.barh(places, medians, color=colours, xerr=([0.0] * len(tails), tails), ecolor='0.3')
    for place, result, t in zip(places, results, times):
        ratio = '' if result.ratio is None else f'  ({result.ratio:.2f}x)'
        text = ' failed' if result.error else f'  {short(t["median"])}{ratio}'
        left.text(t['p95'], place, text, va='center', fontsize=9)
    what = 'a training step' if results[0].row.training else 'the network alone'
    batch = results[0].settings.batch
    left.set_xlabel(f'ms for {what}, batch {batch}: median, whisker to p95')
    left.set_yticks(places, labels, fontsize=9)
    left.invert_yaxis()

    peaks = [result.peak_mib or 0.0 for result in results]
    right.barh(places, peaks, color=colours)
    for place, result in zip(places, results):
        right.text(
            result.peak_mib or 0.0, place, f'  {short(result.peak_mib)}', va='center', fontsize=9
        )
    right.set_xlabel('peak memory, MiB')
    for axes, longest in ((left, max(t['p95'] for t in times)), (right, max(peaks))):
        axes.set_xlim(0, longest * 1.3 or 1)  # room for the numbers
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format='png')
    return png.getvalue()
