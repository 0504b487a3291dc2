"""A trained segmentor as a file for ONNX Runtime, OpenVINO or torch.export.

The file is checked against the model it was made from before it gets its name.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import PixelData
from numpy.typing import NDArray
from torch import Tensor, nn

from ssnet_mm.deploy.fusion import fuse
from ssnet_mm.deploy.processor import KEY, Recipe, resize_labels
from ssnet_mm.deploy.segmenter import LOADERS, ExportedBackend, read_image
from ssnet_mm.engine.preflight import check_data, describe, swaps_channels
from ssnet_mm.errors import UserError, require
from ssnet_mm.files import temporary_name
from ssnet_mm.models import CaffeFCN8Head

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}
PRECISIONS = ('fp32', 'fp16', 'int8')
OPSET = 17
_CHECKED = 4  # calibration images that an INT8 model is compared on
_LOADING = ('LoadImageFromFile', 'LoadImageFromNDArray', 'LoadAnnotations', 'PackSegInputs')


@dataclasses.dataclass(frozen=True)
class Report:
    """How an exported model differs from the one it was made from.

    Args:
        difference: The largest difference of two logits; for a file that gives labels, how far the
            logit of a label lies below the largest one at most.
        deviation: The same as a root mean square.
        scale: The largest magnitude of a logit.
        spread: The logits' standard deviation.
        agreement: Share of pixels that get the same label.
        images: What was compared, in words.
    """

    difference: float
    deviation: float
    scale: float
    spread: float
    agreement: float
    images: str

    def __str__(self) -> str:
        return (
            f'max difference {self.difference:.2g} of logits up to {self.scale:.2g}, '
            f'{100 * self.agreement:.2f}% of labels agree ({self.images})'
        )

    def passes(self, precision: str) -> bool:
        """Whether it differs by rounding only; INT8: by a quarter of the logits' spread."""
        if precision == 'int8':
            return self.deviation <= 0.25 * self.spread
        return self.difference <= {'fp32': 1e-3, 'fp16': 5e-2}[precision] * self.scale


def export(
    model: Any,
    path: str | os.PathLike[str],
    format: str,
    *,
    precision: str = 'fp32',
    end_to_end: bool = False,
    size: tuple[int, int] = (512, 512),
    calibration: Sequence[str | os.PathLike[str] | NDArray[np.uint8]] | None = None,
) -> Report:
    """Write a segmentor to a file, fused, for any batch, height and width.

    Args:
        model: A segmentor of mmseg with its weights. The test pipeline is taken from ``model.cfg``,
            classes and palette from ``model.dataset_meta``, where it has them.
        path: Ends in ``.onnx``, ``.xml`` (OpenVINO; the weights go beside it, into ``.bin``) or
            ``.pt2`` (torch-export).
        format: 'onnx', 'openvino' or 'torch-export'.
        precision: 'fp16' keeps half precision where the runtime can compute so, 'int8' quantises
            the network with the value ranges found on the calibration images.
        end_to_end: The file takes uint8 images, (N, H, W, 3) in RGB order, and gives uint8 labels,
            (N, H, W); otherwise normalised float images, (N, 3, H, W), to logits at the network's
            own resolution.
        size: Height and width of the example image.
        calibration: Images for 'int8': paths or RGB arrays, the more like the data the better.

    Returns:
        How the file differs from the model on random images (on calibration images for INT8).

    Raises:
        UserError: The model or the combination can't be exported, a package is missing, or the file
            differs from the model by more than its precision explains. There is no file then.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise UserError(f'format must be one of {", ".join(SUFFIXES)}, got {format}')
    if precision not in PRECISIONS:
        raise UserError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision}')
    if path.suffix != SUFFIXES[format]:
        raise UserError(f'a file for {format} must end in {SUFFIXES[format]}, got {path}')
    if precision == 'int8' and format == 'torch-export':
        raise UserError('torch-export has no int8 here; take --format openvino or onnx for it')
    if (precision == 'int8') != bool(calibration):
        raise UserError('int8 takes calibration images (--calibrate FOLDER), other precisions none')
    recipe = make_recipe(model, end_to_end, precision)
    images = [recipe.resized(_pixels(image)) for image in calibration or ()]
    network = _Network(fuse(model, channels_last=False).cpu(), recipe)
    if precision == 'fp16' and format == 'torch-export':
        network.half()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    files = [temporary.with_suffix('.bin'), temporary] if format == 'openvino' else [temporary]
    try:
        with _one_line(f'this model can not be exported to {format} ({precision})'):
            if format == 'torch-export':
                _write_torch_export(network, temporary, recipe, size)
            else:
                graph = _onnx_graph(network, size)
                write = _write_onnx if format == 'onnx' else _write_openvino
                write(graph, temporary, recipe, images)
        run = LOADERS[path.suffix](temporary, 'cpu', None).run
        with _one_line(f'{path} was not written: it does not run at other sizes'):
            report = compare(model, run, recipe, images[:_CHECKED] or _random_images(size))
        if not report.passes(precision):
            raise UserError(f'{path} was not written: it differs from the model: {report}')
        for file in files:  # the weights first
            os.replace(file, path.with_suffix(file.suffix))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return report


def make_recipe(model: Any, end_to_end: bool = False, precision: str = 'fp32') -> Recipe:
    """Read off a segmentor what surrounds its network.

    Raises:
        UserError: It does what a recipe can't tell: sliding windows, padding, other transforms.
    """
    preprocessor, head = model.data_preprocessor, model.decode_head
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise UserError('sliding windows are not exported; --cfg-options model.test_cfg.mode=whole')
    if getattr(preprocessor, 'test_cfg', None):
        raise UserError('a data_preprocessor that pads test images (test_cfg) can not be exported')
    pipeline = getattr(model, 'cfg', {}).get('test_pipeline', [])
    known = (*_LOADING, 'Resize')
    strange = [t['type'] for t in pipeline if t['type'] not in known]
    resizes = [t for t in pipeline if t['type'] == 'Resize']
    if strange or len(resizes) > 1:
        raise UserError(
            'the test pipeline can not be exported: it may load, Resize once and pack, but has '
            f'{", ".join(t["type"] for t in pipeline)}'
        )
    normalises = preprocessor._enable_normalize
    meta = getattr(model, 'dataset_meta', None) or {}
    return Recipe(
        num_classes=max(head.num_classes, 2),
        mean=tuple(preprocessor.mean.flatten().tolist()) if normalises else (),
        std=tuple(preprocessor.std.flatten().tolist()) if normalises else (),
        channel_order='rgb' if swaps_channels(preprocessor) else 'bgr',
        resize=_resize_of(resizes[0]) if resizes else None,
        align_corners=model.align_corners,
        crops=isinstance(head, CaffeFCN8Head),
        threshold=head.threshold if head.out_channels == 1 else None,
        end_to_end=end_to_end,
        precision=precision,
        classes=tuple(meta.get('classes') or ()),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in meta.get('palette') or ()),
    )


def _resize_of(transform: dict[str, Any]) -> dict[str, Any]:
    known = {'type', 'scale', 'scale_factor', 'keep_ratio'}
    if set(transform) - known:
        raise UserError(f'a Resize with {", ".join(set(transform) - known)} can not be exported')
    found: dict[str, Any] = {'keep_ratio': bool(transform.get('keep_ratio', False))}
    for name in ('scale', 'scale_factor'):
        value = transform.get(name)
        if value is not None:
            found[name] = list(value) if isinstance(value, (list, tuple)) else [value, value]
    return found


def _pixels(image: Any) -> NDArray[np.uint8]:
    if not isinstance(image, (str, os.PathLike)):
        return image
    try:
        return read_image(Path(image))
    except Exception as error:  # decoders raise all kinds
        raise UserError(f'calibration image {image}: {describe(error)}') from error


def _random_images(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Noise of two sizes, the second odd, in batches of one and two."""
    rng = np.random.default_rng(0)
    odd = (size[0] * 3 // 4 | 1, size[1] * 5 // 8 | 1)
    coarse = [rng.integers(0, 256, (n, -(-h // 8), -(-w // 8), 3)) for n, (h, w) in
              ((1, size), (2, odd))]  # fmt: skip
    large = [c.repeat(8, 1).repeat(8, 2).astype(np.uint8) for c in coarse]
    return [large[0][:, : size[0], : size[1]], large[1][:, : odd[0], : odd[1]]]


# The network and what surrounds it ---------------------------------------------------------------


class _Prepare(nn.Module):
    """From uint8 images (N, H, W, 3), RGB, to what the network takes."""

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.flip = recipe.channel_order == 'bgr'
        self.register_buffer('mean', torch.tensor(recipe.mean or [0.0]).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(recipe.std or [1.0]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2)
        if self.flip:
            planes = planes[:, [2, 1, 0]]
        return (planes.float() - self.mean) / self.std


class _Finish(nn.Module):
    """From logits to uint8 labels at the size of the images.

    Bilinear resizing is a matrix product in each direction. As such it is the same in every
    runtime, and at some twenty channels several times as fast as their own resizing.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.align_corners = recipe.align_corners
        self.crops = recipe.crops
        self.threshold = recipe.threshold

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        if self.crops:
            logits = logits[:, :, : images.shape[1], : images.shape[2]]
        else:
            down = self._weights(logits.shape[2], images.shape[1])
            across = self._weights(logits.shape[3], images.shape[2])
            logits = down @ (logits @ across.t())
        if self.threshold is None:
            return logits.argmax(1).to(torch.uint8)
        return (logits[:, 0].sigmoid() > self.threshold).to(torch.uint8)

    def _weights(self, given: int, wanted: int) -> Tensor:
        taps = torch.arange(given, dtype=torch.float32)
        place = torch.arange(wanted, dtype=torch.float32)
        if self.align_corners:
            place = place * (taps[-1] / place[-1].clamp(min=1))
        else:
            place = ((place + 0.5) * (given / wanted) - 0.5).clamp(min=0)
            place = torch.minimum(place, taps[-1])
        return (1 - (place[:, None] - taps).abs()).clamp(min=0)


class _Network(nn.Module):
    """A segmentor with or without its surroundings; the parts' names are those in the graph."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.end_to_end = recipe.end_to_end
        self.prepare = _Prepare(recipe)
        self.finish = _Finish(recipe)
        self.eval().requires_grad_(False)

    def half(self) -> _Network:
        """Compute the network, and nothing around it, in half precision."""
        self.model.half()
        return self

    def forward(self, images: Tensor) -> Tensor:
        planes = self.prepare(images) if self.end_to_end else images
        dtype = next(self.model.parameters()).dtype
        logits = self.model(planes.to(dtype), mode='tensor').float()
        return self.finish(logits, images) if self.end_to_end else logits

    def example(self, size: tuple[int, int]) -> Tensor:
        """A batch that may be traced."""
        if self.end_to_end:
            return torch.zeros(2, *size, 3, dtype=torch.uint8)
        return torch.zeros(2, 3, *size)


# Writing -----------------------------------------------------------------------------------------


def _onnx_graph(network: _Network, size: tuple[int, int]) -> Any:
    """The network as an ONNX ModelProto."""
    onnx = _package('onnx')
    axes = {0: 'batch', 1: 'height', 2: 'width'} if network.end_to_end else (
        {0: 'batch', 2: 'height', 3: 'width'}
    )  # fmt: skip
    output = 'labels' if network.end_to_end else 'logits'
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
                output: axes if network.end_to_end else {0: 'batch', 2: 'rows', 3: 'columns'},
            },
        )
    return onnx.load_from_string(data.getvalue())


def _around(graph: Any) -> list[str]:
    """Names of the nodes before and after the network, which keep full precision."""
    return [n.name for n in graph.graph.node if n.name.startswith(('/prepare/', '/finish/'))]


def _batches(recipe: Recipe, images: Sequence[NDArray[np.uint8]]) -> Iterator[Any]:
    for image in images:
        yield image[None] if recipe.end_to_end else recipe.normalised(image[None])


def _write_onnx(
    graph: Any, path: Path, recipe: Recipe, images: Sequence[NDArray[np.uint8]]
) -> None:
    onnx = _package('onnx')
    if recipe.precision == 'fp16':
        _package('onnxruntime')
        float16 = importlib.import_module('onnxruntime.transformers.float16')
        # float32 goes in and comes out
        graph = float16.convert_float_to_float16(
            graph, keep_io_types=True, node_block_list=_around(graph)
        )
    elif recipe.precision == 'int8':
        graph = _quantised_onnx(graph, path, recipe, images)
    onnx.helper.set_model_props(graph, {KEY: recipe.to_json()})
    onnx.save_model(graph, path)


def _quantised_onnx(graph: Any, path: Path, recipe: Recipe, images: Sequence[Any]) -> Any:
    _package('onnxruntime')
    quantization = importlib.import_module('onnxruntime.quantization')
    batches = _batches(recipe, images)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            return None if batch is None else {'images': batch}

    with _quiet('root'):
        quantization.quantize_static(
            graph,
            path,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            nodes_to_exclude=_around(graph),
            extra_options={'ActivationSymmetric': False, 'WeightSymmetric': True},
        )
    return _package('onnx').load(path)


def _write_openvino(
    graph: Any, path: Path, recipe: Recipe, images: Sequence[NDArray[np.uint8]]
) -> None:
    ov = _package('openvino')
    model = ov.convert_model(io.BytesIO(graph.SerializeToString()))
    if recipe.precision == 'int8':
        nncf = _package('nncf')
        with _quiet('nncf'):
            model = nncf.quantize(
                model,
                nncf.Dataset(list(_batches(recipe, images))),
                subset_size=len(images),
                ignored_scope=nncf.IgnoredScope(
                    patterns=['/prepare/.*', '/finish/.*'], validate=False
                ),
            )
    model.set_rt_info(recipe.to_json(), [KEY])
    ov.save_model(model, path, compress_to_fp16=recipe.precision == 'fp16')


def _write_torch_export(
    network: _Network, path: Path, recipe: Recipe, size: tuple[int, int]
) -> None:
    symbolic = importlib.import_module('torch.fx.experimental._config')
    dynamic = torch.export.Dim.DYNAMIC
    axes = (0, 1, 2) if network.end_to_end else (0, 2, 3)
    # Without these two torch would specialise: sizes of one apart from others, and a cropped map
    # apart from a whole one.
    with symbolic.patch(backed_size_oblivious=True), torch.no_grad():
        program = torch.export.export(
            network,
            (network.example(size),),
            dynamic_shapes=(dict.fromkeys(axes, dynamic),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    torch.export.save(program, path, extra_files={KEY: recipe.to_json()})


def _package(name: str) -> Any:
    return require(name, name, 'this export')


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever an exporter raises: it is about a layer that it does not know."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = describe(error).strip().splitlines()
        raise UserError(f'{what}: {lines[0]}') from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# Comparing ---------------------------------------------------------------------------------------


def compare(
    model: Any,
    run: Callable[[Any], Any],
    recipe: Recipe,
    images: Sequence[NDArray[np.uint8]],
) -> Report:
    """Compare what runs an exported model with the model.

    Args:
        model: The segmentor, on any device.
        run: From a batch to a batch, as the recipe says.
        recipe: Of the exported model.
        images: RGB, (H, W, 3) or a batch of them; they are not resized.
    """
    differences, labels, logits = [], [], []
    device = next(model.parameters()).device
    for image in images:
        batch = image if image.ndim == 4 else image[None]
        planes = recipe.normalised(batch)
        with torch.no_grad():
            expected = model(torch.from_numpy(planes).to(device), mode='tensor').float().cpu()
        if recipe.end_to_end and recipe.crops:
            expected = expected[:, :, : batch.shape[1], : batch.shape[2]]
        elif recipe.end_to_end:
            expected = F.interpolate(
                expected,
                size=batch.shape[1:3],
                mode='bilinear',
                align_corners=recipe.align_corners,
            )
        if recipe.threshold is not None:  # a second logit makes it the same kind of choice
            border = float(np.log(recipe.threshold / (1 - recipe.threshold)))
            expected = torch.cat([torch.full_like(expected, border), expected], 1)
        output = torch.from_numpy(run(batch if recipe.end_to_end else planes))
        if recipe.end_to_end:
            found = output.long()
            chosen = expected.gather(1, found[:, None])
            differences.append((expected.amax(1, keepdim=True) - chosen).flatten())
        else:
            if recipe.threshold is not None:
                output = torch.cat([torch.full_like(output, border), output], 1)
            if output.shape != expected.shape:
                raise UserError(
                    f'the exported model is wrong: {tuple(output.shape)} logits for an image of '
                    f'{batch.shape[1]}x{batch.shape[2]}, expected {tuple(expected.shape)}'
                )
            found = output.argmax(1)
            differences.append((output - expected).abs().flatten())
        labels.append((found == expected.argmax(1)).flatten())
        logits.append(expected.flatten())
    difference, logit = torch.cat(differences), torch.cat(logits)
    sizes = ', '.join('x'.join(map(str, image.shape[-3:-1])) for image in images)
    return Report(
        difference=difference.max().item(),
        deviation=difference.square().mean().sqrt().item(),
        scale=logit.abs().max().item(),
        spread=logit.std().item(),
        agreement=torch.cat(labels).float().mean().item(),
        images=f'images of {sizes}',
    )


def verify(model: Any, path: str | os.PathLike[str], loader: str = 'val') -> dict[str, dict]:
    """Score a segmentor and a file made from it with the config's data loader and its metric.

    Args:
        model: From ``load_model``; its ``cfg`` names data and metric.
        path: What ``export`` wrote.
        loader: 'val' or 'test': which ``*_dataloader`` and ``*_evaluator``.

    Returns:
        The metric's values, such as ``mIoU``, of the ``model`` and of the ``exported`` one.
    """
    cfg = model.cfg
    check_data(cfg, f'{loader}_dataloader', model.num_classes)
    backend = LOADERS[Path(path).suffix](Path(path), 'cpu', None)
    data_loader = Runner.build_dataloader(copy.deepcopy(cfg[f'{loader}_dataloader']))
    evaluators = {
        name: Evaluator(copy.deepcopy(cfg[f'{loader}_evaluator'])) for name in ('model', 'exported')
    }
    for evaluator in evaluators.values():
        evaluator.dataset_meta = data_loader.dataset.metainfo
    for data in data_loader:
        with torch.no_grad():
            evaluators['model'].process(model.test_step(copy.deepcopy(data)), data)
            evaluators['exported'].process(_test_step(model, backend, data), data)
    return {name: e.evaluate(len(data_loader.dataset)) for name, e in evaluators.items()}


def _test_step(model: Any, backend: ExportedBackend, data: Any) -> list[Any]:
    """A segmentor's ``test_step``, with an exported network in the place of its own."""
    if backend.recipe.end_to_end:
        images = np.stack([x.permute(1, 2, 0).numpy()[..., ::-1] for x in data['inputs']])  # RGB
        samples = copy.deepcopy(data['data_samples'])
        for sample, labels in zip(samples, backend.run(images), strict=True):
            labels = resize_labels(labels, sample.ori_shape)
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None].long())
        return samples
    prepared = model.data_preprocessor(copy.deepcopy(data), False)
    samples = prepared['data_samples']
    logits = torch.from_numpy(backend.run(prepared['inputs'].cpu().numpy()))
    logits = model.decode_head.predict_by_feat(logits, [sample.metainfo for sample in samples])
    return model.postprocess_result(logits, samples)
