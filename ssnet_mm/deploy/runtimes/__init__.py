"""What runs networks: a file a format of exported models, and one for mmseg's segmentors in torch.

A format's module has two functions: ``load(path, device, threads, precision)`` makes a
:class:`Session` of a file, ``write(network, path, size, images)`` writes a file. A new format is
such a module and a row of :data:`FORMATS`. Modules, and with them their packages, are imported
when they are used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ssnet_mm.errors import UserError

from .session import Session


@dataclass(frozen=True)
class Format:
    """A kind of file that holds an exported model.

    Args:
        suffix: What its name ends in.
        module: Of this package.
        runtime: What runs it.
        precisions: It can be written in.
        parts: Suffixes of the files that a file consists of, in the order in which they may get
            their names.
    """

    suffix: str
    module: str
    runtime: str
    precisions: tuple[str, ...]
    parts: tuple[str, ...]

    def load(
        self,
        path: str | os.PathLike[str],
        device: str | None = None,
        threads: int | None = None,
        precision: str | None = None,
    ) -> Session:
        """Load a file of this format; as :func:`load`."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f'model {path} not found; check the path')
        return self._module().load(path, device, threads, precision)

    def write(self, network: Any, path: Path, size: tuple[int, int], images: Any) -> None:
        """Write a :class:`ssnet_mm.deploy.network.Network`, in its processor's precision.

        Args:
            network: In evaluation mode, on the CPU.
            path: The file.
            size: Height and width of the example image.
            images: For INT8: what to calibrate on, at the network's input size.
        """
        self._module().write(network, path, size, images)

    def _module(self) -> Any:
        return import_module(f'{__name__}.{self.module}')


FORMATS = {
    'onnx': Format('.onnx', 'onnx', 'onnxruntime', ('fp32', 'fp16', 'int8'), ('.onnx',)),
    'openvino': Format('.xml', 'openvino', 'openvino', ('fp32', 'fp16', 'int8'), ('.bin', '.xml')),
    'torch-export': Format('.pt2', 'torch_export', 'torch-export', ('fp32', 'fp16'), ('.pt2',)),
}


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format that a file's name ends in; None if it is none."""
    suffix = Path(path).suffix.lower()
    return next((f for f in FORMATS.values() if f.suffix == suffix), None)


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Session:
    """Load an exported model.

    Args:
        path: What ``tools/export.py`` wrote.
        device: ``'cpu'``, ``'cuda:0'`` or what else the runtime knows; None is the CPU.
        threads: How many the runtime may use; the default is its own choice.
        precision: To compute in, where the runtime leaves a choice: OpenVINO computes fp32 files
            in 'bf16' too. None is the file's.

    Raises:
        UserError: It is missing or unreadable, or its runtime or the device is not here.
    """
    found = format_of(path)
    if found is None:
        kinds = ', '.join(f.suffix for f in FORMATS.values())
        raise UserError(f'{path} is no exported model: expected a file {kinds}')
    return found.load(path, device, threads, precision)
