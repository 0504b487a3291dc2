"""A fit from photos to the report, gone on with after each step, and with a changed config."""

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers.export_formats import need
from PIL import Image

from ssnet_mm.engine.console import BEST
from ssnet_mm.errors import UserError
from ssnet_mm.fit import steps
from ssnet_mm.fit.config_text import NETS
from ssnet_mm.fit.steps import Fit, fit
from ssnet_mm.own_configs import find_config
from ssnet_mm.prepare.settings import Settings

pytestmark = pytest.mark.slow

SMALL = """_base_ = {base!r}
model = dict(
    backbone=dict(base_channels=4, fc_channels=8), decode_head=dict(in_channels=[16, 32, 8])
)
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """Ten photos with masks, and a narrow net."""
    need('onnx')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    base = tmp_path / 'small.py'
    base.write_text(SMALL.format(base=find_config(NETS['fastfcn8'])))
    monkeypatch.setitem(NETS, 'fastfcn8', str(base))
    rng = np.random.default_rng(0)
    for folder in ('photos', 'masks'):
        (tmp_path / folder).mkdir()
    for i in range(10):
        mask = np.zeros((48, 64), np.uint8)
        mask[4 + i : 20 + i, 5:30], mask[30:44, 30:60] = 1, 2
        photo = mask[..., None] * 70 + rng.integers(0, 60, (48, 64, 3))
        Image.fromarray(photo.astype(np.uint8)).save(tmp_path / f'photos/{i}.jpg')
        Image.fromarray(mask).save(tmp_path / f'masks/{i}.png')
    settings = Settings(masks=tmp_path / 'masks', classes=['ground', 'a<b', 'dent'])
    return Fit(tmp_path / 'photos', tmp_path / 'out', settings, iters=4)


def test_a_fit_ends_in_a_report_and_is_done_once(task, capsys):
    report = fit(task)
    text = report.read_text()
    for heading in ('Classes', 'Training', 'Validation images', 'What is taken', 'Data', 'Go on'):
        assert f'<h2>{heading}' in text
    assert text.count('src="data:image/') == 5 and 'a&lt;b' in text and 'a<b' not in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # it needs nothing else
    assert task.export.is_file() and (task.out / 'test' / 'report.json').is_file()
    made = json.loads((task.out / 'fit.json').read_text())
    assert list(made) == ['prepare', 'config', 'train', 'test', 'pictures', 'export']
    scores = made['export']['result']['scores']
    assert scores['model'] == pytest.approx(scores['exported'], abs=0.05)
    said = capsys.readouterr().out
    assert re.search(r'^== train$', said, re.M)
    fit(task)
    assert not re.search(r'^== (config|train|test|pictures|export)$', capsys.readouterr().out, re.M)
    assert '<b>8 + 2</b>training and validation images' in text
    assert 'mIoU, validation</div>' in text
    for i in range(10, 20):  # without dents
        mask = np.zeros((48, 64), np.uint8)
        mask[i:, 5:30] = 1
        photo = mask[..., None] * 70 + np.full((48, 64, 3), 3 * i)
        Image.fromarray(photo.astype(np.uint8)).save(task.source / f'{i}.jpg')
        Image.fromarray(mask).save(task.settings.masks / f'{i}.png')
    text = fit(task).read_text()
    assert '<b>8 + 4</b>' in text and 'the data have changed since the training; the' in text
    assert re.findall(r'^== (\w+)$', capsys.readouterr().out, re.M)[-3:] == [
        'test', 'pictures', 'export'
    ]  # fmt: skip
    with pytest.raises(UserError, match='is there, of fastfcn8; take another --out for fcn8'):
        fit(dataclasses.replace(task, net='fcn8'))
    task.config.write_text(task.config.read_text() + '# changed\n')
    with pytest.raises(UserError, match='was changed after it was trained; delete'):
        fit(task)


@pytest.mark.parametrize('step', ['measure', '_test', '_pictures', '_export'])
def test_a_fit_goes_on_with_the_step_that_failed(task, monkeypatch, capsys, step):
    def fails(*args):
        raise KeyboardInterrupt

    if step == 'measure':
        task = dataclasses.replace(task, iters=None, minutes=0.02)
    with monkeypatch.context() as patch:
        patch.setattr(steps, step, fails)
        with pytest.raises(KeyboardInterrupt):
            fit(task)
    capsys.readouterr()
    if step == 'measure':  # what is left is no config to train on
        assert not list(task.out.glob('*.py')) and fit(task).is_file()
        return
    best = (task.run / BEST).read_text()
    assert fit(task).is_file()
    assert '== train' not in capsys.readouterr().out and (task.run / BEST).read_text() == best


def test_a_training_is_resumed(task, monkeypatch, capsys):
    train = steps.launch.run

    def dies(cfg, mode, **kwargs):
        cfg.train_cfg.max_iters = 2
        train(cfg, mode, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps.launch, 'run', dies)
        with pytest.raises(KeyboardInterrupt):
            fit(task)
    assert (task.run / 'iter_2.pth').is_file() and not (task.run / 'iter_4.pth').exists()
    assert fit(task).is_file() and (task.run / 'iter_4.pth').is_file()


def test_a_training_that_no_longer_learns_stops_early_and_the_report_says_so(task, tmp_path):
    base = tmp_path / 'small.py'
    base.write_text(
        base.read_text().replace('fc_channels=8', 'fc_channels=8, norm_cfg=dict(momentum=0.0)')
        + 'optim_wrapper = dict(optimizer=dict(lr=0.0))\n'
    )
    text = fit(dataclasses.replace(task, iters=30)).read_text()
    told = 'stopped early, at iteration 18 of 30: mIoU no longer rose (best: '
    assert told in text and 'at iteration 3)' in text
    assert (task.run / 'iter_18.pth').is_file() and not (task.run / 'iter_30.pth').exists()


def test_minutes_are_measured(task):
    task = dataclasses.replace(task, iters=None, minutes=0.02)
    assert fit(task).is_file()
    assert re.search(r'max_iters = \d+  # measured: ', task.config.read_text())
