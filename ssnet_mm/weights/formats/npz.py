"""NumPy's ``.npz``: a zip archive of arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from math import prod
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ssnet_mm.errors import UserError
from ssnet_mm.limits import damaged


def recognises(path: str, start: bytes, members: Sequence[str] | None) -> bool:
    """Whether it is a zip archive of arrays alone.

    Raises:
        UserError: It is one array, so a pickled dict if it holds weights.
    """
    if start.startswith(np.lib.format.MAGIC_PREFIX):
        raise UserError(
            f'{path} is a single NumPy array (.npy); weights kept in one are a pickle, which could '
            'run code: where you trust it, load it and write numpy.savez(NAME.npz, **weights)'
        )
    return bool(members) and all(name.endswith('.npy') for name in members or ())


def read(path: str) -> dict[str, Tensor]:
    """Read the arrays of an archive whose sizes the caller has checked.

    Raises:
        UserError: It is damaged, or an array is not of numbers or not of the size it declares.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                name = member.filename.removesuffix('.npy')
                if name in tensors:
                    raise UserError(f'{path} holds {name} twice; save it again')
                with file.open(member) as stream:
                    shape, dtype = _header(stream)
                    if dtype.kind not in 'fi':
                        raise UserError(
                            f'{path}: {name} is of {dtype}, not of numbers; write it with '
                            'numpy.savez as float arrays'
                        )
                    # numpy.load would allocate whatever the header declares
                    if prod(shape) * dtype.itemsize != member.file_size - stream.tell():
                        raise UserError(
                            f'{path} is damaged: {name} is said to be of {shape}, which its '
                            f'{member.file_size} bytes are not; copy or save it again'
                        )
                    stream.seek(0)
                    array = np.load(stream, allow_pickle=False)
                native = array.astype(dtype.newbyteorder('='), order='C', copy=False)
                tensors[name] = torch.from_numpy(native)
    except UserError:
        raise
    except Exception as error:  # what fails in a damaged zip is not documented
        raise damaged(path, error) from error
    return tensors


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    first = np.lib.format.read_magic(stream) == (1, 0)
    read_header = (
        np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    return shape, dtype
