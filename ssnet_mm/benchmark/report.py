"""Benchmark results as tables and as a bar chart."""

from __future__ import annotations

import io
from collections.abc import Sequence

from .layers import LayerCost, LayerTimes
from .rows import Result, milliseconds


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first is set left."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    cells = [f'{{:{">" if i else "<"}{width}}}' for i, width in enumerate(widths)]
    line = f'| {" | ".join(cells)} |'
    rule = ['-' * widths[0], *['-' * (width - 1) + ':' for width in widths[1:]]]
    return '\n'.join(line.format(*row) for row in (head, rule, *rows))


def short(number: float | None, scale: float = 1.0) -> str:
    """Three figures, or all before the point; a dash for None."""
    if number is None:
        return '-'
    number /= scale
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f'{number:,.{digits}f}'


def table(results: Sequence[Result]) -> str:
    """A Markdown table of what ``compare.run`` returns; failed rows follow with their reasons."""
    rows, failures = [], []
    for result in results:
        latency = milliseconds(result.network) or {}
        rows.append(
            {
                'config': result.row.name,
                'backend': result.row.runtime,
                'precision': result.row.precision,
                'params M': short(result.params, 1e6),
                'MACs G': short(result.macs, 1e9),
                'ms median': 'failed' if result.error else short(latency.get('median')),
                'ms p95': short(latency.get('p95')),
                'end to end ms': short((milliseconds(result.end_to_end) or {}).get('median')),
                'images/s': short(result.images_per_s),
                'ratio': '-' if result.ratio is None else f'{result.ratio:.3f}',
                'limit ms': short(result.limit, 1e-3),
                'of limit': '-'
                if not result.limit or not result.network
                else f'{latency["median"] / result.limit / 1e3:.1f}',
                'held MiB/image': short(result.held_mib),
                'peak MiB': short(result.peak_mib),
            }
        )
        if result.error:
            failures.append(f'failed: {result.row.label}: {result.error}')
    optional = ('end to end ms', 'limit ms', 'of limit', 'held MiB/image')
    head = [n for n in rows[0] if n not in optional or any(row[n] != '-' for row in rows)]
    return '\n'.join([markdown(head, [[row[name] for name in head] for row in rows]), *failures])


def layer_table(times: LayerTimes) -> str:
    """A Markdown table of one network's layers."""
    machine, costs = times.machine, times.costs
    layers = [cost.to_dict(machine) for cost in costs]
    total = LayerCost('total', sum(c.seconds for c in costs), sum(c.macs for c in costs), 0)
    limit = sum(layer['limit_ms'] or 0.0 for layer in layers)
    layers.append({**total.to_dict(machine), 'limit_ms': limit, 'bound': None})
    head = ['layer', 'MACs M', 'ms', '% of time', 'GFLOP/s', '% of peak', 'limit ms', 'bound by']
    rows = [
        [
            layer['name'],
            short(layer['macs'], 1e6),
            short(layer['ms']),
            f'{100 * layer["ms"] / layers[-1]["ms"]:.1f}',
            short(layer['gflops']),
            f'{100 * layer["peak_share"]:.0f}',
            short(layer['limit_ms']),
            layer['bound'] or '-',
        ]
        for layer in layers
    ]
    title = (
        f'{times.row.label}: the machine does {short(machine.flops, 1e9)} GFLOP/s in a '
        f'matrix product or convolution and moves {short(machine.bandwidth, 1e9)} GB/s'
    )
    return f'{title}\n\n{markdown(head, rows)}'


def chart(results: Sequence[Result], title: str) -> bytes:
    """A PNG of two bar charts side by side: latency (a whisker up to p95) and peak memory.

    Rows that failed say so in place of a bar.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, whose state is global, with windows perhaps

    figure = Figure(figsize=(11, 1.4 + 0.5 * len(results)), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    configs = list(dict.fromkeys(result.row.config for result in results))
    colours = [f'C{configs.index(result.row.config) % 10}' for result in results]
    places = range(len(results))

    times = [milliseconds(r.network) or {'median': 0.0, 'p95': 0.0} for r in results]
    medians = [t['median'] for t in times]
    whiskers = ([0.0] * len(times), [t['p95'] - t['median'] for t in times])
    texts = [
        ' failed' if result.error else f'  {short(median)}'
        + ('' if result.ratio is None else f'  ({result.ratio:.2f}x)')
        for result, median in zip(results, medians)
    ]  # fmt: skip
    bars = left.barh(places, medians, color=colours, xerr=whiskers, ecolor='0.3')
    left.bar_label(bars, texts, fontsize=9)
    what = 'a training step' if results[0].row.training else 'the network alone'
    batch = results[0].settings.batch
    left.set_xlabel(f'ms for {what}, batch {batch}: median, whisker to p95')
    labels = [f'{r.row.name}\n{r.row.runtime}, {r.row.precision}' for r in results]
    left.set_yticks(places, labels, fontsize=9)
    left.invert_yaxis()

    bars = right.barh(places, [result.peak_mib or 0.0 for result in results], color=colours)
    right.bar_label(bars, [f'  {short(result.peak_mib)}' for result in results], fontsize=9)
    right.set_xlabel('peak memory, MiB')
    for axes in (left, right):
        axes.set_xlim(0, axes.dataLim.x1 * 1.3 or 1)  # room for the numbers
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=9)
    png = io.BytesIO()
    figure.savefig(png, format='png')
    return png.getvalue()
