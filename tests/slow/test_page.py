"""The web page in a headless Chromium: its labels are those of a Segmenter."""

import base64
import functools
import gzip
import http.server
import re
import threading
import time

import numpy as np
import pytest
import torch
from helpers.chromium import Page, need_chromium
from helpers.export_formats import need
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.deploy import page as module
from ssnet_mm.deploy import predict
from ssnet_mm.deploy.model import load_model
from ssnet_mm.deploy.page import export_page
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError

pytestmark = pytest.mark.slow

RESIZE = 'test_pipeline[1:1] = [dict(type="Resize", scale=(160, 100), keep_ratio=True)]'
SIZES = [
    (100, 160), (64, 64), (101, 173), (480, 360), (37, 45), (300, 50), (161, 99), (90, 240),
    (233, 377), (1, 7),
]  # fmt: skip
SWIFTSHADER = (
    '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader', '--enable-features=Vulkan',
)  # fmt: skip


@pytest.fixture
def model(tiny_config, tmp_path):
    config = tiny_config(RESIZE)
    made = init_model(config, None, 'cpu')
    for name, weight in made.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data)
    torch.save({'state_dict': made.state_dict(), 'meta': {}}, tmp_path / 'tiny.pth')
    return load_model(load_config(config), str(tmp_path / 'tiny.pth'), 'cpu')


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3)).astype(np.uint8)
        picture = Image.fromarray(blocks.repeat(9, 0).repeat(9, 1)[:height, :width])
        picture.save(folder / f'{i}.png')
    return sorted(folder.iterdir())


@pytest.fixture(params=['fp32', 'fp16'])
def made(request, model, tmp_path):
    """A page, and a Segmenter of the network in it."""
    need('onnx')
    need_chromium()
    try:
        module._fetched()
    except UserError as error:
        pytest.skip(str(error))
    file = tmp_path / 'page.html'
    export_page(model, file, precision=request.param, size=(100, 160))
    held = re.search(r'id="network">([^<]*)<', file.read_text())[1]
    (tmp_path / 'held.onnx').write_bytes(gzip.decompress(base64.b64decode(held)))
    return file, Segmenter(tmp_path / 'held.onnx', threads=1)


def until(page, words, seconds=120):
    """Wait for the page's line to have words in it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        line = page.run('document.getElementById("status")?.textContent ?? ""')
        if words in line:
            return line
        time.sleep(0.05)
    raise AssertionError(f'{words} did not come: {line}; {page.said}')


def mask_of(page, photo, tmp_path):
    """The mask that the page saves for a photo."""
    page.choose('#files', photo)
    until(page, f'{photo.name}: ')
    encoded = page.run(
        'ssnet.maskFile(ssnet.shown()).then((file) => new Promise((done) => {'
        'const reader = new FileReader(); reader.onload = () => done(reader.result);'
        'reader.readAsDataURL(file); }))'
    )
    file = tmp_path / 'mask.png'
    file.write_bytes(base64.b64decode(encoded.partition(',')[2]))
    return Image.open(file)


def test_labels_from_a_file_are_those_of_a_segmenter(made, photos, tmp_path):
    file, segment = made
    predict.predict_images(segment, photos, tmp_path / 'out')
    page = Page(file.as_uri())
    try:
        assert 'WebAssembly, 1 thread)' in until(page, 'Ready')
        seen = set()
        for photo in photos:
            mask = mask_of(page, photo, tmp_path)
            expected = Image.open(tmp_path / 'out' / 'index' / photo.name)
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(expected), photo.name)
            assert mask.getpalette()[:9] == expected.getpalette()[:9]
            seen |= set(np.unique(np.asarray(mask)))
        assert len(seen) > 1
        share = page.run('document.querySelectorAll("#legend tr")[1].innerText')
        counted = 100 * (np.asarray(mask) == 1).mean()
        assert share.split() == ['left', f'{counted:.1f}%']
        page.choose('#files', *photos)  # the first is shown, the others are listed
        until(page, '0.png: ')
        assert page.run('document.getElementById("names").options.length') == len(photos)
        (tmp_path / 'no.png').write_text('no image')
        page.choose('#files', tmp_path / 'no.png')
        until(page, 'no.png: this browser reads no image from it')
    finally:
        page.close()


@pytest.mark.parametrize('made', ['fp32'], indirect=True)
def test_folders_and_the_camera(made, photos, tmp_path):
    page = Page(
        made[0].as_uri(), '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'
    )
    names = '[...document.getElementById("names").options].map((one) => one.text).sort()'
    try:
        until(page, 'Ready')
        below = tmp_path / 'photos' / 'below'
        below.mkdir()
        (below / 'notes.txt').touch()
        Image.new('RGB', (9, 9)).save(below / 'z.png')
        page.choose('#folder', photos[0].parent)
        until(page, 'left out, no images by their names: 1')
        assert page.run(names) == [*(photo.name for photo in photos), 'z.png']
        data = dict(items=[], files=[str(below), str(photos[4])], dragOperationsMask=1)
        for kind in ('dragEnter', 'dragOver', 'drop'):
            page.call('Input.dispatchDragEvent', type=kind, x=300, y=400, data=data)
        until(page, f'{photos[4].name}: ')
        assert page.run(names) == [photos[4].name, 'z.png']
        page.run('document.getElementById("camera").click()')
        until(page, 'camera: ')
        assert page.run('document.getElementById("camera").textContent') == 'Stop'
        page.run('document.getElementById("camera").click()')
        assert page.run('document.getElementById("camera").textContent') == 'Camera'
    finally:
        page.close()


class Isolating(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header('Cross-Origin-Opener-Policy', 'same-origin')
        self.send_header('Cross-Origin-Embedder-Policy', 'require-corp')
        super().end_headers()

    def log_message(self, *_):
        pass


def test_a_server_that_isolates_the_page_gives_it_threads(made, photos, tmp_path):
    file, segment = made
    handler = functools.partial(Isolating, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = Page(f'http://127.0.0.1:{server.server_port}/page.html#threads=2')
    try:
        assert 'WebAssembly, 2 threads)' in until(page, 'Ready')
        mask = mask_of(page, photos[3], tmp_path)
        np.testing.assert_array_equal(np.asarray(mask), segment(photos[3]))
    finally:
        page.close()
        server.shutdown()


@pytest.mark.parametrize('made', ['fp32'], indirect=True)
def test_webgpu_gives_the_same_but_for_rounding(made, photos, tmp_path):
    file, segment = made
    page = Page(f'{file.as_uri()}#runtime=webgpu', *SWIFTSHADER)
    try:
        if 'WebGPU' not in until(page, 'Ready', 300):
            pytest.skip('this Chromium has no WebGPU')
        mask = mask_of(page, photos[3], tmp_path)
        assert (np.asarray(mask) == segment(photos[3])).mean() > 0.999
    finally:
        page.close()
    page = Page(file.as_uri(), *SWIFTSHADER)  # an emulated GPU is not taken unasked
    try:
        assert 'WebAssembly' in until(page, 'Ready')
    finally:
        page.close()
