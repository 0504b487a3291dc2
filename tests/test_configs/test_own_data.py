"""docs/own_data.md, followed by a reader: every block as it stands, on a few small photos."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssnet_mm.engine.config import load_config

ROOT = Path(__file__).parents[2]
PYTHON, SHELL = (
    re.findall(rf'```{kind}\n(.*?)```', (ROOT / 'docs/own_data.md').read_text(), re.DOTALL)
    for kind in ('python', 'bash')
)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of configs and tools with the reader's data and config."""
    monkeypatch.chdir(tmp_path)
    for folder in ('configs', 'tools'):
        shutil.copytree(ROOT / folder, folder)
    rng = np.random.default_rng(0)
    for folder in ('photos_and_masks/images', 'photos_and_masks/masks'):
        Path(folder).mkdir(parents=True)
    for name in 'abcd':
        mask = np.zeros((48, 64), np.uint8)
        mask[4:20, 5:30], mask[30:44, 30:60], mask[0] = 1, 2, 255
        photo = (mask[..., None] % 255) * 70 + rng.integers(0, 60, (48, 64, 3))
        Image.fromarray(photo.astype(np.uint8)).save(f'photos_and_masks/images/{name}.jpg')
        Image.fromarray(mask).save(f'photos_and_masks/masks/{name}.png')
    shutil.copytree('photos_and_masks/images', 'photos')
    shutil.copytree('photos_and_masks/masks', 'masks')
    Path('configs/fastfcn8_mydata.py').write_text(PYTHON[0])
    return tmp_path


def run(script):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PATH': path, 'MPLBACKEND': 'agg'}
    done = subprocess.run(
        ['bash', '-ec', script], env=env, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize('base', ['fastfcn8_voc', 'fastfcn8_camvid', 'fastfcn8_camvid_240x180'])
def test_the_schedule_ends_with_the_training_on_any_base(checkout, base):
    config = checkout / 'configs/fastfcn8_mydata.py'
    config.write_text(config.read_text().replace('fastfcn8_voc', base))
    cfg = load_config(str(config))
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 8000
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval <= 2000
    assert cfg.model.decode_head.num_classes == 3
    assert cfg.model.decode_head.loss_decode == dict(type='CrossEntropyLoss')


def test_the_photos_are_looked_at_trained_on_tested_and_predicted(checkout):
    short = (
        ' --cfg-options max_iters=2 crop_size="(32,32)" train_dataloader.batch_size=2 '
        'model.backbone.base_channels=4 model.backbone.fc_channels=8 '
        'model.decode_head.in_channels="[16,32,8]"'
    )
    _, prepare, look_and_train, test_and_predict = SHELL
    one, other = prepare.strip().splitlines()
    assert '3 train, 1 val' in run(f'{other}\nrm -r data/mydata\n{one}')
    look, train = look_and_train.split('python tools/train.py')
    try:
        run(look)
    except AssertionError as error:
        if 'Layout of the output array' not in str(error):  # mmseg 1.2.2 with OpenCV 5
            raise
    else:
        assert len([p for p in Path('browse').rglob('*') if p.is_file()]) == 3
    run(f'python tools/train.py{train.rstrip()}{short}')
    made = torch.load('work_dirs/fastfcn8_mydata/iter_2.pth', weights_only=True)
    assert made['meta']['dataset_meta']['classes'] == ('background', 'scratch', 'dent')
    options = ' --cfg-options' + short.partition('fg-options')[2].replace('max_iters=2', '')
    for line in test_and_predict.strip().splitlines():
        run(line.replace('iter_8000', 'iter_2') + options)
    assert len(list(Path('predictions/index').glob('*.png'))) == 4
