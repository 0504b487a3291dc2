"""The numbers of a fit, the config it writes, and what it reads of a run."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssnet_mm.commands import fit as command
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.errors import UserError
from ssnet_mm.fit import page
from ssnet_mm.fit.config_text import NETS, config_text
from ssnet_mm.fit.plan import Plan, Speed, choose
from ssnet_mm.fit.steps import State
from ssnet_mm.own_configs import find_config
from ssnet_mm.prepare.run import prepare

VGA = Counter({(640, 480): 40})
FAST, SLOW = Speed(0.01, 1e-8, 1e-8), Speed(0.3, 3e-6, 3e-6)


def test_the_command_knows_the_nets():
    assert tuple(NETS) == command.NETS


def test_images_are_as_large_as_leaves_time_for_enough_iterations():
    large = choose(VGA, 32, 8, FAST, 8)
    assert large.scale == (640, 480) and large.crop_size == (480, 512) and large.batch_size == 8
    small = choose(VGA, 32, 8, SLOW, 8)
    assert small.scale[0] < 640 and small.max_iters >= 300 and small.batch_size == 4
    assert small.scale[0] * 3 == pytest.approx(small.scale[1] * 4, abs=3)
    hasty = choose(VGA, 32, 8, SLOW, 0.1)
    assert hasty.scale == (171, 128) and hasty.max_iters >= 2


@pytest.mark.parametrize('speed', [FAST, SLOW])
@pytest.mark.parametrize('minutes', [3, 8, 30])
@pytest.mark.parametrize('num_val', [1, 8, 500])
def test_iterations_and_validations_end_in_time(speed, minutes, num_val):
    plan = choose(VGA, 32, num_val, speed, minutes)
    validations = -(-plan.max_iters // plan.val_interval)
    val = speed.val_pixel * plan.scale[0] * plan.scale[1] * num_val
    assert 2 <= validations <= 10
    if plan.max_iters > 20:
        assert plan.max_iters * plan.seconds + validations * val <= 60 * minutes * 1.01


@pytest.mark.parametrize(
    ('sizes', 'crop'),
    [
        (Counter({(64, 48): 9}), (48, 64)),
        (Counter({(48, 64): 9}), (64, 48)),
        (Counter({(64, 48): 5, (48, 64): 4}), (48, 48)),
        (Counter({(4000, 3000): 2}), (512, 512)),
    ],
)
def test_crops_are_as_the_images_lie(sizes, crop):
    assert choose(sizes, 8, 2, FAST, 8).crop_size == crop


def test_iterations_may_be_given_instead():
    plan = choose(VGA, 3, 1, None, 8, 50)
    assert plan.max_iters == 50 and plan.val_interval == 5 and plan.batch_size == 3


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    rng = np.random.default_rng(0)
    for folder in ('photos', 'masks'):
        (tmp_path / folder).mkdir()
    for i in range(5):
        mask = np.zeros((48, 64), np.uint8)
        mask[4:20, 5:30], mask[0] = 1, 255
        photo = (mask[..., None] % 255) * 90 + rng.integers(0, 60, (48, 64, 3))
        Image.fromarray(photo.astype(np.uint8)).save(tmp_path / f'photos/{i}.jpg')
        Image.fromarray(mask).save(tmp_path / f'masks/{i}.png')
    return tmp_path


@pytest.mark.parametrize('net', NETS)
def test_the_config_builds_and_holds_what_was_chosen(source, net):
    from ssnet_mm.prepare.settings import Settings

    classes = ["it's", 'a "dent"']
    settings = Settings(masks=source / 'masks', classes=classes)
    data = prepare(source / 'photos', source / 'data', settings, lambda line: None)
    plan = Plan((64, 48), (48, 64), 3, 120, 12, 0.5)
    path = source / 'config.py'
    text = config_text(
        path, find_config(NETS[net]), data, [0.5, 70.0], plan, 'BFloat16OptimWrapper', 1
    )
    path.write_text(text)
    assert len(text.splitlines()) < 80 and max(map(len, text.splitlines())) <= 130
    assert '120  # measured: 0.50 s each, 1 minutes' in text
    cfg = load_config(str(path))
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == 'BaseSegDataset' and dataset.metainfo.classes == classes
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 120
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 12
    assert tuple(cfg.model.data_preprocessor.size) == (48, 64)
    assert cfg.model.decode_head.loss_decode.class_weight == [0.5, 10.0]
    assert cfg.optim_wrapper.type == 'BFloat16OptimWrapper' and cfg.optim_wrapper.optimizer
    assert cfg.custom_hooks[0].patience == 5
    with torch.device('meta'):
        model = build_segmentor(cfg)
    assert model.num_classes == 2


def test_a_step_is_done_once_and_again_when_what_it_is_made_of_changed(tmp_path):
    calls = []
    state = State.read(tmp_path / 'fit.json')
    for made_of in ('a', 'a', 'b'):
        state.once('test', made_of, lambda: calls.append(1))
        state = State.read(tmp_path / 'fit.json')
    assert len(calls) == 2 and state.steps['test']['made_of'] == 'b'


def test_a_state_that_is_damaged_is_one_line(tmp_path):
    (tmp_path / 'fit.json').write_text('{"test": 3}')
    with pytest.raises(UserError, match="fit.json can't be read .*; delete it to begin anew"):
        State.read(tmp_path / 'fit.json')


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['--minutes', '0'], '--minutes 0: expected more than 0'),
        (['--iters', '1'], '--iters 1: expected 2 or more'),
        (['masks', '--masks', 'masks'], 'name the same thing'),
    ],
)
def test_wrong_use_is_one_line(fails, args, told):
    assert told in fails('fit', 'photos', *args)


def test_the_page_template_is_in_the_package():
    assert Path(page.__file__).with_name('page.html').is_file()
