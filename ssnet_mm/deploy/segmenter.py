"""A small runtime: an image in, a label map out, whatever runs the network.

Exported models need numpy, Pillow and their own runtime here, neither torch nor a toolbox.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ssnet_mm.deploy.processor import KEY, Recipe, resize_labels
from ssnet_mm.errors import UserError, require
from ssnet_mm.palette import voc_palette

Pixels = NDArray[np.uint8]  # (H, W, 3), RGB
Labels = NDArray[np.uint8]  # (H, W), class indices
ImageLike = str | os.PathLike[str] | Image.Image | Pixels


class Backend(Protocol):
    """What runs a network; several threads may call it at once."""

    classes: Any  # names, by label
    palette: Any  # RGB colours, by label
    num_classes: int

    def read(self, path: Path) -> Pixels:
        """The image in a file; raises what decoders raise."""
        ...

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        """Label maps of images of one size."""
        ...


def read_image(path: Path) -> Pixels:
    """Read a file as RGB, turned upright as its metadata says; 16 bits become 8."""
    with Image.open(path) as image:
        image.load()  # raises where the file is cut short
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith('I;16'):  # which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(image.convert('RGB'))


class TorchBackend:
    """A segmentor of mmseg; it does what mmseg's ``inference_model`` does.

    That one builds the test pipeline at each call, for which mmengine switches a scope that all
    threads share; here it is built once.

    Args:
        model: In evaluation mode, with the ``cfg`` and ``dataset_meta`` that ``load_model`` gives.
    """

    def __init__(self, model: Any) -> None:
        from mmengine.dataset import Compose
        from mmengine.registry import init_default_scope

        self.model = model
        init_default_scope(model.cfg.get('default_scope', 'mmseg'))
        load, *rest = model.cfg.test_pipeline
        kept = [t for t in rest if t['type'] != 'LoadAnnotations']
        self.pipeline = Compose([dict(load, type='LoadImageFromNDArray'), *kept])
        meta = model.dataset_meta or {}
        self.classes = meta.get('classes') or ()
        self.palette = meta.get('palette') or ()
        self.num_classes = model.num_classes

    def read(self, path: Path) -> Pixels:
        """Read as the config's pipeline does, after Pillow has seen that the file is whole."""
        import mmcv

        with Image.open(path) as image:
            image.load()  # raises where the file is cut short; OpenCV 4 fills in grey and goes on
        pixels = mmcv.imread(str(path), channel_order='rgb')
        if pixels is None:
            raise ValueError('not an image that OpenCV reads')
        return pixels

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        import torch
        from mmengine.dataset import pseudo_collate

        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        with torch.no_grad():
            results = self.model.test_step(pseudo_collate([self.pipeline({'img': b}) for b in bgr]))
        return [r.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8) for r in results]


class ExportedBackend:
    """An exported network with its recipe.

    Args:
        run: From a batch to a batch, as the recipe says.
        recipe: Read from the file.
    """

    def __init__(self, run: Callable[[Any], Any], recipe: Recipe) -> None:
        self.run = run
        self.recipe = recipe
        self.classes = recipe.classes
        self.palette = recipe.palette
        self.num_classes = recipe.num_classes

    def read(self, path: Path) -> Pixels:
        return read_image(path)

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        original = images[0].shape[:2]
        batch = np.stack([self.recipe.resized(image) for image in images])
        size = batch.shape[1:3]
        if not self.recipe.end_to_end:
            logits = self._checked(self.run(self.recipe.normalised(batch)), len(batch), None)
            return [self.recipe.labels(one, size, original) for one in logits]
        labels = self._checked(self.run(batch), len(batch), size)
        return [one if size == original else resize_labels(one, original) for one in labels]

    def _checked(self, output: Any, count: int, size: tuple[int, int] | None) -> Any:
        """Runtimes have faults at the sizes of no real image: an empty or old result is none."""
        if len(output) != count or 0 in output.shape or size not in (None, output.shape[1:]):
            raise UserError(
                f'the runtime gave a result of shape {output.shape} for {count} images; such small '
                'images need another format, or torch'
            )
        return output


def _load_onnx(path: Path, device: str | None, threads: int | None) -> ExportedBackend:
    ort = require('onnxruntime', 'onnxruntime', 'this model')
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; the rest is advice on optimisation
    if threads:
        options.intra_op_num_threads = threads
    provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(
        (device or 'cpu').split(':')[0]
    )
    if provider is None or provider not in ort.get_available_providers():
        raise UserError(f'device {device}: onnxruntime has no such provider here; take cpu')
    index = int((device or '').partition(':')[2] or 0)
    chosen = (provider, {'device_id': index}) if 'CUDA' in provider else provider
    try:
        session = ort.InferenceSession(os.fspath(path), options, providers=[chosen])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise UserError(f'{path} is not a readable ONNX model: {error}') from error
    recipe = Recipe.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    name = session.get_inputs()[0].name
    return ExportedBackend(lambda batch: session.run(None, {name: batch})[0], recipe)


def _load_openvino(path: Path, device: str | None, threads: int | None) -> ExportedBackend:
    ov = require('openvino', 'openvino', 'this model')
    core = ov.Core()
    try:
        model = core.read_model(path)
    except Exception as error:
        raise UserError(f'{path} is not a readable OpenVINO model: {error}') from error
    info = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    recipe = Recipe.from_json(info, path)
    options: dict[str, Any] = {'INFERENCE_NUM_THREADS': threads} if threads else {}
    if recipe.precision != 'fp16':
        options['INFERENCE_PRECISION_HINT'] = 'f32'  # or it takes bfloat16 where the CPU has it
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

    return ExportedBackend(run, recipe)


def _load_torch_export(path: Path, device: str | None, threads: int | None) -> ExportedBackend:
    torch = require('torch', 'torch', 'this model')
    _set_torch_threads(threads)
    files = {KEY: ''}
    try:
        program = torch.export.load(path, extra_files=files)
        if device not in (None, 'cpu'):
            passes = importlib.import_module('torch.export.passes')
            program = passes.move_to_device_pass(program, device)
    except Exception as error:
        raise UserError(f'{path} is not a model that torch can load: {error}') from error
    recipe = Recipe.from_json(files[KEY], path)
    module = program.module()

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(batch).to(device or 'cpu')).cpu().numpy()

    return ExportedBackend(run, recipe)


# by the name's end
LOADERS: dict[str, Callable[[Path, str | None, int | None], ExportedBackend]] = {
    '.onnx': _load_onnx,
    '.xml': _load_openvino,
    '.pt2': _load_torch_export,
}


def _set_torch_threads(threads: int | None) -> None:
    if threads:
        require('torch', 'torch', 'this model').set_num_threads(threads)


def _load_config(
    config: Any, checkpoint: Any, device: str | None, threads: int | None, fuse: bool
) -> TorchBackend:
    from ssnet_mm.deploy import fusion
    from ssnet_mm.deploy.model import check_device, load_model
    from ssnet_mm.engine.config import load_config

    if checkpoint is None:
        raise UserError(f'{getattr(config, "filename", config)} needs a checkpoint beside it')
    if isinstance(config, (str, os.PathLike)):
        config = load_config(os.fspath(config))
    _set_torch_threads(threads)
    model = load_model(config, os.fspath(checkpoint), check_device(device))
    if fuse:
        model = fusion.fuse(model)
    return TorchBackend(model)


class Segmenter:
    """Segment images with a trained or an exported model.

    Several threads may call one Segmenter.

    Args:
        model: A config (a file, or mmengine's ``Config``), or what ``tools/export.py`` wrote:
            ``.onnx`` (run by ONNX Runtime), ``.xml`` (OpenVINO) or ``.pt2`` (torch); or a backend,
            such as a ``TorchBackend`` around a model that is loaded already.
        checkpoint: For a config: the weights, which must fit the model.
        device: ``'cpu'``, ``'cuda:0'`` or what else the runtime knows. The default is CUDA where
            torch finds some for a config, and the CPU for an exported model.
        threads: How many the runtime may use; the default is its own choice. torch has one setting
            for the whole process.
        fuse: Whether to fuse the layers of a config's model (:func:`ssnet_mm.deploy.fuse`).
        batch_size: How many images of one size, neighbours in a list, run at once.

    Raises:
        UserError: A file is missing or unreadable, a runtime or device is not here, or the weights
            do not fit.

    Example:
        >>> import numpy as np
        >>> from ssnet_mm.deploy import Segmenter
        >>> segment = Segmenter('fastfcn8.onnx')  # doctest: +SKIP
        >>> labels = segment('street.jpg')  # doctest: +SKIP
        >>> labels.shape, labels.dtype  # the image's height and width  # doctest: +SKIP
        ((360, 480), dtype('uint8'))
        >>> segment.overlay('street.jpg', labels).save('overlay.png')  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        threads: int | None = None,
        fuse: bool = True,
        batch_size: int = 1,
    ) -> None:
        for name, number in (('threads', threads), ('batch_size', batch_size)):
            if number is not None and number < 1:
                raise UserError(f'{name} must be at least 1, got {number}')
        self.batch_size = batch_size
        self.backend: Backend
        path = Path(model) if isinstance(model, (str, os.PathLike)) else None
        load = LOADERS.get(path.suffix.lower()) if path else None
        if path and load:
            if checkpoint is not None:
                raise UserError(f'{path} holds its weights; leave {checkpoint} out')
            if not path.is_file():
                raise UserError(f'model {path} not found; check the path')
            self.backend = load(path, device, threads)
        elif isinstance(model, (TorchBackend, ExportedBackend)):
            self.backend = model
        elif path and path.suffix != '.py':
            kinds = ', '.join(LOADERS)
            raise UserError(f'{path} is no model: expected a config (.py) or a file {kinds}')
        else:
            self.backend = _load_config(model, checkpoint, device, threads, fuse)
        self._colours = full_palette(self.palette, self.backend.num_classes)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty where they are not known."""
        return tuple(self.backend.classes)

    @property
    def palette(self) -> tuple[tuple[int, ...], ...]:
        """RGB colours of the classes, by label; empty where they are not known."""
        return tuple(tuple(colour) for colour in self.backend.palette)

    @property
    def colours(self) -> NDArray[np.uint8]:
        """What labels are drawn with: the palette, else VOC's; (256, 3), RGB."""
        return self._colours

    def __call__(self, image: ImageLike | Sequence[ImageLike]) -> Any:
        """Label one image, or each image of a list.

        Args:
            image: A path, a PIL image, an RGB array (H, W, 3) of uint8; or a list of them.

        Returns:
            Class indices (H, W), uint8, at the image's own size; a list of them for a list.

        Raises:
            UserError: Something is not such an image.
        """
        if not isinstance(image, (list, tuple)):
            return self.backend([self.pixels(image)])[0]  # type: ignore[arg-type]
        found: list[Labels] = []
        for _, group in groupby([self.pixels(one) for one in image], key=lambda one: one.shape):
            alike = list(group)
            for i in range(0, len(alike), self.batch_size):
                found += self.backend(alike[i : i + self.batch_size])
        return found

    def pixels(self, image: ImageLike) -> Pixels:
        """An image as an RGB array (H, W, 3) of uint8; UserError if it is none."""
        if isinstance(image, (str, os.PathLike)):
            try:
                return self.backend.read(Path(image))
            except Exception as error:  # decoders raise all kinds
                raise UserError(
                    f'{os.fspath(image)} can not be read ({type(error).__name__}: {error})'
                ) from error
        if isinstance(image, Image.Image):
            return _to_rgb(image)
        if not isinstance(image, np.ndarray):
            raise UserError(f'expected a path, a PIL image or an array, got {type(image).__name__}')
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                'an image array must be uint8 of shape (height, width, 3), RGB; got '
                f'{image.dtype} of shape {image.shape}'
            )
        return image

    def overlay(self, image: ImageLike, labels: Labels, opacity: float = 0.5) -> Image.Image:
        """Paint the labels' colours over the image.

        Args:
            image: As for a call.
            labels: Of the image's size.
            opacity: Of the colours, 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise UserError(f'opacity must be from 0 to 1, got {opacity}')
        pixels = self.pixels(image)
        if labels.shape != pixels.shape[:2]:
            raise UserError(f'labels of shape {labels.shape} for an image of {pixels.shape[:2]}')
        colours = self._colours[labels].astype(np.float32)
        mixed = pixels * np.float32(1 - opacity) + colours * np.float32(opacity)
        return Image.fromarray(mixed.round().astype(np.uint8))


def full_palette(palette: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.uint8]:
    """RGB colours for at least all classes: the given ones, then VOC's colour map.

    Returns:
        Of shape (256, 3).
    """
    voc = voc_palette()
    given = np.array(palette, np.uint8).reshape(-1, 3)[:256]
    if len(given) >= num_classes:
        voc[: len(given)] = given
    return voc
