import csv

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.deploy import predict
from ssnet_mm.deploy.predict.overlay import Overlay
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError

CLASSES = ('background', 'sky', 'car')
COLOURS = ((0, 0, 0), (70, 130, 180), (200, 0, 60))


@pytest.fixture
def segment():
    """Takes red levels for labels."""
    processor = Processor(3, classes=CLASSES, palette=COLOURS, end_to_end=True)
    return Segmenter(Session(lambda x: x[..., 0] // 100, processor))


def picture(path, size=(60, 40), levels=(0, 100, 100, 200)):
    """Stripes of some levels of red."""
    columns = np.array(levels, np.uint8)[np.arange(size[0]) * len(levels) // size[0]]
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = columns
    Image.fromarray(pixels).save(path)
    return pixels


def read_rows(path):
    return list(csv.DictReader(path.open(encoding='utf-8')))


def test_areas_have_a_row_an_image_and_two_columns_a_class(segment, tmp_path):
    picture(tmp_path / 'a.png')
    picture(tmp_path / 'b.png', levels=(200,))
    (tmp_path / 'c.png').write_text('no image')
    images = [tmp_path / name for name in ('b.png', 'c.png', 'a.png')]
    assert len(predict.predict_images(segment, images, tmp_path / 'out')) == 1
    b, a = read_rows(tmp_path / 'out' / 'areas.csv')
    assert list(a) == ['image', *CLASSES, *(f'{name} pixels' for name in CLASSES)]
    assert b['image'] == str(tmp_path / 'b.png') and b['car'] == '1.000000'
    assert [float(a[name]) for name in CLASSES] == [0.25, 0.5, 0.25]
    assert [int(a[f'{name} pixels']) for name in CLASSES] == [600, 1200, 600]


def test_areas_of_a_large_image_are_counted_in_bands(segment, tmp_path):
    picture(tmp_path / 'a.png', (3, 2100), (0, 100, 200))
    predict.predict_images(segment, [tmp_path / 'a.png'], tmp_path / 'out')
    (row,) = read_rows(tmp_path / 'out' / 'areas.csv')
    assert [row[f'{name} pixels'] for name in CLASSES] == ['2100'] * 3


def test_classes_without_names_have_numbers(red, pictures, tmp_path):
    predict.predict_images(red, [pictures / 'a.png'], tmp_path, transparent=['class 1'])
    (row,) = read_rows(tmp_path / 'areas.csv')
    assert row['class 1'] == '0.500000'
    painted, before = (
        np.asarray(Image.open(p / 'a.png')) for p in (tmp_path / 'overlay', pictures)
    )
    np.testing.assert_array_equal(painted[:, 3:], before[:, 3:])


def test_a_transparent_class_is_not_painted(segment, tmp_path):
    pixels = picture(tmp_path / 'a.png')
    labels = segment(pixels)
    plain = np.asarray(segment.overlay(pixels, labels, 0.3))
    clear = np.asarray(Overlay(segment, 0.3, transparent=['sky', 'background'])(pixels, labels))
    np.testing.assert_array_equal(clear[labels == 2], plain[labels == 2])
    np.testing.assert_array_equal(clear[labels < 2], pixels[labels < 2])
    mixed = (pixels * np.float32(0.7) + np.float32(COLOURS)[labels] * np.float32(0.3)).round()
    np.testing.assert_array_equal(plain, mixed)


def test_a_class_that_is_not_there_is_refused_with_those_that_are(segment, tmp_path):
    with pytest.raises(UserError, match="no class 'tree'; the classes are background, sky, car"):
        predict.predict_images(
            segment, [tmp_path / 'a.png'], tmp_path / 'out', transparent=['tree']
        )
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size', [(40, 30), (480, 360), (481, 361), (1500, 1000), (2000, 90)])
def test_the_legend_names_what_is_painted_below_the_image(segment, size):
    pixels = np.full((size[1], size[0], 3), 100, np.uint8)
    pixels[0, 0] = 200
    labels = segment(pixels)
    plain = segment.overlay(pixels, labels)
    overlay = Overlay(segment, legend=True)
    whole = overlay(pixels, labels, present=[1, 2])
    assert whole.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()
    assert (whole.width - size[0]) % 2 == (whole.height - size[1]) % 2 == 0
    strip = np.asarray(whole)[size[1] :]
    letters = max(12, min(size) // 36)
    for label, shown in enumerate((False, True, True)):
        swatch = (strip == COLOURS[label]).all(-1)
        assert (swatch.sum() >= (letters - 1) ** 2) == shown, label
    assert len(strip) < max(0.2 * size[1], 60)
    assert (strip[:, -letters // 2 :] == 255).all()  # nothing is cut off
    assert overlay(pixels, labels, present=[]).size == plain.size
    assert Overlay(segment, legend=True, transparent=['car'])(pixels, labels, [2]).size == size


def test_a_legend_of_many_classes_and_of_long_names_has_room_for_all():
    classes = tuple(f'class of a long name, {i}' for i in range(60))
    palette = tuple((i, 200 - i, i % 7) for i in range(60))
    processor = Processor(60, classes=classes, palette=palette, end_to_end=True)
    segment = Segmenter(Session(lambda x: x[..., 0], processor))
    pixels = np.zeros((60, 90, 3), np.uint8)
    whole = np.asarray(Overlay(segment, legend=True)(pixels, segment(pixels)))
    colours, counts = np.unique(whole[60:].reshape(-1, 3), axis=0, return_counts=True)
    found = dict(zip(map(tuple, colours.tolist()), counts.tolist()))
    assert min(found[colour] for colour in palette) >= 11**2


def legend_of(classes):
    processor = Processor(len(classes), classes=classes, end_to_end=True)
    segment = Segmenter(Session(lambda x: x[..., 0], processor))
    pixels = np.zeros((60, 300, 3), np.uint8)
    return np.asarray(Overlay(segment, legend=True)(pixels, segment(pixels)))[60:]


def test_a_legend_has_letters_beyond_ascii_or_is_refused(monkeypatch):
    pytest.importorskip('matplotlib', reason='mmseg brings it')
    accents, plain, other = (legend_of((name,)) for name in ('straßé', 'strasse', 'дорога'))
    assert accents.shape != plain.shape or (accents != plain).any()
    assert (other < 100).all(-1).sum() > 50
    boxes = legend_of(('дорогд',))  # letters, not a box for each
    assert other.shape != boxes.shape or (other != boxes).any()
    with pytest.raises(UserError, match='no font here has all letters of a, \ue123; install one'):
        legend_of(('a', '\ue123'))
