import os
import sys

import numpy as np
import pytest
from helpers.export_formats import need
from helpers.hostile import exported, onnx_file
from helpers.processes import run

from ssnet_mm import build_model
from ssnet_mm.deploy import Segmenter
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.errors import UserError

REASONS = {
    'loop.onnx': 'refused: it has a loop .Loop.',
    'external.onnx': 'keeps weights in another file',
    'functions.onnx': 'it has functions',
    'declared.onnx': 'larger than what the file holds',
    'resize.onnx': 'another version .resize is none',
    'classes.onnx': 'num_classes is none',
    'palette.onnx': 'palette is none',
    'recursive.onnx': 'JSON nested too deep',
    'noise.onnx': 'not a readable ONNX model',
    'loop.xml': 'it has a loop',
    'hidden.xml': 'it has a loop',
    'noise.xml': 'not a readable OpenVINO model',
    'entities.xml': 'it has a document type',
    'large.xml': '',
}
MAKERS = exported()


@pytest.mark.parametrize('name', REASONS)
def test_what_no_export_has_is_refused(tmp_path, name):
    need('onnx' if name.endswith('.onnx') else 'openvino')
    MAKERS[name](tmp_path / name, '')
    with pytest.raises(UserError, match=REASONS[name]) as error:
        Segmenter(tmp_path / name)
    assert name in str(error.value) and len(str(error.value)) < 620


@pytest.mark.parametrize(('name', 'kind'), [('a.onnx', 'ONNX'), ('a.xml', 'OpenVINO')])
def test_a_file_that_can_not_be_opened_is_told(tmp_path, monkeypatch, name, kind):
    need('onnx' if name.endswith('.onnx') else 'openvino')
    (tmp_path / name).touch()

    def refused(path, *args):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('builtins.open', refused)
    with pytest.raises(UserError, match=f'{name} is not a readable {kind} model: .* denied'):
        Segmenter(tmp_path / name)


def test_trusting_a_file_takes_it_as_it_is(tmp_path):
    need('onnx')
    onnx_file(functions=True)(tmp_path / 'a.onnx', '')
    image = np.full((5, 6, 3), 40, np.uint8)
    assert (Segmenter(tmp_path / 'a.onnx', trust=True)(image) == 40).all()
    onnx_file()(tmp_path / 'a.onnx', '')
    assert (Segmenter(tmp_path / 'a.onnx')(image) == 40).all()


def test_a_network_that_fails_on_an_image_is_told(tmp_path):
    need('onnx')
    onnx_file(zeros=1 << 50)(tmp_path / 'a.onnx', '')
    with pytest.raises(
        UserError, match='a.onnx: the network fails on an image of 6x5 pixels: '
    ) as error:
        Segmenter(tmp_path / 'a.onnx')(np.zeros((5, 6, 3), np.uint8))
    assert len(str(error.value)) < 620


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('num_classes', True),
        ('mean', [1, 2]),
        ('std', [0, 1, 1]),
        ('std', [1, float('inf'), 1]),
        ('resize', {'keep_ratio': 1, 'scale': [8, 8]}),
        ('resize', {'keep_ratio': True, 'scale': [8]}),
        ('resize', {'keep_ratio': True, 'scale_factor': [0, 1]}),
        ('resize', [1]),
        ('classes', [1, 2]),
        ('palette', [[0, 0, 256]]),
        ('palette', 7),
        ('threshold', '0.5'),
        ('precision', ['fp32']),
        ('end_to_end', 'yes'),
        ('nonsense', 1),
    ],
)
def test_a_processor_of_other_fields_is_refused(field, value):
    import json

    fields = json.loads(Processor(num_classes=2, mean=(1, 2, 3), std=(1, 2, 3)).to_json())
    assert Processor.from_json(json.dumps(fields), 'a').num_classes == 2
    with pytest.raises(UserError, match='a.onnx was exported by another version'):
        Processor.from_json(json.dumps({**fields, field: value}), 'a.onnx')


def test_a_resize_to_more_pixels_than_images_may_have_is_refused():
    processor = Processor(2, resize=dict(keep_ratio=False, scale=[60_000, 60_000]))
    with pytest.raises(UserError, match='resizes an image of 4x3 to 60000x60000'):
        processor.resized(np.zeros((3, 4, 3), np.uint8))


@pytest.mark.parametrize('end_to_end', [True, False])
def test_openvino_takes_images_of_a_few_pixels(tmp_path, end_to_end):
    need('openvino')
    model = build_model(3, base_channels=2, fc_channels=4).eval()
    files = {'openvino': tmp_path / 'a.xml', 'onnx': tmp_path / 'a.onnx'}
    for format, path in files.items():
        export(model, path, format, end_to_end=end_to_end, size=(32, 32))
    ours, others = (Segmenter(path) for path in files.values())
    rng = np.random.default_rng(0)
    for size in ((1, 1), (1, 40), (5, 3), (16, 16), (17, 16), (41, 37)):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        assert (ours(image) == others(image)).mean() > 0.99, size


LOADING = """
import sys
from pathlib import Path
from ssnet_mm.deploy.runtimes import openvino
from ssnet_mm.errors import UserError
try:
    openvino.load(Path('none.xml'), None, None, None, False)
except UserError:  # there is no such file
    sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))
sys.exit('what is not there was loaded')
"""


def test_openvino_reports_nothing_and_leaves_nothing_at_home(tmp_path):
    need('openvino')
    home = {**os.environ, 'HOME': str(tmp_path)}
    run(sys.executable, '-c', LOADING, cwd=tmp_path, env=home)
    assert not list(tmp_path.iterdir())
