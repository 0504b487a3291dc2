"""Files of weights read as they are: names and layouts stay those of whoever wrote them.

A module a format: it tells how the format is recognised, and reads it. Nothing in a file is ever
run, and a file is looked at before memory is spent on it: what a parser is asked to unpack is
bounded by the size of the file (:mod:`ssnet_mm.limits`).
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ssnet_mm.engine.checkpoint import read_checkpoint
from ssnet_mm.errors import UserError
from ssnet_mm.limits import check_size, damaged

from . import caffemodel, checkpoints, keras, npz


class Format(NamedTuple):
    """A row of the table of formats."""

    name: str  # whose it is, in words
    suffixes: tuple[str, ...]
    # tells a file by its path, its first 16 bytes, and the names in it if it is a zip archive
    recognises: Callable[[str, bytes, Sequence[str] | None], bool]
    read: Callable[[str], dict[str, Tensor]]
    by_suffix: bool = False  # whether reading goes by the suffix, which must then be there


# In the order in which they are asked: a safetensors header may look like a pickle, and Caffe's
# files begin with nothing of their own.
FORMATS = (
    Format("Keras' (.h5, .keras)", ('.h5', '.hdf5', '.keras'), keras.recognises, keras.read),
    Format("NumPy's (.npz)", ('.npz',), npz.recognises, npz.read),
    Format(
        'safetensors (.safetensors)',
        ('.safetensors',),
        checkpoints.is_safetensors,
        checkpoints.read,
        by_suffix=True,
    ),
    Format("torch's (.pth)", ('.pth', '.pt', '.bin'), checkpoints.is_torch, checkpoints.read),
    Format("Caffe's (.caffemodel)", ('.caffemodel',), caffemodel.recognises, caffemodel.read),
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read weights from a file; its format is told by its first bytes.

    ===================== ====================================================================
    ``.pth .pt .bin``     torch's; a ``module.`` before all names is dropped
    ``.safetensors``      needs the package safetensors
    ``.npz``              NumPy's, one array a name
    ``.h5 .keras``        all that Keras 2 and 3 write, as ``LAYER/NAME``; needs h5py
    ``.caffemodel``       blobs as ``LAYER.weight`` and ``LAYER.bias``; needs protobuf
    ===================== ====================================================================

    Returns:
        Tensors under the file's names, in its layouts and number formats.

    Raises:
        UserError: There is no such file, it is not what its name says, it is damaged, it asks for
            more memory than weights need, or it holds none.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ssnet_mm.weights import read_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({'model_state_dict': {'conv.weight': torch.ones(4, 3, 1, 1)}},
        ...                f'{folder}/a.pth')
        ...     weights = read_weights(f'{folder}/a.pth')
        >>> weights['conv.weight'].shape
        torch.Size([4, 3, 1, 1])
    """
    path = os.fspath(path)
    tensors = format_of(path).read(path)
    if not tensors:
        raise UserError(f'{path} holds no weights')
    return tensors


def read_meta(path: str | os.PathLike[str]) -> Any:
    """What a checkpoint says of its weights, its ``meta``; None where it says nothing."""
    path = os.fspath(path)
    is_checkpoint = format_of(path).read is checkpoints.read
    return read_checkpoint(path).get('meta') if is_checkpoint else None


def format_of(path: str) -> Format:
    """Tell a file's format by its content.

    Raises:
        UserError: There is no such file, it is none of the formats, or not the one its name says.
    """
    if os.path.isdir(path):
        raise UserError(
            f'{path} is a folder, not a file of weights; of a TensorFlow SavedModel write '
            "model.save_weights('NAME.weights.h5') in Keras"
        )
    if '://' in path:
        raise UserError(f'{path} is not a local file; download it first')
    if not os.path.isfile(path):
        raise UserError(f'no file of weights at {path}; check the path')
    try:
        with open(path, 'rb') as file:
            start = file.read(16)
    except OSError as error:
        raise UserError(f'{path} can not be read: {error.strerror}') from error
    if not start:
        raise UserError(f'{path} is empty; copy or save it again')
    members = _members(path) if start.startswith(b'PK\x03\x04') else None
    found = next((row for row in FORMATS if row.recognises(path, start, members)), None)
    if found is None:
        what = 'cut short, or' if members is None else 'a zip file, but of'
        known = ', '.join(row.name for row in FORMATS)
        raise UserError(f'{path} is {what} none of the known formats: {known}')
    suffix = os.path.splitext(path)[1].lower()
    named = next((row for row in FORMATS if suffix in row.suffixes), None)
    if found is not named and (named is not None or found.by_suffix):
        raise UserError(
            f'{path} says {suffix or "nothing"}, but the file is {found.name}; give it the right '
            'name'
        )
    return found


def _members(path: str) -> list[str]:
    """The names in a zip archive, after a look at the sizes it declares."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except Exception as error:  # a hostile directory fails in many ways
        raise damaged(path, error) from error
    check_size(path, sum(member.file_size for member in members))
    return [member.filename for member in members]
