"""Polygons are read back by what reads them elsewhere: pycocotools, and our own `prepare`."""

import itertools
import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ssnet_mm.deploy import predict
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError
from ssnet_mm.prepare.run import prepare
from ssnet_mm.prepare.settings import Settings

CLASSES = ('background', 'sky', 'big car', 'pole', 'sign')


@pytest.fixture
def segment():
    """Takes red levels for labels."""
    processor = Processor(5, classes=CLASSES, end_to_end=True)
    return Segmenter(Session(lambda x: x[..., 0] // 50, processor))


def blobs(seed, size=(90, 70)):
    """Regions of all shapes, with holes, islands in them, and single pixels."""
    rng = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(rng.random(size[::-1]), (0, 0), 3.0) for _ in CLASSES]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[5:30, 5:30] = 1
    labels[8:27, 8:27] = 2
    labels[12:22, 12:22] = 0
    labels[15:18, 15:18] = 2  # an island in a hole in an island
    labels[40:60, 70] = 3  # a thin one
    labels[rng.random(labels.shape) < 0.02] = 4
    return labels


def write_photo(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(labels[..., None] * 50, 3, axis=2)).save(path)


def far_off(found, wanted):
    """How many pixels differ that are more than a pixel from where a class ends."""
    edge = np.zeros(wanted.shape, bool)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        moved = np.roll(wanted, (dy, dx), (0, 1))
        edge[1:-1, 1:-1] |= (moved != wanted)[1:-1, 1:-1]
    edge[[0, -1]] = edge[:, [0, -1]] = True
    return int((found != wanted)[~edge].sum())


def drawn(coco, number):
    """The label map that pycocotools makes of an image's annotations, small ones last."""
    image = coco.loadImgs(number)[0]
    labels = np.zeros((image['height'], image['width']), np.uint8)
    rows = coco.loadAnns(coco.getAnnIds(imgIds=number))
    for row in sorted(rows, key=lambda row: -row['area']):
        name = coco.loadCats(row['category_id'])[0]['name']
        labels[coco.annToMask(row) > 0] = CLASSES.index(name)
    return labels


@pytest.mark.parametrize('seed', range(3))
def test_coco_is_read_by_pycocotools(segment, tmp_path, seed):
    labels = blobs(seed)
    write_photo(tmp_path / 'in' / 'a' / 'x.png', labels)
    images = predict.find_images(tmp_path / 'in', recursive=True)
    points = []
    for tolerance in (0, 1):
        predict.predict_images(
            segment, images, tmp_path / 'out', root=tmp_path / 'in', polygons='coco',
            tolerance=tolerance,
        )  # fmt: skip
        coco = COCO(tmp_path / 'out' / 'coco.json')
        assert coco.loadImgs(1)[0]['file_name'] == 'a/x.png'
        assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES[1:])
        found = drawn(coco, 1)
        assert far_off(found, labels) == 0
        if not tolerance:
            np.testing.assert_array_equal(found, labels)
            for row in coco.loadAnns(coco.getAnnIds()):
                ys, xs = np.nonzero(coco.annToMask(row))
                x, y = xs.min(), ys.min()
                assert row['bbox'] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]
                assert row['area'] == len(xs)
        rows = coco.loadAnns(coco.getAnnIds())
        points.append(sum(len(polygon) for row in rows for polygon in row['segmentation']))
    assert points[1] < 0.6 * points[0]


def test_annotations_of_several_images_are_numbered_through(segment, tmp_path):
    for i in range(3):
        write_photo(tmp_path / 'in' / f'{i}.png', blobs(i))
    (tmp_path / 'in' / '1.png').write_text('no image')
    images = predict.find_images(tmp_path / 'in')
    predict.predict_images(segment, images, tmp_path / 'out', polygons='coco', tolerance=0)
    coco = COCO(tmp_path / 'out' / 'coco.json')
    files = [image['file_name'] for image in coco.loadImgs(coco.getImgIds())]
    assert files == [str(tmp_path / 'in' / name) for name in ('0.png', '2.png')]
    numbers = [row['id'] for row in coco.dataset['annotations']]
    assert numbers == list(range(1, len(numbers) + 1))
    for number, seed in ((1, 0), (2, 2)):
        np.testing.assert_array_equal(drawn(coco, number), blobs(seed))


@pytest.mark.parametrize('kind', ['coco', 'labelme'])
def test_prepare_takes_polygons_back(segment, tmp_path, monkeypatch, kind):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    photos, wanted = tmp_path / 'photos', {}
    for i, folder in enumerate(('a', 'b')):  # two of one name
        wanted[f'{folder}_x'] = blobs(i)
        write_photo(photos / folder / 'x.png', wanted[f'{folder}_x'])
    images = predict.find_images(photos, recursive=True)
    for tolerance in (0, 1):
        out = tmp_path / f'out{tolerance}'
        predict.predict_images(
            segment, images, out, root=photos, polygons=kind, tolerance=tolerance
        )
        source = tmp_path / f'source{tolerance}'
        shutil.copytree(photos, source)
        if kind == 'coco':
            shutil.copy(out / 'coco.json', source)
        else:
            shutil.copytree(out / 'labelme', source, dirs_exist_ok=True)
            read = json.loads((out / 'labelme' / 'b' / 'x.json').read_text())
            path = (out / 'labelme' / 'b' / read['imagePath']).resolve()
            assert path == (photos / 'b' / 'x.png').resolve()
        made = prepare(source, tmp_path / f'data{tolerance}', Settings(), lambda line: None)
        assert not made.faults and len(made.record.images) == 2
        table = np.array([CLASSES.index(name) for name in made.record.classes], np.uint8)
        for name, labels in wanted.items():
            mask = np.asarray(Image.open(made.root / 'SegmentationClass' / f'{name}.png'))
            assert far_off(table[mask], labels) == 0
            if not tolerance:
                np.testing.assert_array_equal(table[mask], labels)


def test_small_regions_and_small_holes_are_left_out(segment, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[2:20, 2:20] = 1
    labels[4:7, 4:7] = 0  # a hole of 9
    labels[10:14, 10:14] = 0  # and of 16
    labels[25:28, 30:33] = 3
    write_photo(tmp_path / 'a.png', labels)
    predict.predict_images(
        segment, [tmp_path / 'a.png'], tmp_path / 'out', polygons='coco', min_area=10
    )
    labels[4:7, 4:7], labels[25:28, 30:33] = 1, 0
    np.testing.assert_array_equal(drawn(COCO(tmp_path / 'out' / 'coco.json'), 1), labels)


def test_a_region_with_a_hole_is_one_annotation_of_several_polygons(segment, tmp_path):
    labels = np.zeros((30, 40), np.uint8)
    labels[2:20, 2:20] = 1
    labels[10:14, 10:14] = 0
    write_photo(tmp_path / 'a.png', labels)
    for kind in ('coco', 'labelme'):
        predict.predict_images(segment, [tmp_path / 'a.png'], tmp_path, polygons=kind)
    (row,) = json.loads((tmp_path / 'coco.json').read_text())['annotations']
    assert len(row['segmentation']) == 2 and row['area'] == 18 * 18 - 16
    shapes = json.loads((tmp_path / 'labelme' / 'a.json').read_text())['shapes']
    assert [shape['group_id'] for shape in shapes] == [1, 1]
    assert {shape['label'] for shape in shapes} == {'sky'}


def test_transparent_classes_have_no_polygons(segment, tmp_path):
    write_photo(tmp_path / 'a.png', blobs(0))
    predict.predict_images(
        segment, [tmp_path / 'a.png'], tmp_path, polygons='coco', transparent=['sky', 'pole']
    )
    coco = COCO(tmp_path / 'coco.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == ['big car', 'sign']
    assert {row['category_id'] for row in coco.dataset['annotations']} == {3, 5}


def test_corrections_are_not_overwritten(segment, tmp_path):
    write_photo(tmp_path / 'a.png', blobs(0))
    run = [segment, [tmp_path / 'a.png'], tmp_path]
    predict.predict_images(*run, polygons='labelme')
    predict.predict_images(*run)
    with pytest.raises(UserError, match='labelme/a.json is there already, and may be corrected'):
        predict.predict_images(*run, polygons='labelme')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'polygons': 'voc'}, 'polygons must be coco or labelme, got voc'),
        ({'polygons': 'coco', 'tolerance': -1}, 'tolerance must be 0 or more pixels, got -1'),
        ({'polygons': 'coco', 'tolerance': float('nan')}, 'tolerance must be 0 or more'),
        ({'polygons': 'coco', 'min_area': 0}, 'min_area must be at least 1 pixel, got 0'),
    ],
)
def test_settings_that_make_no_sense(segment, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        predict.predict_images(segment, [], tmp_path / 'out', **options)
