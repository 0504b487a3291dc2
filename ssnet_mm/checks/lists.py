"""Checks of the text file that lists a data set's names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from mmseg.datasets import BaseSegDataset

from ssnet_mm.checks.finding import Fault
from ssnet_mm.checks.scan import Split

_BOM = '\ufeff'


def list_file(split: Split) -> str:
    """The list of names that mmseg's BaseSegDataset reads; empty where there is none."""
    path = getattr(split.dataset, 'ann_file', '')
    return path if _is_plain(split) and os.path.isfile(path) else ''


def reads_folder(split: Split) -> bool:
    """Whether the data set takes all images of a folder, for want of a list."""
    return _is_plain(split) and not list_file(split)


def _is_plain(split: Split) -> bool:
    reads = getattr(type(split.dataset), 'load_data_list', None)
    return split.local and reads is BaseSegDataset.load_data_list


def folders_for_lists(split: Split) -> Iterator[Fault]:
    """mmseg then takes every image of the image folder."""
    path = getattr(split.dataset, 'ann_file', '')
    if _is_plain(split) and path and os.path.isdir(path):
        yield Fault(path)


def _lines(split: Split) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and what mmseg takes for a name."""
    path = list_file(split)
    if path:
        with open(path, encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                yield number, line.strip()


def blank_lines(split: Split) -> Iterator[Fault]:
    """mmseg takes an empty line for a file whose name is the suffix alone."""
    for number, name in _lines(split):
        if not name:
            yield Fault(f'{list_file(split)} line {number}')


def byte_order_marks(split: Split) -> Iterator[Fault]:
    """Windows' editors put three unseen bytes before the first name."""
    for number, name in _lines(split):
        if _BOM in name:
            yield Fault(f'{list_file(split)} line {number}')


def names_with_suffix(split: Split) -> Iterator[Fault]:
    """A name that has its suffix already gets it a second time."""
    dataset = split.dataset
    folder = (getattr(dataset, 'data_prefix', None) or {}).get('img_path') or ''
    for number, name in _lines(split):
        path = os.path.join(folder, name)
        if (
            os.path.splitext(name)[1]
            and not os.path.isfile(path + dataset.img_suffix)
            and os.path.isfile(path)
        ):
            yield Fault(f'{name} ({list_file(split)} line {number})')


def _repeated(split: Split) -> Iterator[Fault]:
    counts = Counter(name for _, name in _lines(split) if name)
    for name, count in counts.items():
        if count > 1:
            yield Fault(f'{name} ({count} times in {list_file(split)})')


def repeated_in_training(split: Split) -> Iterator[Fault]:
    """A name listed twice is seen twice as often, which may be meant."""
    return _repeated(split) if split.training else iter(())


def repeated_in_scoring(split: Split) -> Iterator[Fault]:
    """A name listed twice counts twice in the scores."""
    return iter(()) if split.training else _repeated(split)


def repeated_in_wrapper(split: Split) -> Iterator[Fault]:
    """Lists may overlap in ConcatDataset, and RepeatDataset gives each image again."""
    dataset = split.dataset
    wraps = hasattr(dataset, 'datasets') or hasattr(dataset, 'dataset')
    if split.training or not wraps or not hasattr(dataset, 'get_data_info'):
        return
    paths = (dataset.get_data_info(i).get('img_path') for i in range(len(dataset)))
    for path, count in Counter(os.path.abspath(path) for path in paths if path).items():
        if count > 1:
            yield Fault(f'{path} ({count} times)')
