"""The numbers of a fit, the config it writes, and what it reads of a run."""

import re
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from PIL import Image

from ssnet_mm.commands import fit as command
from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.errors import UserError
from ssnet_mm.fit import page, steps
from ssnet_mm.fit.config_text import NETS, config_text
from ssnet_mm.fit.plan import Plan, Speed, choose, fill
from ssnet_mm.fit.steps import Fit, State, _ended
from ssnet_mm.own_configs import find_config
from ssnet_mm.prepare.run import prepare
from ssnet_mm.prepare.settings import Settings

VGA = Counter({(640, 480): 40})
FAST, SLOW = Speed(2e-8, 1e-8, 0.2), Speed(5e-6, 1.5e-6, 1.5)  # a GPU, two cores
COUNTS = dict(train=32, val=8)


def test_the_command_knows_the_nets():
    assert tuple(NETS) == command.NETS


def test_images_are_as_large_as_leaves_time_for_enough_iterations():
    large = choose(VGA, COUNTS, FAST, 480)
    assert large.scale == (640, 480) and large.crop_size == (384, 512) and large.batch_size == 16
    small = choose(VGA, COUNTS, SLOW, 480)
    assert small.scale[0] < 640 and small.max_iters >= 300 and small.batch_size == 4
    assert small.scale[0] * 3 == pytest.approx(small.scale[1] * 4, abs=3)
    hasty = choose(VGA, COUNTS, SLOW, 6)
    assert hasty.scale == (171, 128) and hasty.max_iters >= 2


@pytest.mark.parametrize('speed', [FAST, SLOW])
@pytest.mark.parametrize('minutes', [3, 8, 30])
@pytest.mark.parametrize('num_val', [1, 8, 500])
def test_all_ends_in_time(speed, minutes, num_val):
    plan = choose(VGA, dict(train=32, val=num_val), speed, 60 * minutes)
    assert 2 <= plan.validations <= 10
    pixels = plan.max_iters * plan.batch_size * plan.crop_size[0] * plan.crop_size[1]
    seen = (plan.validations + 4) * num_val * plan.scale[0] * plan.scale[1]
    saved = 2 * plan.validations * speed.save
    assert plan.seconds == pytest.approx(pixels * speed.train + seen * speed.val + saved)
    if plan.max_iters > 20:
        assert plan.seconds <= 60 * minutes * 1.01
    assert f'{plan.max_iters} iterations of' in str(plan)
    half = Speed(2 * speed.train, speed.val)  # saves in no time
    slower = fill(plan, dict(train=32, val=num_val), half, 60)
    assert slower.scale == plan.scale and slower.max_iters < plan.max_iters
    assert slower.seconds <= 61 or slower.max_iters == 20


@pytest.mark.parametrize(
    ('sizes', 'crop'),
    [
        (Counter({(64, 48): 9}), (32, 64)),
        (Counter({(48, 64): 9}), (64, 32)),
        (Counter({(64, 48): 5, (48, 64): 4}), (32, 32)),
        (Counter({(480, 360): 5}), (288, 384)),  # as configs/fcn8_camvid.py
        (Counter({(4000, 3000): 2}), (416, 512)),
    ],
)
def test_crops_are_as_the_images_lie(sizes, crop):
    assert choose(sizes, COUNTS, FAST, 480).crop_size == crop


def test_iterations_may_be_given_instead():
    plan = choose(VGA, dict(train=3, val=1), None, 0, 50)
    assert plan.max_iters == 50 and plan.val_interval == 5 and plan.batch_size == 3
    assert str(plan).endswith('50 iterations of 3 images')


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
    classes = ["it's", 'a "dent"']
    settings = Settings(masks=source / 'masks', classes=classes)
    data = prepare(source / 'photos', source / 'data', settings, lambda line: None)
    plan = Plan((64, 48), (32, 64), 3, 120, 12, 0.5)
    path = source / 'config.py'
    text = config_text(
        path, find_config(NETS[net]), data, [0.5, 70.0], plan, 'BFloat16OptimWrapper', 1
    )
    path.write_text(text)
    assert len(text.splitlines()) < 65 and max(map(len, text.splitlines())) <= 130
    assert '120  # measured: 0.50 s each, 1.0 minutes' in text
    cfg = load_config(str(path))
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == 'BaseSegDataset' and dataset.metainfo.classes == classes
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 120
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 12
    resize, crop = dataset.pipeline[2:4]
    assert resize.scale == cfg.test_dataloader.dataset.pipeline[1].scale == (64, 48)
    assert tuple(cfg.model.data_preprocessor.size) == tuple(crop.crop_size) == (32, 64)
    loss, lovasz = cfg.model.decode_head.loss_decode
    assert loss.class_weight == [0.5, 10.0] and lovasz.type == 'LovaszSoftmaxLoss'
    assert cfg.optim_wrapper.type == 'BFloat16OptimWrapper' and cfg.optim_wrapper.optimizer
    assert cfg.custom_hooks[0].patience == 5
    with torch.device('meta'):
        model = build_segmentor(cfg)
    assert model.num_classes == 2 and len(dataset.pipeline) == 7


class _Truth:
    """A segmentor that knows the label maps but for their upper half."""

    decode_head = SimpleNamespace(ignore_index=7)

    def test_step(self, data):
        (sample,) = data['data_samples']
        labels = sample.gt_sem_seg.data.clone()
        labels[:, : labels.shape[1] // 2] = 0
        sample.pred_sem_seg = PixelData(data=labels)
        return [sample]


def test_examples_are_scored_as_a_test_is_and_void_ones_are_left_out(tiny_config, tiny_data):
    for i, mask in enumerate((np.full((37, 45), 7), np.zeros((37, 45)), np.ones((37, 45)))):
        mask[:, 3] = 7
        Image.fromarray(mask.astype(np.uint8)).save(tiny_data / f'SegmentationClass/{i}.png')
    (tiny_data / 'train.txt').write_text('0\n1\n2\n')
    shown = page.draw_examples(_Truth(), load_config(tiny_config()), tiny_data)
    # of class 1, 19 of 37 rows; class 0 is there in the prediction alone
    assert shown == dict(worst=[['2.jpg', pytest.approx(19 / 37 * 50, abs=0.1)]],
                         best=[['1.jpg', 100.0]])  # fmt: skip
    assert {p.name for p in tiny_data.glob('*.jpg')} == {'worst.jpg', 'best.jpg'}


def test_a_training_that_stops_early_says_so(tiny_config, tmp_path, monkeypatch):
    hook = (
        "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU', rule='greater', "
        'min_delta=0.1, patience=2)]\n'
        "optim_wrapper['optimizer']['lr'] = 0.0\n"
        'train_cfg.update(max_iters=9, val_interval=1)\n'
        "model['backbone']['norm_cfg'] = dict(type='BN', momentum=0.0)\n"
    )
    cfg = load_config(tiny_config(hook), {'work_dir': str(tmp_path / 'run')})
    cfg.launcher = 'none'
    launch.run(cfg, 'train')
    said = _ended(cfg, tmp_path / 'run')
    assert said.startswith('stopped early, at iteration 3 of 9: mIoU no longer rose (best: ')
    assert said.endswith('%, at iteration 1)')
    cfg.train_cfg.max_iters = 3
    assert _ended(cfg, tmp_path / 'run') == ''


def test_a_step_is_done_once_and_again_when_what_it_is_made_of_changed(tmp_path):
    calls = []
    state = State.read(tmp_path / 'fit.json')
    for made_of in ('a', 'a', 'b'):
        state.once('test', made_of, lambda: calls.append(1))
        state = State.read(tmp_path / 'fit.json')
    assert len(calls) == 2 and state.steps['test']['made_of'] == 'b'


def test_the_parts_of_a_stopped_step_add_up(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 100.0, 130.0])
    monkeypatch.setattr(steps.time, 'monotonic', lambda: next(clock))

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        State.read(tmp_path / 'fit.json').once('train', 'a', stopped)
    assert 'train' not in State.read(tmp_path / 'fit.json').steps
    State.read(tmp_path / 'fit.json').once('train', 'a', dict)
    assert State.read(tmp_path / 'fit.json').steps == {
        'train': dict(made_of='a', seconds=90.0, result={})
    }


def test_scores_are_those_of_the_data_as_they_are(source, monkeypatch, capsys):
    done, notes = [], []

    def written(task, *_):
        task.config.write_text('model = dict()')
        return {}

    def trained(task):
        task.run.mkdir()
        (task.run / 'iter_1.pth').touch()
        (task.run / 'best').write_text('iter_1.pth')
        return {}

    for name, does in (('_write_config', written), ('_train', trained)):
        monkeypatch.setattr(steps, name, does)
    for name in ('_test', '_pictures', '_export'):
        monkeypatch.setattr(steps, name, lambda *_, name=name: done.append(name))
    monkeypatch.setattr(
        page, 'render', lambda _, made, data: notes.append(made['prepare']['result']['notes']) or ''
    )
    settings = Settings(masks=source / 'masks', classes=['sky', 'dent'])
    task = Fit(source / 'photos', source / 'out', settings)
    for _ in range(2):
        steps.fit(task)
        assert done == ['_test', '_pictures', '_export'] and notes[-1] == []
    (name,) = (source / 'out/data/ImageSets/Segmentation/val.txt').read_text().split()
    mask = Image.open(source / f'masks/{name}.png')
    mask.transpose(Image.Transpose.ROTATE_180).save(source / f'masks/{name}.png')
    (source / f'out/data/SegmentationClass/{name}.png').unlink()
    capsys.readouterr()
    for _ in range(2):
        steps.fit(task)
        assert done == 2 * ['_test', '_pictures', '_export']
        assert notes[-1][0].startswith('the data have changed since the training; the scores are')
    assert capsys.readouterr().out.count('note: the data have changed; what is trained') == 1


def test_a_folder_of_other_photos_is_refused(fails, source, monkeypatch):
    monkeypatch.chdir(source)
    state = State(source / 'out' / 'fit.json')
    state.steps['prepare'] = dict(made_of='/other/photos', seconds=1.0, result={})
    state.write()
    assert re.search(
        'out holds a fit of /other/photos, not of /.*/photos with /.*/masks; take another --out, or'
        ' delete out/fit.json if the folder was only moved',
        fails('fit', 'photos', 'masks', '--out', 'out'),
    )
    assert not (source / 'out' / 'data').exists()


def test_a_report_tells_names_that_are_no_text(tmp_path, tiny_config, monkeypatch):
    task = Fit(tmp_path, tmp_path / 'out', Settings())
    task.run.mkdir(parents=True)
    Path(tiny_config()).rename(task.config)
    for name, content in (('best', 'best_mIoU_iter_1.pth'), ('best_mIoU_iter_1.pth', 'a')):
        (task.run / name).write_text(content)
    prepared = dict(prepare=dict(result=dict(data='', counts={})))
    monkeypatch.setattr(steps, '_prepare', lambda task, state: state.steps.update(prepared))
    monkeypatch.setattr(State, 'once', lambda *args: {})
    monkeypatch.setattr(page, 'render', lambda *args: '<li>caf\udce9.jpg: has no mask')
    assert steps.fit(task).read_text() == '<li>caf\\udce9.jpg: has no mask'


def test_the_page_tells_the_weights_and_commands_that_hold(tmp_path):
    for folder in ('images', 'masks'):
        (tmp_path / 'my photos' / folder).mkdir(parents=True)
    task = Fit(tmp_path / 'my photos', tmp_path / 'my fit', Settings())
    task.out.mkdir()
    task.config.write_text('max_iters = 50')
    record = SimpleNamespace(
        classes=['a', 'b'], images={'0': SimpleNamespace(source='images/0.png')}
    )
    data = SimpleNamespace(record=record)
    commands = [
        shlex.split(line) for line in page._commands(task, data).splitlines() if line[0] != '#'
    ]
    assert commands[1][2:5] == [
        str(task.config), str(task.run / 'best'), str(task.source / 'images')
    ]  # fmt: skip
    assert commands[0][-1] == str(task.out / 'predictions')
    totals = SimpleNamespace(
        median_frequency_weights=lambda: np.array([0.5, 70.0]),
        shares=lambda: [0.9, 0.1],
        shown_by=[1, 1],
        split=SimpleNamespace(ignore_index=255),
        labels=Counter({0: 9, 1: 1}),
    )
    data.report = SimpleNamespace(totals=[totals])
    assert [row[3] for row in page._class_rows(data)] == ['0.50', '10.00', '']


def test_the_page_tells_a_mean_that_lacks_classes():
    rows = [dict(IoU=50.0), dict(IoU=0.0), dict(IoU=None)]
    assert page._of_how_many(rows) == ', 2 of 3 classes' and page._of_how_many(rows[:2]) == ''


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


@pytest.mark.parametrize(
    ('photos', 'values', 'told'),
    [
        (1, [0, 1], 'no image is left to val with; give more than one, or another --val'),
        (3, [0], 'the masks hold one class alone, class 0, and .*; give masks of two or more'),
    ],
)
def test_what_can_not_be_trained_is_told_after_preparing(
    fails, tmp_path, monkeypatch, photos, values, told
):
    monkeypatch.chdir(tmp_path)
    for folder in ('photos', 'masks'):
        (tmp_path / folder).mkdir()
    for i in range(photos):
        Image.new('RGB', (9, 8), (i, 99, 20)).save(f'photos/{i}.png')
        mask = np.resize(np.array(values, np.uint8), (8, 9))
        Image.fromarray(mask).save(f'masks/{i}.png')
    assert re.search(told, fails('fit', 'photos', 'masks', '--out', 'out'))
    assert not (tmp_path / 'out' / 'config.py').exists()


def test_the_page_template_is_in_the_package():
    assert Path(page.__file__).with_name('page.html').is_file()
