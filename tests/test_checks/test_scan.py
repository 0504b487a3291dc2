"""Files are read once: the cache, and large data sets."""

import os

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.checks import cache, scan


@pytest.fixture
def read(monkeypatch):
    """The paths of the files that are read."""
    paths = []

    def read_facts(path, reader):
        paths.append(path)
        return original(path, reader)

    original = scan.read_facts
    monkeypatch.setattr(scan, 'read_facts', read_facts)
    return paths


def test_what_has_not_changed_is_not_read_again(data, read):
    picture = Image.open(data.mask(0))
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.save(data.mask(0))
    first = data.report().totals
    assert len(read) == 8
    read.clear()
    assert data.report().totals[0].labels == first[0].labels
    assert data.report().totals[0].sizes == first[0].sizes == {(45, 37): 4}
    assert data.report().totals[0].colours == first[0].colours != {}
    assert read == []
    data.change(lambda labels: labels * 0 + 1, [2])
    data.report()
    assert read == [str(data.mask(2))]
    # nor is anything known of it if the pipeline reads it otherwise
    read.clear()
    data.pipeline = [dict(data.pipeline[0], color_type='grayscale'), *data.pipeline[1:]]
    data.report()
    assert sorted(read) == [str(data.image(i)) for i in range(4)]


def test_a_file_of_the_same_size_and_time_is_read_again(data, read):
    for path in (data.mask(0), data.mask(1)):
        Image.fromarray(np.asarray(Image.open(path))).save(path, 'PPM')
    data.change(lambda labels: labels * 0, [0])
    Image.open(data.mask(0)).save(data.mask(0), 'PPM')
    assert data.report().totals[0].labels[0] > 0
    status, other = data.mask(1).stat(), data.mask(0).read_bytes()
    assert len(other) == status.st_size
    data.mask(1).write_bytes(other)
    os.utime(data.mask(1), ns=(status.st_atime_ns, status.st_mtime_ns))
    read.clear()
    data.report()
    assert read == [str(data.mask(1))]


def test_names_that_are_no_text_are_remembered(data, read):
    for path in (data.image(1), data.mask(1)):
        path.rename(path.with_name(f'caf\udce9{path.suffix}'))
    data.lists = {'train': ''}
    assert data.found() == []
    assert len(read) == 8
    assert data.found() == []
    assert len(read) == 8


def test_what_could_not_be_read_is_tried_again(data, read):
    content = data.image(1).read_bytes()
    data.image(1).write_bytes(content[:-200])
    assert data.found() == ['unreadable-image']
    read.clear()
    assert data.found() == ['unreadable-image']
    assert read == [str(data.image(1))]


@pytest.mark.parametrize('kind', ['no folder', 'no database', 'folder instead'])
def test_a_cache_that_can_not_be_used_does_no_harm(data, read, monkeypatch, tmp_path, kind):
    if kind == 'no folder':
        (tmp_path / 'file').touch()
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    else:
        cache.cache_file().parent.mkdir(parents=True)
        if kind == 'folder instead':
            cache.cache_file().mkdir()
        else:
            cache.cache_file().write_text('text ' * 1000)
    assert data.found() == []
    assert data.found() == []
    assert len(read) == 16


def test_12000_images_are_read_once_and_then_listed(data, read, tmp_path):
    images, masks = data.root / 'JPEGImages', data.root / 'SegmentationClass'
    Image.fromarray(np.arange(3, dtype=np.uint8).repeat(4).reshape(3, 4)).save(tmp_path / 'm.png')
    Image.new('RGB', (4, 3)).save(tmp_path / 'i.jpg')
    image, mask = (tmp_path / 'i.jpg').read_bytes(), (tmp_path / 'm.png').read_bytes()
    for i in range(4, 12000):
        (images / f'{i}.jpg').write_bytes(image)
        (masks / f'{i}.png').write_bytes(mask)
    (data.root / 'train.txt').write_text(''.join(f'{i}\n' for i in range(12000)))
    assert data.found() == []
    assert len(read) == 24000
    read.clear()
    assert data.found() == []
    assert read == []
