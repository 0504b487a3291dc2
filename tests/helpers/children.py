"""A function in a process of its own, which may fail in any way."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a child ended."""

    code: int  # its exit code; negative: the signal that ended it
    output: str
    seconds: float
    peak_mib: float  # of memory, with what it shares with its parent

    @property
    def last(self) -> str:
        return (self.output.strip().splitlines() or [''])[-1]


def run_child(function: Callable[[], object], log: Path, limit: int = 120) -> Outcome:
    """Fork, call a function, and wait; a UserError or exit code of the function is the child's."""
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    child = os.fork()
    if not child:
        code = 70
        try:
            signal.alarm(limit)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
            function()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        log.read_text(errors='replace'),
        time.monotonic() - start,
        usage.ru_maxrss / 1024,
    )
