import zipfile
from pathlib import Path

import pytest

from ssnet_mm import build_model
from ssnet_mm.weights import load_foreign, load_into

KERAS_FILES = Path(__file__).parents[1] / 'reference' / 'keras_files.zip'


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_a_file_of_keras_fills_the_network(conv_type, tmp_path):
    pytest.importorskip('h5py')
    with zipfile.ZipFile(KERAS_FILES) as file:
        path = file.extract(f'keras2/{conv_type}/a.weights.h5', tmp_path)
    model = build_model(3, conv_type, base_channels=1, fc_channels=2)
    fitted = load_into(model, load_foreign(path))
    assert not fitted.left and not fitted.new
    parameters = {key for key in model.state_dict() if not key.endswith('num_batches_tracked')}
    assert fitted.used.keys() == parameters
