"""Every check of the table: data spoilt in its way is told, by that check and no other."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_checks.conftest import READ, grey_png

from ssnet_mm.checks import CHECKS

CV2_MASKS = [READ[0], dict(type='LoadAnnotations', imdecode_backend='cv2'), READ[2]]
PALETTE = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]] + [[9, 9, 9]] * 253, np.uint8)


def no_void(labels):
    return np.where(labels == 255, 0, labels)


def add_exif(data, orientation, mask=False):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in [data.image(1), data.mask(1)][: 1 + mask]:
        picture = Image.open(path)
        picture.load()
        picture.save(path, exif=exif)


def write_list(data, text):
    (data.root / 'train.txt').write_bytes(text)


def save_masks(data, mode=None, kind=None, only=(2,)):
    for i in only:
        picture = Image.open(data.mask(i))
        picture = picture.convert(mode) if mode else picture
        picture.save(data.mask(i), kind or 'PNG')


def deep(data, function, dtype=np.uint16):
    data.change(lambda m: function(no_void(m).astype(dtype)), [2])


def as_tiff(data, function):
    data.settings = dict(seg_map_suffix='.tif')
    for i in range(4):
        labels = no_void(data.labels(i)).astype(np.float32)
        Image.fromarray(function(labels)).save(data.mask(i).with_suffix('.tif'))


def palette(data):
    data.pipeline = CV2_MASKS
    for i in range(4):
        picture = Image.open(data.mask(i))
        picture.putpalette(PALETTE.tobytes())
        picture.save(data.mask(i))


def one_bit(data):
    data.pipeline = CV2_MASKS
    data.classes = ('ground', 'left')
    data.change(lambda m: m == 1)


def few_bits(data, bits):
    for i in range(4):
        data.mask(i).write_bytes(grey_png(no_void(data.labels(i)), bits))


def cut(path, keep=0.5, fill=b''):
    content = path.read_bytes()
    kept = int(len(content) * keep)
    path.write_bytes(content[:kept] + fill * (len(content) - kept))


def large_image(data, i=1):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (37, 45, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(data.image(i), quality=95)


def zero_filled(data):
    large_image(data)
    cut(data.image(1), fill=b'\0')


def cut_png(data):
    Image.open(data.image(1)).save(data.image(1), 'PNG')
    cut(data.image(1))


def replace_folder(path):
    path.unlink()
    path.mkdir()


def replace_pipe(path, link=None):
    path.unlink()
    os.symlink(link, path) if link else os.mkfifo(path)


def huge(path, size=(10_000, 9000)):
    Image.new('1', size).save(path, 'PNG')


def binary(data, function):
    data.classes = ('ground', 'object')
    data.change(function)


def two_lists(data, train, val):
    (data.root / 'train.txt').write_text(train)
    (data.root / 'val.txt').write_text(val)
    data.lists = {'train': 'train.txt', 'val': 'val.txt'}


def deep_image(data, factor):
    data.settings = dict(img_suffix='.png')
    for i in range(4):
        picture = cv2.imread(str(data.image(i))).astype(np.uint16) * factor
        cv2.imwrite(str(data.image(i).with_suffix('.png')), picture)


def float_image(data):
    data.settings = dict(img_suffix='.tif')
    for i in range(4):
        picture = Image.open(data.image(i))
        picture = picture.convert('F') if i == 2 else picture
        picture.save(data.image(i).with_suffix('.tif'))


def transparent(data):
    data.settings = dict(img_suffix='.png')
    for i in range(4):
        picture = Image.open(data.image(i)).convert('RGBA')
        picture.putpixel((0, 0), (1, 2, 3, 0))
        picture.save(data.image(i).with_suffix('.png'))


def rename(path, new):
    path.rename(path.with_name(new))


def scored_twice(data):
    data.lists = {'val': 'train.txt'}
    write_list(data, b'0\n1\n2\n3\n3\n')


def save_palettes(data, orders, void=(9, 9, 9)):
    """Store masks whose number n has the colour of PALETTE[order[n]]."""
    for i, order in enumerate(orders):
        numbers = np.arange(256)
        numbers[list(order)] = range(3)  # the picture stays the same
        picture = Image.fromarray(numbers[data.labels(i)].astype(np.uint8))
        colours = PALETTE.copy()
        colours[:3], colours[255] = PALETTE[list(order)], void
        picture.putpalette(colours.tobytes())
        picture.save(data.mask(i))


def several_pages(data, suffix):
    data.settings = dict(seg_map_suffix=suffix)
    for i in range(4):
        page = Image.fromarray(no_void(data.labels(i)))
        pages = [Image.fromarray(data.labels(3) * 0)] if i == 2 else []
        page.save(data.mask(i).with_suffix(suffix), save_all=True, append_images=pages)


def scored_again(data):
    data.lists = {'val': 'train.txt'}
    data.times = 3


# what is done to the data, the check that tells it, and what the message must hold
SPOILT = {
    'blank line': (lambda d: write_list(d, b'0\n\n1\n2\n3\n'), 'blank-line', 'train.txt line 2'),
    'blank line at the end': (lambda d: write_list(d, b'0\n1\n2\n3\n \n'), 'blank-line', 'line 5'),
    'BOM': (lambda d: write_list(d, b'\xef\xbb\xbf0\n1\n2\n3\n'), 'byte-order-mark', 'line 1'),
    'suffix': (lambda d: write_list(d, b'0.jpg\n1\n2\n3\n'), 'name-with-suffix', '0.jpg .*line 1'),
    'twice': (lambda d: write_list(d, b'0\n1\n2\n3\n3\n'), 'repeated-in-training', '3 .2 times'),
    'scored twice': (scored_twice, 'repeated-in-scoring', '3 .2 times'),
    'scored again': (scored_again, 'repeated-in-wrapper', r'0.jpg \(3 times\), .*\(4 in all\)'),
    'no image': (lambda d: d.image(2).unlink(), 'missing-image', '2.jpg'),
    'other suffix': (lambda d: rename(d.image(2), '2.JPG'), 'missing-image', 'but there is 2.JPG'),
    'other suffix in the list': (
        lambda d: write_list(d, b'0.png\n1\n2\n3\n'), 'missing-image', 'but there is 0.jpg'),
    'two columns': (
        lambda d: write_list(d, b'0\n1\n2 2.png\n'), 'missing-image', 'two columns'),
    'no mask': (lambda d: d.mask(2).unlink(), 'missing-mask', '2.png'),
    'cut photo': (lambda d: cut(d.image(2)), 'unreadable-image', '2.jpg is cut short'),
    'cut PNG photo': (cut_png, 'unreadable-image', '1.jpg is cut short'),
    'zeros in photo': (zero_filled, 'unreadable-image', '1.jpg .*filled with zeros'),
    'empty photo': (lambda d: cut(d.image(2), 0), 'unreadable-image', '2.jpg is empty .0 bytes'),
    'huge photo': (lambda d: huge(d.image(2), (14_000, 13_000)), 'unreadable-image',
        '2.jpg has more than 89 million pixels .shrink it'),
    'pipe as photo': (lambda d: replace_pipe(d.image(2)), 'unreadable-image', '2.jpg is no file b'),
    'device as photo': (lambda d: replace_pipe(d.image(2), '/dev/zero'), 'unreadable-image',
        '2.jpg is no file but a pipe or a device'),
    'huge mask': (lambda d: huge(d.mask(2)), 'unreadable-mask', '2.png has more than 89 million'),
    'text as photo': (lambda d: d.image(2).write_text('hi'), 'unreadable-image', 'not an image'),
    'LFS': (
        lambda d: d.image(2).write_text('version https://git-lfs.github.com/spec/v1\n'),
        'unreadable-image', 'git lfs pull'),
    'folder as photo': (lambda d: replace_folder(d.image(2)), 'unreadable-image', '2.jpg is a fol'),
    'cut mask': (lambda d: cut(d.mask(2)), 'unreadable-mask', '2.png is cut short or damaged'),
    'empty mask': (lambda d: cut(d.mask(2), 0), 'unreadable-mask', '2.png is empty'),
    'folder as mask': (lambda d: replace_folder(d.mask(2)), 'unreadable-mask', '2.png is a folder'),
    'TIFF mask of two pages': (lambda d: several_pages(d, '.tif'), 'unreadable-mask',
        '2.tif holds 2 pages, of which the first is read'),
    'GIF mask of two pages': (lambda d: several_pages(d, '.gif'), 'unreadable-mask', '2 pages'),
    'text as mask': (lambda d: d.mask(2).write_text('<html>'), 'unreadable-mask', 'is HTML'),
    'RGB': (lambda d: d.change(lambda m: PALETTE[m]), 'colour-mask', r'0.png .RGB.*\(4 in all'),
    'grey RGB': (lambda d: save_masks(d, 'RGB'), 'colour-mask', '2.png .RGB, whose channels'),
    'RGBA': (lambda d: save_masks(d, 'RGBA'), 'colour-mask', '2.png .RGBA'),
    'grey and alpha': (lambda d: save_masks(d, 'LA'), 'colour-mask', '2.png .LA'),
    'palette by cv2': (palette, 'colour-mask', 'imdecode_backend="pillow"'),
    'JPEG': (lambda d: save_masks(d, kind='JPEG'), 'lossy-mask', '2.png'),
    '16 bits': (
        lambda d: deep(d, lambda m: m * 256), 'wrapping-mask',
        r'256 \(\d+ pixels\), 512 .*2.png .16 bits: 256 is read as 0'),
    'float': (lambda d: as_tiff(d, lambda m: m / 2), 'wrapping-mask', '0.5 .*0.tif .32 bits'),
    '16 bits that fit': (lambda d: deep(d, lambda m: m), 'deep-mask', '2.png .16 bits'),
    'float that fits': (lambda d: as_tiff(d, lambda m: m), 'deep-mask', '0.tif .32 bits'),
    '2 bits': (lambda d: few_bits(d, 2), 'stretched-mask', '0.png .2 bits a pixel'),
    '4 bits': (lambda d: few_bits(d, 4), 'stretched-mask', '0.png .4 bits a pixel'),
    '1 bit by cv2': (one_bit, 'stretched-mask', '0.png .1 bits'),
    'EXIF turns': (lambda d: add_exif(d, 6), 'turned-apart', '1.jpg .*to 37x45 with .*45x37'),
    'EXIF in both': (lambda d: add_exif(d, 3, mask=True), 'turned-apart', '1.jpg turned'),
    'EXIF half turn': (lambda d: add_exif(d, 3), 'turned-perhaps', '1.jpg .orientation 3'),
    'larger mask': (
        lambda d: d.change(lambda m: np.pad(m, ((0, 1), (0, 0))), [2]),
        'sizes-differ', '2.jpg 45x37 with .*2.png 45x38'),
    'value 3': (
        lambda d: d.change(lambda m: np.where(m == 2, 3, m).astype(np.uint8), [2]),
        'value-outside', r'none of the 3 classes .*: 3 \(400 pixels\): .*2.png'),
    'all void': (lambda d: d.change(lambda m: m * 0 + 255, [2]), 'void-mask', '2.png'),
    '16-bit photo': (
        lambda d: deep_image(d, 256), 'deep-image', r'0.png .16 bits, read as 0..\d+\)'),
    '12-bit photo': (lambda d: deep_image(d, 16), 'dark-images', r'4 images are read as 0..1\d;'),
    'float photo': (float_image, 'unreadable-image', '2.tif is not read by cv2'),
    'transparent': (transparent, 'transparent-image', '0.png'),
    'CMYK': (
        lambda d: Image.open(d.image(2)).convert('CMYK').save(d.image(2)),
        'print-colours', '2.jpg'),
    'PNG as .jpg': (
        lambda d: Image.open(d.image(2)).save(d.image(2), 'PNG'), 'other-content', '2.jpg .PNG'),
    '0/255': (
        lambda d: binary(d, lambda m: ((m == 1) * 255).astype(np.uint8)),
        'drawn-with-255', 'write 1 for the object'),
    'some 0/255': (
        lambda d: [
            binary(d, lambda m: (m == 1).astype(np.uint8)),
            d.change(lambda m: m * 255, [1]),
        ], 'some-drawn-with-255', '1.png'),
    'from 1': (
        lambda d: d.change(lambda m: no_void(m) + np.uint8(1)),
        'counted-from-one', 'values 1 to 3'),
    'reduced': (
        lambda d: d.settings.update(reduce_zero_label=True),
        'zero-label-reduced', 'no mask holds 3'),
    'all masks void': (
        lambda d: d.change(lambda m: m * 0 + 255), 'nothing-labelled', '4 masks'),
    'absent': (lambda d: d.change(lambda m: m % 2), 'absent-class', r'right \(2\)'),
    'own palettes': (
        lambda d: save_palettes(d, [(0, 1, 2), (0, 1, 2), (0, 2, 1), (0, 1, 2)]), 'palettes-differ',
        r'1 is #c80000 in .*0.png and #00c800 in .*2.png, 2 is .* \(2 in all\); if the colours'),
    'same image': (
        lambda d: d.image(2).write_bytes(d.image(1).read_bytes()), 'repeated-content', '2.jpg is '),
    'leak': (lambda d: two_lists(d, '0\n1\n2\n', '2\n3\n'), 'seen-in-training', '2.jpg'),
    'validated on training': (
        lambda d: two_lists(d, '0\n1\n', '1\n'), 'all-seen-in-training', '1 images'),
    'not listed': (lambda d: write_list(d, b'0\n1\n2\n'), 'unlisted-image', '3.jpg'),
    'left out of a folder': (
        lambda d: [d.lists.update(train=''), rename(d.image(3), '3.JPEG')],
        'unlisted-image', '3.JPEG'),
    'a folder for its list': (
        lambda d: [d.lists.update(train='lists'), (d.root / 'lists').mkdir()],
        'folder-for-list', 'lists'),
    'mask without image': (
        lambda d: [d.lists.update(train=''), d.image(3).unlink()], 'mask-alone', '3.png'),
}  # fmt: skip


# what else is then true of the data
_UNLISTED = {'missing-image', 'missing-mask', 'unlisted-image'}
ALSO = {
    'blank line': {'missing-image', 'missing-mask'},
    'blank line at the end': {'missing-image', 'missing-mask'},
    'BOM': _UNLISTED,
    'suffix': _UNLISTED,
    'two columns': {'missing-mask', 'unlisted-image'},
    'other suffix': {'unlisted-image'},
    'JPEG': {'value-outside', 'other-content'},
    'validated on training': {'unlisted-image'},
    '16-bit photo': {'unlisted-image'},
    '12-bit photo': {'deep-image', 'unlisted-image'},
    'float photo': {'unlisted-image'},
    'other suffix in the list': _UNLISTED - {'missing-image'},
    'transparent': {'unlisted-image'},
}


def test_sound_data_are_not_complained_of(data):
    assert data.found() == []
    data.times = 2  # trained on as often, on purpose
    assert data.found() == []
    data.lists = {'train': ''}  # a folder, without a list
    assert data.found() == []


@pytest.mark.parametrize('kind', SPOILT)
def test_spoilt_data_are_told(data, kind):
    spoil, check, message = SPOILT[kind]
    spoil(data)
    report = data.report()
    assert report.findings[0].check.name == check, [str(finding) for finding in report.findings]
    assert {finding.check.name for finding in report.findings[1:]} == ALSO.get(kind, set())
    assert re.search(message, str(report.findings[0])), str(report.findings[0])
    assert '\n' not in str(report.findings[0])


def test_every_check_is_shown_here_and_described_in_the_docs():
    names = [check.name for check in CHECKS]
    assert {check for _, check, _ in SPOILT.values()} == set(names)
    docs = (Path(__file__).resolve().parents[2] / 'docs' / 'data.md').read_text()
    described = re.findall(r'^\| `([a-z0-9-]+)` \| (error|note) \|', docs, re.M)
    assert described == [(check.name, check.severity) for check in CHECKS]


@pytest.mark.parametrize('suffix', ['.bmp', '.tif', '.webp', '.png', '.jpeg'])
def test_other_formats_are_sound(data, suffix):
    data.settings = dict(img_suffix=suffix)
    for i in range(4):
        Image.open(data.image(i)).save(data.image(i).with_suffix(suffix))
        data.image(i).unlink()
    assert data.found() == []


def test_lists_may_have_windows_line_ends_and_sub_folders(data):
    for folder in ('JPEGImages', 'SegmentationClass'):
        (data.root / folder / 'a').mkdir()
    data.image(0).rename(data.root / 'JPEGImages' / 'a' / '0.jpg')
    data.mask(0).rename(data.root / 'SegmentationClass' / 'a' / '0.png')
    write_list(data, b'a/0\r\n1\r\n2\r\n3')
    assert data.found() == []


def test_masks_that_pillow_reads_as_indices_are_sound(data):
    for i in range(4):
        picture = Image.open(data.mask(i))
        picture.putpalette(PALETTE.tobytes())
        picture.save(data.mask(i))
    assert data.found() == []
    data.classes = ('ground', 'left')
    data.change(lambda m: m == 1)  # 1 bit a pixel, read as 0 and 1
    assert data.found() == []


def test_palettes_may_differ_in_what_no_pixel_or_no_class_has(data):
    save_palettes(data, [(0, 1, 2)] * 2)
    save_palettes(data, [(0, 1, 2)] * 1, void=(200, 0, 0))
    assert data.found() == []
    data.change(lambda m: np.where(m == 1, 0, m), [3])
    picture = Image.open(data.mask(3))
    colours = PALETTE.copy()
    colours[1] = 1, 2, 3
    picture.putpalette(colours.tobytes())
    picture.save(data.mask(3))
    assert data.found() == []


def test_images_turned_by_exif_with_a_mask_of_the_turned_image_are_sound(data):
    add_exif(data, 6)
    data.change(lambda m: np.rot90(m, -1).copy(), [1])
    assert data.found() == []
    # and where the pipeline leaves EXIF aside, the other way round
    data.pipeline = [dict(READ[0], color_type='color_ignore_orientation'), *READ[1:]]
    assert data.found() == ['sizes-differ']
    data.change(lambda m: np.rot90(m).copy(), [1])
    assert data.found() == []


def test_broken_exif_is_left_aside_as_decoders_do(data):
    content = data.image(1).read_bytes()
    exif = b'Exif\0\0MM\0*' + b'\xff' * 20
    data.image(1).write_bytes(
        content[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + content[2:]
    )
    assert data.found() == []


def test_deep_images_that_are_read_as_they_are_lose_nothing(data):
    data.pipeline = [dict(READ[0], color_type='unchanged'), *READ[1:]]
    deep_image(data, 16)
    assert data.found(whole_config=False) == []


def test_opaque_images_with_alpha_and_void_in_deep_masks_are_hardly_worth_a_word(data):
    data.settings = dict(img_suffix='.png')
    for i in range(4):
        Image.open(data.image(i)).convert('RGBA').save(data.image(i).with_suffix('.png'))
        data.image(i).unlink()
    data.change(lambda m: np.where(m == 255, 65535, m).astype(np.uint16))
    assert data.found() == ['deep-mask']


def test_labels_are_those_that_mmseg_loads(data):
    data.settings = dict(reduce_zero_label=True)
    data.change(lambda m: np.where(m == 255, m, m + 1).astype(np.uint8))
    data.change(lambda m: np.where(m == 1, 0, m).astype(np.uint8), [0])
    split = data.split('train')
    totals = data.report().totals[0]
    loaded = np.concatenate(
        [split.dataset[i]['data_samples'].gt_sem_seg.data.ravel() for i in range(4)]
    )
    values, counts = np.unique(loaded, return_counts=True)
    assert dict(totals.labels) == dict(zip(values.tolist(), counts.tolist()))


def test_tests_without_masks_and_data_elsewhere_are_left_alone(data):
    data.pipeline = [READ[0], READ[2]]
    data.settings = dict(data_prefix=dict(img_path='JPEGImages'))
    assert data.found() == []
    split = data.split('train')
    split.dataset.backend_args = dict(backend='petrel')
    assert not split.local


def test_unlisted_images_are_told_only_of_whole_configs(data):
    write_list(data, b'0\n1\n2\n')
    assert data.found(whole_config=False) == []


def test_images_of_one_colour_may_be_alike(data):
    two_lists(data, '0\n1\n', '2\n3\n')
    for i in (1, 2):
        Image.new('RGB', (45, 37)).save(data.image(i))
    assert data.found() == []


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may read anything')
def test_permission_is_named(data):
    data.image(2).chmod(0)
    assert 'permission' in str(data.report().findings[0])


def test_weights_are_those_of_the_papers(data):
    labels = np.zeros((10, 10), np.uint8)
    labels[:2] = 1
    labels[9] = 2
    data.change(lambda m: labels)
    data.change(lambda m: labels % 2, [0])  # class 2 is shown by three masks
    for i in range(4):
        Image.new('RGB', (10, 10), (i, i, i)).save(data.image(i))
    totals = data.report().totals[0]
    np.testing.assert_allclose(totals.shares(), [0.725, 0.2, 0.075])
    weights = np.sqrt(0.2 / np.array([0.725, 0.2, 0.1]))
    weights /= weights @ [0.725, 0.2, 0.075]
    np.testing.assert_allclose(totals.median_frequency_weights(), weights)
    np.testing.assert_allclose(totals.enet_weights(), 1 / np.log([1.745, 1.22, 1.095]))


def test_one_image_in_many_is_told_in_one_line(data):
    data.change(lambda m: np.where(m == 2, 7, m).astype(np.uint8))
    (finding,) = data.report().errors
    assert re.search(
        r'7 \(1,600 pixels\): .*0.png, .*1.png, .*2.png, ... \(4 in all\); ', str(finding)
    )
