"""OpenVINO's files: the graph in ``.xml``, the weights beside it in ``.bin``."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, first_line, quiet, require

from .onnx import WEIGHTS, graph, save
from .session import Session, check_precision, check_weights, digest


def load(path: Path, device: str | None, threads: int | None, precision: str | None) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    ov = require('openvino', 'openvino', 'this model')
    core = ov.Core()
    try:
        model = core.read_model(path)
    except Exception as error:
        raise UserError(f'{path} is not a readable OpenVINO model: {first_line(error)}') from error
    notes = {
        key: model.get_rt_info([key]).value if model.has_rt_info([key]) else ''
        for key in (KEY, WEIGHTS)
    }
    processor = Processor.from_json(notes[KEY], path)
    check_weights(path, path.with_suffix('.bin'), notes[WEIGHTS])
    options: dict[str, Any] = {'INFERENCE_NUM_THREADS': threads} if threads else {}
    if (precision, processor.precision) == ('bf16', 'fp32'):
        options['INFERENCE_PRECISION_HINT'] = 'bf16'
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
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'graph.onnx')
        save(graph(network, size), file)
        model = ov.convert_model(file)
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
    for _ in range(2):  # the second time with the digest of what the first one wrote
        ov.save_model(model, path, compress_to_fp16=processor.precision == 'fp16')
        model.set_rt_info(digest(path.with_suffix('.bin')), [WEIGHTS])
