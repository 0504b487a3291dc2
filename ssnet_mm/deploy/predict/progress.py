"""How far the work has come."""

from __future__ import annotations

import sys
import time


class Progress:
    """One line of standard error that says how many images are done."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def step(self) -> None:
        self.done += 1
        line = f'[{self.done}/{self.total}] elapsed: {time.monotonic() - self.start:.0f}s'
        print(line, end='\r', file=sys.stderr, flush=True)

    def end(self) -> None:
        print(file=sys.stderr)


def say(text: str) -> None:
    """Tell the user something, on standard error: results alone are on standard output."""
    print(text, file=sys.stderr)
