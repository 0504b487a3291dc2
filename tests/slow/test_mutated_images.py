"""1000 damaged images through each runtime: every bad one is named, every good one is done."""

import pytest
import torch
from helpers.children import run_child
from helpers.export_formats import need
from helpers.mutated import mutated_images

from ssnet_mm.deploy import Segmenter, predict
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.errors import UserError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('format', ['torch', 'onnx', 'openvino', 'torch-export'])
def test_every_image_is_done_or_named(tmp_path, tiny_config, format):
    cfg = launch.load_config(tiny_config())
    model = build_segmentor(cfg)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    arguments = [cfg, tmp_path / 'a.pth']
    if format != 'torch':
        need(format)
        suffix = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}[format]
        model = load_model(cfg, str(tmp_path / 'a.pth'), 'cpu')
        export(model, tmp_path / f'a{suffix}', format, end_to_end=True, size=(32, 32))
        arguments = [tmp_path / f'a{suffix}']
    images = mutated_images(tmp_path / 'in', 1000)
    found = {}

    def run():
        segment = Segmenter(*arguments)  # here: a runtime's threads do not outlive a fork
        failures = predict.predict_images(segment, images, tmp_path / 'out')
        for path in images:
            try:
                segment(path)
                found[path.stem] = True
            except UserError as error:
                found[path.stem] = False
                assert path.name in str(error) and len(str(error)) < 620, error
        written = {path.stem for path in (tmp_path / 'out' / 'index').iterdir()}
        assert written == {stem for stem, good in found.items() if good}
        assert len(failures) + len(written) == len(images)
        for stem in sorted(set(found) - written):
            assert any(f'{stem}.' in failure for failure in failures), stem
        assert all(found[path.stem] for path in images[::5]), 'a whole image was not done'
        print(f'{format}: {len(written)} done, {len(failures)} named')

    outcome = run_child(run, tmp_path / 'log', limit=600)
    assert outcome.code == 0, outcome.output[-3000:]
    print(f'{outcome.last}, {outcome.peak_mib:.0f} MiB at most')
    assert outcome.peak_mib < 2048
