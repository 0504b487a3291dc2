import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.utils import get_palette
from PIL import Image

from ssnet_mm.engine import launch, predict
from ssnet_mm.errors import UserError


class Red:
    """Segments by the red channel: class 1 where it is bright, else class 0."""

    num_classes = 3
    dataset_meta = {'palette': [[0, 0, 0], [200, 100, 0], [0, 0, 9]]}


@pytest.fixture
def red(monkeypatch):
    monkeypatch.setattr(predict, '_segment', lambda _, bgr: (bgr[..., 2] > 100).astype(np.uint8))
    return Red()


@pytest.fixture
def pictures(tmp_path):
    """Left half dark, right half bright red, 6 wide and 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:, 0] = 240
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in ('a.png', 'b.PNG'):
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_index_holds_classes_and_overlay_mixes_colours(red, pictures, tmp_path):
    images = predict.find_images(pictures)
    assert predict.predict_images(red, images, tmp_path / 'out', opacity=0.25) == []
    expected = np.zeros((4, 6), np.uint8)
    expected[:, 3:] = 1
    for name in ('a.png', 'b.png'):
        index = Image.open(tmp_path / 'out' / 'index' / name)
        assert index.mode == 'P'
        np.testing.assert_array_equal(np.array(index), expected)
        colours = np.array(index.convert('RGB'))
        assert colours[0, 0].tolist() == [0, 0, 0] and colours[0, 5].tolist() == [200, 100, 0]
        overlay = np.array(Image.open(tmp_path / 'out' / 'overlay' / name))
        assert overlay[0, 0].tolist() == [0, 0, 0]
        assert overlay[0, 5].tolist() == [230, 25, 0]  # 0.75 * (240, 0, 0) + 0.25 * (200, 100, 0)


def test_images_of_one_stem_do_not_overwrite_each_other():
    names = predict.output_names([Path('in/a.jpg'), Path('in/A.png'), Path('in/b.jpg')])
    assert names == ['a.jpg.png', 'A.png.png', 'b.jpg.png']
    assert predict.output_names([Path('in/a.jpg'), Path('in/b.png')]) == ['a.png', 'b.png']


def test_an_unreadable_image_is_named_and_the_others_are_done(red, pictures, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(pictures / 'cut.jpg')  # far longer than its header
    os.truncate(pictures / 'cut.jpg', os.path.getsize(pictures / 'cut.jpg') // 2)
    # as OpenCV 4 does, which fills in grey where a file is cut short
    monkeypatch.setattr(predict.mmcv, 'imread', lambda _: np.zeros((64, 64, 3), np.uint8))
    (pictures / 'text.jpg').write_text('no image')
    failures = predict.predict_images(red, predict.find_images(pictures), tmp_path / 'out')
    assert [re.match(r'\S+', failure)[0] for failure in failures] == [
        str(pictures / 'cut.jpg'),
        str(pictures / 'text.jpg'),
    ]
    for kind in ('overlay', 'index'):
        written = sorted(p.name for p in (tmp_path / 'out' / kind).iterdir())
        assert written == ['a.png', 'b.png']


def test_inputs_are_not_overwritten(red, pictures, tmp_path):
    pictures.rename(tmp_path / 'index')
    images = predict.find_images(tmp_path / 'index')
    before = images[0].read_bytes()
    with pytest.raises(UserError, match='would overwrite the images; choose another'):
        predict.predict_images(red, images, tmp_path)
    assert images[0].read_bytes() == before and not (tmp_path / 'overlay').exists()


def test_images_are_sought_by_suffix_in_one_folder(pictures):
    (pictures / 'notes.txt').touch()
    (pictures / 'folder.jpg').mkdir()
    assert [p.name for p in predict.find_images(pictures)] == ['a.png', 'b.PNG']
    assert predict.find_images(pictures / 'a.png') == [pictures / 'a.png']
    with pytest.raises(UserError, match='no image in .*folder.jpg; looked for .bmp'):
        predict.find_images(pictures / 'folder.jpg')
    with pytest.raises(UserError, match='no image or folder .*none'):
        predict.find_images(pictures / 'none')


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert predict.check_device(None) == 'cpu' and predict.check_device('cpu') == 'cpu'
    with pytest.raises(UserError, match='--device cuda: torch finds 0 CUDA devices here'):
        predict.check_device('cuda')
    with pytest.raises(UserError, match='--device gpu is none; take cpu or cuda:0'):
        predict.check_device('gpu')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert predict.check_device(None) == 'cuda:0'
    with pytest.raises(UserError, match='--device cuda:1: torch finds 1 CUDA'):
        predict.check_device('cuda:1')


def test_palette_falls_back_to_vocs():
    voc = get_palette('voc')
    assert predict.full_palette(None, 21)[:21].tolist() == voc
    assert predict.full_palette([[9, 9, 9]], 2)[:2].tolist() == voc[:2]
    assert predict.full_palette([[9, 9, 9]], 1)[:2].tolist() == [[9, 9, 9], voc[1]]


def test_colours_come_from_the_checkpoint_or_else_from_the_config(tiny_config, tmp_path):
    cfg = launch.load_config(tiny_config())
    model = predict.init_model(cfg, checkpoint=None, device='cpu')
    for meta, palette in (
        ({'dataset_meta': {'classes': ('a',), 'palette': [[1, 2, 3]]}}, [[1, 2, 3]]),
        ({}, cfg.palette),
    ):
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'a.pth')
        loaded = predict.load_model(cfg, str(tmp_path / 'a.pth'), 'cpu')
        assert loaded.dataset_meta['palette'] == palette
        assert not loaded.training
