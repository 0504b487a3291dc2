from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model
from mmseg.registry import DATASETS
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.visualization import (
    VOID,
    Sample,
    draw_figure,
    pick_evenly,
    predict_samples,
    show_predictions,
)

CLASSES = ('ground', 'left', 'right')
PALETTE = [[0, 0, 90], [200, 0, 0], [0, 200, 0]]
PAPER = (255, 255, 255)
BLUE = (10, 120, 240)  # of the images, so that nothing else in a figure has it


def make_sample(truth: int = 1, prediction: int = 2, size: tuple[int, int] = (256, 256)) -> Sample:
    """A blue image whose label maps hold one index each."""
    image = np.full((*size, 3), BLUE, np.uint8)
    return Sample(image, np.full(size, truth, np.uint8), np.full(size, prediction, np.int64))


def colours_in(figure: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in figure.getcolors(figure.width * figure.height)}


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_config: Callable[..., str]) -> str:
    model = init_model(tiny_config(), device='cpu')
    model.init_weights()
    path = tmp_path / 'tiny.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return str(path)


@pytest.mark.parametrize(
    ('total', 'num', 'expected'), [(10, 3, [0, 3, 6]), (80, 2, [0, 40]), (2, 5, [0, 1])]
)
def test_picks_are_spread_over_the_data_set(total, num, expected):
    assert pick_evenly(total, num) == expected


def test_panels_show_image_truth_and_prediction_from_left_to_right():
    figure = draw_figure([make_sample()], CLASSES, PALETTE)
    middle = np.asarray(figure)[figure.height // 2]
    changes = np.flatnonzero((middle[1:] != middle[:-1]).any(axis=1)) + 1
    runs = [tuple(int(c) for c in middle[x]) for x in (0, *changes)]
    assert runs == [
        PAPER, BLUE, PAPER, tuple(PALETTE[1]), PAPER, tuple(PALETTE[2]), PAPER,
    ]  # fmt: skip


def test_the_legend_names_what_is_shown_and_nothing_else():
    with_void, without = (
        draw_figure([make_sample(truth=truth)], CLASSES, PALETTE) for truth in (255, 1)
    )
    assert VOID in colours_in(with_void) and VOID not in colours_in(without)
    swatches = np.asarray(without)[-40:]  # the panels end above
    shown = [(swatches == colour).all(axis=2).any() for colour in PALETTE]
    assert shown == [False, True, True]
    legend = np.asarray(with_void)[-40:]
    starts = [(legend == colour).all(axis=2).any(axis=0).argmax() for colour in (PALETTE[2], VOID)]
    assert 0 < starts[0] < starts[1]  # void comes last


def test_labels_stay_crisp_when_panels_are_scaled():
    truth = np.random.default_rng(0).integers(0, 3, (60, 80)).astype(np.uint8)
    for factor in (1, 5):  # drawn larger, drawn smaller
        label_map = truth.repeat(factor, 0).repeat(factor, 1)
        image = np.zeros((*label_map.shape, 3), np.uint8)
        figure = draw_figure([Sample(image, label_map, label_map)], CLASSES, PALETTE)
        panels = np.asarray(figure)[100 : 100 + 150]
        blues = {tuple(c) for c in panels.reshape(-1, 3).tolist() if c[0] != c[1] or c[2] == 90}
        assert blues == {tuple(colour) for colour in PALETTE}, factor


def test_images_of_several_sizes_fit_on_one_figure():
    sizes = [(256, 128), (128, 256), (64, 48), (1, 1), (300, 500)]
    samples = [make_sample(size=size) for size in sizes]
    figure = draw_figure(samples, CLASSES, PALETTE)
    # three rows of two groups, each panel 256 on its longest side (64 grows fourfold)
    assert figure.width > 6 * 256
    drawn = (np.asarray(figure) == BLUE).all(axis=2).sum()
    assert drawn == 256 * 128 + 128 * 256 + 256 * 192 + 256 * 256 + 154 * 256


def test_a_long_legend_wraps():
    names = [f'a rather long name {i}' for i in range(12)]
    label_map = np.arange(12, dtype=np.uint8).reshape(3, 4)
    sample = Sample(np.zeros((3, 4, 3), np.uint8), label_map, label_map)
    colours = [[10 * i, 200, 255 - i] for i in range(12)]
    figure = draw_figure([sample], names, colours)
    swatches = np.asarray(figure)[300:]
    assert all((swatches == colour).all(axis=2).any() for colour in colours)


def test_more_classes_than_8_bits_hold_have_their_colours():
    names = [f'class {i}' for i in range(300)]
    colours = [[i % 256, 200, i // 256] for i in range(300)]
    sample = make_sample(truth=255, prediction=299)
    assert {(255, 200, 0), (43, 200, 1)} <= colours_in(draw_figure([sample], names, colours))
    sample = make_sample(prediction=65535)  # void, as 16 bits have it
    assert VOID in colours_in(draw_figure([sample], names, colours))


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match='at least one sample'):
        draw_figure([], CLASSES, PALETTE)


def test_samples_hold_the_files_and_what_mmseg_predicts(tiny_config, tiny_checkpoint, tiny_data):
    cfg = Config.fromfile(tiny_config())
    model = init_model(cfg, tiny_checkpoint, device='cpu')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    (sample,) = predict_samples(model, dataset, [2])
    file = tiny_data / 'JPEGImages' / '2.jpg'
    expected = inference_model(model, str(file)).pred_sem_seg.data[0].numpy()
    np.testing.assert_array_equal(sample.prediction, expected)
    mask = Image.open(tiny_data / 'SegmentationClass' / '2.png')
    np.testing.assert_array_equal(sample.truth, np.asarray(mask))
    # decoders may round differently; channels swapped would differ by dozens
    read = np.asarray(Image.open(file).convert('RGB')).astype(int)
    assert sample.image.shape == read.shape and np.abs(sample.image - read).max() <= 3


def test_the_picture_is_that_of_the_evenly_picked_images(tmp_path, tiny_config, tiny_checkpoint):
    config, out = tiny_config(), tmp_path / 'new' / 'picture.png'
    assert show_predictions(config, tiny_checkpoint, out, num=2, device='cpu') == 2
    cfg = Config.fromfile(config)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model = init_model(cfg, tiny_checkpoint, device='cpu')
    expected = draw_figure(
        list(predict_samples(model, dataset, [0, 2])),
        dataset.metainfo['classes'],
        dataset.metainfo['palette'],
        Path(config).stem,
        '2 of 4 validation images, tiny.pth',
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(expected))


def test_more_images_than_there_are_show_all(tmp_path, tiny_config, tiny_checkpoint):
    assert show_predictions(tiny_config(), tiny_checkpoint, tmp_path / 'p.jpg', 9, 'cpu') == 4


def test_a_config_needs_nothing_but_its_validation_images(tmp_path, tiny_config, tiny_checkpoint):
    config = tiny_config('del test_dataloader, test_pipeline, test_evaluator, test_cfg')
    assert show_predictions(config, tiny_checkpoint, tmp_path / 'p.png', 1, 'cpu') == 1


@pytest.mark.parametrize(
    ('arguments', 'changes', 'message'),
    [
        (dict(num=0), '', 'at least 1, got 0'),
        (dict(out='picture.gif'), '', r'must end in \.png or \.jpg'),
        (dict(device='nonsense'), '', 'device nonsense'),
        (dict(config='none.py'), '', r'config none\.py not found'),
        (dict(checkpoint='none.pth'), '', r'checkpoint none\.pth not found'),
        ({}, 'model["decode_head"]["num_classes"] = 4', 'trained for 3 classes, the config says 4'),
        ({}, 'val_dataloader["dataset"]["data_root"] = "gone"', 'data set not found.*gone'),
        ({}, 'del val_dataloader["dataset"]["pipeline"][1]', 'no label maps'),
    ],
)
def test_mistakes_are_told_and_write_nothing(
    tmp_path, monkeypatch, tiny_config, tiny_checkpoint, arguments, changes, message
):
    monkeypatch.chdir(tmp_path)
    given = dict(
        config=tiny_config(changes), checkpoint=tiny_checkpoint, out='p.png', num=1, device='cpu'
    )
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        show_predictions(**given | arguments)
    assert set(tmp_path.iterdir()) == before


def test_classes_that_are_not_the_checkpoints_are_refused(tmp_path, tiny_config, tiny_checkpoint):
    two = 'val_dataloader["dataset"]["metainfo"] = dict(classes=classes[:2], palette=palette[:2])'
    with pytest.raises(UserError, match='has 2 classes, the model 3; give the metainfo of the dat'):
        show_predictions(tiny_config(two), tiny_checkpoint, tmp_path / 'p.png', 1, 'cpu')
    content = torch.load(tiny_checkpoint)
    content['meta'] = dict(dataset_meta=dict(classes=CLASSES[::-1], palette=PALETTE))
    torch.save(content, tiny_checkpoint)
    with pytest.raises(UserError, match='trained on classes in another order: label 0 is .right.'):
        show_predictions(tiny_config(), tiny_checkpoint, tmp_path / 'p.png', 1, 'cpu')


def test_one_channel_tells_its_class_from_the_background(tmp_path, tiny_config, tiny_data):
    for mask in (tiny_data / 'SegmentationClass').iterdir():
        labels = np.array(Image.open(mask))
        Image.fromarray(np.where(labels == 255, 255, labels > 0).astype(np.uint8)).save(mask)
    config = tiny_config(
        'model["decode_head"].update(num_classes=2, out_channels=1, threshold=0.5,'
        ' loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=True))\n'
        'val_dataloader["dataset"]["metainfo"] = dict(classes=("crack",), palette=[[250, 9, 0]])'
    )
    model = init_model(config, device='cpu')
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'scores' in name and name.endswith('bias'):
            torch.nn.init.constant_(parameter, 5)  # class 1 everywhere
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'one.pth')
    out = tmp_path / 'p.png'
    assert show_predictions(config, tmp_path / 'one.pth', out, 1, 'cpu') == 1
    assert {(250, 9, 0), (0, 0, 0)} <= colours_in(Image.open(out))


def test_a_damaged_image_is_named(tmp_path, tiny_config, tiny_checkpoint, tiny_data):
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'SegmentationClass').symlink_to(tiny_data / 'SegmentationClass')
    (tmp_path / 'train.txt').write_text('0\n1\n')
    whole = (tiny_data / 'JPEGImages' / '0.jpg').read_bytes()
    (tmp_path / 'JPEGImages' / '0.jpg').write_bytes(whole)
    (tmp_path / 'JPEGImages' / '1.jpg').write_bytes(b'not an image')
    options = {'val_dataloader.dataset.data_root': str(tmp_path)}
    with pytest.raises(UserError, match=r'cannot read .*1\.jpg'):
        show_predictions(
            tiny_config(), tiny_checkpoint, tmp_path / 'p.png', 2, 'cpu', cfg_options=options
        )
    assert not (tmp_path / 'p.png').exists()


def test_the_tool_prints_the_file_it_wrote(
    tmp_path, capsys, tool: Callable[[str], ModuleType], fails, tiny_config, tiny_checkpoint
):
    out = tmp_path / 'p.png'
    arguments = [tiny_config(), tiny_checkpoint, '--out', str(out), '--device', 'cpu']
    tool('show_predictions').main([*arguments, '--num', '3'])
    assert capsys.readouterr().out.endswith(f'3 images drawn: {out}\n')
    assert Image.open(out).format == 'PNG'
    assert 'at least 1, got -1' in fails('show_predictions', *arguments, '--num', '-1')
