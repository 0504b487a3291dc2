"""How far the work has come, and what else is said on standard error."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

_INTERVAL = 0.1  # seconds between two states of the line


class Progress:
    """One line that says how many are done and how long the others will take.

    Args:
        total: How many there are; 0 where nobody knows.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.start = self.shown = time.monotonic()
        self.width = 0

    def __enter__(self) -> Progress:
        return self

    def step(self) -> None:
        self.done += 1
        if time.monotonic() - self.shown >= _INTERVAL:
            self._show('\r')

    def __exit__(self, *_: object) -> None:
        if self.done:
            self._show('\n')

    def _show(self, end: str) -> None:
        self.shown = time.monotonic()
        elapsed = self.shown - self.start
        line = f'[{self.done}/{self.total or "?"}] elapsed: {_clock(elapsed)}'
        if self.done < self.total:
            line += f', ETA: {_clock(elapsed / self.done * (self.total - self.done))}'
        self.width = max(self.width, len(line))  # what was longer is overwritten
        print(line.ljust(self.width), end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def say(text: str) -> None:
    """Tell the user something, on standard error: results alone are on standard output."""
    print(text, file=sys.stderr)
