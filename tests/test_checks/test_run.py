"""What a user sees: tools/check_data.py, and train.py and test.py that look first."""

import io
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from PIL import Image

from ssnet_mm.checks import contact_sheet
from ssnet_mm.engine import launch
from ssnet_mm.engine.data import _labels
from ssnet_mm.engine.preflight import prepare
from ssnet_mm.errors import UserError

NOT_TRAINED_ON = """
val_dataloader['dataset']['ann_file'] = test_dataloader['dataset']['ann_file'] = 'val.txt'
"""


@pytest.fixture
def config(tiny_config, data):
    """A config whose train and val differ."""
    (data.root / 'train.txt').write_text('0\n1\n')
    (data.root / 'val.txt').write_text('2\n3\n')
    return lambda changes='': tiny_config(NOT_TRAINED_ON + changes)


@pytest.fixture
def run(tool, capsys, monkeypatch):
    """Run a tool; its exit code, what it printed, and its errors that are not the progress."""

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py'])
        code = 0
        try:
            tool(name).main([str(arg) for arg in args])
        except SystemExit as exit:
            code = exit.code
        said = capsys.readouterr()
        lines = [line for line in said.err.splitlines() if 'elapsed' not in line]
        return code, said.out, lines

    return run


def wrong_value(labels):
    return np.where(labels == 2, 3, labels).astype(np.uint8)


def test_sound_data_get_exit_code_0_and_a_sheet(run, config, tmp_path):
    code, out, _ = run('check_data', config(), '--out', tmp_path / 'a' / 'sheet.png')
    assert code == 0
    assert 'train_dataloader.dataset: 2 images, 45x37 (2)' in out
    # 1665 pixels, of which 37 void, and 400 of either object
    assert re.search(r'^ground +50.860% +2 ', out, re.M) and re.search(r'^left +24.570%', out, re.M)
    assert re.search(r'^void +2.222% of all', out, re.M)
    assert '0 kinds of error, 0 of note' in out and 'test_dataloader' not in out  # is val's
    sheet = Image.open(tmp_path / 'a' / 'sheet.png')
    assert sheet.width == 960
    assert (0, 200, 0) in [colour for _, colour in sheet.getcolors(1 << 20)]  # in the legend


@pytest.mark.parametrize(
    ('meta', 'told'),
    [
        ('classes=(1, 2, 3)', 'metainfo.classes must be names in quotes, got 1'),
        ("classes=('a', 'b', 'a')", 'metainfo.classes has a twice; name each once'),
        ('classes=classes, palette=[[300, 0, 0]] * 3', 'metainfo.palette must be RGB colours'),
    ],
)
def test_names_and_colours_that_are_none_are_told(fails, config, tmp_path, meta, told):
    changes = f"val_dataloader['dataset']['metainfo'] = dict({meta})\n"
    line = fails('check_data', config(changes), '--out', tmp_path / 'sheet.png')
    assert f'val_dataloader.dataset.{told}' in line and not list(tmp_path.glob('sheet.png'))


def test_the_name_of_one_channel_is_that_of_label_1(run, config, data, tmp_path):
    data.change(lambda labels: np.where(labels == 2, 1, labels).astype(np.uint8), range(4))
    one = config(
        "model['decode_head'].update(num_classes=2, out_channels=1)\n"
        'for part in (train_dataloader, val_dataloader):\n'
        "    part['dataset']['metainfo'] = dict(classes=('road',), palette=[[9, 99, 199]])\n"
        'del part\n'
    )
    code, out, _ = run('check_data', one, '--out', tmp_path / 'sheet.png')
    assert code == 0 and re.search(r'^background +50.860%.*\nroad +49.140%', out, re.M)
    colours = [colour for _, colour in Image.open(tmp_path / 'sheet.png').getcolors(1 << 20)]
    assert (9, 99, 199) in colours and (0, 0, 0) in colours


def test_spoilt_data_get_exit_code_1_and_all_is_told(run, config, data, tmp_path):
    data.change(wrong_value, [1, 3])
    data.mask(2).unlink()
    code, out, _ = run('check_data', config(), '--out', tmp_path / 'sheet.png')
    assert code == 1
    assert re.search(r'^error: train_dataloader.dataset: .*1.png; .*\[value-outside\]$', out, re.M)
    assert re.search(r'^error: val_dataloader.dataset: .*2.png; .*\[missing-mask\]$', out, re.M)
    assert re.search(r'^error: val_dataloader.dataset: .*3.png; .*\[value-outside\]$', out, re.M)
    assert '3 kinds of error' in out


OVERLAP = """
test_dataloader = dict(test_dataloader, dataset=dict(type='ConcatDataset', datasets=[
    dict(pipeline=test_pipeline, **dict(dataset, ann_file=name)) for name in ('val.txt', {!r})]))
"""


@pytest.mark.parametrize('other', ['one.txt', 'val.txt'])
def test_images_of_two_scored_lists_are_told(run, config, data, tmp_path, other):
    (data.root / 'one.txt').write_text('3\n')
    path, named = config(OVERLAP.format(other)), r'3.jpg \(2 times\)'
    code, out, _ = run('check_data', path, '--out', tmp_path / 'sheet.png')
    assert code == 1 and '1 kinds of error' in out
    line = rf'error: test_dataloader.dataset: .*{named}.*; .*\[repeated-in-wrapper\]$'
    assert re.search(line, out, re.M)
    cfg = launch.load_config(path, {'work_dir': 'w', 'launcher': 'none'})
    with pytest.raises(UserError, match=f'^test_dataloader.dataset: images that .*{named}'):
        prepare.preflight(cfg, 'test', skip_data_check=True)
    (data.root / 'one.txt').write_text('1\n')
    if other == 'one.txt':
        prepare.preflight(cfg, 'test', skip_data_check=True)


@pytest.mark.parametrize('flag', ['color', 'color_ignore_orientation', 'unchanged'])
def test_the_sheet_shows_images_in_their_colours(data, flag):
    for i in range(4):
        Image.new('RGB', (45, 37), (250, 20, 10)).save(data.image(i), quality=100)
    data.pipeline = [dict(data.pipeline[0], color_type=flag), *data.pipeline[1:]]
    sheet = np.array(Image.open(io.BytesIO(contact_sheet([data.split('train')]))), int)
    assert (abs(sheet - [250, 20, 10]).max(2) < 5).any()


def test_a_test_on_images_of_the_training_list_is_noted(config, data):
    def notes(changes=''):
        cfg = launch.load_config(config(changes), {'work_dir': 'w', 'launcher': 'none'})
        return prepare.preflight(cfg, 'test').notes

    (data.root / 'mix.txt').write_text('1\n2\n')
    (note,) = notes("test_dataloader['dataset']['ann_file'] = 'mix.txt'\n")
    seen = f'scores do not tell about new ones: {data.image(1)}; list each image in one split'
    assert note == f'test_dataloader.dataset: images that training shows too, so that {seen}'
    (note,) = notes("test_dataloader['dataset']['ann_file'] = 'train.txt'\n")
    assert note.startswith('test_dataloader.dataset: all images are trained on')
    assert notes() == []
    # whoever tests need not have the training data
    assert notes("train_dataloader['dataset']['data_root'] = 'elsewhere'\n") == []


def test_images_without_masks_make_no_sheet(run, config, tmp_path):
    changes = """
for loader in (train_dataloader, val_dataloader, test_dataloader):
    del loader['dataset']['pipeline'][1]
"""
    code, out, _ = run('check_data', config(changes), '--out', tmp_path / 'sheet.png')
    assert code == 0 and 'no mask was read' in out and 'sheet.png' not in out
    assert not (tmp_path / 'sheet.png').exists()


def test_wrong_use_gets_exit_code_2_and_one_line(run, config, tmp_path):
    for args, message in (
        ([tmp_path / 'none.py'], 'none.py not found'),
        ([config(), '--cfg-options', 'train_dataloader.dataset.data_root=none'], 'no folder none'),
        ([config('train_dataloader = val_dataloader = test_dataloader = None')], 'no data loader'),
    ):
        code, _, lines = run('check_data', *args)
        assert code == 2 and len(lines) == 1, lines
        assert lines[0].startswith('check_data.py: error: ') and message in lines[0]


def test_a_sheet_that_cannot_be_written_costs_no_report(run, config):
    code, out, lines = run('check_data', config(), '--out', '/dev/null/sheet.png')
    assert code == 2 and 'train_dataloader.dataset: 2 images' in out
    assert len(lines) == 1
    assert lines[0].startswith("check_data.py: error: can't write /dev/null/sheet.png")


def test_training_stops_before_anything_is_written(run, config, data, tmp_path):
    data.change(wrong_value, [1])
    work = tmp_path / 'work'
    path = config()
    code, _, lines = run('train', path, '--work-dir', work)
    assert code == 2 and len(lines) == 1
    assert re.search(r'3 classes .*: 3 \(400 pixels\): .*/1.png; .*ssnet_mm check .*tiny', lines[0])
    assert not work.exists()
    data.change(lambda labels: labels + np.uint8(4), [3])
    _, _, lines = run('train', path, '--work-dir', work)
    assert '(1 more kind of error)' in lines[0]


def test_testing_stops_too_and_unchecked_at_the_sample(run, config, data, tmp_path):
    path = config()
    assert run('train', path, '--work-dir', tmp_path / 'work')[0] == 0
    data.change(wrong_value, [3])
    test = ['test', path, tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'test']
    code, _, lines = run(*test)
    assert code == 2 and '3.png' in lines[0] and 'test_dataloader.dataset' in lines[0]
    assert run(*test, '--tta')[2] == lines
    code, _, lines = run(*test, '--skip-data-check')
    assert code == 2 and '3.png (of ' in lines[0] and 'holds label ' in lines[0]


def test_what_may_be_meant_is_a_warning_in_the_log(run, config, data, tmp_path):
    data.change(lambda labels: np.where(labels == 1, 0, labels).astype(np.uint8))
    assert run('train', config(), '--work-dir', tmp_path / 'work')[0] == 0
    (log,) = (tmp_path / 'work').glob('*/*.log')
    lines = [line for line in log.read_text().splitlines() if 'without a pixel' in line]
    assert len(lines) == 2 and all('WARNING' in line and 'left (1)' in line for line in lines)


def test_data_sets_in_wrappers_are_looked_at(run, config, data, tmp_path):
    (data.root / 'more.txt').write_text('1\n')
    (data.root / 'train.txt').write_text('0\n')
    data.change(wrong_value, [1])
    changes = """
more = dict(train_dataloader['dataset'], ann_file='more.txt')
train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[
    train_dataloader['dataset'], dict(type='RepeatDataset', times=3, dataset=more)])
"""
    _, _, lines = run('train', config(changes), '--work-dir', tmp_path / 'work')
    assert 'train_dataloader.dataset.datasets.1.dataset: mask with values' in lines[0]


def test_only_the_first_of_several_processes_looks(config, data, monkeypatch):
    cfg = launch.load_config(config())
    cfg.work_dir, cfg.launcher = 'work', 'pytorch'
    data.change(wrong_value, [1])
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setattr(prepare, 'dry_run', lambda *_: [])  # it would meet the mask
    assert prepare.preflight(cfg, 'train').notes == []
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(UserError, match='1.png'):
        prepare.preflight(cfg, 'train')


def test_a_list_that_is_not_utf8_is_named(run, config, data, tmp_path):
    path = config()
    (data.root / 'train.txt').write_text('0\n1\n', encoding='utf-16')
    _, _, lines = run('train', path, '--work-dir', tmp_path / 'work')
    assert len(lines) == 1 and 'train.txt is not text in UTF-8' in lines[0]


def test_a_broken_first_mask_is_named(run, config, data, tmp_path):
    data.mask(0).write_bytes(data.mask(0).read_bytes()[:60])
    _, _, lines = run('train', config(), '--work-dir', tmp_path / 'work')
    assert len(lines) == 1 and '0.png with ' in lines[0]


def test_an_empty_folder_says_what_its_files_end_in(run, config, tmp_path):
    changes = """
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader['dataset'].update(ann_file='', img_suffix='.jpeg')
"""
    _, _, lines = run('train', config(changes), '--work-dir', tmp_path / 'work')
    assert 'JPEGImages, whose files end in .jpg; see to img_suffix' in lines[0]


@pytest.mark.parametrize(
    ('changes', 'where', 'labels'),
    [
        ('', 'train', (3, 255)),
        ("model['decode_head']['ignore_index'] = 254", 'train', (3, 254)),
        ("model['decode_head']['ignore_index'] = 254", 'val', (3, 255)),
        ("val_evaluator['ignore_index'] = 250", 'val', (3, 250)),
        ("test_evaluator = [dict(type='IoUMetric', ignore_index=250)]", 'test', (3, 250)),
        ("model['decode_head'] = [dict(), dict(num_classes=3, ignore_index=9)]", 'train', (3, 9)),
        ("model = dict(type='SegTTAModel', module=model)", 'test', (3, 255)),
    ],
)
def test_labels_are_those_of_the_config(config, data, changes, where, labels):
    cfg = launch.load_config(config(changes))
    assert _labels(cfg, f'{where}_dataloader.dataset', data.split('train').dataset) == labels


def test_one_channel_tells_two_classes_apart(config, data):
    data.classes = ('object',)
    cfg = launch.load_config(config("model['decode_head'].update(num_classes=1, out_channels=1)"))
    assert _labels(cfg, 'train_dataloader.dataset', data.split('train').dataset)[0] == 2
    cfg.model.decode_head = ConfigDict(num_classes=7)
    data.classes = ()
    assert _labels(cfg, 'train_dataloader.dataset', data.split('train').dataset)[0] == 7


def test_torch_is_left_as_it_was(config):
    """The look draws no random numbers: results stay those of a run without it."""
    cfg = launch.load_config(config())
    cfg.work_dir, cfg.launcher = 'work', 'none'
    looked = prepare.preflight(cfg, 'train')
    after = torch.get_rng_state(), np.random.get_state()[1].copy()
    skipped = prepare.preflight(cfg, 'train', skip_data_check=True)
    assert torch.equal(looked.random_state, skipped.random_state)
    assert torch.equal(after[0], torch.get_rng_state())
    np.testing.assert_array_equal(after[1], np.random.get_state()[1])
