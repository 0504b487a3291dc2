"""Files of weights, read without running code and not before their size and sums are known."""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Any

import numpy as np
import torch
from mmengine.fileio.handlers import PickleHandler, file_handlers
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ssnet_mm.engine.checkpoint.meta import check_meta
from ssnet_mm.engine.checkpoint.pickles import RefusedError, check_pickle
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import name_in, named_file
from ssnet_mm.limits import check_size, parse_json, stored_members

# Files that this process has looked into, and those that it has read: name, time of change, size.
_checked: set[tuple[str, int, int]] = set()
_read: set[tuple[str, int, int]] = set()

_MAGIC = 0x1950A86A20F9469CFC6C  # with which torch's files began before they were zip archives


def _history_method(owner: object, name: str) -> Any:
    """Stand in for the ``getattr`` by which a pickled HistoryBuffer names its own statistics.

    To declare the real one safe would hand every attribute of every loaded object to the file.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'current', 'mean'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr of {name}')


def _safe_globals() -> list[Any]:
    """What mmengine's checkpoints hold beside tensors and plain Python values."""
    reconstruct: Any = np.zeros(1).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    aliases = [
        (function, f'numpy.{core}.multiarray.{name}')  # named so by numpy 1 and by numpy 2
        for core in ('core', '_core')
        for function, name in ((reconstruct, '_reconstruct'), (scalar, 'scalar'))
    ]
    dtypes = {type(np.dtype(code)) for code in '?bhilqBHILQefdU'}
    statistics = (_history_method, 'builtins.getattr')
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *aliases, statistics]


def allow_history() -> None:
    """Let torch's weights-only loading take mmengine's checkpoints, for the rest of the process.

    For the loading that mmengine does itself; ``read_checkpoint`` needs no such lasting change.
    """
    # before torch 2.6 mmengine does not load weights-only, and names can't be stood in for
    if hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):
        torch.serialization.add_safe_globals(_safe_globals())


def _history_allowed() -> AbstractContextManager[Any]:
    if hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):  # torch >= 2.6
        return torch.serialization.safe_globals(_safe_globals())
    return nullcontext()


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without ever running code it may hold.

    Args:
        path: Of a checkpoint, or of a file that names it, as ``best`` in a work directory.

    Returns:
        The dict in the file; tensors are mapped from it, so looking at names and shapes is cheap.
        Of a ``.safetensors`` file a dict of ``state_dict`` and ``meta``.

    Raises:
        UserError: There is no such file, it is no checkpoint, it is cut short, or it asks for more
            than data.
    """
    path = named_file(os.fspath(path))
    if not os.path.isfile(path):
        what = 'is a folder, not a checkpoint' if os.path.isdir(path) else 'not found'
        raise UserError(f'checkpoint {path} {what}; check the path')
    if path.endswith('.safetensors'):
        return _read_safetensors(path)
    checkpoint = _load(torch.load, path, 'cpu', mmap=_is_archive(path))
    if not isinstance(checkpoint, dict):
        raise UserError(f'{path} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    check_meta(checkpoint, path)
    _read.add(_signature(path))
    return checkpoint


def _is_archive(path: str) -> bool:
    """Whether torch can map a file: an archive, whose name is text."""
    try:
        path.encode()
        with open(path, 'rb') as file:
            return file.read(4) == b'PK\x03\x04'
    except (OSError, UnicodeEncodeError):
        return False  # loading tells


def _load(load: Any, source: Any, map_location: Any, **options: Any) -> Any:
    """Load what ``torch.save`` wrote, weights only, after a look at what it asks for.

    Args:
        load: ``torch.load`` as torch has it.
        source: A path or a file.

    Raises:
        UserError: It is no such file, is damaged, or asks for more than data.
    """
    if isinstance(source, (str, os.PathLike)):
        source = named_file(os.fspath(source))
    name = source if isinstance(source, str) else getattr(source, 'name', 'a file')
    try:
        _check_file(source)
        with _history_allowed():
            return load(source, map_location, weights_only=True, **options)
    except UserError:  # where our tools have torch load weights only
        raise
    except Exception as error:  # what torch raises on foreign bytes is not documented
        found = re.search(r'GLOBAL (\S+)|unrecognized function (.+)', str(error))
        asks = str(error) if isinstance(error, RefusedError) else ''
        asks = asks or (f'it asks for {found[1] or found[2]}' if found else '')
        if asks:
            raise UserError(
                f'checkpoint {name} is refused: {asks}, which no checkpoint needs and which could '
                'run code or take all memory; have it saved as weights only'
            ) from error
        named = name_in(name)
        if isinstance(error, FileNotFoundError):
            reason = 'not found'
        elif named.endswith('.pth') and named.isprintable():
            reason = f'it names {named}, which is gone; name another one in its folder'
        else:
            denied = isinstance(error, PermissionError)
            reason = 'no permission' if denied else 'cut short, or another kind of file'
            reason += f' ({error})' if type(error) is ValueError else ''
        raise UserError(f'{name} is not a readable checkpoint: {reason}') from error


def _check_file(source: Any) -> None:
    """Look at what a file of ``torch.save`` declares and asks for; memory is taken for names only.

    Raises:
        RefusedError, UserError: It is more than a checkpoint needs, or a checksum differs.
        Exception: It is damaged, or no such file.
    """
    if isinstance(source, (str, os.PathLike)):
        signature = _signature(os.fspath(source))
        if signature not in _checked:
            with open(source, 'rb') as file:
                _check_opened(file, os.fspath(source))
            _checked.add(signature)
    else:
        start = source.tell()
        _check_opened(source, '')
        source.seek(start)


def _check_opened(file: IO[bytes], path: str) -> None:
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    archived = file.read(4) == b'PK\x03\x04'
    file.seek(start)
    if archived:
        with zipfile.ZipFile(file) as archive:
            members = stored_members(archive, size)
            root = next(iter(members)).partition('/')[0]
            if any(not name.startswith(f'{root}/') for name in members):
                raise ValueError('an archive of several folders')
            data = f'{root}/data/'
            stored = {n.removeprefix(data): m.file_size for n, m in members.items()}
            pickled = io.BytesIO(archive.read(f'{root}/data.pkl'))
            _, total = check_pickle(pickled, stored)
            if path:
                check_size(path, total)
            damaged = archive.testzip()
        if damaged:
            raise UserError(
                f'{path or "a checkpoint"} is damaged: the checksum of {damaged} differs; copy or '
                'save it again'
            )
        return
    magic, _ = check_pickle(file, size)
    if magic != _MAGIC and magic != _MAGIC.to_bytes(10, 'little'):
        raise ValueError('not what torch.save wrote')
    total = max(check_pickle(file, size)[1] for _ in range(4))  # version, machine, object, keys
    if path:
        check_size(path, total)


class _NoPickle(PickleHandler):
    """Takes the place of mmengine's reader of ``.pkl`` files."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        raise UserError(
            f'{getattr(file, "name", "a file")} is a pickle, which could run code; write it as JSON'
        )


@contextmanager
def weights_only() -> Iterator[None]:
    """Let ``torch.load`` and ``mmengine.load`` run no code in this process, whoever calls them.

    For processes of our tools: toolboxes and their backbones load pretrained weights in many ways
    of their own (``pretrained=``, ``Pretrained`` by other names, from URLs), which unpickle, and
    data sets may list their images in a pickle.

    Raises:
        UserError: From the two: a file asks for more than data.
    """
    load = torch.load

    @functools.wraps(load)
    def load_weights(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        options = {key: kwargs[key] for key in ('mmap',) if key in kwargs}
        return _load(load, f, map_location, **options)

    torch.load = load_weights
    pickles = {key: file_handlers.pop(key) for key in ('pickle', 'pkl') if key in file_handlers}
    file_handlers.update(dict.fromkeys(pickles, _NoPickle()))
    try:
        yield
    finally:
        torch.load = load
        file_handlers.update(pickles)


def _signature(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.abspath(path), status.st_mtime_ns, status.st_size


def was_read(path: str) -> bool:
    """Whether this process has read a checkpoint safely that has not changed since."""
    return os.path.isfile(path) and _signature(path) in _read


def _read_safetensors(path: str) -> dict[str, Any]:
    """Read a file of ``safetensors``, which holds tensors and strings, and can't hold code."""
    safetensors = require('safetensors', 'safetensors', f'reading {path}')
    try:
        with safetensors.safe_open(path, 'pt') as file:
            strings = file.metadata() or {}
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # its errors are of several kinds
        denied = isinstance(error, PermissionError)
        reason = 'no permission' if denied else f'cut short, or another kind of file ({error})'
        raise UserError(f'{path} is not a readable checkpoint: {reason}') from error
    try:
        meta = parse_json(strings['meta'])
    except (KeyError, ValueError):
        meta = None  # written by others: whatever strings they put there
    checkpoint = {'state_dict': state_dict, 'meta': meta if isinstance(meta, dict) else strings}
    check_meta(checkpoint, path)
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$')  # matched as a regular expression
def _load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Let mmengine load ``.safetensors`` too, which it does not know."""
    return read_checkpoint(filename)
