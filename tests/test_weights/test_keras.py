import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ssnet_mm import build_model
from ssnet_mm.weights.keras import keras_state
from ssnet_mm.weights.read import read_weights

sys.path.append(str(Path(__file__).parents[1] / 'reference'))
from keras_layout import load_reference, to_torch

KERAS_FILES = Path(__file__).parents[1] / 'reference' / 'keras_files.zip'


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_state_is_the_one_that_gives_keras_logits(conv_type):
    """Against the tests' own mapping, which test_keras_equivalence shows to be right."""
    reference = load_reference(conv_type)
    raw = {
        key.removeprefix('weights/'): torch.from_numpy(value)
        for key, value in reference.items()
        if key.startswith('weights/')
    }
    state, used, left = keras_state(raw)
    expected = to_torch(reference, 'weights')
    assert not left
    assert state.keys() == expected.keys() == used.keys() and set(used.values()) == set(raw)
    for key, value in expected.items():
        assert torch.equal(state[key], value) and state[key].is_contiguous(), key


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_a_file_of_keras_fills_the_network(conv_type, tmp_path):
    pytest.importorskip('h5py')
    with zipfile.ZipFile(KERAS_FILES) as file:
        path = file.extract(f'keras2/{conv_type}/a.weights.h5', tmp_path)
    state, _, left = keras_state(read_weights(path).tensors)
    model = build_model(3, conv_type, base_channels=1, fc_channels=2)
    result = model.load_state_dict(state, strict=False)
    assert not left and not result.unexpected_keys
    assert all(key.endswith('num_batches_tracked') for key in result.missing_keys)


def test_what_ssnet_has_not_is_left_with_a_reason():
    known = {'fc1/kernel': torch.zeros(7, 7, 2, 3), 'conv5_3_bn/gamma': torch.ones(2)}
    others = ['dense/kernel', 'conv6_1/kernel', 'conv1_1/gamma', 'conv1_1_bn/kernel', 'kernel']
    state, used, left = keras_state({**known, **dict.fromkeys(others, torch.zeros(1))})
    assert used == {
        'backbone.fc6.conv.weight': 'fc1/kernel',
        'backbone.stages.4.2.bn.weight': 'conv5_3_bn/gamma',
    }
    assert state['backbone.fc6.conv.weight'].shape == (3, 2, 7, 7)
    assert list(left) == others
    assert left['dense/kernel'] == 'SSNeT has no such layer'
    assert left['conv1_1/gamma'] == 'conv1_1 has no such weight in SSNeT'
