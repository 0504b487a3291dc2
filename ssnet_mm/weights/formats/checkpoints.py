"""torch's checkpoints and ``safetensors``, by the engine's safe reading."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ssnet_mm.engine.checkpoint import read_checkpoint, weights_of
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import write_result
from ssnet_mm.limits import check_size

_WRAPPERS = ('state_dict', 'model_state_dict', 'model')  # mmengine's, pytorch-fcn's, timm's


def is_torch(path: str, start: bytes, members: Sequence[str] | None) -> bool:
    """Whether it is a zip archive with a pickle, or a bare pickle as torch wrote before 1.6."""
    if members is None:
        return re.match(rb'\x80[\x02-\x05]', start) is not None  # a pickle's protocol
    return any(name.rpartition('/')[2] == 'data.pkl' for name in members)


def is_safetensors(path: str, start: bytes, members: Sequence[str] | None) -> bool:
    """Whether it begins with the length of a JSON header, which lies within it."""
    length = int.from_bytes(start[:8], 'little')
    return members is None and start[8:9] == b'{' and length <= os.path.getsize(path) - 8


def read(path: str) -> dict[str, Tensor]:
    """Read the state dict out of a checkpoint, without the ``module.`` of DDP."""
    checkpoint = read_checkpoint(path)
    inner = (checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping))
    state = weights_of(next(inner, checkpoint), path)
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    # a tensor may repeat one stored number any number of times
    check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    if all(key.startswith('module.') for key in tensors):
        tensors = {key.removeprefix('module.'): value for key, value in tensors.items()}
    return tensors


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
    write_result(path, safetensors.save(tensors, metadata))
