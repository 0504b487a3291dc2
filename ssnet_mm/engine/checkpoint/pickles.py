"""What is in a pickle, told without unpickling it.

torch's weights-only loading calls nothing but what it knows. But on the way a file can have it
allocate any amount of memory, or build values that take for ever to compare. So the opcodes that it
takes are gone through first, and what they would make is written down as a tree.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from math import prod
from typing import IO, Any

import torch

_STEPS = 4_000_000  # opcodes of a pickle; a checkpoint of a large network has some 100,000
_VALUES = 20_000_000  # that a tree may have where those met twice are counted twice

_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_NUMPY = [
    f'numpy.{c}.multiarray.{n}' for c in ('core', '_core') for n in ('_reconstruct', 'scalar')
]
# These take a storage, an offset, a size and a stride.
_REBUILD = [f'torch._utils._rebuild_tensor{version}' for version in ('', '_v2', '_v3')]
# What checkpoints are made of. torch's loading knows more, some of which allocates what it is told.
_KNOWN = {
    *_REBUILD, 'torch._utils._rebuild_parameter', 'torch.Size', 'torch.device',
    'torch.storage.UntypedStorage', 'collections.OrderedDict', 'collections.Counter',
    'builtins.set', 'builtins.complex', 'builtins.getattr', '_codecs.encode',
    *_NUMPY, 'numpy.ndarray', 'numpy.dtype', _HISTORY,
}  # fmt: skip
# Of storages, by which torch's files tell them.
_DTYPES = {
    'Bool': 'bool', 'Byte': 'uint8', 'Char': 'int8', 'Short': 'int16', 'Int': 'int32',
    'Long': 'int64', 'Half': 'float16', 'BFloat16': 'bfloat16', 'Float': 'float32',
    'Double': 'float64', 'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128',
    'Untyped': 'uint8',
}  # fmt: skip


class RefusedError(Exception):
    """A pickle that is not to be loaded; the message says what it does."""


class _Global(str):
    """A name that a pickle asks for."""


class _Made(list):
    """A value with its parts, or with what it is made by."""

    by: str | None = None  # the function that is called


def check_pickle(file: IO[bytes], stored: Mapping[str, int] | int) -> tuple[Any, int]:
    """Go through a pickle, from where a file stands to its end.

    Args:
        file: Read as far as the pickle goes.
        stored: How many bytes the file holds of each storage, or of all together.

    Returns:
        What it makes, with lists for containers, and the bytes of all tensors.

    Raises:
        RefusedError: It calls or asks for what no checkpoint does.
        ValueError, IndexError, KeyError, TypeError: It is no pickle, or a damaged one.
    """
    return _Machine(stored).run(file)


class _Machine:
    def __init__(self, stored: Mapping[str, int] | int) -> None:
        self.stored = stored
        self.storages: dict[str, int] = {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes = 0

    def run(self, file: IO[bytes]) -> tuple[Any, int]:
        stack, memo = self.stack, self.memo
        arg: Any
        for step, (opcode, arg, _) in enumerate(pickletools.genops(file)):
            if step > _STEPS:
                raise RefusedError(f'it has more than {_STEPS:,} steps')
            name = opcode.name
            if name in _LITERALS:
                stack.append(_LITERALS[name](arg))
            elif name == 'GLOBAL':
                stack.append(self.named(arg))
            elif name in ('BINGET', 'LONG_BINGET'):
                stack.append(memo[arg])
            elif name in ('BINPUT', 'LONG_BINPUT'):
                memo[arg] = stack[-1]
            elif name == 'MARK':
                self.marks.append(len(stack))
            elif name == 'TUPLE':
                stack.append(_Made(self.marked()))
            elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
                parts = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(_Made(reversed(parts)))
            elif name in ('APPENDS', 'SETITEMS'):
                parts = self.marked()
                stack[-1].extend(parts)
            elif name in ('APPEND', 'SETITEM', 'BUILD'):
                parts = [stack.pop() for _ in range(1 + (name == 'SETITEM'))]
                stack[-1].extend(parts)
            elif name in ('REDUCE', 'NEWOBJ'):
                args, function = stack.pop(), stack.pop()
                stack.append(self.called(function, args, name))
            elif name == 'BINPERSID':
                made = _Made([stack.pop()])
                made.by = 'storage'
                self.storage(made)
                stack.append(made)
            elif name == 'STOP':
                made = stack.pop()
                _check_extent(made)
                return made, self.bytes
            elif name != 'PROTO':
                raise RefusedError(f'it has {name}, which torch does not write')
        raise ValueError('it has no end')

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        parts = self.stack[start:]
        del self.stack[start:]
        return parts

    def named(self, arg: str) -> _Global:
        module, _, name = arg.partition(' ')
        full = f'{ {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module) }.{name}'
        dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        storage = module == 'torch' and name.removesuffix('Storage') in _DTYPES
        if full not in _KNOWN and not (dtype or storage):
            raise RefusedError(f'it asks for {full.removeprefix("builtins.")}')
        return _Global(full)

    def called(self, function: Any, args: Any, how: str) -> _Made:
        if not isinstance(function, _Global) or not isinstance(args, _Made):
            raise RefusedError('it calls what is no function')
        name = str(function)
        if name in ('numpy.ndarray', 'torch.storage.UntypedStorage') or (
            how == 'NEWOBJ' and name not in ('collections.OrderedDict', _HISTORY)
        ):
            raise RefusedError(f'it calls {name}')
        if name.endswith('._reconstruct') and list(map(_plain, args[1:])) != [[0], 'b']:
            raise RefusedError('it makes an array of a size of its own')
        if name.endswith('._rebuild_parameter') and len(args) < 1:
            raise ValueError('a parameter without a tensor')
        if name in _REBUILD:
            self.tensor(args, name.endswith('_v3'))
        made = _Made(args)
        made.by = name
        return made

    def storage(self, made: _Made) -> None:
        """Note the bytes of a storage, which must be in the file."""
        kind, key, _, numel = made[0][1:5]
        size = numel * _itemsize(kind)
        if type(numel) is not int or numel < 0:
            raise RefusedError('a storage has no size')
        if self.storages.setdefault(str(key), size) != size:
            raise RefusedError('a storage has two sizes')
        if isinstance(self.stored, int):
            fits = sum(self.storages.values()) <= self.stored
        else:
            fits = size <= self.stored.get(str(key), 0)
        if not fits:
            raise RefusedError(f'a storage of {size:,} bytes is larger than what the file holds')
        made.append(size)

    def tensor(self, args: _Made, third: bool) -> None:
        """Does a tensor lie within its storage? Count its bytes."""
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, _Made) or storage.by != 'storage':
            raise RefusedError('a tensor has no storage')
        item = _itemsize(args[6] if third else storage[0][1])
        numbers = [offset, *size, *stride]
        if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
            raise RefusedError('a tensor has no size')
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if prod(size) and (last + 1) * item > storage[1]:
            raise RefusedError('a tensor is larger than its storage')
        self.bytes += prod(size) * item


_EMPTY = lambda _: _Made()  # noqa: E731
_LITERALS: dict[str, Callable[[Any], Any]] = {
    'NONE': lambda _: None, 'NEWFALSE': lambda _: False, 'NEWTRUE': lambda _: True,
    'EMPTY_TUPLE': _EMPTY, 'EMPTY_LIST': _EMPTY, 'EMPTY_DICT': _EMPTY, 'EMPTY_SET': _EMPTY,
    **{name: lambda arg: arg for name in (
        'BININT', 'BININT1', 'BININT2', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING', 'LONG1',
    )},
}  # fmt: skip


def _itemsize(kind: Any) -> int:
    """Bytes of a number of a storage's class or a dtype."""
    if not isinstance(kind, _Global):
        raise RefusedError('a storage has no type')
    name = kind.rpartition('.')[2]
    dtype: Any = getattr(torch, _DTYPES.get(name.removesuffix('Storage'), name), None)
    if not isinstance(dtype, torch.dtype):
        raise RefusedError(f'a storage is of {name}')
    return torch.empty(0, dtype=dtype).element_size()


def _plain(value: Any) -> Any:
    """A value as it compares: bytes that a pickle of protocol 2 makes of text are that text."""
    if isinstance(value, _Made):
        return value[0] if value.by == '_codecs.encode' else list(map(_plain, value))
    return value.decode('latin-1') if isinstance(value, bytes) else value


def _check_extent(made: Any) -> None:
    """Refuse a tree that holds itself, or whose parts are met too often to be gone through."""
    extents: dict[int, int] = {}
    path: set[int] = set()
    stack: list[tuple[Any, bool]] = [(made, False)]
    while stack:
        value, left = stack.pop()
        if not isinstance(value, _Made):
            continue
        key = id(value)
        if left:
            path.discard(key)
            extents[key] = 1 + sum(extents.get(id(part), 1) for part in value)
            if extents[key] > _VALUES:
                raise RefusedError(f'it makes more than {_VALUES:,} values')
        elif key in path:
            raise RefusedError('a value holds itself')
        elif key not in extents:
            path.add(key)
            stack.append((value, True))
            stack.extend((part, False) for part in value if isinstance(part, _Made))
