import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from helpers.processes import run
from mmseg.apis import inference_model, init_model
from PIL import Image

from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes import FORMATS
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RESIZE = 'test_pipeline[1:1] = [dict(type="Resize", scale=(80, 50), keep_ratio=True)]'


@pytest.fixture
def config(tiny_config):
    return tiny_config(RESIZE)


@pytest.fixture
def checkpoint(config, tmp_path):
    model = init_model(config, None, 'cpu')
    for name, weight in model.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data)
    path = tmp_path / 'tiny.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


@pytest.fixture
def model(config, checkpoint):
    return load_model(load_config(config), checkpoint, 'cpu')


@pytest.fixture
def photo(tiny_data):
    return tiny_data / 'JPEGImages' / '1.jpg'


def expected(model, image):
    return inference_model(model, image).pred_sem_seg.data[0].numpy()


@pytest.mark.parametrize('tile', [None, 16])
@pytest.mark.parametrize('told', [2, 9])
def test_a_file_of_other_classes_than_it_tells_is_refused(told, tile):
    session = Session(lambda x: np.repeat(x, 7, 1), Processor(told))  # 21 channels
    with pytest.raises(UserError, match='does not give what it says of itself; export it again'):
        Segmenter(session, tile=tile)(np.zeros((20, 30, 3), np.uint8))


def test_labels_beyond_the_classes_that_a_file_tells_are_refused():
    image = np.zeros((4, 5, 3), np.uint8)
    image[0, 0] = 7
    for classes, message in ((7, 'does not give what it says of itself'), (8, None)):
        segment = Segmenter(Session(lambda x: x[..., 0], Processor(classes, end_to_end=True)))
        if message:
            with pytest.raises(UserError, match=message):
                segment(image)
        else:
            np.testing.assert_array_equal(segment(image), image[..., 0])
    image[0, 0] = 255
    with pytest.raises(UserError, match='the network gives NaN or infinity'):
        segment(image)


def test_torch_gives_what_mmseg_gives(config, checkpoint, model, photo):
    segment = Segmenter(config, checkpoint, device='cpu', fuse=False)
    labels = segment(photo)
    assert labels.dtype == np.uint8 and labels.shape == (37, 45)
    np.testing.assert_array_equal(labels, expected(model, str(photo)))
    assert len(np.unique(labels)) > 1
    assert segment.classes == ('ground', 'left', 'right')
    assert segment.palette == ((0, 0, 0), (200, 0, 0), (0, 200, 0))
    # fused: but for ties
    fused = Segmenter(config, checkpoint, device='cpu')
    assert 'Fold' in str(fused.session.model) and 'Fold' not in str(segment.session.model)
    assert (fused(photo) == labels).mean() > 0.99


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('end_to_end', [False, True])
def test_exported_models_give_nearly_the_same(model, photo, tmp_path, format, end_to_end):
    need(format)
    file = tmp_path / f'tiny{FORMATS[format].suffix}'
    export(model, file, format, end_to_end=end_to_end, size=(50, 61))
    segment = Segmenter(file, threads=1, batch_size=2)
    labels = segment(photo)
    # OpenCV resizes images in whole grey levels; end to end, labels are resized instead of logits
    agree = (labels == expected(model, str(photo))).mean()
    assert labels.dtype == np.uint8 and agree > (0.9 if end_to_end else 0.99), agree
    assert segment.classes == ('ground', 'left', 'right')
    assert segment.palette == ((0, 0, 0), (200, 0, 0), (0, 200, 0))

    # several at a time, from several threads: as one by one
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 40, 3)).astype(np.uint8) for h in (30, 30, 30, 44, 30)]
    alone = [segment(image) for image in images]
    assert [label.shape for label in alone] == [image.shape[:2] for image in images]
    for one, other in zip(segment(images), alone, strict=True):
        assert (one == other).mean() > 0.999
    with ThreadPoolExecutor(4) as pool:
        for i, labels in enumerate(pool.map(segment, images * 5)):
            np.testing.assert_array_equal(labels, alone[i % 5])


def test_torch_among_threads_and_in_batches(config, checkpoint, photo):
    segment = Segmenter(config, checkpoint, device='cpu', batch_size=3)
    images = [np.roll(np.array(Image.open(photo)), 9 * i, 1) for i in range(4)]
    alone = [segment(image) for image in images]
    for one, other in zip(segment(images), alone, strict=True):
        assert (one == other).mean() > 0.999
    with ThreadPoolExecutor(16) as pool:
        for i, labels in enumerate(pool.map(segment, images * 8)):
            np.testing.assert_array_equal(labels, alone[i % 4])


@pytest.mark.parametrize('format', ['torch', pytest.param('torch-export', marks=pytest.mark.slow)])
def test_a_torch_session_is_not_used_in_a_forked_process(
    config, checkpoint, model, photo, tmp_path, format
):
    arguments = [config, checkpoint]
    if format != 'torch':
        need(format)
        arguments = [tmp_path / 'tiny.pt2']
        export(model, *arguments, format, size=(50, 61))
    before = torch.get_num_threads()
    try:
        segment = Segmenter(*arguments, device='cpu', threads=2)
        labels = segment(photo)  # torch's threads are there

        def forked(threads):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                try:
                    torch.set_num_threads(threads)
                    os._exit(int(np.array_equal(segment(photo), labels)))
                except UserError as error:
                    os._exit(2 if 'was made before the process was forked' in str(error) else 3)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert (forked(2), forked(1)) == (2, 1)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def bright():
    """Labels 1 where the green is above 100; counts the batches."""
    batches = []

    def is_bright(images):
        batches.append(len(images))
        return (images[..., 1] > 100).astype(np.uint8)

    made = Segmenter(
        Session(is_bright, Processor(2, end_to_end=True, palette=((9, 9, 9), (200, 0, 0)))),
        batch_size=2,
    )
    made.batches = batches
    return made


def test_images_may_be_paths_pil_images_arrays_or_lists(bright, tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1:, :2, 1] = 200
    mask = (pixels[..., 1] > 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    many = bright(
        [tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(pixels), pixels[1:]]
    )
    assert bright.batches == [2, 1, 1]
    for labels in many[:3]:
        np.testing.assert_array_equal(labels, mask)
    np.testing.assert_array_equal(many[3], mask[1:])
    assert bright([]) == []
    # what is not plain RGB
    grey = Image.fromarray(pixels[..., 1])
    np.testing.assert_array_equal(bright(grey), mask)
    np.testing.assert_array_equal(bright(Image.fromarray(pixels).convert('RGBA')), mask)
    deep = Image.fromarray(pixels[..., 1].astype(np.uint16) << 8)
    deep.save(tmp_path / 'deep.png')
    np.testing.assert_array_equal(bright(tmp_path / 'deep.png'), mask)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=exif)
    np.testing.assert_array_equal(bright(tmp_path / 'turned.png'), mask[::-1, ::-1])


def test_overlays_mix_image_and_colours(bright):
    pixels = np.full((2, 2, 3), 100, np.uint8)
    overlay = bright.overlay(pixels, np.array([[0, 1], [1, 0]], np.uint8), opacity=0.25)
    assert np.array(overlay).tolist() == [
        [[77, 77, 77], [125, 75, 75]], [[125, 75, 75], [77, 77, 77]],
    ]  # fmt: skip
    for arguments, message in (
        ((pixels, np.zeros((2, 3), np.uint8)), r'labels of shape \(2, 3\) for an image of \(2, 2'),
        ((pixels, np.zeros((2, 2), np.uint8), 1.5), 'opacity must be from 0 to 1, got 1.5'),
        ((pixels, np.full((2, 2), -1)), 'whole numbers from 0 to 255, got int64 from -1 to -1'),
        ((pixels, np.full((2, 2), 256)), 'whole numbers from 0 to 255, got int64 from 256 to 256'),
        ((pixels, np.ones((2, 2), bool)), 'got bool from True to True'),
    ):
        with pytest.raises(UserError, match=message):
            bright.overlay(*arguments)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (3, 'expected a path, a PIL image or an array, got int'),
        (np.zeros((4, 6, 3)), r'must be uint8 of shape .* got float64 of shape \(4, 6, 3\)'),
        (np.zeros((4, 6), np.uint8), r'got uint8 of shape \(4, 6\)'),
        (np.zeros((0, 6, 3), np.uint8), r'got uint8 of shape \(0, 6, 3\)'),
        ('none.jpg', r'none.jpg can not be read \(FileNotFoundError'),
        (__file__, 'can not be read .*UnidentifiedImageError'),
    ],
)
def test_what_is_no_image_is_refused(bright, image, message):
    with pytest.raises(UserError, match=message):
        bright(image)
    with pytest.raises(UserError, match=message):
        bright([image])


def test_a_result_of_another_size_is_refused():
    session = Session(lambda _: np.zeros((1, 2, 2), np.uint8), Processor(2, end_to_end=True))
    with pytest.raises(UserError, match=r'result of shape \(1, 2, 2\) for 1 images'):
        Segmenter(session)(np.zeros((4, 6, 3), np.uint8))


def test_models_that_can_not_be_loaded(config, checkpoint, tmp_path, monkeypatch):
    for name in ('a.onnx', 'a.xml', 'a.pt2'):
        (tmp_path / name).write_text('nothing')
    for args, options, message in (
        (('none.onnx',), {}, 'model none.onnx not found'),
        (
            ('a.engine',),
            {},
            r'a.engine is no model: expected a config .*, weights .* or a file .onnx',
        ),
        ((tmp_path / 'a.onnx', checkpoint), {}, 'a.onnx holds its weights; leave .*tiny.pth out'),
        ((config,), {}, 'needs a checkpoint beside it'),
        (('none.py', checkpoint), {}, 'config none.py not found'),
        ((config, checkpoint), {'threads': 0}, 'threads must be a whole number, at least 1, got 0'),
        ((config, checkpoint), {'threads': 1.5}, 'threads must be a whole number, .* got 1.5'),
        ((config, checkpoint), {'scale': '2'}, 'scale must be a factor above 0'),
        ((config, checkpoint), {'threads': 10**9}, 'threads must be at most 1024, got 1000000000'),
        ((config, checkpoint), {'batch_size': -1}, 'batch_size must be a whole number, .* got -1'),
        ((config, checkpoint), {'device': 'gpu'}, 'torch knows no device gpu; take cpu or cuda:0'),
        ((tmp_path / 'a.pt2',), {}, 'a.pt2 is not a file that torch.export wrote'),
    ):
        with pytest.raises(UserError, match=message):
            Segmenter(*args, **options)
    for name, package in (('a.onnx', 'onnxruntime'), ('a.xml', 'openvino')):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(UserError, match=f'pip install {package}'):
                Segmenter(tmp_path / name)
        pytest.importorskip(package, reason=f'{name} is refused by {package}')
        with pytest.raises(UserError, match=f'{name} is not a readable'):
            Segmenter(tmp_path / name)


def test_onnx_models_of_others_are_refused(tmp_path):
    need('onnx')
    file = tmp_path / 'a.onnx'
    net = torch.nn.Conv2d(3, 2, 1)
    torch.onnx.export(net, (torch.zeros(1, 3, 4, 4),), file, dynamo=False)
    with pytest.raises(UserError, match='does not say how to use it; make it with tools/export'):
        Segmenter(file)
    with pytest.raises(UserError, match='device cuda: onnxruntime has no such provider here'):
        Segmenter(file, device='cuda')


def test_cuda_that_does_not_start_is_not_the_cpu_in_silence(tmp_path, monkeypatch):
    need('onnx')
    ort, file = pytest.importorskip('onnxruntime'), tmp_path / 'a.onnx'
    net, asked = torch.nn.Conv2d(3, 2, 1), []
    torch.onnx.export(net, (torch.zeros(1, 3, 4, 4),), file, dynamo=False)
    made = ort.InferenceSession

    def fall_back(path, options, providers):  # as it does where libraries of CUDA are missing
        asked.extend(providers)
        return made(path, options, providers=['CPUExecutionProvider'])

    monkeypatch.setattr(ort, 'get_available_providers', lambda: ['CUDAExecutionProvider'])
    monkeypatch.setattr(ort, 'InferenceSession', fall_back)
    with pytest.raises(UserError, match='^device cuda:1: .*CUDAExecutionProvider does not start.*'):
        Segmenter(file, device='cuda:1')
    assert asked == [('CUDAExecutionProvider', {'device_id': 1})]


STANDALONE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'mmengine', 'mmcv', 'mmseg', 'cv2'):
            raise ModuleNotFoundError(f'{name} is blocked')

sys.meta_path.insert(0, Block())

file, photo, out = %r
import numpy as np
import ssnet_mm
from ssnet_mm.deploy.segmenter import Segmenter
print(np.unique(Segmenter(file, threads=1)(photo)).tolist())
import runpy
tool = runpy.run_path('tools/predict.py')
tool['main']([file, photo, '--out-dir', out, '--threads', '1'])
assert not {'torch', 'mmengine', 'mmseg', 'cv2'} & set(sys.modules)
"""


def test_onnx_models_run_without_torch_and_toolbox(model, photo, tmp_path):
    need('onnx')
    file, out = tmp_path / 'tiny.onnx', tmp_path / 'out'
    export(model, file, 'onnx', size=(50, 61))
    script = STANDALONE % ((str(file), str(photo), str(out)),)
    printed = run(sys.executable, '-c', script, cwd=ROOT)
    here = Segmenter(file, threads=1)(photo)
    assert printed.splitlines() == [
        str(np.unique(here).tolist()),
        f'1 images segmented: {out}/overlay, {out}/index, {out}/areas.csv',
    ]  # fmt: skip
    np.testing.assert_array_equal(np.array(Image.open(out / 'index' / '1.png')), here)


def test_the_tool_runs_exported_models_on_a_list(tool, model, photo, tmp_path, monkeypatch, capsys):
    need('onnx')
    export(model, tmp_path / 'tiny.onnx', 'onnx', size=(50, 61))
    listing = tmp_path / 'list.txt'
    listing.write_text(f'{photo}\n{photo.with_name("2.jpg")}\n')
    out = str(tmp_path / 'out')
    with listing.open() as file:
        monkeypatch.setattr(sys, 'stdin', file)
        tool('predict').main([str(tmp_path / 'tiny.onnx'), '-', '--out-dir', out])
    files = f'{out}/overlay, {out}/index, {out}/areas.csv'
    assert capsys.readouterr().out == f'2 images segmented: {files}\n'
    assert sorted(p.name for p in (tmp_path / 'out' / 'index').iterdir()) == ['1.png', '2.png']


def test_the_torch_session_takes_a_loaded_model(model, photo):
    labels = Segmenter(TorchSession(model))(photo)
    np.testing.assert_array_equal(labels, expected(model, str(photo)))
