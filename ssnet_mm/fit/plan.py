"""How large images, how many iterations: what fits the data, the machine and the time there is."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.engine.launch import tune
from ssnet_mm.engine.mixed_precision import in_mixed_precision
from ssnet_mm.errors import quiet

Size = tuple[int, int]

_SHORT_SIDES = (512, 448, 384, 320, 288, 256, 224, 192, 160, 128)  # that photos may be scaled to
_LARGEST_CROP = 512
_ENOUGH = ((8, 600), (4, 300))  # batch sizes, and the iterations for which images may be this large
_VALIDATIONS = 10
_VAL_SHARE = 0.15  # of the time, at most
_TRIED = (192, 256)  # height, width of what is timed
_TIMED = 3  # iterations, after one to warm up
_LONG = 5.0  # seconds; fewer are timed where they take longer


@dataclass(frozen=True)
class Speed:
    """Seconds that this machine takes.

    Args:
        fixed: An iteration, beside its images.
        pixel: A pixel of a training image.
        val_pixel: A pixel of a validation image.
    """

    fixed: float
    pixel: float
    val_pixel: float


@dataclass(frozen=True)
class Plan:
    """The numbers of a config.

    Args:
        scale: Width and height that images are scaled to fit into.
        crop_size: Height and width of training images.
        batch_size: Images an iteration.
        max_iters: Iterations.
        val_interval: Iterations between validations.
        seconds: An iteration was measured to take; 0 where that was not asked.
    """

    scale: Size
    crop_size: Size
    batch_size: int
    max_iters: int
    val_interval: int
    seconds: float = 0.0


def measure(cfg: Config) -> Speed:
    """Train a few iterations on noise, of two batch sizes, and segment an image of it."""
    model = build_segmentor(cfg, training=True)
    model = model.to(get_device())
    tune(model, in_mixed_precision(cfg))
    with quiet(MMLogger.get_current_instance()):  # it lists each parameter
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    height, width = _TRIED
    seconds = {}
    for batch in (1, 4):
        data = _noise(batch, model.num_classes)
        model.train()
        seconds[batch] = _time(partial(model.train_step, data, wrapper))
    model.eval()
    with torch.no_grad():
        val = _time(lambda: model.test_step(_noise(1, model.num_classes)))
    pixel = max(seconds[4] - seconds[1], 0.3 * seconds[4]) / (3 * height * width)
    fixed = max(seconds[4] - 4 * height * width * pixel, 0.0)
    return Speed(fixed, pixel, val / (height * width))


def _noise(batch: int, num_classes: int) -> dict[str, list[Any]]:
    shape = _TRIED
    samples = []
    for _ in range(batch):
        labels = torch.randint(num_classes, (1, *shape))
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    inputs = [torch.randint(256, (3, *shape), dtype=torch.uint8) for _ in range(batch)]
    return dict(inputs=inputs, data_samples=samples)


def _time(step: Callable[[], Any]) -> float:
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) <= _TIMED and sum(taken) < _LONG):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def choose(
    sizes: Counter[Size],
    num_train: int,
    num_val: int,
    speed: Speed | None,
    minutes: float,
    iters: int | None = None,
) -> Plan:
    """Numbers for a config.

    Images are as large as leaves time for enough iterations; where there is no time for that, they
    are small and the iterations few.

    Args:
        sizes: Width and height of the images, with how many there are of each.
        num_train, num_val: Images of both splits.
        speed: Of this machine; None only where ``iters`` is given.
        minutes: For training and its validations.
        iters: Iterations, instead of minutes.
    """
    long, short = _typical(sizes)
    candidates = [side for side in _SHORT_SIDES if side < short]
    if short <= _LARGEST_CROP:
        candidates.insert(0, short)
    candidates = candidates or [short]
    if iters is not None:
        # half of VGA is what a CPU trains on in reasonable time
        side = next((s for s in candidates if s <= (512 if get_device() != 'cpu' else 256)), short)
        scale, crop = _shapes(sizes, long, short, side)
        return Plan(scale, crop, min(8, num_train), iters, _interval(iters, _VALIDATIONS))
    assert speed is not None
    budget = 60 * minutes
    plan = None
    for side in candidates:
        scale, crop = _shapes(sizes, long, short, side)
        for batch, enough in _ENOUGH:
            batch = min(batch, num_train)
            seconds = speed.fixed + speed.pixel * batch * crop[0] * crop[1]
            val = max(speed.val_pixel * scale[0] * scale[1] * num_val, 1e-9)
            validations = int(min(max(_VAL_SHARE * budget / val, 2), _VALIDATIONS))
            most = (budget - validations * val) / seconds
            # each image some hundred times is more than enough
            count = int(min(max(most, 20), max(2000, 200 * num_train / batch)))
            plan = Plan(scale, crop, batch, count, _interval(count, validations), seconds)
            if most >= enough:
                return plan
    assert plan is not None
    return plan


def _interval(iters: int, validations: int) -> int:
    return max(1, math.ceil(iters / validations))


def _typical(sizes: Counter[Size]) -> Size:
    """Median of the longer and of the shorter sides."""
    sides = np.repeat([sorted(size) for size in sizes], list(sizes.values()), axis=0)
    short, long = np.median(sides, axis=0)
    return int(long), int(short)


def _shapes(sizes: Counter[Size], long: int, short: int, side: int) -> tuple[Size, Size]:
    """Scale and crop for images whose shorter side becomes ``side``: (w, h) and (h, w)."""
    other = round(long * side / short)
    total = sum(sizes.values())
    lying = sum(count for (w, h), count in sizes.items() if w >= h) / total
    crop = min(side, _LARGEST_CROP), min(other, _LARGEST_CROP)  # of lying images
    if lying < 0.1:
        return (side, other), crop[::-1]
    if lying < 0.9:
        crop = crop[0], crop[0]
    return (other, side), crop
