"""OpenVINO's files: the graph in ``.xml``, the weights beside it in ``.bin``."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, quiet, require

from .onnx import graph
from .session import Session, check_precision


def load(path: Path, device: str | None, threads: int | None, precision: str | None) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    ov = require('openvino', 'openvino', 'this model')
    core = ov.Core()
    try:
        model = core.read_model(path)
    except Exception as error:
        raise UserError(f'{path} is not a readable OpenVINO model: {error}') from error
    info = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    processor = Processor.from_json(info, path)
    options: dict[str, Any] = {'INFERENCE_NUM_THREADS': threads} if threads else {}
    # both hold float32, and differ in what they are computed in
    if {precision or processor.precision, processor.precision} <= {'fp32', 'bf16'}:
        bf16 = (precision or processor.precision) == 'bf16'
        options['INFERENCE_PRECISION_HINT'] = 'bf16' if bf16 else 'f32'
    else:
        check_precision(path, processor, precision)
        if processor.precision != 'fp16':  # or it takes bfloat16 where the CPU has it
            options['INFERENCE_PRECISION_HINT'] = 'f32'
    try:
        compiled = core.compile_model(model, (device or 'cpu').upper(), options)
    except RuntimeError as error:
        raise UserError(
            f'device {device}: OpenVINO finds {", ".join(core.available_devices)} only'
        ) from error
    local = threading.local()  # a request is for one thread at a time

    def run(batch: Any) -> Any:
        if not hasattr(local, 'request'):
            local.request = compiled.create_infer_request()
        return local.request.infer([batch])[0]

    return Session(run, processor)


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    ov = require('openvino', 'openvino', 'this export')
    processor = network.processor
    model = ov.convert_model(io.BytesIO(graph(network, size)))
    if processor.precision == 'int8':
        nncf = require('nncf', 'nncf', 'this export')
        with quiet(logging.getLogger('nncf')):
            model = nncf.quantize(
                model,
                nncf.Dataset([processor.batch(image[None]) for image in images]),
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(
                    patterns=['/prepare/.*', '/finish/.*'], validate=False
                ),
            )
    model.set_rt_info(processor.to_json(), [KEY])
    ov.save_model(model, path, compress_to_fp16=processor.precision == 'fp16')
