import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.checkpoints import Hostile
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ssnet_mm.engine import read_checkpoint
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
    (tmp_path / 'best').write_text('/gone/iter_9.pth')
    torch.save([1], tmp_path / 'list.pth')
    for name, message in {
        'none.pth': 'none.pth not found',
        '.': 'is a folder, not a checkpoint',
        'cut.pth': 'cut.pth is not a readable checkpoint: cut short',
        'text.pth': 'text.pth is not a readable checkpoint',
        'empty.pth': 'empty.pth is not a readable checkpoint',
        'best': 'best is not a readable checkpoint: it names /gone/iter_9.pth, which',
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
