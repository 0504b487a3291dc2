"""What runs networks: a file a format of exported models, and one for mmseg's segmentors in torch.

A format's module has two functions: ``load(path, device, threads, precision, trust)`` makes a
:class:`Session` of a file, ``write(network, path, size, images)`` writes a
:class:`ssnet_mm.deploy.network.Network`, in its processor's precision, with an example image of
(height, width) ``size``; INT8 is calibrated on ``images``, of the network's input size. A new
format is such a module and a row of :data:`FORMATS`. Modules, and with them their packages, are
imported when they are used.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ssnet_mm.errors import UserError

from .session import Session


class Format(NamedTuple):
    """A kind of file that holds an exported model."""

    suffix: str
    module: str  # of this package
    runtime: str  # what runs it
    precisions: tuple[str, ...]  # that it can be written in
    beside: str | None = None  # suffix of a second file, for the weights


FORMATS = {
    'onnx': Format('.onnx', 'onnx', 'onnxruntime', ('fp32', 'fp16', 'int8')),
    'openvino': Format(
        '.xml', 'openvino', 'openvino', ('fp32', 'fp16', 'bf16', 'int8'), beside='.bin'
    ),
    'torch-export': Format('.pt2', 'torch_export', 'torch-export', ('fp32', 'fp16', 'bf16')),
}
PRECISIONS = tuple(dict.fromkeys(p for f in FORMATS.values() for p in f.precisions))
SUFFIXES = ', '.join(f.suffix for f in FORMATS.values())  # for messages


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format that a file's name ends in; None if it is none."""
    suffix = Path(path).suffix.lower()
    return next((f for f in FORMATS.values() if f.suffix == suffix), None)


def module_of(found: Format) -> Any:
    """The module that loads and writes a format."""
    return import_module(f'{__name__}.{found.module}')


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    trust: bool = False,
) -> Session:
    """Load an exported model.

    Args:
        path: What ``tools/export.py`` wrote.
        device: ``'cpu'``, ``'cuda:0'`` or what else the runtime knows; None is the CPU.
        threads: How many the runtime may use; the default is its own choice.
        precision: To compute in, where the runtime leaves a choice: OpenVINO computes files of
            'fp32' and 'bf16' in either. None is the file's.
        trust: Take what is refused otherwise, such as code, since nothing but exported networks is
            expected (docs/security.md).

    Raises:
        UserError: It is missing, unreadable or of no known format, or its runtime or the device is
            not here.
    """
    found = format_of(path)
    if found is None:
        raise UserError(f'{path} is no exported model: expected a file {SUFFIXES}')
    if not os.path.isfile(path):
        raise UserError(f'model {path} not found; check the path')
    return module_of(found).load(Path(path), device, threads, precision, trust)
