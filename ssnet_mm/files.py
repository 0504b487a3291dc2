"""Files that are either whole or not there."""

import hashlib
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from ssnet_mm.errors import UserError

MAX_NAME = 255  # bytes that file systems allow a name
_TEMPORARY = re.compile(r'(?P<start>\..+\.)(?P<process>\d{1,9})(?P<end>\.tmp(\..*)?)')


def temporary_name(path: Path) -> Path:
    """A name beside a file, to write under before the file takes its own.

    What killed processes left under such names of this file is removed.
    Not from `tempfile`: its files are readable by their owner only, checkpoints are often shared.
    """
    stem = path.stem
    if len(os.fsencode(path.name)) > MAX_NAME - 32:
        stem = hashlib.sha256(os.fsencode(path.name)).hexdigest()
    start, end = f'.{stem}.', f'.tmp{path.suffix[:16]}'
    for left in _left_in(os.path.abspath(path.parent)).pop((start, end), ()):
        with suppress(OSError):  # of another user
            os.unlink(left) if os.path.islink(left) or os.path.isfile(left) else shutil.rmtree(left)
    return path.with_name(f'{start}{os.getpid()}{end}')


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside what is to be written there first; it is removed in the end.

    Args:
        path: What will be written. UserError where it can't be.
    """
    folder = temporary_name(path.with_suffix(''))
    with writing(path):
        shutil.rmtree(folder, ignore_errors=True)  # of a killed process of this number
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=64)  # a folder of many results is listed once
def _left_in(folder: str) -> dict[tuple[str, str], list[str]]:
    """What processes that are gone left unfinished, by what the names begin and end with."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and not _runs(int(match['process'])):
                found[match['start'], match['end']].append(entry.path)
    return found


def _runs(process: int) -> bool:
    """Whether there may be such a process."""
    if os.name != 'posix':  # there a signal of 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, with a UserError where that can't be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"can't make the folder {os.fspath(path)}: {error.strerror or error}; choose another "
            'place'
        ) from error


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that its name holds the old content or the new; make folders as needed.

    A link stays, and the file that it names is written. What is no file, a pipe or a device, stays
    too, and is written into.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, 'wb') as file:
            file.write(data)
        return
    given, path = path, Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or os.fspath(given)  # a full disk's names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)  # still there only if something went wrong


def write_result(path: str | os.PathLike[str], data: bytes) -> None:
    """``atomic_write``, with a UserError where the place can't be written."""
    with writing(path):
        atomic_write(path, data)


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the system's errors into a UserError that names what was to be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't write {os.fspath(path)}: {error.strerror or error}; choose another place"
        ) from error


def digest(path: str | os.PathLike[str]) -> str:
    """What tells the content of a file from any other: its SHA-256."""
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def named_file(path: str) -> str:
    """What a file of one name, as ``best`` and ``last_checkpoint`` in a work directory, names.

    Whatever folder its name has, a file beside it comes first: the folder may be a copy. Any other
    path is returned as it is.
    """
    name = name_in(path)
    beside = os.path.join(os.path.dirname(path), os.path.basename(name))
    return next((found for found in (beside, name) if name and os.path.isfile(found)), path)


def printable(name: str) -> str:
    """A name as text, where it may hold bytes that are none: ``caf\\udce9``."""
    return name.encode(errors='backslashreplace').decode()


def name_in(path: str) -> str:
    """The name that a small text file holds; empty if it is no such file."""
    try:
        if os.path.getsize(path) > 4096:
            return ''
        return Path(path).read_text(encoding='utf-8').strip()
    except (OSError, ValueError):  # not there, no text
        return ''


def list_folder(folder: Path, recursive: bool, closed: Set[str] = frozenset()) -> Iterator[Path]:
    """What a folder holds, sorted, each folder that counts replaced by what it holds.

    Args:
        folder: The folder.
        recursive: Whether folders in it count: not hidden ones, nor links back to a folder that
            they are in.
        closed: Real paths of folders that do not count; these stand for themselves.

    Raises:
        UserError: A folder can't be listed.
    """
    try:
        items = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"can't list {folder}: {error.strerror or error}; change its permissions or move it "
            'elsewhere'
        ) from error
    closed = closed | {os.path.realpath(folder)}  # a link back to it would go round
    for item in items:
        below = recursive and not item.name.startswith('.') and os.path.isdir(item)
        if below and os.path.realpath(item) not in closed:
            yield from list_folder(item, recursive, closed)
        else:
            yield item


def sweep_temporary(folder: str | os.PathLike[str]) -> None:
    """Remove what killed writers left in a folder in which nobody else is writing."""
    for path in Path(folder).glob('.*.tmp*'):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
