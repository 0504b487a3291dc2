import copy
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import OLD_TORCH, need
from mmengine.config import ConfigDict
from mmseg.apis import init_model
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from ssnet_mm import build_model
from ssnet_mm.deploy import export as module
from ssnet_mm.deploy import runtimes
from ssnet_mm.deploy.check import Report, compare, flat_images, verify
from ssnet_mm.deploy.confidence import Calibrated, calibrate
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.deploy.network import MatrixPool, make_processor
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes import FORMATS
from ssnet_mm.deploy.runtimes import onnx as onnx_runtime
from ssnet_mm.deploy.runtimes import openvino as openvino_runtime
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError
from ssnet_mm.visualization import show_predictions

# batch, height, width: crops of the upsampled maps at the bottom, right, both or none; all are
# other sizes than the example's
SIZES = [(1, 97, 131), (3, 33, 47), (2, 64, 64), (1, 50, 38), (2, 40, 72)]
META = {'classes': ('a', 'b', 'c', 'd', 'e'), 'palette': [[i, 2 * i, 9] for i in range(5)]}


def distinct(model):
    """Statistics and weights that make all layers count."""
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
    for name, weight in model.decode_head.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            nn.init.normal_(weight.data, generator=generator)
    return model.eval()


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    made = build_model(5, conv_type='ds', base_channels=4, fc_channels=8)
    made.dataset_meta = META
    return distinct(made)


def images(batch, height, width):
    """Noise in blocks, so that the maps have large parts of several classes."""
    rng = np.random.default_rng(height)
    blocks = rng.integers(0, 256, (batch, -(-height // 8), -(-width // 8), 3)).astype(np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def runner(path):
    return runtimes.load(path, 'cpu', 1)


@pytest.fixture(scope='module', params=FORMATS)
def exported(request, model, tmp_path_factory):
    """A file of logits and an end-to-end file, of one format."""
    need(request.param)
    folder = tmp_path_factory.mktemp('exported')
    files = [folder / f'{name}{FORMATS[request.param].suffix}' for name in ('logits', 'labels')]
    before = copy.deepcopy(model.state_dict())
    for file, end_to_end in zip(files, (False, True)):
        report = export(model, file, request.param, end_to_end=end_to_end, size=(64, 96))
        assert report.passes('fp32') and report.images == 'images of 64x96, 49x61'
        assert report.agreement > 0.999
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return files


def test_logits_are_those_of_the_model_at_any_size_and_batch(model, exported):
    run = runner(exported[0]).run
    for batch, height, width in SIZES:
        planes = make_processor(model).normalised(images(batch, height, width))
        with torch.no_grad():
            expected = model(torch.from_numpy(planes), mode='tensor').numpy()
        np.testing.assert_allclose(run(planes), expected, atol=1e-4 * np.abs(expected).max())


def test_labels_are_those_that_mmseg_predicts(model, exported):
    run, seen = runner(exported[1]).run, set()
    for batch, height, width in SIZES:
        pixels = images(batch, height, width)
        planes = torch.from_numpy(pixels.transpose(0, 3, 1, 2)[:, ::-1].copy())  # BGR, as loaded
        with torch.no_grad():
            results = model.test_step({'inputs': list(planes)})
        expected = np.stack([result.pred_sem_seg.data[0].numpy() for result in results])
        found = run(pixels)
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert (found == expected).mean() > 0.999, (height, width)  # but for ties
        seen |= set(np.unique(found))
    assert len(seen) > 1


def test_the_file_says_how_to_use_it(model, exported):
    for file, end_to_end in zip(exported, (False, True)):
        processor = runner(file).processor
        assert processor == make_processor(model, end_to_end)
        assert processor.classes == META['classes'] and processor.palette[2] == (2, 4, 9)
        assert processor.mean == pytest.approx((123.675, 116.28, 103.53))
        assert (processor.channel_order, processor.end_to_end) == ('rgb', end_to_end)


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
@pytest.mark.parametrize('precision', ['fp16', 'int8'])
def test_lower_precision_is_close_and_smaller(model, tmp_path, format, precision):
    need(format, precision)
    file = tmp_path / f'low{FORMATS[format].suffix}'
    calibration = [images(1, 90, 120)[0], images(1, 45, 60)[0]] if precision == 'int8' else None
    report = export(
        model, file, format, precision=precision, end_to_end=precision == 'int8', size=(64, 96),
        calibration=calibration,
    )  # fmt: skip
    # a random network's labels change with little, on images that it was not calibrated on
    assert report.agreement > (0.7 if precision == 'int8' else 0.9) and report.deviation > 0
    names = [
        file.name,
        f'{file.name}.processor.json',
        *(['low.bin'] if format == 'openvino' else []),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    if precision == 'int8':
        assert report.images == 'images of 90x120, 45x60'
        text = file.read_bytes()  # only the network is quantised: the resizing would lose most
        marker = b'QuantizeLinear' if format == 'onnx' else b'FakeQuantize'
        assert marker in text or b'"i8"' in text
    assert runner(file).processor.precision == precision


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_int8_that_differs_too_much_keeps_the_first_layers_in_float(
    model, tmp_path, monkeypatch, format
):
    need(format, 'int8')
    file = tmp_path / f'low{FORMATS[format].suffix}'
    verdicts = [False, True]
    monkeypatch.setattr(module.Report, 'passes', lambda *_: verdicts.pop(0))
    names = []
    writer = onnx_runtime if format == 'onnx' else openvino_runtime

    def told(*args):
        names.append([n for n in in_float(*args) if n.endswith('Conv')])
        return names[-1]

    in_float = writer.in_float
    monkeypatch.setattr(writer, 'in_float', told)
    calibration = [*images(2, 48, 64)]
    report = export(
        model, file, format, precision='int8', size=(48, 64), calibration=calibration
    )  # fmt: skip
    # the layers of the first stage
    assert names[0] == [] and 0 < len(names[1]) == sum('stages.0' in n for n in names[1])
    assert 'layers at full image size stay in float' in report.remark and not verdicts
    monkeypatch.setattr(module.Report, 'passes', lambda *_: False)
    with pytest.raises(UserError, match='take fp16, or more calibration images'):
        export(
            model, tmp_path / f'b{file.suffix}', format, precision='int8', size=(48, 64),
            calibration=calibration,
        )  # fmt: skip


def test_a_model_in_training_mode_is_exported_as_it_predicts_and_left_as_it_was(model, tmp_path):
    need('onnx')
    training = copy.deepcopy(model).train()
    training.backbone.stages[0].eval()
    modes = [part.training for part in training.modules()]
    report = export(training, tmp_path / 'a.onnx', 'onnx', size=(64, 96))
    assert report.agreement > 0.999
    assert [part.training for part in training.modules()] == modes
    before = model.state_dict()
    assert all(torch.equal(before[k], v) for k, v in training.state_dict().items())
    planes = make_processor(model).normalised(images(1, 64, 96))
    with torch.no_grad():
        expected = model(torch.from_numpy(planes), mode='tensor').numpy()
    found = runner(tmp_path / 'a.onnx').run(planes)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_failed_check_writes_no_file_and_keeps_the_old_one(model, tmp_path, monkeypatch):
    need('onnx')
    file = tmp_path / 'a.onnx'
    file.write_text('old')
    monkeypatch.setattr(module, 'fuse', lambda model, **_: nn.Sequential(copy.deepcopy(model)))

    def wrong(network, size):
        network.model[0].decode_head.scores[0].pointwise.bias.data += 1
        network.model = network.model[0]
        return graph(network, size)

    graph = onnx_runtime.graph
    monkeypatch.setattr(onnx_runtime, 'graph', wrong)
    with pytest.raises(UserError, match='was not written: it differs from the model: max differe'):
        export(model, file, 'onnx', size=(64, 96))
    assert [p.name for p in tmp_path.iterdir()] == ['a.onnx'] and file.read_text() == 'old'


def test_the_report_measures_what_differs(model):
    processor = make_processor(model)
    pixels = images(2, 33, 47)
    planes = torch.from_numpy(processor.normalised(pixels))
    with torch.no_grad():
        logits = model(planes, mode='tensor')
    first, second = logits.topk(2, 1).indices.unbind(1)
    rivals = torch.cat([first, second]).unique()
    behind = (logits - logits.amax(1, keepdim=True))[:, rivals]
    moved = logits.clone()
    moved[0, second[0, 0, 0], 0, 0] -= 2
    report = compare(model, lambda _: moved.numpy(), processor, [pixels])
    assert report.difference == pytest.approx(2) and report.scale == behind.abs().max()
    assert report.deviation == pytest.approx(2 / behind.numel() ** 0.5)
    assert report.spread == pytest.approx(behind.std().item()) and report.agreement == 1
    cropped = logits[..., :-1].numpy()
    with pytest.raises(UserError, match=r'\(2, 5, 5, 5\) logits for an image of 33x47, expected'):
        compare(model, lambda _: cropped, processor, [pixels])

    large = nn.functional.interpolate(logits, (33, 47), mode='bilinear')
    best, second = large.topk(2, dim=1).values[0, :, 0, 0].tolist()
    labels = large.argmax(1)
    labels[0, 0, 0] = large[0, :, 0, 0].topk(2).indices[1]
    report = compare(model, lambda _: labels.numpy(), make_processor(model, True), [pixels])
    assert report.difference == pytest.approx(best - second, rel=1e-4)
    assert report.agreement == pytest.approx(1 - 1 / labels.numel())


def test_what_counts_as_the_same():
    report = Report(0.004, 0.004, 10.0, 4.0, 1.0, '')
    assert report.passes('fp32')
    worse = Report(0.4, 0.2, 10.0, 4.0, 1.0, '')
    assert not worse.passes('fp32') and worse.passes('fp16') and worse.passes('int8')
    worst = Report(4.0, 1.1, 10.0, 4.0, 0.5, '')
    assert not worst.passes('fp16') and not worst.passes('int8')
    for precision, agreement in (('fp32', 0.98), ('fp16', 0.94), ('bf16', 0.94), ('int8', 0.69)):
        assert not Report(0.0, 0.0, 10.0, 4.0, agreement, '').passes(precision)
        assert Report(0.0, 0.0, 10.0, 4.0, agreement + 0.015, '').passes(precision)


@pytest.mark.parametrize('end_to_end', [False, True])
@pytest.mark.parametrize(('classes', 'constant'), [(slice(None), 3000), (slice(4, 5), -3000)])
def test_logits_that_decide_nothing_hide_no_difference(model, classes, constant, end_to_end):
    moved = copy.deepcopy(model)
    moved.decode_head.scores[-1].pointwise.bias.data[classes] += constant
    processor, pixels = make_processor(moved, end_to_end), images(2, 65, 97)
    with torch.no_grad():
        logits = moved(torch.from_numpy(make_processor(moved).normalised(pixels)), mode='tensor')
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))

    def report(amount):
        found = logits + amount * noise
        if end_to_end:
            found = nn.functional.interpolate(found, (65, 97), mode='bilinear').argmax(1)
        return compare(moved, lambda _: found.numpy(), processor, [pixels])

    assert report(0.01).passes('fp16') and report(0.01).passes('int8')
    wrong = report(6)
    assert wrong.scale < 100 and wrong.spread < 100
    assert not wrong.passes('fp16') and not wrong.passes('int8')
    # labels that differ are not all that tells
    assert not dataclasses.replace(wrong, agreement=1.0).passes('fp16')
    assert not dataclasses.replace(wrong, agreement=1.0).passes('int8')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(format='tflite'), 'format must be one of onnx, openvino, torch-export, got tflite'),
        (dict(precision='int4'), 'precision must be one of fp32, fp16, int8'),
        (dict(path='a.pt'), 'must end in .onnx, got a.pt'),
        (dict(path='..'), '.. is a folder; name a file'),
        (dict(path='a' * 300 + '.onnx'), "can't write a*.onnx: File name too long; choose"),
        (dict(path='a' * 245 + '.onnx'), "can't write a*.onnx: File name too long; choose"),
        (dict(size=(0, 5)), 'size must be a height and a width of at least 1 pixel, got .0, 5.'),
        (dict(precision='int8'), 'int8 takes calibration images'),
        (dict(calibration=[np.zeros((9, 9, 3), np.uint8)]), 'other precisions none'),
        (dict(format='torch-export', path='a.pt2', precision='int8'), 'torch-export has no int8'),
    ],
)
def test_what_can_not_be_asked_for(model, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        export(**{'model': model, 'path': 'a.onnx', 'format': 'onnx', **changes})
    assert not list(tmp_path.iterdir())


def test_processors_of_configs(tiny_config):
    resize = 'test_pipeline[1:1] = [dict(type="Resize", scale=(30, 20), keep_ratio=True)]'
    model = init_model(tiny_config(resize), device='cpu')
    processor = make_processor(model)
    assert processor.resize == {'scale': [30, 20], 'keep_ratio': True}
    assert processor.mean == (127.5,) * 3 and processor.channel_order == 'rgb'
    assert Processor.from_json(processor.to_json(), 'it') == processor
    full = resize.replace('"Resize"', '"mmcv.transforms.processing.Resize"')
    assert make_processor(init_model(tiny_config(full), device='cpu')) == processor
    for changes, message in (
        ('test_pipeline[1:1] = [dict(type="Resize")]', 'a Resize without scale and scale_factor'),
        ('test_pipeline[1:1] = [dict(type="RandomFlip", prob=0.5)]', 'has LoadImageFromFile, Rand'),
        (resize.replace('True', 'True, backend="pillow"'), 'Resize with backend can not'),
        ('test_pipeline[0]["color_type"] = "grayscale"', "has {'color_type': 'grayscale'}, and"),
        ('model["test_cfg"] = dict(mode="slide")', 'model.test_cfg.mode=whole'),
        (
            'model["decode_head"].update(num_classes=2, out_channels=1, threshold=1)',
            'every pixel gets the same label with model.decode_head.threshold=1; set one between',
        ),
        ('model["data_preprocessor"]["test_cfg"] = dict(size_divisor=32)', 'pads test images'),
    ):
        with pytest.raises(UserError, match=message):
            make_processor(init_model(tiny_config(changes), device='cpu'))


def test_mmsegs_own_networks(tmp_path):
    need('onnx')
    config = dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8)
    head = dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1)
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),  # BGR, not normalised
            backbone=config,
            decode_head=dict(head, num_classes=2, out_channels=1, threshold=0.4),
            test_cfg=ConfigDict(mode='whole'),
        )
    ).eval()
    for end_to_end in (False, True):
        file = tmp_path / f'{end_to_end}.onnx'
        report = export(model, file, 'onnx', end_to_end=end_to_end, size=(64, 96))
        assert report.agreement > 0.999
    processor = runner(file).processor
    assert (processor.channel_order, processor.mean, processor.threshold) == ('bgr', (), 0.4)


def test_in_caffes_geometry_labels_are_cut_out(tmp_path):
    need('onnx')
    backbone = dict(type='VGG16', base_channels=2, fc_channels=6, norm_cfg=None)
    model = MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
            backbone=dict(backbone, image_padding=100, fc6_padding=0),
            decode_head=dict(
                type='FCN8Head', in_channels=[8, 16, 6], num_classes=3, image_padding=100
            ),
            test_cfg=ConfigDict(mode='whole'),
        )
    )
    distinct(model)
    (image,) = images(1, 83, 61)
    sample = SegDataSample(metainfo=dict(img_shape=image.shape[:2], ori_shape=image.shape[:2]))
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():  # so that no class is the largest everywhere
        logits = model.decode_head.to_image(model(bgr[None].float(), mode='tensor'), (83, 61))
        model.decode_head.scores[0].bias -= logits.mean((0, 2, 3))
    (result,) = model.test_step(dict(inputs=[bgr], data_samples=[sample]))
    expected = result.pred_sem_seg.data[0].numpy()
    assert len(np.unique(expected)) > 1
    for end_to_end in (False, True):
        file = tmp_path / f'{end_to_end}.onnx'
        export(model, file, 'onnx', end_to_end=end_to_end, size=(64, 96))
        assert np.mean(runner(file)([image])[0] == expected) > 0.999


class Unknown(nn.Module):
    def forward(self, x):
        return x + torch.linalg.matrix_exp(x[..., :2, :2]).sum()


def test_a_layer_that_can_not_be_exported_is_one_line(model, tmp_path, capfd):
    need('onnx')
    broken = copy.deepcopy(model)
    broken.backbone.stages[0].append(Unknown())
    with pytest.raises(UserError, match='can not be exported to onnx .*matrix_exp') as raised:
        export(broken, tmp_path / 'a.onnx', 'onnx', size=(64, 96))
    assert '\n' not in str(raised.value) and not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ''  # nor a graph of thousands of lines


@pytest.mark.skipif(not OLD_TORCH, reason='this torch exports any size')
def test_a_file_tied_to_its_size_says_so(model, tmp_path):
    report = export(model, tmp_path / 'a.pt2', 'torch-export', size=(64, 96))
    assert 'the file takes 64x96 pixels alone' in str(report)
    with pytest.raises(UserError, match='64x96'):
        Segmenter(tmp_path / 'a.pt2')(np.zeros((80, 80, 3), np.uint8))


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'onnx', None)
    with pytest.raises(UserError, match='pip install onnx'):
        export(model, tmp_path / 'a.onnx', 'onnx', size=(64, 96))


@pytest.fixture
def tiny(tiny_config, tmp_path):
    """A config that enlarges its images, and a checkpoint for it."""
    resize = (
        'test_pipeline[1:1] = [dict(type="Resize", scale=(64, 60), keep_ratio=True)]\n'
        'test_dataloader["dataset"]["pipeline"] = test_pipeline'
    )
    config = tiny_config(resize)
    weights = distinct(init_model(config, None, 'cpu')).state_dict()
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'tiny.pth')
    return config, str(tmp_path / 'tiny.pth')


def test_verify_scores_as_the_test_tool_does(tool, tiny, tmp_path):
    need('onnx')
    config, checkpoint = tiny
    model = load_model(load_config(config), checkpoint, 'cpu')
    scores = []
    for end_to_end in (False, True):
        export(model, tmp_path / 'a.onnx', 'onnx', end_to_end=end_to_end, size=(53, 64))
        scores.append(verify(model, tmp_path / 'a.onnx'))
    tool('test').main([config, checkpoint, '--work-dir', str(tmp_path / 'work')])
    (log,) = (tmp_path / 'work').glob('*/*.json')
    expected = json.loads(log.read_text().splitlines()[-1])['mIoU']
    assert scores[0]['model']['mIoU'] == pytest.approx(expected)
    assert scores[0]['exported']['mIoU'] == pytest.approx(expected, abs=0.1)
    # labels are resized, not logits
    assert scores[1]['exported']['mIoU'] == pytest.approx(expected, abs=5)


def test_the_tool_writes_checks_and_verifies(tool, tiny, tiny_data, tmp_path, capsys):
    need('onnx')
    config, checkpoint = tiny
    out = tmp_path / 'new' / 'tiny.onnx'
    args = [config, checkpoint, '--format', 'onnx', '--size', '48', '64', '--out', str(out)]
    calibrate = ['--precision', 'int8', '--calibrate', str(tiny_data / 'JPEGImages')]
    tool('export').main([*args, *calibrate, '--end-to-end', '--verify', 'test'])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith((str(out), 'mIoU on'))]
    assert '4 of them differ, with a contrast of ' in told[0]
    assert 'INT8 took twice as long as float32 in ONNX Runtime where' in told[0]
    assert told[0].startswith(f'{out}: max difference ') and 'of labels agree' in told[0]
    assert [line.partition(':')[0] for line in told[1:]] == [
        'mIoU on test, model', 'mIoU on test, exported',
    ]  # fmt: skip
    for changes, message in (
        (['--calibrate', str(tmp_path / 'none')], 'no image or folder'),
        (['--size', '0', '8'], '--size must be positive'),
        (['--cfg-options', 'model.decode_head.num_classes=4'], 'was trained for 3 classes'),
        (['--tolerance', '1'], 'a tolerance is that of a verification'),
    ):
        with pytest.raises(SystemExit, match='^2$'):
            tool('export').main([*args, *changes])
        assert message in capsys.readouterr().err


def test_verify_names_the_sample_that_is_damaged(model, tiny_config, tiny_data, tmp_path):
    need('onnx')
    made = copy.deepcopy(model)
    made.cfg = load_config(tiny_config('val_dataloader["num_workers"] = 1'))
    export(made, tmp_path / 'a.onnx', 'onnx', size=(40, 48))
    (tiny_data / 'JPEGImages' / '1.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='/1.jpg: LoadImageFromFile fails with'):
        verify(made, tmp_path / 'a.onnx')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ('val_evaluator["iou_metrics"] = ["mDice"]', 'gives aAcc, mDice, mAcc, and no mIoU to'),
        ('val_evaluator.update(format_only=True, output_dir="out")', 'gives nothing, and no mIoU'),
        ('val_evaluator = None', 'val_evaluator of .* gives nothing, and no mIoU to compare'),
        ('val_dataloader = None', 'has no val_dataloader, whose data are needed here; give it one'),
        ('del val_dataloader', 'has no val_dataloader, whose data are needed here; give it one'),
        ('del val_dataloader["dataset"]["pipeline"][1]', 'the config loads no label maps, so ther'),
        ('del val_dataloader["dataset"]["pipeline"][2]', 'without inputs; put .*PackSegInputs'),
    ],
)
def test_data_and_metrics_that_verify_nothing_are_told(
    tiny, tiny_config, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(tiny_config(changes))
    model = load_model(load_config(tiny[0]), tiny[1], 'cpu')
    session = runtimes.Session(lambda planes: np.zeros((1, 3, 5, 6)), make_processor(model))
    monkeypatch.setattr(runtimes, 'load', lambda path: session)
    model.cfg = cfg
    with pytest.raises(UserError, match=message):
        verify(model, 'a.onnx')
    if 'evaluator' not in changes:
        with pytest.raises(UserError, match=message):
            calibrate(model)
        with pytest.raises(UserError, match=message):
            show_predictions(cfg.filename, tiny[1], 'p.png', 1, 'cpu')
    assert not (tmp_path / 'out').exists()


def test_verify_refuses_classes_in_another_order(tiny, tmp_path):
    need('onnx')
    content = torch.load(tiny[1])
    content['meta'] = dict(CLASSES=('right', 'left', 'ground'))  # as mmseg 0.x writes them
    torch.save(content, tiny[1])
    model = load_model(load_config(tiny[0]), tiny[1], 'cpu')
    with pytest.raises(UserError, match='trained on classes in another order: label 0 is .right.'):
        export(model, tmp_path / 'a.onnx', 'onnx', size=(53, 64), verify_on='val')
    assert not list(tmp_path.glob('*.onnx'))


def test_a_score_that_falls_by_more_than_the_tolerance_is_refused(tiny, tmp_path, monkeypatch):
    need('onnx')
    model = load_model(load_config(tiny[0]), tiny[1], 'cpu')
    found = dict(model=dict(mIoU=57.5), exported=dict(mIoU=55.0))
    asked = []
    monkeypatch.setattr(module, 'verify', lambda *args: asked.append(args) or found)
    common = dict(size=(53, 64), verify_on='test')
    with pytest.raises(UserError, match='on test falls from 57.50% to 55.00%, more than the toler'):
        export(model, tmp_path / 'a.onnx', 'onnx', tolerance=2, **common)
    assert len(asked) == 1 and asked[0][2] == 'test'
    assert not list(tmp_path.glob('*.onnx')) and not list(tmp_path.glob('*.json'))
    report = export(model, tmp_path / 'a.onnx', 'onnx', tolerance=2.5, **common)
    assert report.verified == dict(model=57.5, exported=55.0)
    found['exported']['mIoU'] = float('nan')
    with pytest.raises(UserError, match='to nan%'):
        export(model, tmp_path / 'a.onnx', 'onnx', tolerance=99, **common)


@pytest.mark.parametrize('given', [(12, 20), (7, 3), (2, 2)])
def test_pooling_to_a_size_is_a_matrix_product(given):
    x = torch.randn(2, 3, *given)
    for size in ((3, 5), (6, 6), (1, 2)):
        expected = nn.functional.adaptive_avg_pool2d(x, size)
        torch.testing.assert_close(MatrixPool(size)(x), expected)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((2, 3))

    def forward(self, x):
        return x + self.pool(x).amax((2, 3), keepdim=True)


def test_pooling_to_a_size_goes_into_torchs_files(model, tmp_path):
    if OLD_TORCH:
        pytest.skip('torch 2.12 ties the file to sizes like the example')
    pooled = copy.deepcopy(model)
    pooled.backbone.stages[0].append(Pooled())
    report = export(pooled, tmp_path / 'a.pt2', 'torch-export', size=(40, 48))
    assert report.images == 'images of 40x48, 31x31'


class OneSize(nn.Module):
    """A layer that an exporter ties to the sizes that it saw."""

    def forward(self, x):
        return x + torch.ones(x.shape[2:].numel()).view(int(x.shape[2]), -1)[None, None]


@pytest.fixture
def one_size(model, tiny_config):
    made = copy.deepcopy(model)
    made.backbone.stages[0].append(OneSize())
    resize = 'test_pipeline[1:1] = [dict(type="Resize", scale=(48, 40), keep_ratio={})]'
    made.fixed, made.free = (load_config(tiny_config(resize.format(k))) for k in (False, True))
    return made


def test_a_network_of_one_size_is_exported_where_resize_fixes_it(one_size, tmp_path):
    need('onnx')
    one_size.cfg = one_size.free
    with pytest.raises(UserError, match='a network of one size is exported where Resize'):
        export(one_size, tmp_path / 'a.onnx', 'onnx', size=(64, 96))
    assert not list(tmp_path.glob('*.onnx'))
    one_size.cfg = one_size.fixed
    report = export(one_size, tmp_path / 'a.onnx', 'onnx', size=(64, 96))
    assert report.images == 'images of 40x48' and '40x48 pixels alone' in str(report)
    session = runner(tmp_path / 'a.onnx')
    assert session.processor.fixed_size == (40, 48)
    assert session([images(1, 90, 70)[0]])[0].shape == (90, 70)
    with pytest.raises(UserError, match='takes 40x48 pixels alone, not 90x70'):
        session.rescaled(1)([images(1, 90, 70)[0]])


@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_weights_of_another_export_are_refused(model, tmp_path, monkeypatch, format):
    need(format)
    monkeypatch.setattr(onnx_runtime, '_LIMIT', 1000)  # as if they were above 2 GiB
    suffix, beside = FORMATS[format].suffix, '.bin' if format == 'openvino' else '.onnx.data'
    other = copy.deepcopy(model)
    for weight in other.backbone.parameters():
        weight.data *= 1.1
    for name, net in (('a', model), ('b', other)):
        export(net, tmp_path / f'{name}{suffix}', format, size=(40, 48))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        f'{name}{end}' for name in 'ab' for end in (suffix, beside, f'{suffix}.processor.json')
    )
    assert runner(tmp_path / f'a{suffix}')([images(1, 33, 47)[0]])
    (tmp_path / f'b{beside}').replace(tmp_path / f'a{beside}')
    with pytest.raises(UserError, match=f'a{beside} does not hold the weights that .*a{suffix} wa'):
        runner(tmp_path / f'a{suffix}')


@pytest.mark.parametrize('format', FORMATS)
def test_the_checkpoint_and_other_files_are_not_replaced(tiny, tmp_path, format):
    kind = FORMATS[format]
    file, cfg = tmp_path / f'a{kind.suffix}', load_config(tiny[0])
    beside = file.with_suffix(kind.beside or kind.suffix)
    beside.write_bytes(Path(tiny[1]).read_bytes())
    if kind.beside:  # of whatever it is the weights
        with pytest.raises(UserError, match=f'{beside} is there already and is not the weights of'):
            export(load_model(cfg, tiny[1], 'cpu'), file, format)
        file.write_text('old')
    with pytest.raises(UserError, match=f'{beside} is the checkpoint, and would be replaced; choo'):
        export(load_model(cfg, str(beside), 'cpu'), file, format)
    assert beside.read_bytes() == Path(tiny[1]).read_bytes()


def test_calibration_on_nothing_is_refused(model, tmp_path):
    black = [np.zeros((40, 48, 3), np.uint8)] * 9
    nearly = [np.full((40, 48, 3), 100 + i, np.uint8) for i in range(9)]
    for calibration, differ in ((black, 1), (nearly, 9)):
        with pytest.raises(
            UserError, match=f'calibrated on 9 images of which {differ} differ, wit'
        ):
            export(
                model, tmp_path / 'a.onnx', 'onnx', precision='int8', calibration=calibration
            )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_an_image_that_can_not_be_calibrated_on_is_named(model, tmp_path):
    Image.new('F', (48, 40)).save(tmp_path / 'deep.tif')
    (tmp_path / 'broken.png').write_bytes(b'')
    for name, why in (('deep.tif', 'values of Pillow'), ('broken.png', 'UnidentifiedImageError')):
        with pytest.raises(UserError, match=f'calibration image {tmp_path}/{name}: {why}'):
            export(
                model, tmp_path / 'a.onnx', 'onnx', precision='int8',
                calibration=[tmp_path / name],
            )  # fmt: skip


def test_int8_is_compared_on_images_that_it_was_not_calibrated_on():
    given = [images(1, 40 + i, 48)[0] for i in range(20)]
    left = list(given)
    held, words = module._held_out(left)
    assert len(held) == 4 and len(left) == 16 and len({i.shape for i in held + left}) == 20
    assert words.startswith('calibrated on 16 others; 20 images in all differ, with a contrast of')
    few = given[:3]
    held, words = module._held_out(few)
    assert len(few) == 3 and 'compared mirrored' in words
    np.testing.assert_array_equal(held[0], given[0][:, ::-1])


def test_flat_images_are_what_noise_is_not():
    (batch,) = flat_images((30, 40))
    assert [image.mean() for image in batch[:2]] == [0, 255]
    assert batch[2, 0].min() == 250 and batch[2, -1].max() == 0
    assert batch[3, 0].max() == 0 and batch[3, -1].min() == 250


def test_fp16_that_overflows_on_pictures_is_refused(model, tmp_path):
    if OLD_TORCH:
        pytest.skip('torch 2.12 ties the file to sizes like the example')
    wide = copy.deepcopy(model)
    first, second = wide.backbone.stages[0]
    # grey is nothing, and white all
    first.norm.bias.data.fill_(0)
    first.conv.pointwise.weight.data.mul_(0).add_(2000)
    first.conv.depthwise.weight.data.fill_(1)
    second.conv.pointwise.weight.data.mul_(1e-6)
    with pytest.raises(UserError, match='NaN or infinity|differs from the model'):
        export(
            wide, tmp_path / 'a.pt2', 'torch-export', precision='fp16', end_to_end=True,
            size=(40, 48),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('format', FORMATS)
def test_a_network_of_nan_is_not_exported(model, tmp_path, format):
    need(format)
    broken = copy.deepcopy(model)
    broken.backbone.stages[0][0].norm.running_var.fill_(-1)
    with pytest.raises(UserError, match='^the network gives NaN or infinity; its weights are dam'):
        export(broken, tmp_path / f'a{FORMATS[format].suffix}', format, size=(40, 48))
    assert not list(tmp_path.iterdir())


def test_labels_of_a_broken_network_are_no_class(model, tmp_path):
    need('onnx')
    export(model, tmp_path / 'a.onnx', 'onnx', end_to_end=True, size=(40, 48))
    broken = copy.deepcopy(model)
    network = module.Network(broken, make_processor(broken, True))
    assert network(torch.zeros(1, 40, 48, 3, dtype=torch.uint8)).max() < 5
    broken.decode_head.scores[0].pointwise.bias.data[0] = float('nan')
    assert (network(torch.zeros(1, 40, 48, 3, dtype=torch.uint8)) == 255).all()


CALIBRATED = Calibrated(1.7, 0.2, 0.1, 4, 99)


@pytest.mark.parametrize('format', FORMATS)
def test_scores_are_the_softmax_at_the_images_size(model, tmp_path, format):
    need(format)
    file = tmp_path / f'a{FORMATS[format].suffix}'
    report = export(
        model, file, format, end_to_end=True, scores=True, size=(40, 48), calibrated=CALIBRATED
    )
    assert 0 < report.shift < 1e-4
    segment = Segmenter(file, threads=1)
    for (image,) in (images(1, 97, 131), images(1, 40, 72)):
        planes = torch.from_numpy(make_processor(model).normalised(image[None]))
        with torch.no_grad():
            logits = model(planes, mode='tensor')
        logits = nn.functional.interpolate(logits, image.shape[:2], mode='bilinear')
        expected = (logits / 1.7).softmax(1).amax(1)[0].numpy()
        labels, scores = segment(image, scores=True)
        assert scores.dtype == np.float32 and scores.shape == labels.shape == image.shape[:2]
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        np.testing.assert_array_equal(segment(image), labels)
    processor = runner(file).processor
    assert (processor.temperature, processor.calibration_error) == (1.7, (0.2, 0.1))


def test_scores_that_no_file_has_are_refused(model, tmp_path):
    need('onnx')
    file = tmp_path / 'a.onnx'
    for options, message in (
        (dict(scores=True), 'a file of logits has scores without more ado'),
        (dict(end_to_end=True, calibrated=CALIBRATED), 'no use for a temperature without scores'),
    ):
        with pytest.raises(UserError, match=message):
            export(model, file, 'onnx', size=(40, 48), **options)
    export(model, file, 'onnx', end_to_end=True, size=(40, 48))
    with pytest.raises(UserError, match='labels alone; export it with scores, or without end_to'):
        Segmenter(file)(images(1, 40, 48)[0], scores=True)


def test_a_wrong_score_is_not_written(model, tmp_path, monkeypatch):
    need('onnx')
    monkeypatch.setattr(
        'ssnet_mm.deploy.network.Finish._probabilities', lambda self, logits, _: logits[:, 0] * 0
    )
    with pytest.raises(UserError, match='was not written: it differs from the model'):
        export(
            model, tmp_path / 'a.onnx', 'onnx', end_to_end=True, scores=True, size=(40, 48)
        )  # fmt: skip


def test_what_other_programs_need_lies_beside_the_file(model, tmp_path):
    need('onnx')
    export(model, tmp_path / 'a.onnx', 'onnx', end_to_end=True, scores=True, size=(40, 48))
    told = json.loads((tmp_path / 'a.onnx.processor.json').read_text())
    network = onnx_runtime.require('onnx', 'onnx', 'this test').load(tmp_path / 'a.onnx').graph
    assert told['file'] == 'a.onnx'
    assert [(p['name'], p['type']) for p in told['inputs']] == [('images', 'uint8')]
    assert told['inputs'][0]['shape'] == ['batch', 'height', 'width', 3]
    assert [(p['name'], p['type']) for p in told['outputs']] == [
        ('labels', 'uint8'), ('scores', 'float32'),
    ]  # fmt: skip
    assert [port.name for port in network.output] == ['labels', 'scores']
    assert told['classes'] == list('abcde') and told['palette'] == META['palette']
    assert told['temperature'] == 1 and told['resize'] is None and told['channel_order'] == 'rgb'
    assert told['mean'] == pytest.approx([123.675, 116.28, 103.53])
    # colours are told where none are known; logits have their own type
    other = json.loads(Processor(3).described('b.pt2'))
    assert other['palette'] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert other['outputs'][0]['shape'] == ['batch', 3, 'rows', 'columns']


def test_files_of_two_formats_beside_each_other_are_each_described(model, tmp_path):
    need('openvino')
    export(model, tmp_path / 'a.onnx', 'onnx', size=(40, 48))
    export(model, tmp_path / 'a.xml', 'openvino', end_to_end=True, size=(40, 48))
    for name, given in (('a.onnx', False), ('a.xml', True)):
        told = json.loads((tmp_path / f'{name}.processor.json').read_text())
        assert (told['file'], told['end_to_end']) == (name, given)


def test_networks_of_blue_green_and_red_are_exported_end_to_end(model, tmp_path):
    if OLD_TORCH:
        pytest.skip('torch 2.12 ties the file to sizes like the example')
    swapped = copy.deepcopy(model)
    for name in ('_channel_conversion', 'channel_conversion'):  # OneDL's and OpenMMLab's
        setattr(swapped.data_preprocessor, name, False)
    export(swapped, tmp_path / 'a.pt2', 'torch-export', end_to_end=True, size=(40, 48))
    assert runner(tmp_path / 'a.pt2').processor.channel_order == 'bgr'


def test_labels_of_more_than_8_bits_are_not_exported_end_to_end():
    many = build_model(257, conv_type='ds', base_channels=2, fc_channels=4)
    assert make_processor(many).num_classes == 257
    with pytest.raises(UserError, match='labels of 8 bits, and there are 257 classes'):
        make_processor(many, end_to_end=True)


def test_an_exported_segmenter_can_be_pickled(model, tmp_path):
    need('onnx')
    export(model, tmp_path / 'a.onnx', 'onnx', size=(40, 48))
    segment = Segmenter(tmp_path / 'a.onnx', tile=32, batch_size=2)
    other = pickle.loads(pickle.dumps(segment))
    assert other.tiling == segment.tiling and other.batch_size == 2
    image = images(1, 50, 70)[0]
    np.testing.assert_array_equal(other(image), segment(image))


def test_devices_and_folders_that_are_not_there(model, tmp_path):
    need('onnx')
    export(model, tmp_path / 'a.onnx', 'onnx', size=(40, 48))
    for device in ('cpu:x', 'cpu:1', 'cuda:x', 'gpu'):
        with pytest.raises(UserError, match=f'device {device}: onnxruntime has no such provider'):
            runtimes.load(tmp_path / 'a.onnx', device)
    with pytest.raises(UserError, match="can't make the folder .*a.onnx"):
        export(model, tmp_path / 'a.onnx' / 'b.onnx', 'onnx', size=(40, 48))
