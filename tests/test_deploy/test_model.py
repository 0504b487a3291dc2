from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssnet_mm.deploy.model import load_model, ready
from ssnet_mm.deploy.network import make_processor
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.errors import UserError

RESIZED = """
test_dataloader['dataset']['pipeline'] = [
    test_pipeline[0], dict(type='Resize', scale=(80, 50)), *test_pipeline[1:]]
"""


@pytest.mark.parametrize(('changes', 'told'), [('', False), (RESIZED, True)])
def test_a_test_that_reads_images_otherwise_is_told(tiny_config, capsys, changes, told):
    ready(SimpleNamespace(), load_config(tiny_config(changes)))
    assert ('by which the test reads them, differs' in capsys.readouterr().err) == told


@pytest.mark.parametrize(
    ('changes', 'told'),
    [('', False), ("model['data_preprocessor']['bgr_to_rgb'] = False\n", True)],
)
def test_weights_that_expect_other_images_are_told(tiny_config, tmp_path, capsys, changes, told):
    trained, given = load_config(tiny_config()), load_config(tiny_config(changes))
    model = build_segmentor(trained)
    meta = {'cfg': trained.pretty_text}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'a.pth')
    load_model(given, str(tmp_path / 'a.pth'), 'cpu')
    assert ('a.pth: the weights expect RGB' in capsys.readouterr().err) == told


PIPELINE = 'test_pipeline of .*tiny_.*[.]py'


@pytest.mark.parametrize(
    ('pipeline', 'message'),
    [
        ('[]', f'{PIPELINE} must be a list of transforms, as .*; got ..$'),
        ('dict(type="LoadImageFromFile")', f'{PIPELINE} must be a list of transforms'),
        ('[dict(kind="LoadImageFromFile")]', f'{PIPELINE} must be a list of transforms'),
        ('[test_pipeline[0], dict(type="Rezise")]', f'{PIPELINE}: KeyError: .*Rezise is not in'),
        ('[test_pipeline[0], dict(type="Resize", size=3)]', f'{PIPELINE}: TypeError: .*size'),
        ('[test_pipeline[0], dict(type="Resize")]', f'{PIPELINE}: AssertionError: `scale` and'),
        ('test_pipeline[:1]', "gives no inputs; put dict.type='PackSegInputs'. at its end"),
    ],
)
def test_mistakes_in_the_test_pipeline_are_one_line(tiny_config, tmp_path, pipeline, message):
    cfg = load_config(tiny_config(f'test_pipeline = {pipeline}'))
    torch.save({'state_dict': build_segmentor(cfg).state_dict()}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=message):
        Segmenter(cfg, tmp_path / 'a.pth', device='cpu')(np.zeros((40, 48, 3), np.uint8))


def test_transforms_named_by_their_modules_are_known(tiny_config, tmp_path):
    resize = 'test_pipeline[1:1] = [dict(type="{}Resize", scale=(32, 24), keep_ratio=True)]'
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    found = []
    for module in ('', 'mmcv.transforms.processing.'):
        cfg = load_config(tiny_config(resize.format(module)))
        torch.manual_seed(0)
        torch.save({'state_dict': build_segmentor(cfg).state_dict()}, tmp_path / 'a.pth')
        segment = Segmenter(cfg, tmp_path / 'a.pth', device='cpu')
        assert segment.session.largest_input == 32
        assert segment.session.rescaled(1).largest_input is None
        found.append(segment(image, scores=True)[1])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ('meta', 'classes', 'told'),
    [
        (dict(CLASSES=['a', 'b', 'c'], PALETTE=[[1, 2, 3]] * 3), ('a', 'b', 'c'), ''),  # mmseg 0.x
        (dict(dataset_meta=dict(classes=('a', 'b', 'c'))), ('a', 'b', 'c'), ''),
        (dict(CLASSES=['a', 'b']), (), 'names 2 classes, the network has 3: they are numbered'),
        (dict(dataset_meta=dict(classes=tuple('abcd'), palette=[[1, 2, 3]] * 4)), (), 'names 4 cl'),
        ({}, ('ground', 'left', 'right'), ''),
    ],
)
def test_names_and_colours_are_the_checkpoints_where_there_are_as_many(
    tiny_config, tmp_path, capsys, meta, classes, told
):
    cfg = load_config(tiny_config())
    torch.save({'state_dict': build_segmentor(cfg).state_dict(), 'meta': meta}, tmp_path / 'a.pth')
    model = load_model(cfg, str(tmp_path / 'a.pth'), 'cpu')
    processor, said = make_processor(model), capsys.readouterr().err
    assert processor.classes == classes and told in said and bool(said) == bool(told)
    if not meta.get('CLASSES') or told:
        assert (1, 2, 3) not in processor.palette
    else:
        assert processor.palette == ((1, 2, 3),) * 3
    segment = Segmenter(cfg, tmp_path / 'a.pth', device='cpu')
    assert segment.classes == classes and segment.palette == processor.palette
    assert capsys.readouterr().err.count(told or 'Note') == bool(told)


META = "test_dataloader['dataset'].update(type='PascalVOCDataset', metainfo=dict({}))\n"


def meta_of(config):
    return ready(SimpleNamespace(), load_config(config)).dataset_meta


def test_some_of_a_data_sets_classes_have_their_own_colours(tiny_config):
    meta = meta_of(tiny_config(META.format("classes=('person', 'aeroplane')")))
    assert meta['classes'] == ('person', 'aeroplane')
    assert meta['palette'] == [[192, 128, 128], [128, 0, 0]]


def test_classes_are_read_from_a_file_as_mmseg_does(tiny_config, tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('person\ncat\n')
    meta = meta_of(tiny_config(META.format(f"classes='{names}'")))
    assert meta['classes'] == ['person', 'cat']


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ("palette=[[300, 0, 0]] * 21", 'palette must be RGB colours of 0 to 255 for each class'),
        ("palette=[[3, 0, 0, 255]] * 21", 'palette must be RGB colours'),
        ("palette=['red'] * 21", 'palette must be RGB colours'),
        ("palette=[[3, 0, 0]] * 2", 'palette does not match classes'),
        ("classes=('moon',)", 'is not a subset of classes'),
        ("classes=('cat', 'cat')", 'cat twice; name each once'),
    ],
)  # fmt: skip
def test_classes_and_colours_that_are_none_are_told(tiny_config, given, message):
    with pytest.raises(UserError, match=message) as error:
        meta_of(tiny_config(META.format(given)))
    assert '\n' not in str(error.value) and 'test_dataloader.dataset' in str(error.value)
