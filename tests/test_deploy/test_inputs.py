"""What an image means, whatever it comes as: the same to every runtime and to mmseg's pipeline."""

import io
import pickle
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.deploy import images
from ssnet_mm.deploy import model as model_module
from ssnet_mm.deploy.images import full_palette, read_image, to_rgb
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError
from ssnet_mm.limits import orientation_of

VALUES = np.random.default_rng(0).integers(0, 256, (12, 16, 4)).astype(np.uint8)
VALUES = VALUES.repeat(2, 0).repeat(2, 1)
RGB, RGBA, GREY = (Image.fromarray(VALUES[..., part]) for part in (slice(3), slice(4), 0))
DEEP = Image.fromarray(VALUES[..., 0].astype(np.uint16) * 257 - VALUES[..., 0])


def tiff(path, data, *tags):
    """A file of pixels that lie as they are, RGBA of 16 bits unless more tags say otherwise."""
    given = {256: 32, 257: 24, 258: 16, 259: 1, 262: 2, 273: 0, 277: 4, 278: 24, 279: data.nbytes}
    given.update(tags)
    bits, rest = [given[258]] * given[277], 14 + 12 * len(given)
    given[273] = rest + 2 * len(bits)
    entries = b''.join(struct.pack('<HHII', tag, 4, 1, given[tag]) for tag in sorted(given))
    if len(bits) > 1:  # which stand behind the entries
        entries = entries.replace(
            struct.pack('<HHII', 258, 4, 1, bits[0]), struct.pack('<HHII', 258, 3, len(bits), rest)
        )
    header = struct.pack('<4sIH', b'II*\0', 8, len(given))
    bits = struct.pack(f'<{len(bits)}H', *bits)
    path.write_bytes(header + entries + bytes(4) + bits + data.tobytes())
    return path


def saved(folder, name):
    """A file of each kind, by the name before its suffix."""
    path = folder / name
    kind = path.stem
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = dict(save_all=True, append_images=[RGB.rotate(180)])
    exact = {'lossless': True} if path.suffix == '.webp' else {}
    {
        'grey': lambda: GREY.save(path),
        'opaque': lambda: RGBA.save(path, **exact),
        'deep': lambda: DEEP.save(path),
        'deep_rgb': lambda: cv2.imwrite(str(path), VALUES[..., :3].astype(np.uint16) * 250),
        'cmyk': lambda: RGB.convert('CMYK').save(path),
        'palette': lambda: RGB.quantize(64).save(path),
        'clear': lambda: RGB.quantize(64).save(path, transparency=5),
        'turned': lambda: RGB.save(path, exif=turned),
        'animated': lambda: RGB.save(path, **frames, **exact),
        'grey_alpha': lambda: RGBA.convert('LA').save(path),
        'bits': lambda: GREY.convert('1').save(path),
        'float': lambda: Image.fromarray(VALUES[..., 0].astype(np.float32)).save(path),
        'long': lambda: Image.fromarray(VALUES[..., 0].astype(np.int32)).save(path),
        'lab': lambda: RGB.convert('LAB').save(path),
        'white': lambda: DEEP.save(path, tiffinfo={262: 0}),  # is zero
        # both are RGBA without the tag that says so
        'untagged': lambda: cv2.imwrite(str(path), VALUES),
        'deep_untagged': lambda: cv2.imwrite(str(path), VALUES.astype(np.uint16) * 257),
        'deep_opaque': lambda: tiff(path, VALUES.astype('<u2') * 257, (338, 2)),
        'xmp': lambda: RGB.save(path, xmp=b'<x tiff:Orientation="6"/>', **exact),
        'xmp_tag': lambda: RGB.save(path, tiffinfo={700: b'<x tiff:Orientation="6"/>'}),
        'still': lambda: RGB.save(path, default_image=True, **frames),
    }[kind]()  # fmt: skip
    return path


@pytest.fixture
def torch_session(tiny_config):
    def make(changes=''):
        model = init_model(tiny_config(changes), device='cpu')
        return TorchSession(model_module.ready(model, model.cfg))

    return make


@pytest.mark.parametrize(
    'name',
    [
        'grey.png', 'grey.jpg', 'grey.tif', 'opaque.png', 'opaque.tif', 'opaque.webp', 'deep.png',
        'deep.tif', 'deep.pgm', 'deep_rgb.png', 'deep_rgb.tif', 'cmyk.jpg', 'cmyk.tif',
        'palette.png', 'palette.gif', 'palette.bmp', 'turned.jpg', 'turned.tif', 'animated.webp',
        'animated.png', 'animated.tif', 'animated.gif', 'grey_alpha.png', 'bits.png', 'bits.tif',
        'clear.png', 'white.tif', 'untagged.tif', 'deep_untagged.tif', 'deep_opaque.tif',
        'xmp.jpg', 'xmp.webp', 'xmp_tag.tif',
    ],
)  # fmt: skip
def test_pixels_are_those_that_opencv_reads(tmp_path, name):
    path = saved(tmp_path, name)
    expected = cv2.imread(str(path))
    if expected is None:
        pytest.skip('this OpenCV does not read it')
    found = read_image(path)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    tolerance = 1 if name in ('deep_rgb.tif', 'deep_untagged.tif', 'deep_opaque.tif') else 0
    assert np.abs(found.astype(int) - expected[..., ::-1]).max() <= tolerance
    with Image.open(path) as opened:  # as a PIL image
        np.testing.assert_array_equal(to_rgb(opened), found)
    # as bytes and as a file
    segment = Segmenter(Session(lambda x: x[..., 0], Processor(256, end_to_end=True)))
    with open(path, 'rb') as file:
        for source in (path.read_bytes(), io.BytesIO(path.read_bytes()), file):
            np.testing.assert_array_equal(segment.pixels(source), found)


@pytest.mark.parametrize('kind', ['P1', 'P4'])
def test_pbm_is_read_as_opencv_reads_it(tmp_path, kind):
    bits = VALUES[..., 0] >> 7
    path = tmp_path / 'a.pbm'
    digits = ' '.join(map(str, bits.ravel())).encode()
    header = f'{kind}\n32 24\n'.encode()
    path.write_bytes(header + (digits if kind == 'P1' else np.packbits(bits, 1).tobytes()))
    expected = cv2.imread(str(path))[..., ::-1]
    np.testing.assert_array_equal(read_image(path), expected)
    assert (expected[..., 0] == 255 * (1 - bits)).all()


@pytest.mark.parametrize('kind', ['P2', 'P3', 'P5', 'P6'])
@pytest.mark.parametrize('largest', [1, 100, 255, 256, 4095, 65535])
def test_pgm_and_ppm_of_any_largest_value_are_read_as_opencv_reads_them(tmp_path, kind, largest):
    values = VALUES[..., :1] if kind in ('P2', 'P5') else VALUES[..., :3]
    values = (values.astype(np.int64) * largest // 255).astype('>u2' if largest > 255 else np.uint8)
    digits = ' '.join(map(str, values.ravel())).encode() + b'\n'
    path = tmp_path / 'a.ppm'
    header = f'{kind} 32 24 {largest}\n'.encode()
    path.write_bytes(header + (digits if kind in ('P2', 'P3') else values.tobytes()))
    expected = cv2.imread(str(path))[..., ::-1].astype(int)
    tolerance = 1 if kind in ('P2', 'P3') else 0  # Pillow rounds
    assert np.abs(read_image(path) - expected).max() <= tolerance
    with Image.open(path) as opened:
        assert np.abs(to_rgb(opened) - expected).max() <= tolerance


def packed_12_bits(path):
    first, second = VALUES[..., 0].astype(int).reshape(-1, 2).T * 16
    data = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    return tiff(path, data.astype(np.uint8), (258, 12), (262, 1), (277, 1))


def test_what_opencv_refuses_or_reads_in_two_ways_is_refused(tmp_path, torch_session):
    still, packed = saved(tmp_path, 'still.png'), packed_12_bits(tmp_path / 'packed.tif')
    for session in (torch_session(), Session(lambda x: x, Processor(2))):
        segment = Segmenter(session)
        with pytest.raises(UserError, match='an animation beside a still image.*; save the one'):
            segment(still)
        with pytest.raises(UserError, match='of 12 bits are not read by OpenCV; convert the image'):
            segment(packed)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK', 'RGBA', 'P'])
@pytest.mark.parametrize('turn', [3, 6, 8])
def test_photos_that_lie_on_their_side_in_a_tiff_file_are_upright(tmp_path, mode, turn):
    upright = RGBA.convert(mode)
    upright.putpixel((0, 0), 0)  # no two turns look alike
    ways = {3: Image.ROTATE_180, 6: Image.ROTATE_90, 8: Image.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = turn
    upright.transpose(ways[turn]).save(tmp_path / 'a.tif', exif=exif)
    upright.save(tmp_path / 'b.tif')
    expected = read_image(tmp_path / 'b.tif')
    np.testing.assert_array_equal(read_image(tmp_path / 'a.tif'), expected)
    with Image.open(tmp_path / 'a.tif') as opened:
        np.testing.assert_array_equal(to_rgb(opened), expected)


def exif(*entries, header=b'Exif\0\0'):
    """EXIF data that turn a photo by 90 degrees, and hold more entries of (tag, type, value)."""
    entries = sorted([(0x0112, 3, struct.pack('<HH', 6, 0)), *entries])
    rest = 14 + 12 * len(entries)
    data = header + struct.pack('<4sIH', b'II*\0', 8, len(entries))
    for tag, kind, value in entries:
        data += struct.pack('<HHI', tag, kind, 1)
        data += value if len(value) == 4 else struct.pack('<I', rest)
    return data + bytes(4) + b''.join(value for _, _, value in entries if len(value) > 4)


@pytest.mark.parametrize(
    'entry',
    [
        (0x011A, 10, struct.pack('<ii', -72, 1)),  # signed, where Pillow would write unsigned ones
        (0x0100, 9, struct.pack('<i', -5)),
        (0x0132, 5, struct.pack('<II', 1, 1)),  # a date that is a fraction
        (0x0128, 2, b'in\0\0'),  # a unit in words
    ],
)
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp'])
def test_photos_are_upright_whatever_else_their_exif_data_hold(tmp_path, name, entry):
    path = tmp_path / name
    RGB.save(path, exif=exif(entry), **({'lossless': True} if name == 'a.webp' else {}))
    expected = cv2.imread(str(path))
    assert expected.shape == (32, 24, 3)
    np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


@pytest.mark.parametrize(
    'data',
    [
        exif(header=b'Exif\0\0Exif\0\0'),
        exif()[:-20],  # cut short
        b'Exif\0\0',
        exif().replace(struct.pack('<HH', 6, 0), struct.pack('<HH', 9, 0)),
    ],
)
def test_an_orientation_that_opencv_does_not_read_turns_nothing(tmp_path, data):
    path = tmp_path / 'a.jpg'
    RGB.save(path, exif=data)
    expected = cv2.imread(str(path))
    assert expected.shape == (24, 32, 3)
    np.testing.assert_array_equal(read_image(path), expected[..., ::-1])
    with Image.open(path) as opened:
        assert orientation_of(opened) == 1


def test_an_image_wider_than_pillow_would_cut_out_is_read_where_that_is_allowed(
    tmp_path, monkeypatch
):
    path, wide = tmp_path / 'a.png', VALUES[..., :3].reshape(1, -1, 3).repeat(4, 0)
    Image.fromarray(wide).save(path)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    monkeypatch.setattr(images, '_PIXELS', 800)  # at once
    np.testing.assert_array_equal(read_image(path), wide)
    with pytest.raises(ValueError, match='768x4 pixels, the limit is'):
        read_image(path, 3000)


@pytest.mark.parametrize('name', ['float.tif', 'long.tif', 'lab.tif'])
def test_values_without_a_meaning_are_refused_by_every_runtime(tmp_path, torch_session, name):
    path = saved(tmp_path, name)
    for session in (torch_session(), Session(lambda x: x, Processor(2))):
        segment = Segmenter(session)
        with pytest.raises(UserError, match=f'{name} can not be read .values of Pillow'):
            segment(path)
        with Image.open(path) as opened, pytest.raises(UserError, match='no defined grey levels'):
            segment(opened)


@pytest.mark.parametrize('name', ['opaque.tif', 'deep.png', 'turned.jpg', 'palette.gif'])
def test_a_session_in_torch_sees_the_same(tmp_path, torch_session, name):
    path, segment = saved(tmp_path, name), Segmenter(torch_session())
    expected = read_image(path)
    for source in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(segment.pixels(source), expected)


def test_color_type_holds_whatever_an_image_comes_as(tmp_path, torch_session):
    path = saved(tmp_path, 'turned.png')
    flat = Segmenter(torch_session('test_pipeline[0]["color_type"] = "color_ignore_orientation"'))
    for source in (path, path.read_bytes(), Image.open(path)):
        np.testing.assert_array_equal(flat.pixels(source), VALUES[..., :3])
    grey = Segmenter(torch_session('test_pipeline[0]["color_type"] = "grayscale"'))
    expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[..., None].astype(int)
    for source in (path, path.read_bytes(), Image.open(path)):
        assert np.abs(grey.pixels(source) - expected).max() <= 1


def test_a_loader_of_ones_own_holds(tmp_path, torch_session, monkeypatch):
    from mmseg.registry import TRANSFORMS

    class LoadDark:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, results):
            image = cv2.imread(results['img_path']) // self.factor
            return {**results, 'img': image, 'img_shape': image.shape[:2]}

    TRANSFORMS.register_module(module=LoadDark, force=True)
    session = torch_session('test_pipeline[0] = dict(type="LoadDark", factor=2)')
    segment = Segmenter(session)
    path = saved(tmp_path, 'opaque.png')
    np.testing.assert_array_equal(segment.pixels(path), VALUES[..., :3] // 2)
    with pytest.raises(UserError, match='LoadDark of the test pipeline reads paths only'):
        segment(path.read_bytes())


def test_text_files_and_other_bytes_are_refused(tmp_path):
    segment = Segmenter(Session(lambda x: x[..., 0], Processor(2, end_to_end=True)))
    with pytest.raises(UserError, match='the image can not be read .UnidentifiedImageError'):
        segment(b'nothing')
    with open(__file__) as file, pytest.raises(UserError, match="open.path, 'rb'."):
        segment(file)


def test_labels_beyond_256_classes_and_their_colours():
    def run(planes):
        return np.broadcast_to(np.arange(300.0)[:, None, None], (1, 300, *planes.shape[2:]))

    segment = Segmenter(Session(run, Processor(300)))
    labels = segment(VALUES[..., :3])
    assert labels.dtype == np.uint16 and (labels == 299).all()
    assert segment.colours.shape == (300, 3) and segment.overlay(VALUES[..., :3], labels)
    assert full_palette((), 300)[256:].tolist() == full_palette((), 21)[:44].tolist()


def test_logits_that_are_no_numbers_are_an_error(torch_session):
    image = VALUES[..., :3]
    for value in (np.nan, np.inf):
        logits = Session(lambda x, v=value: np.full((1, 3, 4, 5), v), Processor(3))
        with pytest.raises(UserError, match='the network gives NaN or infinity'):
            Segmenter(logits)(image)
    labels = Session(lambda x: np.full(x.shape[:3], 255, np.uint8), Processor(3, end_to_end=True))
    with pytest.raises(UserError, match='the network gives NaN or infinity'):
        Segmenter(labels)(image)
    session = torch_session()
    next(session.model.decode_head.parameters()).data.fill_(np.nan)
    with pytest.raises(UserError, match='the network gives NaN or infinity'):
        Segmenter(session)(image)


def test_what_a_network_fails_on_is_one_line():
    def run(planes):
        raise RuntimeError('too small\nand a graph')

    with pytest.raises(UserError, match='fails on an image of 32x24 pixels: too small$'):
        Segmenter(Session(run, Processor(3)))(VALUES[..., :3])


def test_a_test_pipeline_of_several_versions_is_named(torch_session):
    with pytest.raises(UserError, match='^the test pipeline makes several.*; make that tta_pipe'):
        torch_session('test_pipeline = tta_pipeline')


def test_what_a_session_has_already_is_refused():
    session = Session(lambda x: x, Processor(3))
    with pytest.raises(UserError, match='a session has its device already'):
        Segmenter(session, device='cpu')
    with pytest.raises(UserError, match='of a session can not go to another process'):
        pickle.dumps(Segmenter(session))
    with pytest.raises(UserError, match='is fused already'):
        Segmenter(Path('a.onnx'), fuse=False)
