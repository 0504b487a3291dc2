"""OpenVINO's files: the graph in ``.xml``, the weights beside it in ``.bin``."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import threading
import xml.parsers.expat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, first_line, quiet, require
from ssnet_mm.files import digest

from .onnx import WEIGHTS, graph, in_float, save
from .session import Session, check_precision, check_weights


def _openvino(purpose: str) -> Any:
    """The package, without what has it report each import and export to its makers.

    It forks this process to do so, from a thread: where a model is loaded, the new process can wait
    for good for threads that it does not have. UserError where OpenVINO is not installed.
    """
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]  # not there
    return require('openvino', 'openvino', purpose)


def load(
    path: Path, device: str | None, threads: int | None, precision: str | None, trust: bool
) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    ov = _openvino('this model')
    if not trust:
        _check(path)
    core = ov.Core()
    try:
        model = core.read_model(path)
        _pool_single_pixels(model)
    except Exception as error:
        raise UserError(f'{path} is not a readable OpenVINO model: {first_line(error)}') from error
    notes = {
        key: model.get_rt_info([key]).value if model.has_rt_info([key]) else ''
        for key in (KEY, WEIGHTS)
    }
    processor = Processor.from_json(notes[KEY], path)
    check_weights(path, path.with_suffix('.bin'), notes[WEIGHTS])
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
        outputs = local.request.infer([batch])
        return [outputs[i] for i in range(2)] if processor.scores else outputs[0]

    return Session(run, processor)


def _check(path: Path) -> None:
    """UserError where a file is another format under this name, or has loops in it."""

    def refuse(what: str) -> None:
        raise UserError(
            f'{path} is refused: it has {what}, which no file of tools/export.py has; export the '
            'model again, or, where you trust the file, take it as it is (--trust-model)'
        )

    def look(tag: str, attributes: dict[str, str]) -> None:
        if tag == 'layer' and attributes.get('type') in ('Loop', 'TensorIterator'):
            refuse(f'a loop ({attributes["type"]})')

    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler = look
    parser.StartDoctypeDeclHandler = lambda *_: refuse('a document type')
    try:
        with open(path, 'rb') as file:
            parser.ParseFile(file)
    except (xml.parsers.expat.ExpatError, OSError) as error:
        raise UserError(f'{path} is not a readable OpenVINO model: {error}') from error


def _pool_single_pixels(model: Any) -> None:
    """Let max-pools that round up take maps of a single row or column, which OpenVINO refuses.

    A border of nothing at the end and rounding down give the same maps.
    """
    for layer in model.get_ops():
        if layer.get_type_name() != 'MaxPool':
            continue
        pool = layer.get_attributes()
        if (
            pool['rounding_type'] == 'ceil'
            and pool['auto_pad'] == 'explicit'
            and pool['kernel'] == pool['strides']
            and not any((*pool['pads_begin'], *pool['pads_end']))
            and all(step == 1 for step in pool.get('dilations', ()))
        ):
            layer.set_attribute('pads_end', [step - 1 for step in pool['strides']])
            layer.set_attribute('rounding_type', 'floor')
    model.validate_nodes_and_infer_types()


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    ov = _openvino('this export')
    processor = network.processor
    traced = graph(network, size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'graph.onnx')
        save(traced, file)
        model = ov.convert_model(file)
    if processor.precision == 'int8':
        nncf = require('nncf', 'nncf', 'this export')
        with quiet(logging.getLogger('nncf')):
            model = nncf.quantize(
                model,
                nncf.Dataset([processor.batch(image[None]) for image in images]),
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(
                    # a convolution may have parted from its bias
                    patterns=[f'{re.escape(name)}(/.*)?' for name in in_float(traced, network)],
                    validate=False,
                ),
            )
    model.set_rt_info(processor.to_json(), [KEY])
    for _ in range(2):  # the second time with the digest of what the first one wrote
        ov.save_model(model, path, compress_to_fp16=processor.precision == 'fp16')
        model.set_rt_info(digest(path.with_suffix('.bin')), [WEIGHTS])
