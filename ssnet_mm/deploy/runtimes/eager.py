"""Segmentors of mmseg, run in torch as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope

from ssnet_mm.deploy.fusion import fuse as fuse_layers
from ssnet_mm.deploy.images import Labels, Pixels
from ssnet_mm.deploy.model import check_device, load_model
from ssnet_mm.deploy.precision import compute_in_bfloat16, pack_weights
from ssnet_mm.engine.config import load_config
from ssnet_mm.engine.samples import image_bands
from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS, open_image

from .session import check_process


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
        load, *rest = model.cfg.test_pipeline
        kept = [t for t in rest if t['type'] != 'LoadAnnotations']
        self.pipeline = Compose([dict(load, type='LoadImageFromNDArray'), *kept])
        self.load = Compose([{k: v for k, v in load.items() if k != 'to_float32'}])
        meta = model.dataset_meta or {}
        self.classes = tuple(meta.get('classes') or ())
        self.palette = tuple(tuple(colour) for colour in meta.get('palette') or ())
        self.num_classes = model.num_classes
        self.first_index = int(bool(meta.get('reduce_zero_label')))
        self.bands = image_bands(model)

    def read(self, path: Path, max_pixels: int | None = MAX_PIXELS) -> Pixels:
        """Read as the config's pipeline does, after Pillow has seen that the file is whole."""
        with open_image(path, max_pixels) as image:
            image.load()  # raises where the file is cut short; OpenCV 4 fills in grey and goes on
        pixels = np.atleast_3d(self.load({'img_path': str(path)})['img'])
        if pixels.dtype != np.uint8:
            raise ValueError(f'{pixels.dtype} values, where 8 bits are expected')
        return _swapped(pixels)

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        """Label maps of images of one size."""
        check_process(self.process, torch.get_num_threads())
        for image in images:
            if self.bands and image.shape[2] not in self.bands:
                raise UserError(
                    f'an image of {image.shape[2]} bands, the network takes {self.bands[0]}; see '
                    'color_type of LoadImageFromFile in the test pipeline'
                )
        # a single band has no axis of its own where OpenCV reads it
        bgr = [_swapped(i) if i.shape[2] > 1 else i[..., 0] for i in images]
        with torch.no_grad():
            results = self.model.test_step(pseudo_collate([self.pipeline({'img': b}) for b in bgr]))
        return [r.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8) for r in results]


def _swapped(image: Pixels) -> Pixels:
    """Red and blue swapped, wherever there are both; further bands stay."""
    bands = image.shape[2]
    return image if bands < 3 else np.ascontiguousarray(image[..., [2, 1, 0, *range(3, bands)]])


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
        compute_in_bfloat16(model)
    if fuse:
        pack_weights(model)
    return TorchSession(model)
