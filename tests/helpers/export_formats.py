"""What the formats of exported models need, to run or to be written."""

from __future__ import annotations

import pytest
import torch
from mmengine.utils import digit_version

OLD_TORCH = digit_version(torch.__version__) < digit_version('2.13')
PACKAGES = {'onnx': ('onnx', 'onnxruntime'), 'openvino': ('onnx', 'openvino'), 'torch-export': ()}


def need(format: str, precision: str = 'fp32') -> None:
    """Skip a test where a format can't be had."""
    if format == 'torch-export' and OLD_TORCH:
        pytest.skip('torch 2.12 ties the file to sizes like the example')
    for package in (
        *PACKAGES[format],
        *(['nncf'] if (format, precision) == ('openvino', 'int8') else []),
    ):
        pytest.importorskip(package, reason=f'{format} needs {package}')
