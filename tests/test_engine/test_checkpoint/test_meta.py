import pytest
import torch
from helpers.hostile import resumed
from mmengine.logging import HistoryBuffer

from ssnet_mm.engine.checkpoint import read_to_load
from ssnet_mm.errors import UserError

# The others are told by the trial step that precedes a run: tests/slow.
BY_TRIAL = ('groups', 'rate', 'momentum', 'schedule')


@pytest.fixture(scope='module')
def sound():
    history = dict(log_history=torch.ones(2), count_history=torch.ones(2), max_length=10)
    return dict(
        meta=dict(iter=2, epoch=0, seed=0, dataset_meta=dict(classes=('a',), palette=[[0, 0, 0]])),
        state_dict=dict(w=torch.ones(2)),
        message_hub=dict(
            log_scalars={'train/loss': history},
            runtime_info=dict(best_score=0.5, keep_ckpt_ids=[2]),
            resumed_keys={'train/loss': True},
        ),
        optimizer=dict(state={0: {}}, param_groups=[dict(lr=0.1)]),
        param_schedulers=[{}],
    )


def test_a_sound_checkpoint_passes(sound, tmp_path):
    torch.save(sound, tmp_path / 'a.pth')
    assert read_to_load(str(tmp_path / 'a.pth'), resume=True)['meta']['iter'] == 2


def test_what_is_not_as_resuming_needs_it_is_told(sound, tmp_path):
    path = str(tmp_path / 'a.pth')
    for name, checkpoint in resumed(sound).items():
        if name in BY_TRIAL:
            continue
        torch.save(checkpoint, path)
        with pytest.raises(UserError, match=r'a\.pth (is damaged or not of mmengine|has no)') as e:
            read_to_load(path, resume=True)
        assert len(str(e.value)) < 620 and '\n' not in str(e.value), name


def test_histories_as_mmengine_writes_them_pass(sound, tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    checkpoint = {**sound, 'message_hub': {**sound['message_hub'], 'log_scalars': {'lr': history}}}
    torch.save(checkpoint, tmp_path / 'a.pth')
    read = read_to_load(str(tmp_path / 'a.pth'), resume=True)
    assert read['message_hub']['log_scalars']['lr'].mean() == 1.5
