"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, require

from .session import Session, check_precision

if TYPE_CHECKING:
    from ssnet_mm.deploy.network import Network

OPSET = 17
_PROVIDERS = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}


def load(path: Path, device: str | None, threads: int | None, precision: str | None) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    ort = require('onnxruntime', 'onnxruntime', 'this model')
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; the rest is advice on optimisation
    if threads:
        options.intra_op_num_threads = threads
    kind, _, index = (device or 'cpu').partition(':')
    provider = _PROVIDERS.get(kind)
    if provider is None or provider not in ort.get_available_providers():
        raise UserError(f'device {device}: onnxruntime has no such provider here; take cpu')
    chosen = (provider, {'device_id': int(index or 0)}) if kind == 'cuda' else provider
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[chosen])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise UserError(f'{path} is not a readable ONNX model: {error}') from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    processor = Processor.from_json(text, path)
    check_precision(path, processor, precision)
    name = session.get_inputs()[0].name
    return Session(lambda batch: session.run(None, {name: batch})[0], processor)


def write(network: Network, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    onnx = require('onnx', 'onnx', 'this export')
    processor = network.processor
    model = graph(network, size)
    if processor.precision == 'fp16':
        require('onnxruntime', 'onnxruntime', 'this export')
        float16 = importlib.import_module('onnxruntime.transformers.float16')
        # float32 goes in and comes out
        model = float16.convert_float_to_float16(
            model, keep_io_types=True, node_block_list=_around(model)
        )
    elif processor.precision == 'int8':
        model = _quantised(model, path, processor, images)
    onnx.helper.set_model_props(model, {KEY: processor.to_json()})
    onnx.save_model(model, path)


def graph(network: Network, size: tuple[int, int]) -> Any:
    """The network as an ONNX ModelProto, for any batch, height and width.

    Args:
        network: In evaluation mode, on the CPU.
        size: Height and width of the example image.
    """
    import torch

    onnx = require('onnx', 'onnx', 'this export')
    end_to_end = network.processor.end_to_end
    pixels = {0: 'batch', 1: 'height', 2: 'width'}  # of images (N, H, W, 3), and of labels
    axes = pixels if end_to_end else {0: 'batch', 2: 'height', 3: 'width'}
    output = 'labels' if end_to_end else 'logits'
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
            dynamic_axes={
                'images': axes,
                output: pixels if end_to_end else {0: 'batch', 2: 'rows', 3: 'columns'},
            },
        )
    return onnx.load_from_string(data.getvalue())


def _around(model: Any) -> list[str]:
    """Names of the nodes before and after the network, which keep full precision."""
    return [n.name for n in model.graph.node if n.name.startswith(('/prepare/', '/finish/'))]


def _quantised(model: Any, path: Path, processor: Processor, images: Sequence[Pixels]) -> Any:
    require('onnxruntime', 'onnxruntime', 'this export')
    quantization = importlib.import_module('onnxruntime.quantization')
    batches = iter(processor.batches(images))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {'images': batch}

    with quiet('root'):
        quantization.quantize_static(
            model,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=_around(model),
            extra_options={'ActivationSymmetric': False, 'WeightSymmetric': True},
        )
    return require('onnx', 'onnx', 'this export').load(path)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger of another library say errors only."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
