from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.training import train
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmseg.apis import init_model
from PIL import Image

from ssnet_mm.engine.painting import read_as_loaded
from ssnet_mm.visualization import show_predictions

STORED = """
test_pipeline[0]['color_type'] = 'color_ignore_orientation'
val_dataloader['dataset']['pipeline'] = test_dataloader['dataset']['pipeline'] = test_pipeline
"""


@pytest.fixture
def turned(tiny_data):
    """An image that EXIF turns by 90 degrees, and its label map as it is stored; its path."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tiny_data / 'JPEGImages' / '0.jpg'
    picture = Image.open(path)
    picture.load()
    picture.save(path, exif=exif)
    return path


def data(**settings):
    loader = LoadImageFromFile(**settings)
    single = SimpleNamespace(pipeline=Compose([loader]))
    return loader, SimpleNamespace(datasets=[single, single])


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'unchanged', 'grayscale'])
def test_images_are_turned_as_the_pipeline_turns_them(turned, flag, backend):
    loader, dataset = data(color_type=flag, imdecode_backend=backend)
    loaded = np.atleast_3d(loader({'img_path': str(turned)})['img'])
    read = read_as_loaded(str(turned), dataset)
    assert read.shape == (*loaded.shape[:2], 3) and read.dtype == np.uint8
    if loaded.shape[2] == 3:
        assert np.array_equal(read, loaded[..., ::-1])


def test_what_is_read_by_a_transform_of_ones_own_has_the_default(turned):
    other = SimpleNamespace(pipeline=Compose([lambda data: data]))
    assert read_as_loaded(str(turned), other).shape == (45, 37, 3)


def test_predictions_lie_on_images_that_are_not_turned(
    tool, tiny_config, tiny_data, tmp_path, turned
):
    (tiny_data / 'train.txt').write_text('0\n')
    config, checkpoint = tiny_config(STORED), tmp_path / 'a.pth'
    torch.save(init_model(config, None, 'cpu').state_dict(), checkpoint)
    flags = ['--work-dir', str(tmp_path / 'work'), '--show-dir', str(tmp_path / 'shown')]
    tool('test').main([config, str(checkpoint), *flags])
    (painted,) = (tmp_path / 'shown' / 'vis_data' / 'vis_image').iterdir()
    assert painted.name.startswith('test_0.jpg_') and Image.open(painted).height == 37
    show_predictions(config, checkpoint, tmp_path / 'upright.png')
    show_predictions(tiny_config(), checkpoint, tmp_path / 'turned.png')
    upright, other = (Image.open(tmp_path / f'{name}.png') for name in ('upright', 'turned'))
    assert upright.height < other.height


def test_a_training_paints_validated_images(tiny_config, tiny_data, tmp_path, turned):
    (tiny_data / 'train.txt').write_text('0\n0\n')
    (tiny_data / 'val.txt').write_text('0\n')
    lines = """
train_dataloader['dataset']['pipeline'][0]['color_type'] = 'color_ignore_orientation'
val_dataloader['dataset']['ann_file'] = 'val.txt'
default_hooks['visualization'].update(draw=True, interval=1)
"""
    train(tiny_config(STORED + lines), tmp_path / 'work')
    (painted,) = (tmp_path / 'work').glob('*/vis_data/vis_image/val_0.jpg_*')
    assert Image.open(painted).height == 37
