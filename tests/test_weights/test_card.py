"""Weights to hand on: they name their config, and have a card with their scores."""

import hashlib
import json

import numpy as np
import pytest
import torch

from ssnet_mm.commands import main
from ssnet_mm.deploy import Segmenter
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.errors import UserError
from ssnet_mm.weights.convert import convert_weights

NAME = 'fastfcn8_slim_camvid'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint, and the report of its test."""
    folder = tmp_path_factory.mktemp('trained')
    torch.manual_seed(0)
    model = build_segmentor(load_config(NAME))
    for key, value in model.named_parameters():
        if 'scores' in key and value.ndim == 4:
            torch.nn.init.normal_(value.data)
    checkpoint = folder / 'iter_9.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    names = load_config(NAME).test_dataloader.dataset.type
    assert names == 'CamVidDataset'
    classes = [
        {'class': 'sky', 'IoU': 90.0, 'boundary_IoU': 80.04, 'support': 7},
        {'class': 'pole', 'IoU': 12.3, 'boundary_IoU': None, 'support': 1},
        {'class': 'car', 'IoU': None, 'boundary_IoU': None, 'support': 0},
    ]
    report = folder / 'report.json'
    about = dict(checkpoint=str(checkpoint), images=3, mIoU=51.15, aAcc=88.0, classes=classes)
    report.write_text(json.dumps(about))
    return checkpoint, report


def test_weights_run_without_a_config(trained, tmp_path):
    pytest.importorskip('safetensors')
    checkpoint, _ = trained
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    expected = Segmenter(NAME + '.py', checkpoint)(image)
    assert len(np.unique(expected)) > 2
    for suffix in ('safetensors', 'pth'):
        file = tmp_path / f'slim.{suffix}'
        convert_weights(checkpoint, file, cfg=load_config(NAME))
        np.testing.assert_array_equal(Segmenter(file)(image), expected)


def test_the_card_tells_scores_limits_and_licence(trained, tmp_path):
    pytest.importorskip('safetensors')
    checkpoint, report = trained
    file = tmp_path / 'slim.safetensors'
    convert_weights(checkpoint, file, cfg=load_config(NAME), scores=report)
    card = (tmp_path / 'slim.md').read_text()
    assert '3 classes: sky, pole, car.' in card  # a class that the test images lack is one too
    assert '3,307,036 parameters' in card and f'`{NAME}`' in card
    assert 'mIoU 51.1%' in card or 'mIoU 51.2%' in card
    assert '| sky | 90.0 | 80.0 | 7 |' in card and '| pole | 12.3 |  | 1 |' in card
    assert 'Found badly: pole (12%).' in card and 'research use' in card
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    with pytest.raises(UserError, match='slim.md is there already'):
        convert_weights(checkpoint, tmp_path / 'slim.pth', cfg=load_config(NAME), scores=report)
    assert not (tmp_path / 'slim.pth').exists()


def test_the_card_tells_how_its_scores_came_about(trained, tmp_path):
    checkpoint, report = trained
    file = tmp_path / 'report.json'
    scores = json.loads(report.read_text())
    scores['sha256'] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    scores['options'] = ['--tta', '--cfg-options', 'data_root=my data']
    file.write_text(json.dumps(scores))
    convert_weights(checkpoint, tmp_path / 'a.pth', cfg=load_config(NAME), scores=file)
    command = (
        f"`ssnet_mm test {NAME} iter_9.pth --report DIR --tta --cfg-options 'data_root=my data'`"
    )
    assert command in (tmp_path / 'a.md').read_text()
    file.write_text(json.dumps(dict(scores, sha256='0')))
    with pytest.raises(UserError, match='another .*iter_9.pth, which was written anew since; test'):
        convert_weights(checkpoint, tmp_path / 'b.pth', cfg=load_config(NAME), scores=file)


def test_a_card_of_another_checkpoints_scores_is_refused(trained, tmp_path):
    checkpoint, report = trained
    other = tmp_path / 'other.pth'
    other.write_bytes(checkpoint.read_bytes())
    with pytest.raises(UserError, match='iter_9.pth, not of .*other.pth; test this one'):
        convert_weights(other, tmp_path / 'a.pth', cfg=load_config(NAME), scores=report)
    broken = tmp_path / 'report.json'
    broken.write_text('{"mIoU": 3}')
    with pytest.raises(UserError, match='no report.json'):
        convert_weights(checkpoint, tmp_path / 'a.pth', cfg=load_config(NAME), scores=broken)
    with pytest.raises(UserError, match='of one of our configs'):
        convert_weights(checkpoint, tmp_path / 'a.pth', scores=report)
    assert not (tmp_path / 'a.pth').exists()


def test_a_network_that_was_changed_is_named_by_no_config(trained, tmp_path):
    narrow = {'model.decode_head.dropout_ratio': 0.3}
    file = tmp_path / 'a.pth'
    convert_weights(trained[0], file, cfg=load_config(NAME, narrow))
    assert 'config' not in torch.load(file, weights_only=True)['meta']
    with pytest.raises(UserError, match='names no config of ssnet_mm; give its config too'):
        Segmenter(file)


@pytest.mark.parametrize('name', ['os', '../evil', ['fcn8_voc'], None])
def test_only_a_name_of_ours_is_taken(trained, tmp_path, name):
    file = tmp_path / 'a.pth'
    torch.save(dict(state_dict={}, meta=dict(config=name)), file)
    with pytest.raises(UserError, match='names no config of ssnet_mm'):
        Segmenter(file)


def test_predict_takes_weights_alone(trained, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    convert_weights(trained[0], 'slim.pth', cfg=load_config(NAME))
    Image.new('RGB', (64, 48), (90, 0, 200)).save('photo.png')
    main(['predict', 'slim.pth', 'photo.png', '--out-dir', 'out'])
    assert Image.open('out/index/photo.png').size == (64, 48)
