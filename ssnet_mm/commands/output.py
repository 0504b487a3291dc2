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
    """A stream of this process; what is printed after its reader has left goes nowhere."""

    lasting = False  # whether a command goes on then, or ends as signal 13 would end it

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if _Output.lasting:
                return len(data)
            raise Stopped('', 128 + signal.SIGPIPE) from None


def go_on_unread(lasting: bool) -> None:
    """Have the command go on when nobody reads what it prints, or end."""
    _Output.lasting = lasting


@contextmanager
def output() -> Iterator[None]:
    """Print through streams that take any name and notice when their reader leaves."""
    streams = {name: getattr(sys, name) for name in ('stdout', 'stderr')}
    for name, stream in streams.items():
        # not what a notebook or a test has put there
        if os.name == 'posix' and stream is not None and stream is getattr(sys, f'__{name}__'):
            stream.flush()
            setattr(sys, name, _opened(stream))
    try:
        yield
        _flush()
    finally:
        with suppress(Stopped):  # of a command that has ended already
            _flush()
        for name, stream in streams.items():
            setattr(sys, name, stream)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed from the start
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
