"""Tells what is unpickled in this process, by whom ever."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_seen: list[str] | None = None


def _hook(event: str, args: tuple) -> None:
    if _seen is not None and event in ('pickle.find_class', 'os.system'):
        _seen.append(f'{event} {args}'[:200])


sys.addaudithook(_hook)  # never removed: hooks can't be


@contextmanager
def tripwire() -> Iterator[list[str]]:
    """A list that fills with the classes and functions that pickles ask for, and with commands."""
    global _seen
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None
