"""Segmentors of mmseg, run in torch as they are."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, BinaryIO

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image

from ssnet_mm.deploy.fusion import fuse as fuse_layers
from ssnet_mm.deploy.images import Maps, Pixels, check_mode, label_type, to_rgb
from ssnet_mm.deploy.model import check_device, load_model
from ssnet_mm.deploy.network import kind_of, named_classes, pipeline_of, threshold_of
from ssnet_mm.deploy.precision import pack_weights, run_in_bfloat16
from ssnet_mm.deploy.processor import Scale, decide, empty_maps, rescaled
from ssnet_mm.deploy.tiling import Tiling, Window, label_tiles
from ssnet_mm.engine.config import config_errors, load_config
from ssnet_mm.engine.samples import image_bands
from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS, check_regular, open_image

from .session import check_process, not_finite

_BY_NAME = ('tifffile',)  # backends of LoadImageFromFile that read what Pillow does not


class TorchSession:
    """A segmentor of mmseg; it does what mmseg's ``inference_model`` does.

    That one builds the test pipeline at each call, for which mmengine switches a scope that all
    threads share; here it is built once.

    Args:
        model: In evaluation mode, with the ``cfg`` and ``dataset_meta`` that ``load_model`` gives.
    """

    def __init__(self, model: Any) -> None:
        self.process = os.getpid()
        self.model = model
        init_default_scope(model.cfg.get('default_scope', 'mmseg'))
        load, *rest = pipeline_of(model)
        self.transforms = [t for t in rest if kind_of(t) != 'LoadAnnotations']
        if any('TestTimeAug' in kind_of(t) for t in self.transforms):
            raise UserError(
                'the test pipeline makes several versions of an image (TestTimeAug), and one is '
                'segmented here; make that tta_pipeline, and test_pipeline one that loads, resizes '
                'and packs'
            )
        self.from_array = dict(
            type='LoadImageFromNDArray', to_float32=load.get('to_float32', False)
        )
        self.loader = load
        self.own_loader = kind_of(load) != 'LoadImageFromFile'
        with config_errors(f'test_pipeline of {model.cfg.filename}'):
            self.pipeline = Compose([self.from_array, *self.transforms])
            self.load = Compose([load if self.own_loader else dict(load, to_float32=False)])
        self.num_classes, self.classes, self.palette = named_classes(model)
        self.first_index = int(bool((model.dataset_meta or {}).get('reduce_zero_label')))
        self.bands = image_bands(model)

    def read(self, source: Path | BinaryIO, max_pixels: int | None = MAX_PIXELS) -> Pixels:
        """Read as the config's pipeline does, after Pillow has seen that the file is whole."""
        flag = self.loader.get('color_type', 'color')
        backend = self.loader.get('imdecode_backend', 'cv2')
        if not self.own_loader and backend not in _BY_NAME:
            with open_image(source, max_pixels) as image:
                image.load()  # raises where the file is cut short; OpenCV 4 goes on with grey
                if flag != 'unchanged':
                    check_mode(image)
            del image  # which holds the pixels until then
        if isinstance(source, Path):
            check_regular(source)
            pixels = self.load({'img_path': str(source)})['img']
        elif self.own_loader:
            raise UserError(f'{self.loader["type"]} of the test pipeline reads paths only')
        else:
            source.seek(0)
            pixels = mmcv.imfrombytes(source.read(), flag=flag, backend=backend)
        pixels = np.atleast_3d(pixels)
        if pixels.dtype != np.uint8:
            raise UserError(f'{pixels.dtype} values, where 8 bits are expected')
        return _swapped(pixels)

    def convert(self, image: Image.Image) -> Pixels:
        """A PIL image with the bands, and turned, as the config's pipeline reads files."""
        flag = self.loader.get('color_type', 'color')
        kept = flag == 'unchanged' and image.mode in ('L', 'RGBA')
        if flag.startswith('grayscale') or kept:
            mode = image.mode if kept else 'L'
            grey = image if kept else Image.fromarray(to_rgb(image, 'ignore' not in flag))
            return np.atleast_3d(np.array(grey.convert(mode)))
        return to_rgb(image, flag not in ('unchanged', 'color_ignore_orientation'))

    def rescaled(self, scale: Scale) -> TorchSession:
        """The same network for images of another size than the test pipeline's."""
        resizes = [kind_of(t) for t in self.transforms if 'Resize' in kind_of(t)]
        if resizes not in ([], ['Resize']):
            raise UserError(
                f'scale takes the place of one Resize, and the test pipeline has {resizes}'
            )
        found = rescaled(scale)
        resize = [{'type': 'Resize', **{k: _pair(v) for k, v in found.items()}}] if found else []
        made = copy.copy(self)
        made.transforms = [*resize, *(t for t in self.transforms if kind_of(t) != 'Resize')]
        made.pipeline = Compose([self.from_array, *made.transforms])
        return made

    @property
    def largest_input(self) -> int | None:
        """The longest side that the network's input can have; None: any."""
        scales = [t.get('scale') for t in self.transforms if kind_of(t) == 'Resize']
        return max(scales[0]) if scales and isinstance(scales[0], (list, tuple)) else None

    def __call__(self, images: list[Pixels], scores: bool = False) -> list[Any]:
        """Label maps of images of one size; with ``scores`` pairs, with the probabilities."""
        check_process(self.process, torch.get_num_threads())
        data = pseudo_collate([self._packed(image) for image in images])
        with torch.no_grad():
            results = self.model.test_step(data)
        for result in results:
            if not torch.isfinite(result.seg_logits.data.sum()):
                raise not_finite()
        kind = label_type(self.num_classes)
        labels = [r.pred_sem_seg.data[0].cpu().numpy().astype(kind) for r in results]
        if not scores:
            return labels
        return [
            (found, _probabilities(result).cpu().numpy())
            for found, result in zip(labels, results, strict=True)
        ]

    def tiled(self, image: Pixels, tiling: Tiling, batch_size: int, scores: bool = False) -> Maps:
        """The label map of an image that goes through the network in tiles, and its scores."""
        check_process(self.process, torch.get_num_threads())
        preprocessor = self.model.data_preprocessor
        if getattr(preprocessor, 'test_cfg', None):
            raise UserError('a data_preprocessor that pads test images (test_cfg) takes no tiles')
        if self.model.test_cfg.get('mode') == 'slide':
            raise UserError(
                'the network runs in sliding windows (model.test_cfg) already: leave tile out, or '
                'set model.test_cfg.mode=whole'
            )
        packed = self._packed(image)
        if packed['data_samples'].get('flip'):
            raise UserError('a test pipeline that flips images takes no tiles; take the flip out')
        inputs = packed['inputs']

        def run(windows: list[Window]) -> Any:
            tiles = [inputs[:, window.rows, window.columns] for window in windows]
            with torch.no_grad():
                batch = preprocessor({'inputs': tiles}, False)['inputs']
                metas = [{'img_shape': batch.shape[2:]} for _ in tiles]
                logits = self.model.encode_decode(batch, metas).float().cpu().numpy()
            if not np.isfinite(logits).all():
                raise not_finite()
            return logits

        threshold = threshold_of(self.model)

        def decided(logits: Any) -> Maps:
            return decide(logits, self.num_classes, threshold, 1 if scores else None)

        return label_tiles(
            run, tiling, batch_size, tuple(inputs.shape[1:]), image.shape[:2],
            empty_maps(image.shape[:2], self.num_classes, scores),
            decided, self.model.align_corners,
        )  # fmt: skip

    def _packed(self, image: Pixels) -> Any:
        """What the pipeline makes of an image."""
        if self.bands and image.shape[2] not in self.bands:
            raise UserError(
                f'an image of {image.shape[2]} bands, the network takes {self.bands[0]}; see '
                'color_type of LoadImageFromFile in the test pipeline'
            )
        if image.shape[2] == 1:  # has no axis of its own where OpenCV reads it
            image = image[..., 0]
        elif image.shape[2] == 3 and [*map(kind_of, self.transforms)] == ['PackSegInputs']:
            image = image[..., ::-1]  # which it copies anyway, and a large image once less so
        else:
            image = _swapped(image)
        packed = self.pipeline({'img': image})
        if 'inputs' not in packed:
            raise UserError(
                "the test pipeline gives no inputs; put dict(type='PackSegInputs') at its end"
            )
        return packed


def _probabilities(result: Any) -> torch.Tensor:
    """Of the classes that mmseg has predicted, (H, W)."""
    logits, labels = result.seg_logits.data.float(), result.pred_sem_seg.data[0]
    if len(logits) == 1:  # of which mmseg keeps the sigmoid
        return torch.where(labels.bool(), logits[0], 1 - logits[0])
    return logits.softmax(0).amax(0)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _swapped(image: Pixels) -> Pixels:
    """Red and blue swapped, wherever there are both; further bands stay."""
    if image.shape[2] < 3:
        return image
    swapped = image.copy()
    swapped[..., 0], swapped[..., 2] = image[..., 2], image[..., 0]
    return swapped


def load(
    config: Any,
    checkpoint: Any,
    device: str | None,
    threads: int | None,
    fuse: bool,
    precision: str | None,
) -> TorchSession:
    """Build a config's segmentor with a checkpoint's weights; the arguments are Segmenter's."""
    if checkpoint is None:
        raise UserError(f'{getattr(config, "filename", config)} needs a checkpoint beside it')
    if precision not in (None, 'fp32', 'bf16'):
        raise UserError(f'a config runs in fp32 or bf16; for {precision} export it')
    if not isinstance(config, Config):
        config = load_config(os.fspath(config))
    if threads:
        torch.set_num_threads(threads)
    model = load_model(config, os.fspath(checkpoint), check_device(device))
    if fuse:
        model = fuse_layers(model)
    if precision == 'bf16':
        run_in_bfloat16(model)
    if fuse:
        pack_weights(model)
    return TorchSession(model)
