import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.checkpoints import Hostile
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader
from mmseg.models import SegTTAModel
from torch import nn

from ssnet_mm.engine import load_checkpoint, load_state_dict, read_checkpoint
from ssnet_mm.errors import UserError


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path, zipped):
    marker, path = tmp_path / 'marker', tmp_path / 'hostile.pth'
    payload = {'state_dict': {'w': torch.ones(1)}, 'x': Hostile(os.system, f'touch {marker}')}
    torch.save(payload, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match='hostile.pth is refused: it asks for .*system'):
        read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), 'the payload is harmless, so this test shows nothing'


@pytest.mark.parametrize(
    'call', [(getattr, HistoryBuffer, '__init__'), (getattr, HistoryBuffer.mean, '__globals__')]
)
def test_getattr_reaches_nothing_but_the_statistics_of_histories(tmp_path, call):
    torch.save({'x': Hostile(*call)}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='refused: it asks for getattr'):
        read_checkpoint(tmp_path / 'a.pth')


def test_unreadable_files_are_named_in_one_line(tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save({'state_dict': {'w': torch.ones(1000)}}, whole)
    (tmp_path / 'cut.pth').write_bytes(whole.read_bytes()[:-200])
    (tmp_path / 'text.pth').write_text('no checkpoint')
    (tmp_path / 'empty.pth').touch()
    torch.save([1], tmp_path / 'list.pth')
    for name, message in {
        'none.pth': 'none.pth not found',
        '.': 'is a folder, not a checkpoint',
        'cut.pth': 'cut.pth is not a readable checkpoint: cut short',
        'text.pth': 'text.pth is not a readable checkpoint',
        'empty.pth': 'empty.pth is not a readable checkpoint',
        'list.pth': 'list.pth is not a checkpoint: it holds a list',
    }.items():
        with pytest.raises(UserError, match=message) as error:
            read_checkpoint(tmp_path / name)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('core', [b'core', b'_core'])  # numpy 1 and numpy 2 name it so
def test_histories_and_numpy_values_of_mmengine_are_read(tmp_path, core):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    history.update(6.0)
    hub = OrderedDict(loss=history)
    values = {'hub': hub, 'best': np.float64(0.5), 'flag': np.bool_(True), 'a': np.arange(3)}
    torch.save(values, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    data = (tmp_path / 'a.pth').read_bytes()
    for other in (b'numpy._core.', b'numpy.core.'):
        data = data.replace(other, b'numpy.' + core + b'.')
    (tmp_path / 'a.pth').write_bytes(data)

    before = set(torch.serialization.get_safe_globals())
    read = read_checkpoint(tmp_path / 'a.pth')
    assert set(torch.serialization.get_safe_globals()) == before

    assert read['hub']['loss'].mean() == 3.0
    assert read['hub']['loss'].statistics('max') == 6.0
    assert read['best'] == 0.5 and read['flag']
    assert read['a'].tolist() == [0, 1, 2]


class Segmentor(BaseModel):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.decode_head = nn.Conv2d(4, classes, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.decode_head(self.backbone(inputs))


@pytest.mark.parametrize('nested', [True, False])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrap', [False, True])
def test_weights_arrive_from_any_nesting(tmp_path, nested, prefix, wrap):
    given, model = Segmentor(), Segmentor()
    weights = {prefix + key: value for key, value in given.state_dict().items()}
    torch.save(
        {'state_dict': weights, 'meta': {'iter': 7}} if nested else weights, tmp_path / 'a.pth'
    )
    checkpoint = load_checkpoint(SegTTAModel(model) if wrap else model, tmp_path / 'a.pth')
    assert not nested or checkpoint['meta'] == {'iter': 7}
    for key, value in given.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=0)


def test_loaded_weights_outlive_the_file(tmp_path):
    # they are mapped from it while loading
    model = nn.Linear(2, 2)
    torch.save({'weight': torch.full((2, 2), 5.0), 'bias': torch.zeros(2)}, tmp_path / 'a.pth')
    load_checkpoint(model, tmp_path / 'a.pth')
    (tmp_path / 'a.pth').write_bytes(b'')
    assert model.weight.tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_another_class_count_is_said_plainly():
    with pytest.raises(
        UserError,
        match=r'a.pth does not fit the model: 2 misshapen: decode_head.weight '
        r'\(\(21, 4, 1, 1\) instead of \(3, 4, 1, 1\)\), .*'
        'it was trained for 21 classes, the config says 3',
    ):
        model = Segmentor(3)
        model.decode_head.out_channels = 3
        load_state_dict(model, Segmentor(21).state_dict(), 'a.pth')


def test_missing_and_unexpected_keys_are_counted_and_some_are_listed():
    weights = {f'extra.{i}': torch.ones(1) for i in range(5)}
    weights['decode_head.bias'] = torch.ones(3)
    with pytest.raises(
        UserError,
        match=r'7 missing: backbone.0.weight, .*, \.\.\.; '
        r'5 unexpected: extra.0, extra.1, extra.2, \.\.\.$',
    ):
        load_state_dict(Segmentor(), weights, 'a.pth')


def test_batch_counters_may_be_missing():
    weights = {k: v for k, v in Segmentor().state_dict().items() if not k.endswith('tracked')}
    assert len(weights) == 8
    load_state_dict(Segmentor(), weights, 'a.pth')


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save({'meta': {}}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='a.pth holds no weights'):
        load_checkpoint(nn.Linear(1, 1), tmp_path / 'a.pth')


def test_mmengine_loads_safetensors_through_the_safe_reader(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'a.safetensors'
    weights = {'w': torch.arange(3.0)}
    safetensors.save_file(weights, path, {'meta': '{"iter": 3}'})
    checkpoint = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert checkpoint['meta'] == {'iter': 3} and torch.equal(
        checkpoint['state_dict']['w'], weights['w']
    )
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match='a.safetensors is not a readable checkpoint: cut short'):
        CheckpointLoader.load_checkpoint(str(path))
    for other, loader in {
        'http://x/a.safetensors': 'load_from_http',
        'a.pth': 'load_from_local',
    }.items():
        assert CheckpointLoader._get_checkpoint_loader(other).__name__ == loader
