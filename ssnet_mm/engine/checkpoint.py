"""Checkpoints read safely and loaded whole.

A checkpoint is a pickle, and a pickle can run code. torch's weights-only loading refuses that, but
it also refuses mmengine's own checkpoints, which hold log histories in classes it does not know:
OpenMMLab's mmengine then fails, OneDL's falls back to unsafe loading. Here those few classes are
declared safe, and nothing else is ever loaded.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from typing import IO, Any

import numpy as np
import torch
from mmengine.fileio.handlers import PickleHandler, file_handlers
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ssnet_mm.engine.config.nested import dicts
from ssnet_mm.engine.meta import check_meta, check_resumable
from ssnet_mm.engine.pickles import RefusedError, check_pickle
from ssnet_mm.errors import UserError, few, listed, require
from ssnet_mm.files import named_file
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
    try:
        with open(path, 'rb') as file:
            return file.read(4) == b'PK\x03\x04'
    except OSError:
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
        if isinstance(error, FileNotFoundError):
            reason = 'not found'
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


def load_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], source: str | os.PathLike[str]
) -> None:
    """Load weights into a model; every key must be there, be known and fit.

    Args:
        model: Wrappers (DDP's, test-time augmentation's) are looked through.
        state_dict: Names to tensors; the ``module.`` that DDP puts before names is dropped.
        source: Where the weights come from, for the message.

    Raises:
        UserError: The weights are not this model's. The model must not be used then.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    given = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    try:
        missing, unexpected, misshapen = load_fitting(model, given)
    except RuntimeError as error:
        raise UserError(f'{source} does not fit the model: {error}') from error
    check_finite(given, source)
    problems = listed(
        dict(
            missing=missing,
            unexpected=unexpected,
            misshapen=[f'{k} ({a} instead of {b})' for k, (a, b) in misshapen.items()],
        )
    )
    if problems:
        message = '; '.join(filter(None, [problems, _class_hint(model, misshapen)]))
        raise UserError(f'{source} does not fit the model: {message}')


def load_fitting(
    module: nn.Module, weights: Mapping[str, Any]
) -> tuple[list[str], list[str], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Load the weights that have a place in a module.

    Returns:
        The names that are missing, those that have no place, and those of another shape, with the
        shape given and the module's.

    Raises:
        RuntimeError: From torch, for what is no weight.
    """
    misshapen = {
        key: (tuple(weights[key].shape), tuple(value.shape))
        for key, value in module.state_dict().items()
        if isinstance(weights.get(key), Tensor) and weights[key].shape != value.shape
    }
    # load for real: some modules rename old keys as they load, so names alone would mislead
    fitting = {key: value for key, value in weights.items() if key not in misshapen}
    result = module.load_state_dict(fitting, strict=False)
    # batch counters came with torch 0.4.1; older weights are whole without them
    missing = [
        key
        for key in result.missing_keys
        if key not in misshapen and not key.endswith('num_batches_tracked')
    ]
    return missing, list(result.unexpected_keys), misshapen


def _class_hint(model: nn.Module, misshapen: Mapping[str, tuple[tuple[int, ...], ...]]) -> str:
    """Say so where the score layers differ in nothing but the number of classes."""
    classes = getattr(getattr(model, 'decode_head', None), 'out_channels', None)
    for key, (theirs, ours) in misshapen.items():
        if key.startswith('decode_head.') and ours[:1] == (classes,) and ours[1:] == theirs[1:]:
            return f'it was trained for {theirs[0]} classes, the config says {classes}'
    return ''


def check_finite(weights: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """UserError, naming the tensors, where weights hold NaN or infinity.

    Attention masks, which may hold -inf, are left out.
    """
    spoilt = [
        name
        for name, value in weights.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not name.endswith('mask')
        and not value.isfinite().all()
    ]
    if spoilt:
        raise UserError(
            f'{source} is spoilt: NaN or infinity in {few(spoilt)} ({len(spoilt)} of '
            f'{len(weights)} tensors); go back to an earlier checkpoint, with a lower learning rate'
        )


def check_classes(
    checkpoint: Mapping[str, Any], source: str | os.PathLike[str], classes: Sequence[str]
) -> None:
    """Are a checkpoint's classes those of a data set, in the same order?

    Args:
        checkpoint: Whole; mmengine writes the classes of the training data into its ``meta``.
        source: Its file, for the message.
        classes: Of the data set; empty where it names none.

    Raises:
        UserError: They have other names or another order, so that scores would mean nothing.
    """
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    trained = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')  # mmseg 0.x
    if not trained:
        print(f'Note: {source} does not name its classes; they are taken in the order of the data')
    elif classes and list(trained) != list(classes):
        pairs = zip_longest(trained, classes)
        label, (theirs, ours) = next(p for p in enumerate(pairs) if p[1][0] != p[1][1])
        how = 'in another order' if sorted(trained) == sorted(classes) else 'of other names'
        raise UserError(
            f'{source} was trained on classes {how}: label {label} is {theirs!r} there, {ours!r} '
            "in the data set; give the data set's metainfo the checkpoint's classes, in their order"
        )


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint safely and load its weights strictly.

    Returns:
        The whole checkpoint, for its ``meta``.

    Raises:
        UserError: The file can't be read (``read_checkpoint``) or does not fit
            (``load_state_dict``).
    """
    checkpoint = read_checkpoint(path)
    load_state_dict(model, weights_of(checkpoint, path), path)
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any], source: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The state dict in a checkpoint, which may also be one itself; UserError if there is none."""
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not any(isinstance(v, Tensor) for v in weights.values()):
        raise UserError(f'{source} holds no weights')
    if not all(isinstance(key, str) for key in weights):
        raise UserError(f'{source} holds weights without names')
    return weights


def find_checkpoint(load_from: str | None, resume: bool, work_dir: str) -> str | None:
    """Which checkpoint a Runner will load.

    Args:
        load_from: As :func:`read_checkpoint` takes it.
        resume: Whether the newest in ``work_dir`` is taken where there is no ``load_from``.
        work_dir: Of the run.

    Returns:
        Its path, or None where the weights start fresh: also for ``resume`` in a work directory
        that has none yet, so that a queue may start a job the same way every time.

    Raises:
        UserError: It is not a local file, or none to resume from is whole.
    """
    if resume and load_from is None:
        load_from, _ = newest_whole(work_dir)
    if load_from is not None and '://' in load_from:
        raise UserError(
            f'load_from={load_from} is not a local file; download it first: only what lies on this '
            'machine is looked at before it is loaded'
        )
    return None if load_from is None else named_file(load_from)


def newest_whole(work_dir: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint of a run that can be resumed from, and what was passed over.

    ``last_checkpoint`` is not asked: it may be lost, or name what was never finished. Whether a
    file is whole is told by its checksums.

    Returns:
        Its path, None if there is no checkpoint; and for each newer one why it can't be taken.

    Raises:
        UserError: There are checkpoints, and none is whole.
    """
    passed: list[str] = []
    for path in numbered_checkpoints(work_dir):
        try:
            read_to_load(path, resume=True)
            return path, passed
        except UserError as error:
            passed.append(str(error))
    if passed:
        raise UserError(f'no checkpoint in {work_dir} can be resumed from: {"; ".join(passed)}')
    return None, []


def numbered_checkpoints(work_dir: str) -> list[str]:
    """The checkpoints of a run that are named by iteration or epoch, the newest first.

    Where a config names them otherwise, or puts them elsewhere, the one that mmengine noted last.
    """
    found = [
        (match[1], int(match[2]), os.path.join(work_dir, match[0]))
        for name in _names(work_dir)
        if (match := re.fullmatch(r'(iter|epoch)_(\d+)\.pth', name))
    ]
    if len({kind for kind, *_ in found}) > 1:  # counts epochs, and was stopped amid one
        return sorted((path for *_, path in found), key=_iteration, reverse=True)
    noted = os.path.join(work_dir, 'last_checkpoint')
    last = named_file(noted)
    return [path for *_, path in sorted(found, reverse=True)] or [last] * (last != noted)


def _iteration(path: str) -> float:
    try:
        return int(read_checkpoint(path)['meta']['iter'])
    except (UserError, KeyError, TypeError, ValueError):
        return math.inf  # looked at first, so that it is told


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def check_unmixed(work_dir: str, load_from: str | None, resume: bool) -> None:
    """UserError where a training would mix its checkpoints with those of an earlier one."""
    held = numbered_checkpoints(work_dir)
    newest = [os.path.abspath(path) for path in held[:1]]
    held += sorted(os.path.join(work_dir, n) for n in _names(work_dir) if n.startswith('best_'))
    goes_on = load_from is None or os.path.abspath(load_from) in newest
    if held and not (resume and goes_on):
        raise UserError(
            f'{work_dir} holds the checkpoints of an earlier training, as {held[0]}; go on with it '
            f'by --resume, give this one another --work-dir, or remove them: rm {work_dir}/*.pth'
        )


def read_to_load(path: str, resume: bool) -> dict[str, Any]:
    """Read the checkpoint that a Runner will load, and see that it has what resuming needs.

    Raises:
        UserError: As ``read_checkpoint``, or there is nothing to resume from.
    """
    checkpoint = read_checkpoint(path)
    lacking = {'meta', 'state_dict', 'message_hub', 'optimizer'} - set(checkpoint)
    if resume and lacking:
        raise UserError(
            f'{path} has no {", ".join(sorted(lacking))} to resume from; to start from its '
            'weights alone use --cfg-options load_from=... without --resume'
        )
    if resume:
        check_resumable(checkpoint, path)
    return checkpoint


def pretrained_weights(model: Any) -> Iterator[str]:
    """The local files named by ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a config."""
    for _, part in dicts(model):
        checkpoint = part.get('checkpoint')
        if part.get('type') == 'Pretrained' and checkpoint and '://' not in checkpoint:
            yield os.path.expanduser(checkpoint)
