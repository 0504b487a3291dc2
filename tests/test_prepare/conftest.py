"""Photos and masks to prepare, and what came of it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.prepare.run import prepare
from ssnet_mm.prepare.settings import Settings

SIZE = (24, 16)  # width, height


def photo(i=0, size=SIZE, kind='JPEG', orientation=0):
    """A photo's content; unlike others by its number."""
    noise = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3))
    image = Image.fromarray(noise.astype(np.uint8))
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(buffer, kind, exif=exif, **(dict(quality=95) if kind == 'JPEG' else {}))
    return buffer.getvalue()


def write(path, content):
    """A file of bytes, text, or of a mask's pixels; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_bytes(content)


def striped(*values, dtype=np.uint8):
    """A mask with a stripe of each value."""
    mask = np.zeros(SIZE[::-1], dtype)
    for i, value in enumerate(values):
        mask[:, i * SIZE[0] // len(values) :] = value
    return mask


def read_mask(root, name):
    with Image.open(root / 'SegmentationClass' / f'{name}.png') as image:
        assert image.mode == 'P'
        return np.asarray(image)


def names(root, split):
    return (root / 'ImageSets' / 'Segmentation' / f'{split}.txt').read_text().split()


@pytest.fixture
def source(tmp_path):
    """Writes files into the folder to prepare, and returns it."""

    def make(files) -> Path:
        for name, content in files.items():
            write(tmp_path / 'source' / name, content)
        return tmp_path / 'source'

    return make


@pytest.fixture
def run(tmp_path):
    """Prepares, and returns what came of it with the lines that were said."""

    def call(folder, dest='dest', **settings):
        said = []
        made = prepare(folder, tmp_path / dest, Settings(**settings), said.append)
        return made, '\n'.join(said)

    return call


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
