"""What only shows over a whole data set, or over several: its totals, and checks of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.checks.finding import Fault, number
from ssnet_mm.checks.lists import reads_folder
from ssnet_mm.checks.scan import Sample, Split
from ssnet_mm.limits import IMAGE_SUFFIXES


@dataclass
class Totals:
    """Sums over the samples of a data set."""

    split: Split
    images: int = 0
    masks: int = 0  # those that are read as one number a pixel
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # of images as read
    values: Counter[float] = field(default_factory=Counter)  # pixels by value as stored
    labels: Counter[int] = field(default_factory=Counter)  # pixels by label
    shown_by: Counter[int] = field(default_factory=Counter)  # masks that hold a label
    shown_in: Counter[int] = field(default_factory=Counter)  # pixels of the masks that hold it
    deep_images: int = 0  # of more than 8 bits, read as 8
    brightest: int = 0  # value of these as they are read
    void_and_first: list[str] = field(default_factory=list)  # masks of 0 and 255 alone: a few
    void_and_first_masks: int = 0
    # of each number of a class, the colours that palettes give it, each with a mask
    colours: dict[float, dict[str, str]] = field(default_factory=dict)
    # of each image's content, its path; not of images of a single colour, which are alike by chance
    digests: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Count a sample in."""
        self.images += 1
        image = sample.image
        if image.size != (0, 0):
            self.sizes[image.size] += 1
        if image.cut:
            self.deep_images += 1
            self.brightest = max(self.brightest, image.brightest)
        if image.digest and not image.flat:
            first = self.digests.setdefault(image.digest, sample.image_path)
            if first != sample.image_path:
                self.repeated.append(f'{sample.image_path} is {first}')
        if not sample.mask.values:
            return
        self.masks += 1
        self.values.update(dict(sample.mask.values))
        pixels = sum(sample.labels.values())
        for label, count in sample.labels.items():
            self.labels[label] += count
            self.shown_by[label] += 1
            self.shown_in[label] += pixels
        for value, colour in sample.mask.colours:
            if self.split.label(value) != self.split.ignore_index:
                self.colours.setdefault(value, {}).setdefault(colour, sample.mask_path)
        if {value for value, _ in sample.mask.values} == {0, 255}:
            self.void_and_first_masks += 1
            if len(self.void_and_first) < 4:
                self.void_and_first.append(sample.mask_path)

    def shares(self) -> NDArray[np.float64]:
        """Of the labelled pixels, those of each class; 0..1, all 0 without any."""
        counts = np.array([self.labels[i] for i in range(self.split.num_classes)], float)
        return counts / max(counts.sum(), 1)

    def median_frequency_weights(self) -> NDArray[np.float64]:
        """Square root of SegNet's median frequency balancing, so that a pixel weighs 1 on average.

        A class's frequency is its share of the pixels of the images that show it
        (https://arxiv.org/abs/1511.00561). 0 for a class without pixels.
        """
        classes = range(self.split.num_classes)
        pixels = np.array([self.labels[i] for i in classes], float)
        shown = np.array([self.shown_in[i] for i in classes], float)
        seen = pixels > 0
        if not seen.any():
            return np.zeros(len(pixels))
        frequency = pixels[seen] / shown[seen]
        weights = np.zeros(len(pixels))
        weights[seen] = np.sqrt(np.median(frequency) / frequency)
        return weights / (weights * self.shares()).sum()

    def enet_weights(self) -> NDArray[np.float64]:
        """ENet's 1 / ln(1.02 + share) (https://arxiv.org/abs/1606.02147); 0 without pixels."""
        shares = self.shares()
        return np.where(shares > 0, 1 / np.log(1.02 + shares), 0)


def dark_images(totals: Totals) -> Iterator[Fault]:
    """12-bit photos in 16 bits are read as 0..15."""
    if totals.deep_images and totals.brightest < 32:
        yield Fault(f'{totals.deep_images} images are read as 0..{totals.brightest}')


def drawn_with_255(totals: Totals) -> Iterator[Fault]:
    """Masks of 0 and 255 alone, where 255 does not count: nothing is left to learn but 0."""
    if (
        set(totals.values) == {0, 255}
        and totals.split.ignore_index == 255
        and totals.split.num_classes > 1
    ):
        for name in totals.void_and_first[:3]:
            yield Fault(name)


def some_drawn_with_255(totals: Totals) -> Iterator[Fault]:
    """A few such masks beside sound ones may be images of background with a void border."""
    if (
        totals.void_and_first_masks
        and totals.split.ignore_index == 255
        and totals.split.num_classes == 2
        and set(totals.values) != {0, 255}
    ):
        for name in totals.void_and_first[:3]:
            yield Fault(name)


def counted_from_one(totals: Totals) -> Iterator[Fault]:
    """Values 1 to the number of classes, and no 0."""
    split = totals.split
    values = set(totals.values) - {255}
    counted = values and min(values) > 0 and max(values) == split.num_classes
    if counted and not split.reduces_zero:
        yield Fault(f'values {min(values):g} to {max(values):g} for {split.num_classes} classes')


def zero_label_reduced(totals: Totals) -> Iterator[Fault]:
    """``reduce_zero_label`` takes 0 for void and lowers the rest: the last class must be stored.

    Data of many classes may lack the last one by chance: an error only where all values below are
    there, as if counted from 0.
    """
    split = totals.split
    below = all(totals.values[i] for i in range(split.num_classes))
    beyond = any(split.num_classes <= value < 255 for value in totals.values)
    if split.reduces_zero and below and not beyond:
        yield Fault(
            f'no mask holds {split.num_classes}, which would become the last class, '
            f'{split.classes[-1]}, while 0 to {split.num_classes - 1} all occur'
        )


def nothing_labelled(totals: Totals) -> Iterator[Fault]:
    """No mask of the data set has a pixel that counts."""
    split = totals.split
    if totals.labels and set(totals.labels) == {split.ignore_index}:
        yield Fault(f'{totals.masks} masks')


def absent_classes(totals: Totals) -> Iterator[Fault]:
    """Classes that no mask of the data set shows."""
    if any(totals.labels[i] for i in range(totals.split.num_classes)):
        for i, name in enumerate(totals.split.classes):
            if not totals.labels[i]:
                yield Fault(f'{name} ({i})')


def palettes_differ(totals: Totals) -> Iterator[Fault]:
    """Programs that choose a palette for each picture number its colours anew."""
    for value, masks in sorted(totals.colours.items()):
        if len(masks) > 1:
            shown = [f'{colour} in {mask}' for colour, mask in list(masks.items())[:2]]
            yield Fault(f'{number(value)} is {" and ".join(shown)}')


def repeated_content(totals: Totals) -> Iterator[Fault]:
    """The same bytes under two names, within one data set."""
    for name in totals.repeated:
        yield Fault(name)


def seen_in_training(all_totals: Sequence[Totals]) -> Iterator[tuple[Split, Fault]]:
    """Images of another split that training shows, by path or by content: some of them."""
    for totals, seen in _seen(all_totals):
        if 0 < len(seen) < len(totals.digests):
            for name in seen:
                yield totals.split, Fault(name)


def all_seen_in_training(all_totals: Sequence[Totals]) -> Iterator[tuple[Split, Fault]]:
    """Scoring on training images alone is done on purpose, to see whether a model can learn."""
    for totals, seen in _seen(all_totals):
        if seen and len(seen) == len(totals.digests):
            yield totals.split, Fault(f'{len(seen)} images')


def _seen(all_totals: Sequence[Totals]) -> Iterator[tuple[Totals, list[str]]]:
    training: dict[str, str] = {}
    for totals in all_totals:
        if totals.split.training:
            training.update(totals.digests)
    for totals in all_totals:
        if not totals.split.training:
            both = totals.digests.keys() & training.keys()
            pairs = ((totals.digests[key], training[key]) for key in both)
            yield totals, sorted(a if a == b else f'{a} is {b}' for a, b in pairs)


def unlisted_images(splits: Sequence[Split]) -> Iterator[tuple[Split, Fault]]:
    """Images with a mask that no data set of the config takes up, whatever their suffix."""
    listed: set[str] = set()
    for split in splits:
        listed.update(image_paths(split.dataset))
    done = set()
    for split in splits:
        dataset = split.dataset
        prefix = getattr(dataset, 'data_prefix', None) or {}
        folder, masks = prefix.get('img_path'), prefix.get('seg_map_path')
        if not split.local or getattr(dataset, '_indices', None) is not None:
            continue
        if not folder or not masks or folder in done or not os.path.isdir(folder):
            continue
        done.add(folder)
        for path in _files(folder):
            stem, suffix = os.path.splitext(path)
            if suffix.lower() not in IMAGE_SUFFIXES or os.path.abspath(path) in listed:
                continue
            name = os.path.relpath(stem, folder) + dataset.seg_map_suffix
            if os.path.isfile(os.path.join(masks, name)) and path != os.path.join(masks, name):
                yield split, Fault(path)


def masks_alone(splits: Sequence[Split]) -> Iterator[tuple[Split, Fault]]:
    """Masks in a folder without a list, whose image is nowhere."""
    for split in splits:
        dataset = split.dataset
        prefix = getattr(dataset, 'data_prefix', None) or {}
        folder, masks = prefix.get('img_path'), prefix.get('seg_map_path')
        if not reads_folder(split) or not folder or not masks or folder == masks:
            continue
        end = getattr(dataset, 'seg_map_suffix', '')
        for path in _files(masks) if os.path.isdir(masks) else ():
            if end and path.endswith(end):
                stem = os.path.join(folder, os.path.relpath(path, masks)[: -len(end)])
                upper = (suffix.upper() for suffix in IMAGE_SUFFIXES)
                suffixes = (dataset.img_suffix, *IMAGE_SUFFIXES, *upper)
                if not any(os.path.isfile(stem + suffix) for suffix in suffixes):
                    yield split, Fault(path)


def image_paths(dataset: Any) -> Iterator[str]:
    """The images of a data set."""
    for i in range(len(dataset)):
        yield os.path.abspath(dataset.get_data_info(i)['img_path'])


def _files(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            yield os.path.join(parent, name)
