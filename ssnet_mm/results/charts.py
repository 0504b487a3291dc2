"""Pictures of results, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssnet_mm.errors import require
from ssnet_mm.results.runs import CURVES, Run
from ssnet_mm.results.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 0.42  # inches: room for three digits
_SMALL_CELL = 0.16  # room for a name in small print
_MANY = 40  # classes; beyond, cells are small and hold no numbers
_STYLE = {'font.size': 9, 'text.parse_math': False}  # names may hold a dollar sign


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as the content of a PNG file."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format='png', dpi=dpi)
    return encoded.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, drawn without a window, whatever the machine has."""
    figures = require('matplotlib.figure', 'matplotlib', 'a picture of results')
    canvas = require('matplotlib.backends.backend_agg', 'matplotlib', 'a picture of results')
    # not from pyplot, whose state is global
    figure = figures.Figure((width, height), layout='constrained')
    canvas.FigureCanvasAgg(figure)
    return figure


def style() -> Any:
    """The settings of all pictures here, as a context."""
    matplotlib = require('matplotlib', 'matplotlib', 'a picture of results')
    return matplotlib.rc_context(_STYLE)


def confusion_chart(scores: Scores, title: str = '') -> bytes:
    """A PNG of the confusion matrix: of each class' pixels (a row), how many percent were taken
    for which class.

    Cells hold the percentage unless it rounds to 0, or there are more than 40 classes. The picture
    grows with the number of classes.
    """
    confusion = scores.confusion
    support = confusion.sum(1, keepdims=True)
    share = 100 * confusion / np.maximum(support, 1)
    rows, columns = confusion.shape
    cell = _CELL if rows <= _MANY else _SMALL_CELL
    small = None if rows <= _MANY else 60 * cell
    longest = max(map(len, scores.classes)) * 0.075
    with style():
        width, height = columns * cell + longest + 2.2, rows * cell + longest + 1.0
        figure = new_figure(max(width, 5.5), max(height, 3.5))
        axes = figure.add_subplot()
        # the square root: single percents can be told from none
        drawn = np.where(support > 0, np.sqrt(share / 100), np.nan)
        axes.set_facecolor('#dddddd')  # of classes without a pixel
        axes.imshow(drawn, cmap='Blues', vmin=0, vmax=1, aspect='equal')
        total = max(int(support.sum()), 1)
        names = [
            f'{name}  {100 * int(n) / total:.1f}%' for name, n in zip(scores.classes, support[:, 0])
        ]
        predicted = [*scores.classes, 'no class'][:columns]
        axes.set_yticks(range(rows), names, fontsize=small)
        axes.set_xticks(range(columns), predicted, rotation=90, fontsize=small)
        axes.tick_params(length=0)
        axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
        axes.grid(which='minor', color='white', linewidth=0.6)
        axes.tick_params(which='minor', length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel('predicted')
        axes.set_ylabel('truth, and its share of the pixels')
        axes.set_title(
            f'{title}\n% of the pixels of each class' if title else '', fontsize=9, wrap=True
        )
        for i, j in np.argwhere(np.round(share) > 0) if rows <= _MANY else ():
            colour = 'white' if drawn[i, j] > 0.6 else 'black'
            axes.text(j, i, f'{share[i, j]:.0f}', ha='center', va='center', color=colour,
                      fontsize=8)  # fmt: skip
        return png(figure)


def curves_chart(runs: Sequence[Run]) -> bytes:
    """A PNG of the curves of several runs over each other, a panel for each kind of curve."""
    titles = [name for name in CURVES if any(name in run.curves for run in runs)]
    labels = _labels([run.name for run in runs])
    with style():
        rows = (len(titles) + 1) // 2
        figure = new_figure(11, 3.4 * rows + 0.3 * (1 + len(runs) // 3))
        panels = figure.subplots(rows, min(2, len(titles)), squeeze=False)
        for axes in panels.flat[len(titles) :]:
            axes.set_visible(False)
        for axes, name in zip(panels.flat, titles):
            for i, run in enumerate(runs):
                curve = run.curves.get(name, [])
                mark = 'o' if len(curve) < 40 else None
                line = ('-', '--', ':', '-.')[i // 10 % 4]  # there are ten colours
                axes.plot(*(zip(*curve) if curve else ([], [])), line, color=f'C{i % 10}',
                          marker=mark, markersize=3)  # fmt: skip
            axes.set_title(name, fontsize=9)
            axes.set_xlabel('iteration')
            axes.locator_params(axis='x', integer=True)
            axes.grid(color='#dddddd', linewidth=0.6)
            axes.spines[['top', 'right']].set_visible(False)
            if 'loss' in name and min(v for r in runs for _, v in r.curves.get(name, [])) > 0:
                axes.set_yscale('log')
                axes.yaxis.set_major_formatter('{x:g}')  # without mathematics, as names are set
                axes.yaxis.set_minor_formatter('{x:g}')
        # not what the panel says of itself, which leaves names out that begin with _
        lines = panels.flat[0].lines
        figure.legend(lines, labels, loc='outside lower center', ncols=3, frameon=False)
        return png(figure)


def _labels(names: Sequence[str]) -> list[str]:
    """Names of runs, numbered where two have the same."""
    return [
        name if names.count(name) == 1 else f'{name} ({names[: i + 1].count(name)})'
        for i, name in enumerate(names)
    ]
