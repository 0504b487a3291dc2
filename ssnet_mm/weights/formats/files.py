"""Files of weights read as they are: names and layouts stay those of whoever wrote them.

Nothing in a file is ever run, and a file is looked at before memory is spent on it: what a parser
is asked to unpack is bounded by the size of the file (:mod:`ssnet_mm.weights.formats.size_limit`).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssnet_mm.engine.checkpoint import read_checkpoint, weights_of
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import atomic_write

from .caffemodel import read_caffemodel
from .keras import read_hdf5, read_keras_zip
from .size_limit import check_size, damaged

SUFFIXES = {
    '.pth': 'torch',
    '.pt': 'torch',
    '.bin': 'torch',
    '.safetensors': 'safetensors',
    '.npz': 'npz',
    '.h5': 'keras',
    '.hdf5': 'keras',
    '.keras': 'keras',
    '.caffemodel': 'caffemodel',
}
FORMATS = {
    'torch': "torch's (.pth)",
    'safetensors': 'safetensors (.safetensors)',
    'npz': "NumPy's (.npz)",
    'keras': "Keras' (.h5, .keras)",
    'caffemodel': "Caffe's (.caffemodel)",
}
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')  # mmengine's, pytorch-fcn's, timm's
_HDF5 = b'\x89HDF\r\n\x1a\n'
_NPY = b'\x93NUMPY'


@dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Args:
        tensors: Under the file's names, in its layouts and number formats.
        kind: Of file: torch, safetensors, npz, keras or caffemodel.
        meta: What the file says of itself, as an mmengine checkpoint's ``meta``.
    """

    tensors: dict[str, Tensor]
    kind: str
    meta: dict[str, Any] = field(default_factory=dict)


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read weights from a file; the kind of file is told by its first bytes.

    ===================== ====================================================================
    ``.pth .pt .bin``     torch's; a ``module.`` before all names is dropped
    ``.safetensors``      needs the package safetensors
    ``.npz``              NumPy's, one array a name
    ``.h5 .keras``        all that Keras 2 and 3 write, as ``LAYER/NAME``; needs h5py
    ``.caffemodel``       blobs as ``LAYER.weight`` and ``LAYER.bias``; needs protobuf
    ===================== ====================================================================

    Raises:
        UserError: There is no such file, it is not what its name says, it is damaged, it asks for
            more memory than weights need, or it holds none.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ssnet_mm.weights.formats.files import read_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({'model_state_dict': {'conv.weight': torch.ones(4, 3, 1, 1)}},
        ...                f'{folder}/a.pth')
        ...     weights = read_weights(f'{folder}/a.pth')
        >>> weights.kind, weights.tensors['conv.weight'].shape
        ('torch', torch.Size([4, 3, 1, 1]))
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise UserError(
            f'{path} is a folder, not a file of weights; of a TensorFlow SavedModel write '
            "model.save_weights('NAME.weights.h5') in Keras"
        )
    if not os.path.isfile(path):
        raise UserError(f'no file of weights at {path}; check the path')
    suffix = os.path.splitext(path)[1].lower()
    try:
        kind = _kind_of(path, suffix)
    except OSError as error:
        raise UserError(f'{path} can not be read: {error.strerror}') from error
    by_name = SUFFIXES.get(suffix)
    if kind != (by_name or kind) or (kind == 'safetensors' and by_name is None):
        raise UserError(
            f'{path} says {suffix or "nothing"}, but the file is {FORMATS[kind]}; give it the '
            'right name'
        )
    meta: dict[str, Any] = {}
    if kind in ('torch', 'safetensors'):
        tensors, meta = _read_checkpoint(path)
    elif kind == 'npz':
        tensors = _read_npz(path)
    elif kind == 'caffemodel':
        tensors = read_caffemodel(path)
    elif zipfile.is_zipfile(path):
        tensors = read_keras_zip(path)
    else:
        tensors = read_hdf5(path)
    if not tensors:
        raise UserError(f'{path} holds no weights')
    return Weights(tensors, kind, meta)


def _kind_of(path: str, suffix: str) -> str:
    """Tell a file's format by its content."""
    with open(path, 'rb') as file:
        start = file.read(16)
    if not start:
        raise UserError(f'{path} is empty; copy or save it again')
    if start.startswith(_HDF5):
        return 'keras'
    if start.startswith(b'PK\x03\x04'):
        return _kind_of_zip(path)
    if start.startswith(_NPY):
        raise UserError(
            f'{path} is a single NumPy array (.npy); weights kept in one are a pickle, which could '
            'run code: where you trust it, load it and write numpy.savez(NAME.npz, **weights)'
        )
    # ahead of the pickles: a header's length may look like the start of one
    if start[8:9] == b'{' and int.from_bytes(start[:8], 'little') <= os.path.getsize(path) - 8:
        return 'safetensors'
    if start[0] == 0x80 and 2 <= start[1] <= 5:  # a pickle's protocol
        return 'torch'
    if suffix == '.caffemodel':  # which begins with nothing of its own
        return 'caffemodel'
    raise UserError(
        f'{path} is cut short, or none of the known formats: {", ".join(FORMATS.values())}'
    )


def _kind_of_zip(path: str) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except Exception as error:  # a hostile directory fails in many ways
        raise damaged(path, error) from error
    check_size(path, sum(member.file_size for member in members))
    names = {member.filename for member in members}
    if 'config.json' in names and 'model.weights.h5' in names:
        return 'keras'
    if any(name.rpartition('/')[2] == 'data.pkl' for name in names):
        return 'torch'
    if names and all(name.endswith('.npy') for name in names):
        return 'npz'
    raise UserError(
        f'{path} is a zip file, but of none of the known formats: {", ".join(FORMATS.values())}'
    )


def _read_checkpoint(path: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    checkpoint = read_checkpoint(path)
    inner = (checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping))
    state = weights_of(next(inner, checkpoint), path)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    # a tensor may repeat one stored number any number of times
    check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    if all(key.startswith('module.') for key in tensors):
        tensors = {key.removeprefix('module.'): value for key, value in tensors.items()}
    meta = checkpoint.get('meta')
    return tensors, meta if isinstance(meta, dict) else {}


def _read_npz(path: str) -> dict[str, Tensor]:
    """Read the arrays one by one: ``numpy.load`` would allocate whatever a header declares."""
    tensors = {}
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                name = member.filename.removesuffix('.npy')
                if name in tensors:
                    raise UserError(f'{path} holds {name} twice; save it again')
                with file.open(member) as stream:
                    shape, dtype = _npy_header(stream)
                    if dtype.kind not in 'fi':
                        raise UserError(
                            f'{path}: {name} is of {dtype}, not of numbers; write it with '
                            'numpy.savez as float arrays'
                        )
                    # exact, as NumPy writes it: a header can't claim what is not there
                    if prod(shape) * dtype.itemsize != member.file_size - stream.tell():
                        raise UserError(
                            f'{path} is damaged: {name} is said to be of {shape}, which its '
                            f'{member.file_size} bytes are not; copy or save it again'
                        )
                with file.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
                native = array.astype(dtype.newbyteorder('='), order='C', copy=False)
                tensors[name] = torch.from_numpy(native)
    except UserError:
        raise
    except Exception as error:  # what fails in a damaged zip is not documented
        raise damaged(path, error) from error
    return tensors


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f'.npy version {version}')
    shape, _, dtype = read(stream)
    return shape, dtype


def write_safetensors(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write weights as ``safetensors``, whole or not at all.

    Args:
        path: The file, whose name must end in ``.safetensors``.
        state_dict: Names to tensors.
        meta: Anything JSON can hold; ``read_checkpoint`` gives it back as ``meta``.

    Raises:
        UserError: The package is not installed, or the name is another format's.
    """
    if not os.fspath(path).endswith('.safetensors'):
        raise UserError(f'{os.fspath(path)} must end in .safetensors')
    safetensors = require('safetensors.torch', 'safetensors', f'writing {os.fspath(path)}')
    # copies: what shares its memory with others is refused there
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    metadata = {'format': 'pt', 'meta': json.dumps(dict(meta or {}))}
    atomic_write(path, safetensors.save(tensors, metadata))
