"""Data sets gone through sample by sample: each file read once, in parallel, and remembered."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ssnet_mm.checks.cache import Cache
from ssnet_mm.checks.facts import Facts, Reader, read_facts, readers_of

# Samples whose files may be read ahead: enough for any number of threads, and little memory.
_AHEAD = 256


@dataclass(frozen=True)
class Split:
    """A built data set, and what its labels may be.

    Args:
        where: Its place in the config, as in 'train_dataloader.dataset'.
        dataset: Of mmseg's BaseSegDataset, or like one.
        num_classes: How many classes labels may name: 0 to ``num_classes - 1``.
        ignore_index: The label that doesn't count.
    """

    where: str
    dataset: Any
    num_classes: int
    ignore_index: int = 255

    @property
    def training(self) -> bool:
        return self.where.startswith('train')

    @property
    def local(self) -> bool:
        """Whether the files lie on this machine's disk."""
        root = getattr(self.dataset, 'data_root', None) or ''
        return not getattr(self.dataset, 'backend_args', None) and '://' not in root

    @property
    def reduces_zero(self) -> bool:
        """Whether 0 is void, and other values are lowered by 1."""
        return bool(getattr(self.dataset, 'reduce_zero_label', False))

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; numbers where the data set has none."""
        names = self.dataset.metainfo.get('classes') or [str(i) for i in range(self.num_classes)]
        # one channel may have one name, that of label 1
        return ['background', *names] if (len(names), self.num_classes) == (1, 2) else names

    @cached_property
    def readers(self) -> tuple[Reader | None, Reader | None]:
        """How its pipeline reads images, and masks."""
        return readers_of(getattr(self.dataset, 'pipeline', []))

    def label(self, value: float) -> int:
        """What mmseg's LoadAnnotations makes of a value that is stored in a mask."""
        label = int(value) % 256 if math.isfinite(value) else 0
        if self.reduces_zero:
            label = 255 if label in (0, 255) else label - 1
        label_map = getattr(self.dataset, 'label_map', None) or {}
        return label_map.get(label, label) % 256

    def takes(self, label: int) -> bool:
        """Whether a label names a class, or is the one that doesn't count."""
        return label < self.num_classes or label == self.ignore_index


@dataclass(frozen=True)
class Sample:
    """An image and its mask; a path is empty, and its facts blank, where there is none."""

    split: Split
    image_path: str
    image: Facts
    mask_path: str
    mask: Facts

    @cached_property
    def labels(self) -> dict[int, int]:
        """Pixels of the mask by label, as training and scoring would see them."""
        counts: dict[int, int] = {}
        for value, count in self.mask.values:
            label = self.split.label(value)
            counts[label] = counts.get(label, 0) + count
        return counts


def scan(splits: Sequence[Split]) -> Iterator[Sample]:
    """Go through all samples of data sets on this machine's disk.

    What was not read before, or has changed since, is read by a thread a core (decoders let go of
    Python's lock); a line on standard error says how far it is.
    """
    splits = [split for split in splits if split.local]
    total = sum(len(split.dataset) for split in splits)
    cache = Cache()
    progress = _Progress(total)
    waiting: deque[tuple[Split, str, Callable[[], Facts], str, Callable[[], Facts]]] = deque()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for split, image, mask in _paths(splits):
                read_image, read_mask = split.readers
                image_facts = _begin(image, read_image, cache, pool)
                mask_facts = _begin(mask, read_mask, cache, pool)
                waiting.append((split, image, image_facts, mask, mask_facts))
                if len(waiting) > _AHEAD:
                    yield progress.tick(_finish(*waiting.popleft()))
            while waiting:
                yield progress.tick(_finish(*waiting.popleft()))
        finally:
            pool.shutdown(cancel_futures=True)
            cache.close()
            progress.end()


def _paths(splits: Iterable[Split]) -> Iterator[tuple[Split, str, str]]:
    """Image and mask of every sample, as the data set itself names them."""
    for split in splits:
        reads_masks = split.readers[1] is not None
        for i in range(len(split.dataset)):
            info = split.dataset.get_data_info(i)
            mask = info.get('seg_map_path') if reads_masks else None
            yield split, info.get('img_path') or '', mask or ''


def _begin(
    path: str, reader: Reader | None, cache: Cache, pool: ThreadPoolExecutor
) -> Callable[[], Facts]:
    """Start to read a file, unless it is known from before; the result gives its facts."""
    if not path or reader is None:
        return Facts
    key = os.path.abspath(path)
    try:
        status = os.stat(path)
    except OSError:
        return partial(read_facts, path, reader)  # which says why
    # not the time of change alone, which copies and unpacked archives may be given
    state = status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
    known = cache.get(key, reader, state)
    if known is not None:
        return lambda: known
    future = pool.submit(read_facts, path, reader)

    def finish() -> Facts:
        facts = future.result()
        if not facts.problem:  # which may be mended without a change of the file: permissions
            cache.put(key, reader, state, facts)
        return facts

    return finish


def _finish(
    split: Split,
    image: str,
    read_image: Callable[[], Facts],
    mask: str,
    read_mask: Callable[[], Facts],
) -> Sample:
    return Sample(split, image, read_image(), mask, read_mask())


class _Progress:
    """A line on standard error, for what takes longer than two seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._shown = time.monotonic()

    def tick(self, sample: Sample) -> Sample:
        self._done += 1
        now = time.monotonic()
        if now - self._start > 2 and now - self._shown > 0.5:
            self._shown = now
            self._write('\r')
        return sample

    def end(self) -> None:
        if self._shown > self._start:
            self._write('\n')

    def _write(self, end: str) -> None:
        seconds = time.monotonic() - self._start
        sys.stderr.write(f'data [{self._done}/{self._total}] elapsed: {seconds:.0f}s{end}')
        sys.stderr.flush()
