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
from PIL import Image

from ssnet_mm.deploy.fusion import fuse as fuse_layers
from ssnet_mm.deploy.images import Labels, Pixels
from ssnet_mm.deploy.model import check_device, load_model
from ssnet_mm.engine.config import load_config
from ssnet_mm.errors import UserError


class TorchSession:
    """A segmentor of mmseg; it does what mmseg's ``inference_model`` does.

    That one builds the test pipeline at each call, for which mmengine switches a scope that all
    threads share; here it is built once.

    Args:
        model: In evaluation mode, with the ``cfg`` and ``dataset_meta`` that ``load_model`` gives.
    """

    def __init__(self, model: Any) -> None:
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

    def read(self, path: Path) -> Pixels:
        """Read as the config's pipeline does, after Pillow has seen that the file is whole."""
        with Image.open(path) as image:
            image.load()  # raises where the file is cut short; OpenCV 4 fills in grey and goes on
        loaded = self.load({'img_path': str(path)})
        return loaded['img'][..., ::-1]

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        """Label maps of images of one size."""
        bgr = [np.ascontiguousarray(image[..., ::-1]) for image in images]
        with torch.no_grad():
            results = self.model.test_step(pseudo_collate([self.pipeline({'img': b}) for b in bgr]))
        return [r.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8) for r in results]


def load(
    config: Any, checkpoint: Any, device: str | None, threads: int | None, fuse: bool
) -> TorchSession:
    """Build a config's segmentor with a checkpoint's weights; the arguments are Segmenter's."""
    if checkpoint is None:
        raise UserError(f'{getattr(config, "filename", config)} needs a checkpoint beside it')
    if not isinstance(config, Config):
        config = load_config(os.fspath(config))
    if threads:
        torch.set_num_threads(threads)
    model = load_model(config, os.fspath(checkpoint), check_device(device))
    return TorchSession(fuse_layers(model) if fuse else model)
