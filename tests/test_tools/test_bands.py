"""Images of one band and of four, from training to prediction."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

BANDS = """
model['backbone']['in_channels'] = {bands}
model['data_preprocessor'].update(mean=[127.5], std=[64.0])
for pipeline in (train_pipeline, test_pipeline):
    pipeline[0]['color_type'] = 'unchanged'
for loader in (train_dataloader, val_dataloader):
    loader['dataset']['img_suffix'] = '.{suffix}'
"""


@pytest.fixture
def rewrite(tiny_data):
    """Give the tiny images other bands and another format."""

    def write(mode, suffix):
        for path in (tiny_data / 'JPEGImages').glob('*.jpg'):
            image = Image.open(path).convert('L' if mode == 'L' else 'RGBA')
            if mode == 'RGBA':  # the last band differs from the others
                image.putalpha(Image.open(path).convert('L').rotate(180))
            image.save(path.with_suffix(f'.{suffix}'))
            path.unlink()

    return write


@pytest.mark.parametrize(('mode', 'bands', 'suffix'), [('L', 1, 'png'), ('RGBA', 4, 'tif')])
def test_training_testing_and_prediction_take_them(
    tool, tiny_config, tiny_data, tmp_path, rewrite, mode, bands, suffix
):
    rewrite(mode, suffix)
    config = tiny_config(BANDS.format(bands=bands, suffix=suffix))
    tool('train').main([config, '--work-dir', str(tmp_path / 'work')])
    checkpoint = str(tmp_path / 'work' / 'iter_2.pth')
    tested = ['--work-dir', str(tmp_path / 'tested'), '--out', str(tmp_path / 'out')]
    tool('test').main([config, checkpoint, *tested])
    images = str(tiny_data / 'JPEGImages')
    tool('predict').main([config, checkpoint, images, '--out-dir', str(tmp_path / 'p')])
    for i in range(4):
        result = np.array(Image.open(tmp_path / 'out' / f'{i}.png'))
        np.testing.assert_array_equal(result, Image.open(tmp_path / 'p' / 'index' / f'{i}.png'))
        painted = Image.open(tmp_path / 'p' / 'overlay' / f'{i}.png')
        assert painted.mode == 'RGB' and painted.size == (45, 37)


def test_other_bands_than_the_network_takes(tiny_config, tmp_path, rewrite, fails):
    rewrite('RGBA', 'png')
    config = tiny_config(BANDS.format(bands=3, suffix='png'))
    line = fails('train', config, '--work-dir', tmp_path / 'work')
    assert 'png comes with 4 bands, the network takes 3; set color_type' in line
    assert Config.fromfile(config).model.backbone.in_channels == 3
