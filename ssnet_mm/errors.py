"""The errors a user can cause, and how tools report them: one line, exit code 2, no traceback."""

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec('P')
R = TypeVar('R')


_HEAD, _TAIL = 400, 180  # characters of a long message that are kept: what and where, how to mend


class UserError(Exception):
    """Something the user can mend; its message is one line: what, where, how to mend.

    A message may quote what stands in a file, of any length: the middle of a long one is left out.
    """

    def __init__(self, message: object = '') -> None:
        text = str(message)
        if len(text) > _HEAD + _TAIL + 20:
            text = f'{text[:_HEAD]} [...] {text[-_TAIL:]}'
        super().__init__(text)


class Stopped(BaseException):
    """A tool was told to end by a signal, and did so well.

    Args:
        message: One line; empty where another process says it.
        code: Exit code: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def few(names: Iterable[str]) -> str:
    """The first three names, for a message that stays one readable line."""
    names = list(names)
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def first_line(error: BaseException) -> str:
    """An exception as one line: libraries may append a whole graph."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with which names, for a message; empty where nothing is."""
    return '; '.join(
        f'{len(names)} {what}: {few(names)}' for what, names in problems.items() if names
    )


def require(module: str, package: str, purpose: str) -> Any:
    """Import a module of a package that only some tasks need, or raise a UserError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # the reason too: a package may be there and broken
        raise UserError(
            f'{purpose} needs {package}; run: pip install {package} ({error})'
        ) from error


def exit_on_user_error(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a tool's main(): a UserError becomes ``<prog>: error: <message>`` and exit code 2.

    What the system refuses, to read or write a place, becomes a UserError; ``Stopped`` becomes its
    line and its code, and Ctrl-C one line and 130. Any other exception is a defect, and keeps its
    traceback. With ``SSNET_MM_TRACEBACK=1`` in the environment a UserError does, too.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _refusals():
                return main(*args, **kwargs)
        except UserError as error:
            if os.environ.get('SSNET_MM_TRACEBACK') == '1':
                raise
            message = ' '.join(str(error).split())  # foreign messages may span lines
            print(f'{os.path.basename(sys.argv[0])}: error: {message}', file=sys.stderr)
            sys.exit(2)
        except Stopped as stop:
            if str(stop):
                print(f'{os.path.basename(sys.argv[0])}: {stop}', file=sys.stderr)
            sys.exit(stop.code)
        except KeyboardInterrupt:
            print(f'{os.path.basename(sys.argv[0])}: interrupted', file=sys.stderr)
            sys.exit(130)

    return wrapper


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the system refuses into a UserError: folders vanish and lock, disks fill.

    What is told of best, where it is met, is told there. Between processes an error is a defect,
    and what libraries raise for other reasons has no number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        place = '' if error.filename is None else f'{error.filename}: '
        raise UserError(
            f'{place}{error.strerror}; see that it is there, may be used, and has space'
        ) from error


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Let a logger of another library say errors only."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
