"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, quiet, require

from .onnx_file import check_onnx
from .session import Session, check_precision

OPSET = 17
_FOLDED_AT_MOST = 64 << 20  # bytes of a constant that is computed while loading
_PROVIDERS = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}


def load(
    path: Path, device: str | None, threads: int | None, precision: str | None, trust: bool
) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    if precision == 'bf16':
        raise UserError(
            f'{path}: ONNX Runtime has no convolutions in bfloat16 for CPUs; export for openvino, '
            'or run the checkpoint'
        )
    ort = require('onnxruntime', 'onnxruntime', 'this model')
    options = ort.SessionOptions()
    options.add_session_config_entry(
        'optimization.constant_folding_max_output_size_in_bytes', str(_FOLDED_AT_MOST)
    )
    options.log_severity_level = 3  # errors; the rest is advice on optimisation
    if threads:
        options.intra_op_num_threads = threads
    kind, _, index = (device or 'cpu').partition(':')
    provider = _PROVIDERS.get(kind)
    if provider is None or provider not in ort.get_available_providers():
        raise UserError(f'device {device}: onnxruntime has no such provider here; take cpu')
    chosen = (provider, {'device_id': int(index or 0)}) if kind == 'cuda' else provider
    if not trust:
        check_onnx(path)
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[chosen])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise UserError(f'{path} is not a readable ONNX model: {error}') from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    processor = Processor.from_json(text, path)
    check_precision(path, processor, precision)
    name = session.get_inputs()[0].name
    return Session(lambda batch: session.run(None, {name: batch})[0], processor)


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    onnx = require('onnx', 'onnx', 'this export')
    processor = network.processor
    model = onnx.load_from_string(graph(network, size))
    if processor.precision == 'fp16':
        float16 = require('onnxruntime.transformers.float16', 'onnxruntime', 'this export')
        # float32 goes in and comes out
        model = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=_around(model)
        )
    elif processor.precision == 'int8':
        quantization = require('onnxruntime.quantization', 'onnxruntime', 'this export')
        batches = ({'images': processor.batch(image[None])} for image in images)
        with quiet(logging.getLogger()):
            quantization.quantize_static(
                model,
                path,
                SimpleNamespace(get_next=lambda: next(batches, None)),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                nodes_to_exclude=_around(model),
                extra_options={'ActivationSymmetric': False, 'WeightSymmetric': True},
            )
        model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: processor.to_json()})
    onnx.save_model(model, path)


def graph(network: Any, size: tuple[int, int]) -> bytes:
    """The network in ONNX's format, for any batch, height and width."""
    import torch

    require('onnx', 'onnx', 'this export')
    images = {0: 'batch', 2: 'height', 3: 'width'}
    output, axes = 'logits', {0: 'batch', 2: 'rows', 3: 'columns'}
    if network.processor.end_to_end:
        images = {0: 'batch', 1: 'height', 2: 'width'}
        output, axes = 'labels', images
    data: Any = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # on Python numbers in the trace: sizes are checked later
        # The tracing exporter: the graph is the same as dynamo's, which takes fifty times as long
        # over dynamic sizes and needs onnxscript beside.
        torch.onnx.export(
            network,
            (network.example(size),),
            data,
            dynamo=False,
            opset_version=OPSET,
            input_names=['images'],
            output_names=[output],
            dynamic_axes={'images': images, output: axes},
        )
    return data.getvalue()


def _around(model: Any) -> list[str]:
    """Names of the nodes before and after the network, which keep full precision."""
    return [n.name for n in model.graph.node if n.name.startswith(('/prepare/', '/finish/'))]
