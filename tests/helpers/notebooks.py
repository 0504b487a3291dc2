"""The notebooks of demo/, and what their cells call."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOKS = sorted((Path(__file__).parents[2] / 'demo').glob('*.ipynb'))


def source(cell: Any) -> str:
    """A cell's text, which files hold in lines."""
    text = cell['source']
    return text if isinstance(text, str) else ''.join(text)


def commands(cell: Any) -> Iterator[str]:
    """The commands of a shell that a cell runs, each in one line."""
    joined = source(cell).replace('\\\n', ' ')
    yield from re.findall(r'^!(.+)', joined, re.M)
