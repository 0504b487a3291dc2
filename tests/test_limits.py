import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from ssnet_mm import limits
from ssnet_mm.errors import UserError


def test_an_image_is_measured_by_its_header(tmp_path):
    Image.new('L', (200, 100)).save(tmp_path / 'a.png')
    data = (tmp_path / 'a.png').read_bytes()[:60]  # no pixels are in it
    (tmp_path / 'a.png').write_bytes(data)
    assert limits.open_image(tmp_path / 'a.png', 20_000).size == (200, 100)
    with pytest.raises(ValueError, match='200x100 pixels, the limit is 0.0 million'):
        limits.open_image(tmp_path / 'a.png', 19_999)
    assert limits.open_image(tmp_path / 'a.png', None).size == (200, 100)


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """A file of more pixels than Pillow opens by itself."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    Image.new('L', (200, 100)).save(tmp_path / 'a.png')
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / 'a.png')
    return tmp_path / 'a.png'


def test_the_limit_on_pixels_is_the_callers_not_pillows(bomb):
    for most in (20_000, None):
        with limits.open_image(bomb, most) as image:
            assert image.load() and image.size == (200, 100)
        with open(bomb, 'rb') as file:
            assert limits.open_image(file, most).size == (200, 100)
    with pytest.raises(ValueError, match='200x100 pixels, the limit is 0.0 million; .* set max_p'):
        limits.open_image(bomb, 19_999)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_pillows_limit_stands_after_threads_and_failures(bomb):
    broken = bomb.with_name('b.png')
    broken.write_bytes(bomb.read_bytes().replace(b'IDAT', b'id,t'))
    with ThreadPoolExecutor(8) as pool:
        sizes = pool.map(lambda _: limits.open_image(bomb, None).size, range(200))
        assert set(sizes) == {(200, 100)}
    with pytest.raises(OSError, match='cannot identify'):
        limits.open_image(broken, None)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_an_orientation_is_found_in_front_of_a_png_files_pixels_and_behind_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png', exif=exif)
    assert limits.orientation_of(limits.open_image(tmp_path / 'a.png', None)) == 6
    data = (tmp_path / 'a.png').read_bytes()
    start = data.index(b'eXIf') - 4
    size = 12 + int.from_bytes(data[start : start + 4], 'big')
    chunk, rest = data[start : start + size], data[:start] + data[start + size :]
    (tmp_path / 'a.png').write_bytes(rest[:-12] + chunk + rest[-12:])  # before the last one
    assert limits.orientation_of(limits.open_image(tmp_path / 'a.png', None)) == 6


def test_formats_that_start_other_programs_are_no_images(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')  # which Pillow hands to Ghostscript
    (tmp_path / 'a.eps').rename(tmp_path / 'a.png')
    assert Image.open(tmp_path / 'a.png').format == 'EPS'
    with pytest.raises(OSError, match='cannot identify'):
        limits.open_image(tmp_path / 'a.png', None)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.bmp', 'a.tif', 'a.webp', 'a.mpo'])
def test_usual_formats_are_images(tmp_path, name):
    image = Image.new('RGB', (8, 8))
    image.save(tmp_path / name, **(dict(append_images=[image]) if name == 'a.mpo' else {}))
    with limits.open_image(tmp_path / name, None) as opened:
        opened.load()


def test_json_is_bounded():
    assert limits.parse_json('[1]') == [1]
    for text, message in (
        ('[' * 100_000, 'nested too deep'),
        (' ' * (limits.JSON + 1), 'MiB of JSON'),
        ('{', 'Expecting'),
    ):
        with pytest.raises(ValueError, match=message):
            limits.parse_json(text)


def test_archives_of_torch_are_stored_once_and_from_the_start(tmp_path):
    def members(*entries, before=b''):
        with open(tmp_path / 'a.zip', 'wb') as file:
            file.write(before)
            with zipfile.ZipFile(file, 'w') as archive:
                for name, how in entries:
                    archive.writestr(name, bytes(1000), how)
        with zipfile.ZipFile(tmp_path / 'a.zip') as archive:
            return list(limits.stored_members(archive, (tmp_path / 'a.zip').stat().st_size))

    assert members(('a', zipfile.ZIP_STORED), ('b', zipfile.ZIP_STORED)) == ['a', 'b']
    with pytest.raises(ValueError, match='b is compressed'):
        members(('a', zipfile.ZIP_STORED), ('b', zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match='does not begin where the file does'):
        members(('a', zipfile.ZIP_STORED), before=b'PK\x03\x04')
    with pytest.warns(UserWarning, match='Duplicate'), pytest.raises(ValueError, match='twice'):
        members(('a', zipfile.ZIP_STORED), ('a', zipfile.ZIP_STORED))


def test_a_long_message_keeps_its_beginning_and_its_end():
    text = str(UserError(f'a.pth has {"x" * 40_000}; take another'))
    assert len(text) < 620 and text.startswith('a.pth has x') and text.endswith('; take another')
    assert str(UserError('short')) == 'short'
