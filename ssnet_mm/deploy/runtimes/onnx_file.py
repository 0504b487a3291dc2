"""What is in an ``.onnx`` file, told without loading it.

The format's messages are walked through as they lie in the file, by the field numbers of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: numpy and ONNX Runtime are enough where a
file is run, and no memory is spent on its weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from math import prod
from pathlib import Path

from ssnet_mm.errors import UserError

_DEPTH = 20  # of graphs within graphs
_FIELDS = 5_000_000  # in all; a network has some thousand operations
_DOMAINS = (b'', b'ai.onnx', b'com.microsoft')


def beside(path: Path) -> Path:
    """The file that holds the weights which are too large for one file."""
    return path.with_name(f'{path.name}.data')


def check_onnx(path: Path) -> None:
    """Look for what an exported network does not need.

    Raises:
        UserError: The file is none of ONNX, or has loops, functions or other libraries' operations,
            or weights in other files than the one beside it, or larger than these.
    """
    try:
        with open(path, 'rb') as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        _Walk(beside(path)).model(data)
    except (_UnknownError, OSError) as error:
        raise UserError(f'{path} is not a readable ONNX model: {error}') from error
    except ValueError as error:
        raise UserError(
            f'{path} is refused: {error}, which no file of tools/export.py has; export the model '
            'again, or, where you trust the file, take it as it is (--trust-model)'
        ) from error


class _UnknownError(Exception):
    """It is not the format."""


class _Walk:
    def __init__(self, weights: Path) -> None:
        self.seen = 0
        self.location = weights.name
        self.outside = weights.stat().st_size if weights.is_file() else 0

    def fields(self, data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Numbers and values of a message's fields; of fixed size ones the number alone."""
        position = 0
        while position < len(data):
            self.seen += 1
            if self.seen > _FIELDS:
                raise ValueError(f'it has more than {_FIELDS:,} fields')
            key, position = _varint(data, position)
            kind = key & 7
            value: int | memoryview = 0
            if kind == 0:
                value, position = _varint(data, position)
            elif kind == 2:
                length, position = _varint(data, position)
                value = data[position : position + length]
                if len(value) < length:
                    raise _UnknownError('cut short, or another kind of file')
                position += length
            elif kind in (1, 5):
                position += 8 if kind == 1 else 4
            else:
                raise _UnknownError('cut short, or another kind of file')
            yield key >> 3, value

    def messages(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        for number, value in self.fields(data):
            if isinstance(value, memoryview):
                yield number, value

    def model(self, data: memoryview) -> None:
        graphs = 0
        for number, value in self.messages(data):
            if number == 7:
                graphs += 1
                self.graph(value, 0)
            elif number == 25:
                raise ValueError('it has functions')
        if not graphs:
            raise _UnknownError('it has no graph')

    def graph(self, data: memoryview, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError('graphs lie within graphs without end')
        for number, value in self.messages(data):
            if number == 1:
                self.node(value, depth)
            elif number == 5:
                self.tensor(value)
            elif number == 15:
                raise ValueError('it has sparse weights')

    def node(self, data: memoryview, depth: int) -> None:
        parts = list(self.messages(data))
        kind = next((bytes(value) for number, value in parts if number == 4), b'')
        domain = next((bytes(value) for number, value in parts if number == 7), b'')
        if domain not in _DOMAINS:
            raise ValueError(f'it calls {domain[:40]!r}')
        for number, value in parts:
            if number != 5:
                continue
            for part, inner in self.messages(value):
                if part in (6, 11):
                    if kind != b'If':
                        raise ValueError(f'it has a loop ({kind[:40].decode(errors="replace")})')
                    self.graph(inner, depth + 1)
                elif part in (5, 10):
                    self.tensor(inner)
                elif part in (22, 23):
                    raise ValueError('it has sparse weights')

    def tensor(self, data: memoryview) -> None:
        sizes: list[int] = []
        held, outside = len(data), dict[bytes, bytes]()
        for number, value in self.fields(data):
            if number == 1 and isinstance(value, int):
                sizes.append(value)
            elif number == 1 and isinstance(value, memoryview):  # packed
                position = 0
                while position < len(value):
                    size, position = _varint(value, position)
                    sizes.append(size)
            elif number == 13 and isinstance(value, memoryview):
                entry = {part: bytes(text) for part, text in self.messages(value)}
                outside[entry.get(1, b'')] = entry.get(2, b'')
        if outside:
            if outside.get(b'location') != self.location.encode():
                raise ValueError('it keeps weights in another file')
            begin, held = (_number(outside.get(key, b'0')) for key in (b'offset', b'length'))
            if begin + held > self.outside:
                raise ValueError(f'{self.location} does not hold what it keeps there')
        if prod(sizes) > 8 * held:  # of the smallest there are eight in a byte
            raise ValueError('a weight is larger than what the file holds of it')


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ValueError('it keeps weights at no place')
    return int(text)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise _UnknownError('cut short, or another kind of file')
