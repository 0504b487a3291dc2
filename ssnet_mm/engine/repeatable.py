"""Training whose random numbers depend on the seed and on what was trained, and on nothing else.

Dropout draws from the seed and the number of the iteration, augmentation from the seed and the
number of the sample in the order of training. So a run that was stopped, at whatever moment, draws
after resuming what it would have drawn, and the number of data loader workers changes nothing.
mmengine's own workers start over with the same numbers at each resume.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Sampler


def seed_cpu(*key: int) -> int:
    """Set the state of Python's, NumPy's and torch's random numbers by a few whole numbers.

    Returns:
        A seed for those of other devices. ``torch.manual_seed``, which sets them all, takes 0.2 ms.
    """
    first, second, third = np.random.SeedSequence(key).generate_state(3).tolist()
    random.seed(first)
    np.random.seed(second)
    torch.default_generator.manual_seed(third)
    return third


class Draw(int):
    """The index of a sample, with the key of the random numbers that it is loaded with."""

    key: tuple[int, ...]

    def __new__(cls, index: int, key: tuple[int, ...]) -> Draw:
        draw = super().__new__(cls, index)
        draw.key = key
        return draw

    def __reduce__(self) -> tuple[type[Draw], tuple[int, tuple[int, ...]]]:  # to a worker
        return Draw, (int(self), self.key)


class NumberedSampler(Sampler):
    """A sampler that numbers what another one yields, and can go on where a run stopped."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.round = 0
        self.started: Iterator[Draw] = iter(())
        self.rest: Iterator[Draw] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Draw]:
        if self.rest is not None:
            rest, self.rest = self.rest, None
            return rest
        self.started = self._draws(self.round)
        self.round += 1
        return self.started

    def _draws(self, round: int) -> Iterator[Draw]:
        for number, index in enumerate(self.sampler):
            yield Draw(index, (self.seed, get_rank(), round, number))

    def start(self, round: int) -> None:
        """Set the number of the next round, and the order of samples to that round's."""
        self.round = round
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(round)


def load_items(dataset: Any, batch: Sequence[int]) -> list[Any]:
    """Load the samples of a batch, each with random numbers of its own."""
    items = []
    for draw in batch:
        if isinstance(draw, Draw):
            seed_cpu(*draw.key, 0)
        items.append(dataset[int(draw)])
    return items


def number_draws(loader: DataLoader, seed: int) -> NumberedSampler | None:
    """Have a data loader give each sample random numbers of its own.

    Args:
        loader: Changed in place; nobody has iterated over it yet.
        seed: Of the run.

    Returns:
        Its sampler; None, and nothing is changed, where its batches don't come from a sampler, or
        its data set loads whole batches by itself.
    """
    batches: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    if not hasattr(batches, 'sampler') or hasattr(dataset, '__getitems__'):
        return None
    batches.sampler = NumberedSampler(batches.sampler, seed)
    dataset.__getitems__ = functools.partial(load_items, dataset)  # torch's, for a whole batch
    return batches.sampler


def skip_batches(loader: DataLoader, sampler: NumberedSampler, round: int, number: int) -> int:
    """Have a data loader start behind the batches that were trained already; none is loaded.

    Args:
        loader: From ``number_draws``.
        sampler: From ``number_draws``.
        round: How often the run had gone through the sampler at the first of these batches.
        number: Of batches.

    Returns:
        How often it has gone through it at the last.
    """
    sampler.start(round)
    batches = iter(loader.batch_sampler)  # type: ignore[arg-type]
    for _ in range(number):
        if next(batches, None) is None:
            round += 1
            sampler.start(round)
            batches = iter(loader.batch_sampler)  # type: ignore[arg-type]
            next(batches)
    if number:
        sampler.rest = sampler.started
    return round


class ResumedIterator:
    """Stands in for the iterator of mmengine's iteration-based loop, and skips nothing.

    The loop has it skip what was trained, either by ``skip_iter`` or by taking as many batches.
    """

    def __init__(self, iterator: Any, round: int, number: int) -> None:
        self.iterator = iterator
        self.iterator._epoch = round
        self.left = 0 if hasattr(iterator, 'skip_iter') else number

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the sampler stands behind them already."""

    def __iter__(self) -> ResumedIterator:
        return self

    def __next__(self) -> Any:
        if self.left:
            self.left -= 1
            return None
        return next(self.iterator)


class RepeatableHook(Hook):
    """Give each iteration random numbers of its own."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(seed_cpu(runner.seed, runner.iter, 1))
