"""How large images, how many iterations: what fits the data, the machine and the time there is."""

from __future__ import annotations

import copy
import io
import itertools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from mmseg.registry import DATASETS

from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.engine.launch import tune
from ssnet_mm.engine.mixed_precision import in_mixed_precision
from ssnet_mm.engine.val_loss import ValLossHook
from ssnet_mm.errors import quiet
from ssnet_mm.files import write_result

Size = tuple[int, int]

_SHORT_SIDES = (512, 448, 384, 320, 288, 256, 224, 192, 160, 128)  # that photos may be scaled to
_CROP = 0.8  # of an image's sides, as in configs/_base_/datasets/camvid.py
_STRIDE = 32  # of the coarsest level, whose multiples crops are
_LARGEST_CROP = 512
# batch sizes, and the iterations for which images may be this large; the first is the recipe's
_ENOUGH = ((16, 1000), (8, 600), (4, 300))
_VALIDATIONS = 10
_VAL_SHARE = 0.15  # of the time, at most
_SAVED = 2  # checkpoints at a validation: the newest and the best
_PASSES = 4  # over the validation images after training: test, pictures, and the export's two
_TIMED = (2, 20)  # iterations, at least and at most, after one to warm up
_LONG = 5.0  # seconds, after which no more are timed


@dataclass(frozen=True)
class Speed:
    """Seconds that this machine takes, images read and scores counted.

    Args:
        train: A pixel of a training image.
        val: A pixel of a validation image.
        save: A checkpoint.
    """

    train: float
    val: float
    save: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The numbers of a config.

    Args:
        scale: Width and height that images are scaled to fit into.
        crop_size: Height and width of training images.
        batch_size: Images an iteration.
        max_iters: Iterations.
        val_interval: Iterations between validations.
        step, validation, saving: Seconds that an iteration, a validation and its checkpoints were
            measured to take; 0 where that was not asked.
    """

    scale: Size
    crop_size: Size
    batch_size: int
    max_iters: int
    val_interval: int
    step: float = 0.0
    validation: float = 0.0
    saving: float = 0.0

    @property
    def validations(self) -> int:
        return math.ceil(self.max_iters / self.val_interval)

    @property
    def seconds(self) -> float:
        """From the first iteration to the end of what follows the training."""
        passes = (self.validations + _PASSES) * self.validation
        return self.max_iters * self.step + passes + self.validations * self.saving

    def __str__(self) -> str:
        (width, height), (h, w) = self.scale, self.crop_size
        said = (
            f'images of {width}x{height}, crops of {w}x{h}, {self.max_iters} iterations of '
            f'{self.batch_size} images'
        )
        if not self.step:
            return said
        return (
            f'{said} at {self.step:.2f} s, {self.validations} validations of '
            f'{self.validation + self.saving:.1f} s; {self.seconds / 60:.1f} minutes with test and '
            'pictures'
        )


def measure(cfg: Config, file: Path) -> Speed:
    """Train a few iterations and validate a few images as a config says, on a model of its own.

    Args:
        cfg: The config.
        file: Where a checkpoint may be written, and removed again.
    """
    with quiet(MMLogger.get_current_instance()), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the training says it all again
        model = build_segmentor(cfg, training=True).to(get_device())
        tune(model, in_mixed_precision(cfg))
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader))
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        evaluator = Evaluator(copy.deepcopy(cfg.val_evaluator))
    evaluator.dataset_meta = dataset.metainfo
    batches = iter(loader)
    model.train()
    step = _time(lambda: model.train_step(next(batches), wrapper))

    start = time.perf_counter()
    try:
        written = io.BytesIO()
        torch.save([model.state_dict(), wrapper.state_dict()], written)
        write_result(file, written.getvalue())
    finally:
        file.unlink(missing_ok=True)
    save = time.perf_counter() - start
    indices = itertools.cycle(range(len(dataset)))
    loss = ValLossHook()
    loss.before_val_epoch()

    def validate() -> None:
        data = pseudo_collate([dataset[next(indices)]])
        with torch.no_grad():
            samples = model.val_step(data)
        loss.add(model, samples)
        evaluator.process(samples, data)

    model.eval()
    height, width = cfg.crop_size
    pixels = cfg.train_dataloader.batch_size * height * width
    return Speed(step / pixels, _time(validate) / math.prod(cfg.scale), save)


def _time(step: Callable[[], Any]) -> float:
    taken: list[float] = []
    least, most = _TIMED
    while len(taken) <= least or (len(taken) <= most and sum(taken) < _LONG):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.mean(taken[1:]))


def choose(
    sizes: Counter[Size],
    counts: Mapping[str, int],
    speed: Speed | None,
    seconds: float,
    iters: int | None = None,
) -> Plan:
    """Numbers for a config.

    Images are as large as leaves time for enough iterations; where there is no time for that, they
    are small and the iterations few.

    Args:
        sizes: Width and height of the images, with how many there are of each.
        counts: Images by split.
        speed: Of this machine; None only where ``iters`` is given.
        seconds: For training, its validations and what follows.
        iters: Iterations, instead of time.
    """
    long, short = _typical(sizes)
    candidates = [side for side in _SHORT_SIDES if side < short]
    if short <= _LARGEST_CROP:
        candidates.insert(0, short)
    candidates = candidates or [short]
    if iters is not None:
        # half of VGA is what a CPU trains on in reasonable time
        most, batch = (512, 16) if get_device() != 'cpu' else (256, 8)
        side = next((s for s in candidates if s <= most), short)
        batch = min(batch, counts['train'])
        return Plan(*_shapes(sizes, long, short, side), batch, iters, _interval(iters))
    assert speed is not None
    for side in candidates:
        for batch, enough in _ENOUGH:
            batch = min(batch, counts['train'])
            plan = Plan(*_shapes(sizes, long, short, side), batch, 1, 1)
            plan = fill(plan, counts, speed, seconds)
            if plan.max_iters >= enough:
                return plan
    return plan


def fill(plan: Plan, counts: Mapping[str, int], speed: Speed, seconds: float) -> Plan:
    """A plan with as many iterations as there is time for, or as are useful; the rest as for
    :func:`choose`."""
    step = speed.train * plan.batch_size * math.prod(plan.crop_size)
    validation = max(speed.val * counts['val'] * math.prod(plan.scale), 1e-9)
    saving = _SAVED * speed.save
    validations = int(min(max(_VAL_SHARE * seconds / (validation + saving), 2), _VALIDATIONS))
    most = (seconds - (validations + _PASSES) * validation - validations * saving) / step
    # each image some hundred times is more than enough
    count = int(min(max(most, 20), max(2000, 200 * counts['train'] / plan.batch_size)))
    interval = _interval(count, validations)
    return replace(
        plan, max_iters=count, val_interval=interval, step=step, validation=validation,
        saving=saving,
    )  # fmt: skip


def _interval(iters: int, validations: int = _VALIDATIONS) -> int:
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
    crop = _crop(side), _crop(other)  # of lying images
    if lying < 0.1:
        return (side, other), crop[::-1]
    if lying < 0.9:
        crop = crop[0], crop[0]
    return (other, side), crop


def _crop(side: int) -> int:
    return min(max(round(_CROP * side / _STRIDE), 1) * _STRIDE, _LARGEST_CROP)
