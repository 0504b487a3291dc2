import time
from pathlib import Path

import pytest
import torch
from helpers.hostile import checkpoints
from helpers.tripwire import tripwire
from torch import nn

from ssnet_mm.engine.checkpoint import load_state_dict, read_checkpoint, weights_of, weights_only
from ssnet_mm.errors import UserError

REASONS = {
    'system': 'asks for posix.system',
    'zip bomb': 'data.pkl is compressed',
    'bit flipped': 'is damaged: the checksum of .* differs',
    'array of 80 GB': 'calls numpy.ndarray',
    'bytes of 8 GB': 'asks for bytearray',
    'tensor of 8 GB': 'unpacks to 8,192 MiB',
    'storage of 8 GB, legacy': 'a storage of 8,053,063,680 bytes is larger',
    'tuples': 'makes more than 20,000,000 values',
    'tuples as a key': 'makes more than 20,000,000 values',
    'holds itself': 'a value holds itself',
    'opcodes without end': 'more than 4,000,000 steps',
    'meta is text': 'meta is a str',
    'palette is text': 'the palette of meta.dataset_meta is no list of RGB colours',
}


@pytest.mark.parametrize(('name', 'make'), checkpoints().items())
def test_hostile_checkpoints_end_in_a_line(tmp_path, name, make):
    if name == 'opcodes without end':
        pytest.skip('takes seconds: tests/slow has it')
    marker, path = tmp_path / 'ran', tmp_path / 'a.pth'
    make(path, f'touch {marker}')
    start = time.monotonic()
    with tripwire() as seen, pytest.raises(UserError, match=REASONS.get(name, 'a.pth')) as error:
        checkpoint = read_checkpoint(path)
        load_state_dict(nn.Linear(1, 1), weights_of(checkpoint, path), path)
    assert time.monotonic() - start < 5
    assert len(str(error.value)) < 620 and '\n' not in str(error.value)
    assert not marker.exists() and not seen


def test_torch_load_of_our_tools_looks_first(tmp_path):
    make = checkpoints()['bytes of 8 GB']
    make(tmp_path / 'a.pth', '')
    with weights_only():
        with pytest.raises(UserError, match='a.pth is refused: it asks for bytearray'):
            torch.load(tmp_path / 'a.pth')
        with open(tmp_path / 'a.pth', 'rb') as file, pytest.raises(UserError, match='bytearray'):
            torch.load(file)
        torch.save({'a': torch.ones(2)}, tmp_path / 'b.pth')
        with open(tmp_path / 'b.pth', 'rb') as file:
            assert torch.load(file)['a'].tolist() == [1, 1]


@pytest.mark.parametrize('legacy', [True, False])
def test_what_checkpoints_hold_is_read(tmp_path, legacy):
    weights = {
        str(dtype): torch.ones(2, 3, dtype=dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)
    }
    shared = torch.arange(6.0)
    weights |= dict(view=shared[2:4], rows=shared.view(2, 3).t(), parameter=nn.Parameter(shared))
    value = dict(weights=weights, size=torch.Size([1]), dtype=torch.float32, set={1}, bytes=b'ab')
    path = Path(tmp_path / 'a.pth')
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    for key, tensor in weights.items():
        assert torch.equal(read['weights'][key], tensor), key
    assert {k: v for k, v in read.items() if k != 'weights'} == {
        k: v for k, v in value.items() if k != 'weights'
    }


def test_mmengine_reads_no_pickles_in_our_tools(tmp_path):
    import mmengine

    mmengine.dump([1], tmp_path / 'a.pkl')
    assert mmengine.load(tmp_path / 'a.pkl') == [1]
    with weights_only(), pytest.raises(UserError, match='a pickle, which could run code'):
        mmengine.load(tmp_path / 'a.pkl')
    assert mmengine.load(tmp_path / 'a.pkl') == [1]
