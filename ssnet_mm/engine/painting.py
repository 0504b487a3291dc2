"""Predictions painted over images as the data set's own pipeline reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook
from numpy.typing import NDArray

from ssnet_mm.checks.facts import transforms_of
from ssnet_mm.engine.samples import single_parts


def read_as_loaded(path: str, dataset: Any) -> NDArray[np.uint8] | None:
    """An image as 8-bit RGB, turned by its EXIF data where the pipeline of a data set turns it.

    Args:
        path: Of the image.
        dataset: Built; of several in one the first tells. Where a transform of one's own reads the
            images, mmcv's default holds.

    Returns:
        (H, W, 3), or None if the decoder gives nothing.
    """
    transforms = transforms_of(getattr(next(single_parts(dataset)), 'pipeline', []))
    loaders = (t for t in transforms if isinstance(t, LoadImageFromFile))
    loader = next(loaders, None) or LoadImageFromFile()
    known = loader.imdecode_backend in ('cv2', 'pillow')  # others do not turn
    turns = known and loader.color_type in ('color', 'grayscale')
    image = mmcv.imfrombytes(
        fileio.get(path, backend_args=loader.backend_args),
        flag='color' if turns else 'color_ignore_orientation',
        backend=loader.imdecode_backend if known else 'cv2',
    )
    # not asked for as RGB: mmcv gives BGR all the same where OpenCV does not turn
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


class LoadedVisualizationHook(SegVisualizationHook):
    """SegVisualizationHook that paints over images as the data set's pipeline reads them.

    mmseg's, in whose place our tools put it, reads them by its own rules, and where it turns one
    that the pipeline does not, the prediction does not fit. Painted are the first image of every
    ``interval``-th batch of a validation, and all images of a test.

    Args:
        kwargs: As for ``SegVisualizationHook``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._test_index = 0  # OpenMMLab's counts none

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        step = runner.iter + batch_idx
        if self.draw and outputs and step % self.interval == 0:
            self._paint('val', outputs[0], runner.val_loop.dataloader.dataset, step)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        for sample in outputs or () if self.draw else ():
            self._test_index += 1
            self._paint('test', sample, runner.test_loop.dataloader.dataset, self._test_index)

    def _paint(self, stage: str, sample: Any, dataset: Any, step: int) -> None:
        size = tuple(sample.pred_sem_seg.data.shape[-2:])
        image = read_as_loaded(sample.img_path, dataset)
        if image is None or image.shape[:2] != size:  # a transform of one's own reads it otherwise
            image = np.zeros((*size, 3), np.uint8)
        self._visualizer.add_datasample(
            f'{stage}_{os.path.basename(sample.img_path)}',
            image,
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            step=step,
        )
