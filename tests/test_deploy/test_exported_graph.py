import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from helpers.hostile import exported
from helpers.tripwire import tripwire

from ssnet_mm import build_model
from ssnet_mm.deploy import Segmenter, runtimes
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.runtimes import exported_graph
from ssnet_mm.errors import UserError

HOSTILE = {name: make for name, make in exported().items() if name.endswith('.pt2')}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    need('torch-export')
    path = tmp_path_factory.mktemp('export') / 'a.pt2'
    model = build_model(3, base_channels=2, fc_channels=4, conv_type='ds').eval()
    export(model, path, 'torch-export', end_to_end=True, size=(32, 32))
    return path


@pytest.mark.parametrize(('name', 'make'), HOSTILE.items())
def test_no_code_in_a_file_is_run(tmp_path, name, make):
    need('torch-export')
    marker, path = tmp_path / 'ran', tmp_path / name
    make(path, f'touch {marker}')
    with tripwire() as seen:
        if name in ('inputs.pt2', 'expression.pt2', 'guard.pt2'):  # which are not looked at
            labels = Segmenter(path)(np.full((5, 6, 3), 40, np.uint8))
            assert (labels == 120).all()
        else:
            with pytest.raises(UserError, match=rf'{name} is (refused|not a file)') as error:
                Segmenter(path)
            assert len(str(error.value)) < 620
    assert not marker.exists() and not seen


def test_the_way_out_is_named_and_runs_code(tmp_path):
    need('torch-export')
    marker, path = tmp_path / 'ran', tmp_path / 'a.pt2'
    HOSTILE['weight.pt2'](path, f'touch {marker}')
    with pytest.raises(UserError, match=r'is a pickle, which no file .* \(--trust-model'):
        Segmenter(path)
    with pytest.raises(UserError, match='not a model that torch can load'):
        Segmenter(path, trust=True)
    assert marker.exists(), 'the payload is harmless, so these tests show nothing'


def test_it_computes_what_torch_does(file):
    image = np.random.default_rng(0).integers(0, 256, (2, 41, 37, 3)).astype(np.uint8)
    expected = runtimes.load(file, trust=True).run(image)
    np.testing.assert_array_equal(runtimes.load(file).run(image), expected)


def test_small_images_are_segmented(file):
    segment = Segmenter(file)
    for size in ((1, 1), (3, 16), (16, 16), (17, 2)):
        assert segment(np.zeros((*size, 3), np.uint8)).shape == size


def test_a_file_tells_nothing_of_how_it_was_made(file):
    data = file.read_bytes()
    for word in (b'.tmp', b'stack_trace', b'site-packages', str(file.parent).encode()):
        assert word not in data


@pytest.mark.slow
def test_the_same_model_gives_the_same_file_of_how_it_was_made(file, tmp_path):
    program = (
        'import sys, torch; from ssnet_mm import build_model; '
        'from ssnet_mm.deploy.export import export; torch.manual_seed(0); '
        "m = build_model(3, base_channels=2, fc_channels=4, conv_type='ds').eval(); "
        "export(m, sys.argv[1], 'torch-export', end_to_end=True, size=(32, 32))"
    )
    torch.manual_seed(0)
    model = build_model(3, base_channels=2, fc_channels=4, conv_type='ds').eval()
    export(model, tmp_path / 'a.pt2', 'torch-export', end_to_end=True, size=(32, 32))
    subprocess.run([sys.executable, '-c', program, tmp_path / 'b.pt2'], check=True)
    assert (tmp_path / 'a.pt2').read_bytes() == (tmp_path / 'b.pt2').read_bytes()


def test_sizes_are_numbers_and_do_not_grow_without_end():
    add, mul = exported_graph._function('_operator.add'), exported_graph._function('_operator.mul')
    assert add(2, 3) == 5 and mul(2, 0.5) == 1
    for arguments in (([0], 1 << 40), ('a', 3), (1 << 40, 1 << 40)):
        with pytest.raises(ValueError, match='mul of what is no size'):
            mul(*arguments)
