"""What a command prints to, when its reader may leave and its encoding may lack a character."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ssnet_mm.errors import Stopped


class _Output(io.FileIO):
    """A stream of this process; after its reader has left, or its disk is full, it goes nowhere.

    A full disk is told.
    """

    lasting = False  # whether a command goes on then, or ends as signal 13 would end it

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                self._tell(error)
            if _Output.lasting:
                return len(data)
            raise Stopped('', 128 + signal.SIGPIPE) from None

    def _tell(self, error: OSError) -> None:
        told = f"what is printed can't be written: {error.strerror}"
        if not _Output.lasting:
            # what libraries log would be lost without a word if it were an Exception
            raise Stopped(f'error: {told}; print it elsewhere', 2) from None
        if self.fileno() != 2:
            print(f'WARNING: {told}; this goes on without it', file=sys.stderr)


def go_on_unread(lasting: bool) -> None:
    """Have the command go on when nobody reads what it prints, or end."""
    _Output.lasting = lasting


@contextmanager
def output() -> Iterator[None]:
    """Print through streams that take any name and notice when their reader leaves."""
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        if getattr(sys, name) is None:  # closed: else a file would get its number, and its output
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    streams = {name: getattr(sys, name) for name in ('stdout', 'stderr')}
    for name, stream in streams.items():
        # not what a notebook or a test has put there
        if os.name == 'posix' and stream is getattr(sys, f'__{name}__'):
            stream.flush()
            setattr(sys, name, _opened(stream))
    try:
        try:
            yield
        except SystemExit:  # how commands end, too
            _flush()
            raise
        _flush()
    finally:
        with suppress(Stopped):  # of a command that has ended already
            _flush()
        for name, stream in streams.items():
            setattr(sys, name, stream)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _opened(stream: Any) -> TextIO:
    raw = _Output(stream.fileno(), 'w', closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        'backslashreplace',
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
