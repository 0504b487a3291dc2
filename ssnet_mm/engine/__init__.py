"""What joins mmengine's Runner: safe checkpoints, atomic files, launching and predicting."""

from ssnet_mm.files import atomic_write

from .backends import AtomicBackend
from .checkpoint import load_checkpoint, load_state_dict, read_checkpoint
from .hooks import PlainCheckpointHook

__all__ = [
    'AtomicBackend', 'PlainCheckpointHook', 'atomic_write', 'load_checkpoint', 'load_state_dict',
    'read_checkpoint',
]  # fmt: skip
