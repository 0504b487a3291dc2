"""mmengine's storage, with files that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from mmengine.fileio import LocalBackend, register_backend
from mmengine.fileio.backends import backends

from ssnet_mm.files import atomic_write


class AtomicBackend(LocalBackend):
    """mmengine's local storage, safe against being killed.

    Writing is atomic, and a removal waits until the next file is written: mmengine's CheckpointHook
    removes the old checkpoint *before* it writes the new one, so that a crash between leaves none.
    Use it with ``CheckpointHook(backend_args=dict(backend='atomic'))``.
    """

    # shared: CheckpointHook removes with one instance and writes with another
    _outdated: ClassVar[list[str]] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        atomic_write(filepath, obj)
        while self._outdated:
            outdated = self._outdated.pop()
            if os.path.isfile(outdated) and not os.path.samefile(outdated, filepath):
                os.remove(outdated)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        if not os.path.isfile(filepath):
            raise FileNotFoundError(f'no file to remove: {filepath}')
        self._outdated.append(os.path.abspath(filepath))


if 'atomic' not in backends:  # a module may be imported twice
    register_backend('atomic', AtomicBackend)
