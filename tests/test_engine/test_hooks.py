import collections
import enum
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.checkpoints import Hostile
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from ssnet_mm.engine import launch
from ssnet_mm.engine.checkpoint import find_checkpoint, read_to_load
from ssnet_mm.engine.hooks import PlainCheckpointHook, forget_best, restore_history, to_plain
from ssnet_mm.errors import UserError

Point = collections.namedtuple('Point', 'x y')
Level = enum.IntEnum('Level', 'LOW HIGH')
Name = enum.Enum('Name', {'A': 'a'}, type=str)


@pytest.mark.parametrize(
    ('value', 'plain'),
    [
        (np.float64(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (np.array(['a']), ['a']),
        (Point(1, np.float32(2)), (1, 2.0)),
        (Level.HIGH, 2),
        (Name.A, 'a'),
        (pathlib.PurePosixPath('a/b'), 'a/b'),
        ({np.int64(1): frozenset([np.int64(2)])}, {1: {2}}),
        (collections.defaultdict(list, a=[np.int8(1)]), {'a': [1]}),
        (Config(dict(a=dict(b=1)))._cfg_dict, {'a': {'b': 1}}),
        ((None, True, 1, 1.5, 'a', b'a', 1j), (None, True, 1, 1.5, 'a', b'a', 1j)),
    ],
)
def test_values_become_plain(tmp_path, value, plain):
    torch.save({'value': to_plain(value)}, tmp_path / 'a.pth')
    read = torch.load(tmp_path / 'a.pth', weights_only=True)['value']
    assert read == plain
    assert type(read) is type(plain)


def test_a_state_dict_is_left_as_it_is():
    weights = torch.nn.BatchNorm2d(2).state_dict()
    assert to_plain(weights) is weights
    assert weights._metadata[''] == {'version': 2}


def test_histories_return():
    history = HistoryBuffer([1.0, 2.0], [1, 2], max_length=5)
    checkpoint = {'message_hub': {'log_scalars': {'loss': to_plain(history), 'kept': history}}}
    restore_history(checkpoint)
    scalars = checkpoint['message_hub']['log_scalars']
    assert scalars['kept'] is history
    assert scalars['loss'].max_length == 5
    assert [a.tolist() for a in scalars['loss'].data] == [[1.0, 2.0], [1, 2]]


def build(config, work_dir, **changes):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'work_dir': str(work_dir), **changes})
    return Runner.from_cfg(cfg)


# no randomness in a sample, so that a resumed run can equal one that was not interrupted
STEADY = """
train_dataloader['dataset']['pipeline'] = test_pipeline
model['backbone']['dropout_ratio'] = 0.0
model['data_preprocessor']['size'] = (37, 45)
"""


@pytest.mark.parametrize('plain', [True, False])
def test_resumed_training_equals_uninterrupted_training(tiny_config, tmp_path, plain):
    changes = STEADY if plain else STEADY + 'custom_hooks = []'
    whole = build(tiny_config(changes), tmp_path / 'whole', **{'train_cfg.max_iters': 4})
    whole.train()

    build(tiny_config(changes), tmp_path / 'parts').train()
    file = tmp_path / 'parts' / 'iter_2.pth'
    stored = torch.load(file, weights_only=plain)  # the stock one needs unsafe loading
    assert isinstance(stored['message_hub']['log_scalars']['train/loss'], dict) is plain
    assert stored['optimizer']['state'][0]['momentum_buffer'].abs().sum() > 0
    # a moved work directory, although `last_checkpoint` names the file by its old path
    os.rename(tmp_path / 'parts', tmp_path / 'moved')

    resumed = build(tiny_config(STEADY), tmp_path / 'moved', resume=True)
    resumed.cfg.train_cfg.max_iters = resumed._train_loop['max_iters'] = 4
    resumed.train()
    assert resumed.iter == 4
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[key], value, msg=key)
    history = resumed.message_hub.get_scalar('train/loss').data[0]
    np.testing.assert_allclose(history, whole.message_hub.get_scalar('train/loss').data[0])
    assert len(history) == 4


def test_nothing_to_resume_starts_fresh(tmp_path):
    assert find_checkpoint(None, True, str(tmp_path)) is None


@pytest.mark.parametrize('way', ['load_from', 'resume', 'pretrained'])
def test_a_runner_never_runs_code_from_a_checkpoint(tiny_config, tmp_path, way):
    marker, path = tmp_path / 'marker', tmp_path / 'hostile.pth'
    torch.save({'state_dict': {}, 'x': Hostile(os.system, f'touch {marker}')}, path)
    changes = {
        'load_from': {'load_from': str(path)},
        'resume': {'load_from': str(path), 'resume': True},
        'pretrained': {
            'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=str(path)),
        },
    }[way]
    runner = build(tiny_config(), tmp_path / 'work', **changes)
    with pytest.raises(UserError, match='hostile.pth is refused: it asks for'):
        runner.train()
    assert not marker.exists()


def test_resuming_runs_no_config_stored_in_a_checkpoint(tiny_config, tmp_path):
    build(tiny_config(), tmp_path / 'work').train()
    path, marker = tmp_path / 'work' / 'iter_2.pth', tmp_path / 'marker'
    checkpoint = torch.load(path, weights_only=True)
    checkpoint['meta']['config'] = f'open({str(marker)!r}, "w")'
    torch.save(checkpoint, path)
    build(tiny_config(), tmp_path / 'work', resume=True).train()
    assert not marker.exists()


def test_what_can_not_be_loaded_is_said(tmp_path):
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'weights.pth')
    weights = str(tmp_path / 'weights.pth')
    for path, resume, message in (
        ('https://example.org/a.pth', False, 'a.pth is not a local file; download it'),
        (weights, True, 'has no message_hub, meta, optimizer to resume'),
        (str(tmp_path / 'none.pth'), False, 'none.pth not found'),
    ):
        with pytest.raises(UserError, match=message):
            read_to_load(find_checkpoint(path, resume, str(tmp_path)), resume)


def test_weights_must_fit_unless_told_otherwise(tiny_config, tmp_path):
    torch.save({'state_dict': {'decode_head.scores.0.bias': torch.ones(3)}}, tmp_path / 'a.pth')
    for strict in (True, False):
        runner = build(tiny_config(), tmp_path / 'work', load_from=str(tmp_path / 'a.pth'))
        hook = next(h for h in runner.hooks if isinstance(h, PlainCheckpointHook))
        hook.strict = strict
        if strict:
            with pytest.raises(UserError, match='a.pth does not fit the model: .* missing: '):
                runner.test()
        else:
            runner.test()
            assert runner.model.state_dict()['decode_head.scores.0.bias'].tolist() == [1, 1, 1]


@pytest.mark.parametrize('harm', ['cut', 'empty', 'gone', 'flipped'])
def test_the_newest_whole_checkpoint_is_resumed(tiny_config, tmp_path, harm, capfd):
    config = tiny_config('default_hooks["checkpoint"]["interval"] = 1')
    work = tmp_path / 'work'
    train(config, work)
    latest = work / 'iter_2.pth'
    data = bytearray(latest.read_bytes())
    if harm == 'gone':
        latest.unlink()
        (work / 'last_checkpoint').unlink()
    elif harm == 'flipped':  # in the middle of a weight
        data[len(data) // 2] ^= 1
        latest.write_bytes(data)
    else:
        latest.write_bytes(data[: len(data) // 2] if harm == 'cut' else b'')
    train(config, work, resume=True)
    out = ''.join(capfd.readouterr())
    assert 'iter: 1' in out.split('resumed epoch: 0, ')[-1][:10]
    assert (f'passed over, {work}/iter_1.pth is resumed' in out) == (harm != 'gone')


def test_without_a_whole_checkpoint_nothing_is_resumed(tiny_config, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'iter_2.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match='no checkpoint in .*work can be resumed from: .*iter_2'):
        train(tiny_config(), tmp_path / 'work', resume=True)


def train(config, work, **changes):
    cfg = launch.load_config(config)
    cfg.work_dir, cfg.launcher = str(work), 'none'
    cfg.update(changes)
    launch.run(cfg, 'train')


def test_resuming_removes_no_file_of_others(tiny_config, tmp_path):
    mine = 'default_hooks["checkpoint"].update(save_best="mIoU", interval=1)'
    first, copy, other = tmp_path / 'first', tmp_path / 'copy', tmp_path / 'best_of_all.pth'
    train(tiny_config(mine), first)
    (best,) = first.glob('best_*')
    shutil.copytree(first, copy)
    other.write_text('precious')
    for path, stored in ((copy / 'iter_2.pth', best), (first / 'iter_2.pth', other)):
        checkpoint = torch.load(path, weights_only=True)
        info = checkpoint['message_hub']['runtime_info']
        info['best_score'], info['best_ckpt'] = -1.0, str(stored)  # the next one is better
        torch.save(checkpoint, path)
        longer = 'train_cfg["max_iters"] = 3\ntrain_cfg["val_interval"] = 1\n'
        before = best.read_bytes()
        train(tiny_config(mine + '\n' + longer), path.parent, resume=True)
        assert other.read_text() == 'precious'
        assert path.parent == first or best.read_bytes() == before


@pytest.mark.parametrize('way', ['pretrained', 'mmengine.Pretrained'])
def test_no_way_of_loading_weights_runs_code(tiny_config, tmp_path, way):
    marker, path = tmp_path / 'marker', tmp_path / 'hostile.pth'
    torch.save({'state_dict': {}, 'x': Hostile(os.system, f'touch {marker}')}, path)
    changes = f'model["backbone"]["init_cfg"] = dict(type={way!r}, checkpoint={str(path)!r})'
    if way == 'pretrained':
        changes = f"""
model['pretrained'] = {str(path)!r}
model['backbone'] = dict(type='ResNet', depth=18, base_channels=4, stem_channels=4)
model['decode_head'].update(in_channels=[8, 16, 32], in_index=[1, 2, 3])
"""
    with pytest.raises(UserError, match='hostile.pth is refused: it asks for'):
        train(tiny_config(changes), tmp_path / 'work')
    assert not marker.exists() and torch.load.__module__ == 'torch.serialization'


def test_two_trainings_do_not_share_a_work_dir(tiny_config, tmp_path):
    work, config = tmp_path / 'work', tiny_config()
    work.mkdir()
    (work / f'.iter_2.{2**22}.tmp.pth').write_bytes(b'half')
    (work / '.mine.tmp').write_text('not ours')
    with launch.sole_training(str(work)):
        assert {path.name for path in work.iterdir()} == {'.lock', '.mine.tmp'}
        child = os.fork()
        if child == 0:  # another process
            try:
                train(config, work)
            except UserError as error:
                os._exit(7 if 'another training is going on in' in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    train(config, work)
    assert (work / 'iter_2.pth').is_file()


@pytest.mark.parametrize(
    'naming', ["filename_tmpl='at_{}.pth'", "out_dir='elsewhere', save_best='mIoU'"]
)
def test_checkpoints_of_other_names_and_places_are_resumed(
    tiny_config, tmp_path, monkeypatch, naming
):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(f"default_hooks['checkpoint'].update({naming})")
    longer = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    train(config, tmp_path / 'work')
    with pytest.raises(UserError, match='work holds the checkpoints of an earlier training, as '):
        train(config, tmp_path / 'work')
    train(config, tmp_path / 'work', resume=True, train_cfg=longer)
    (last,) = (path for path in tmp_path.rglob('*_4.pth') if 'best' not in path.name)
    assert torch.load(last, weights_only=True)['meta']['iter'] == 4


@pytest.mark.parametrize('naming', ["filename_tmpl='at_{:04d}.pth'", "out_dir='elsewhere'"])
@pytest.mark.parametrize('noted', [None, '', 'gone/iter_9.pth'])
def test_checkpoints_of_other_names_and_places_are_found_without_a_note_of_the_last(
    tiny_config, tmp_path, monkeypatch, naming, noted
):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(f"default_hooks['checkpoint'].update(interval=1, {naming})")
    work, last = tmp_path / 'work', tmp_path / 'work' / 'last_checkpoint'
    train(config, work)
    second, first = sorted(tmp_path.glob('*/**/*_*.pth'), reverse=True)
    half = second.with_name(f'.iter_2.{2**22}.tmp.pth')
    half.write_bytes(b'half')
    last.unlink() if noted is None else last.write_text(noted)
    with pytest.raises(
        UserError, match=f'earlier training, as .*{second.name}.*{second.parent.name}'
    ):
        train(config, work)
    second.write_bytes(b'cut')
    longer = dict(type='IterBasedTrainLoop', max_iters=3, val_interval=2)
    train(config, work, resume=True, train_cfg=longer)
    third = second.with_name(second.name.replace('2', '3'))
    assert torch.load(second, weights_only=True)['meta']['iter'] == 2  # trained again
    assert torch.load(third, weights_only=True)['meta']['iter'] == 3
    assert first.is_file() and not half.exists()


@pytest.mark.parametrize('noted', ['', 'gone/iter_9.pth'])
def test_a_note_of_the_last_checkpoint_that_names_none_is_none(tiny_config, tmp_path, noted):
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'last_checkpoint').write_text(noted)
    train(tiny_config(), work, resume=True)
    assert (work / 'iter_2.pth').is_file()


@pytest.mark.parametrize(
    ('changes', 'note', 'left'),
    [
        ({'val_dataloader.num_workers': 1, 'default_hooks.checkpoint.interval': 9}, None, True),
        (
            {'val_dataloader.dataset.data_root': 'moved', 'val_evaluator.output_dir': 'o'},
            None,
            True,
        ),
        ({'default_hooks.checkpoint.save_best': 'mIoU'}, 'save_best aAcc .config: mIoU.; ', True),
        ({'val_dataloader.dataset.ann_file': 'a.txt'}, 'ann_file train.txt .config: a.txt', False),
        ({'val_evaluator.iou_metrics': ['mDice']}, 'iou_metrics.0 mIoU .config: mDice', False),
    ],
)
def test_a_best_score_counts_as_long_as_it_can_be_compared(tiny_config, changes, note, left):
    config = tiny_config("default_hooks['checkpoint'].update(save_best='aAcc')")
    best = {'best_score': 50.0, 'best_ckpt': 'best_aAcc_iter_2.pth'}
    counts = {'early_stopping': [['aAcc', 1, 50.0]]}
    info = {**best, **counts}
    text = launch.load_config(config).pretty_text
    notes = forget_best(
        {'meta': {'cfg': text}, 'message_hub': {'runtime_info': info}},
        launch.load_config(config, changes),
    )
    assert len(notes) == (note is not None)
    assert not notes or re.search(note, notes[0])
    assert info == {**(best if note is None else {}), **(counts if left else {})}


@pytest.mark.parametrize('length', [2, 3])  # nothing is left to train, or one iteration
def test_a_run_without_its_best_checkpoint_has_one_again(tiny_config, tmp_path, capfd, length):
    config = tiny_config("""
train_cfg.update(val_interval=1)
default_hooks['checkpoint'].update(save_best='mIoU', interval=1)
""")
    train(config, tmp_path / 'first')
    path, copy = tmp_path / 'copy' / 'iter_2.pth', tmp_path / 'copy'
    copy.mkdir()
    checkpoint = torch.load(tmp_path / 'first' / 'iter_2.pth', weights_only=True)
    checkpoint['message_hub']['runtime_info']['best_score'] = 99.0
    torch.save(checkpoint, path)
    capfd.readouterr()
    train(config, copy, resume=True, train_cfg__max_iters=length)
    note = f'{copy}; its score is not compared with those to come'
    assert capfd.readouterr().out.count(note) == 1
    best = (copy / 'best').read_text().strip()
    assert best in ('best_mIoU_iter_2.pth', f'best_mIoU_iter_{length}.pth')
    assert (copy / best).is_file()
    assert list((tmp_path / 'first').glob('best_mIoU_*.pth'))


def test_a_best_score_of_another_kind_is_no_yardstick(tiny_config, tmp_path, tool, capsys):
    for key, more in (('aAcc', []), ('mIoU', ['--resume', '--skip-data-check'])):
        config = tiny_config(f"""
train_cfg.update(max_iters={4 if more else 2}, val_interval=2)
default_hooks['checkpoint'].update(save_best={key!r})
""")
        tool('train').main([config, '--work-dir', str(tmp_path / 'work'), *more])
    printed = capsys.readouterr().out  # of the two aAcc is higher
    assert 'the best score until now is not compared with those to come: save_best aAcc' in printed
    assert 'resumed key' not in printed
    assert (tmp_path / 'work' / 'best_aAcc_iter_2.pth').is_file()
    assert list((tmp_path / 'work').glob('best_mIoU_*.pth'))
