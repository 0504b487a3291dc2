"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, first_line, quiet, require
from ssnet_mm.files import digest

from .onnx_file import beside, check_onnx
from .session import Session, check_precision, check_weights

OPSET = 17
_FOLDED_AT_MOST = 64 << 20  # bytes of a constant that is computed while loading
WEIGHTS = f'{KEY}_weights'  # under which a file holds the digest of the file beside it
_LIMIT = 2**31 - 2**24  # bytes of weights that a file holds itself: protobuf's limit is 2 GiB
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
    known = provider in ort.get_available_providers()
    if not known or (index and (kind == 'cpu' or not index.isdecimal())):
        raise UserError(f'device {device}: onnxruntime has no such provider here; take cpu')
    chosen = (provider, {'device_id': int(index or 0)}) if kind == 'cuda' else provider
    if not trust:
        check_onnx(path)
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[chosen])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise UserError(f'{path} is not a readable ONNX model: {first_line(error)}') from error
    if provider not in session.get_providers():  # it takes the CPU then, and says nothing
        raise UserError(
            f"device {device}: onnxruntime's {provider} does not start here; install the CUDA and "
            'cuDNN that it needs, or take cpu'
        )
    notes = session.get_modelmeta().custom_metadata_map
    processor = Processor.from_json(notes.get(KEY), path)
    if WEIGHTS in notes:
        check_weights(path, beside(path), notes[WEIGHTS])
    check_precision(path, processor, precision)
    name = session.get_inputs()[0].name

    def run(batch: Any) -> Any:
        outputs = session.run(None, {name: batch})
        return outputs if processor.scores else outputs[0]

    return Session(run, processor)


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    onnx = require('onnx', 'onnx', 'this export')
    processor = network.processor
    model = graph(network, size)
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
                nodes_to_exclude=in_float(model, network),
                extra_options={'ActivationSymmetric': False, 'WeightSymmetric': True},
            )
        model = onnx.load(path)
    notes = {KEY: processor.to_json()}
    onnx.helper.set_model_props(model, notes)
    save(model, path)
    if beside(path).exists():
        model = onnx.load(path, load_external_data=False)
        onnx.helper.set_model_props(model, {**notes, WEIGHTS: digest(beside(path))})
        onnx.save_model(model, path)


def save(model: Any, path: Path) -> None:
    """Write a model; weights too large for one file go beside it."""
    onnx = require('onnx', 'onnx', 'this export')
    large = sum(len(weight.raw_data) for weight in model.graph.initializer) > _LIMIT
    outside = dict(save_as_external_data=True, location=beside(path).name) if large else {}
    onnx.save_model(model, path, **outside)


def graph(network: Any, size: tuple[int, int]) -> Any:
    """The network as ONNX's model, for any batch, and any height and width but for fixed ones."""
    import torch

    onnx = require('onnx', 'onnx', 'this export')
    outputs = [output.name for output in network.processor.outputs]
    images = {0: 'batch', 2: 'height', 3: 'width'}
    axes = {0: 'batch', 2: 'rows', 3: 'columns'}
    if network.processor.end_to_end:
        axes = images = {0: 'batch', 1: 'height', 2: 'width'}
    if network.processor.fixed_size:
        images = axes = {0: 'batch'}
    with (
        tempfile.TemporaryDirectory() as folder,  # weights of more than 2 GiB get files there
        _no_graph_printed(),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        file = os.path.join(folder, 'graph.onnx')
        warnings.simplefilter('ignore')  # on Python numbers in the trace: sizes are checked later
        # The tracing exporter: the graph is the same as dynamo's, which takes fifty times as long
        # over dynamic sizes and needs onnxscript beside.
        torch.onnx.export(
            network,
            (network.example(size),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=['images'],
            output_names=outputs,
            dynamic_axes={'images': images, **dict.fromkeys(outputs, axes)},
        )
        return onnx.load(file)


@contextmanager
def _no_graph_printed() -> Iterator[None]:
    """Keep torch's exporter from printing the whole graph, thousands of lines, where it fails.

    Its switch has no effect: torch 2.14 asks whether the function that tells its state is true.
    """
    from torch import _C

    log = _C._jit_onnx_log
    _C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        _C._jit_onnx_log = log


def _around(model: Any) -> list[str]:
    """Names of the nodes before and after the network, which keep full precision."""
    return [n.name for n in model.graph.node if n.name.startswith(('/prepare/', '/finish/'))]


def in_float(model: Any, network: Any) -> list[str]:
    """Names of the nodes that INT8 leaves in full precision.

    With ``full_size_in_float`` the convolutions before anything makes the image smaller are among
    them: a tenth of VGG16's multiply-adds, and most of what 8 bits lose (docs/results.md).
    """
    names = _around(model)
    for node in model.graph.node if network.full_size_in_float else ():
        strides = [a.ints for a in node.attribute if a.name == 'strides']
        if strides and max(strides[0]) > 1:
            break
        if node.op_type == 'Conv':
            names.append(node.name)
    return names
