"""What follows training: models are fused, exported and run.

A name is imported when it is first used: an exported model runs without torch and toolbox.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fusion import FuseHook, fuse
    from .precision import BFloat16Hook
    from .segmenter import Segmenter

# a public name, and the module it comes from
_HOMES = {
    'BFloat16Hook': 'precision', 'FuseHook': 'fusion', 'Segmenter': 'segmenter', 'fuse': 'fusion',
}  # fmt: skip

__all__ = ['BFloat16Hook', 'FuseHook', 'Segmenter', 'fuse']


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
