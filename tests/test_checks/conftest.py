"""Data sets of the tiny data, to be spoilt in one way each."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from mmengine.dataset import RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from ssnet_mm.checks import Split, check_splits

READ = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


class Data:
    """Files of a data set, and what is found in them."""

    def __init__(self, root):
        self.root = root
        self.classes = ('ground', 'left', 'right')
        self.pipeline = READ
        self.settings = {}
        self.lists = {'train': 'train.txt'}
        self.times = 1  # that RepeatDataset gives each image

    def image(self, i):
        return self.root / 'JPEGImages' / f'{i}.jpg'

    def mask(self, i):
        return self.root / 'SegmentationClass' / f'{i}.png'

    def labels(self, i):
        return np.array(Image.open(self.mask(i)))

    def change(self, function, masks=range(4)):
        """Store what a function makes of masks' arrays."""
        for i in masks:
            Image.fromarray(function(self.labels(i))).save(self.mask(i))

    def split(self, name):
        init_default_scope('mmseg')
        settings = dict(
            type='BaseSegDataset',
            data_root=str(self.root),
            metainfo=dict(classes=self.classes),
            data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
            ann_file=self.lists[name],
            pipeline=self.pipeline,
        )
        dataset = DATASETS.build({**settings, **self.settings})
        return Split(f'{name}_dataloader.dataset', dataset, len(self.classes))

    def report(self, **kwargs):
        splits = [self.split(name) for name in self.lists]
        wholes = [
            Split(split.where, RepeatDataset(split.dataset, self.times), 0)
            for split in splits
            if self.times > 1
        ]
        return check_splits(splits, wholes=wholes, **kwargs)

    def found(self, **kwargs):
        """The names of the checks that find something."""
        return [finding.check.name for finding in self.report(**kwargs).findings]


@pytest.fixture
def data(tiny_data):
    return Data(tiny_data)


def grey_png(labels, bits):
    """A grey PNG of 2 or 4 bits a pixel, which Pillow does not write; as bytes."""

    def chunk(kind, content):
        crc = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + crc

    height, width = labels.shape
    levels = np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :].reshape(height, -1)
    rows = b''.join(b'\0' + np.packbits(row).tobytes() for row in levels)
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0))
    pixels = chunk(b'IDAT', zlib.compress(rows))
    return b'\x89PNG\r\n\x1a\n' + header + pixels + chunk(b'IEND', b'')
