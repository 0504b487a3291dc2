import copy

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from helpers.nets import draw_statistics
from mmseg.registry import MODELS
from torch import nn

from ssnet_mm import build_model
from ssnet_mm.deploy import Segmenter, fuse, precision
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.precision import compute_in_bfloat16, pack_weights, run_in_bfloat16
from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError


@pytest.fixture
def model():
    made = build_model(5, 'ds', base_channels=8, fc_channels=32)
    for name, weight in made.decode_head.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            nn.init.normal_(weight.data)
    return draw_statistics(made).eval()


@pytest.mark.parametrize('fused', [False, True])
def test_logits_come_close_and_stay_float32(model, fused):
    half = fuse(model) if fused else copy.deepcopy(model)
    compute_in_bfloat16(half)
    seen = []
    for module in half.modules():
        if type(module) in (nn.Conv2d, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda m, x, y: seen.append((type(m).__name__, m.weight.dtype, y.dtype))
            )
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected, found = model(image, mode='tensor'), half(image, mode='tensor')
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert not torch.equal(found, expected)
    assert ('Conv2d', torch.bfloat16, torch.bfloat16) in seen
    assert ('Conv2d', torch.float32, torch.float32) in seen  # the head's
    norms = [(weight, out) for kind, weight, out in seen if kind == 'BatchNorm2d']
    assert norms == ([] if fused else [(torch.float32, torch.bfloat16)] * 13)
    assert half.data_preprocessor.mean.dtype == torch.float32
    # the original is as it was
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_cpu_without_bfloat16_computes_the_same(model, monkeypatch):
    image = torch.randn(2, 3, 65, 97)
    own, rounded = fuse(model), fuse(model)
    compute_in_bfloat16(own)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    run_in_bfloat16(rounded)
    kinds = {type(m).__name__ for m in rounded.backbone.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {'_RoundedConv2d'}
    with torch.no_grad():
        expected = model(image, mode='tensor')
        found, theirs = rounded(image, mode='tensor'), own(image, mode='tensor')
    scale = expected.abs().max()
    assert (found - theirs).abs().max() < 0.01 * scale
    assert (found - theirs).abs().mean() < 0.2 * (found - expected).abs().mean()


def test_any_head_of_mmseg_gives_float32_logits():
    net = MODELS.build(
        dict(
            type='EncoderDecoder',
            backbone=dict(type='VGG16', base_channels=4, fc_channels=None, out_indices=(3, 4)),
            decode_head=dict(
                type='FCNHead', in_channels=32, in_index=1, channels=8, num_classes=3,
                norm_cfg=dict(type='BN'),
            ),
            test_cfg=dict(mode='whole'),
        )
    ).eval()  # fmt: skip
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(image, mode='tensor')
        compute_in_bfloat16(net)
        found = net(image, mode='tensor')
        assert net.decode_head.predict(net.extract_feat(image), [dict(img_shape=(64, 64))], {})[
            0
        ].dtype == torch.float32  # fmt: skip
    assert found.dtype == torch.float32 and type(net.decode_head).__name__ == 'FCNHead'
    assert net.decode_head.conv_seg.weight.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_packed_weights_give_the_same_at_any_size(model, monkeypatch):
    monkeypatch.setattr(precision, '_LARGE', 256)
    fused = fuse(model)
    packed = copy.deepcopy(fused)
    pack_weights(packed)
    shapes = [
        tuple(m.weight.shape)
        for m in packed.modules()
        if getattr(m, 'weight', None) is not None and m.weight.is_mkldnn
    ]
    assert (32, 32, 1, 1) in shapes and min(torch.Size(s).numel() for s in shapes) >= 256
    with torch.no_grad():
        for size in ((1, 3, 64, 64), (2, 3, 33, 65)):
            image = torch.randn(size)
            expected, found = fused(image, mode='tensor'), packed(image, mode='tensor')
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_large_weights_are_packed(model):
    fused = fuse(model)
    pack_weights(fused)
    assert sum(p.numel() for p in fused.parameters()) == sum(
        p.numel() for p in fuse(model).parameters()
    )
    wide = nn.ModuleList(
        [nn.Conv2d(1024, 1024, 1), nn.Conv2d(1024, 1024, 1, padding_mode='reflect', padding=1)]
    )
    pack_weights(wide)
    assert [hasattr(m, 'padding_mode') for m in wide] == [False, True]


@pytest.fixture
def files(tiny_config, tmp_path):
    """A config, and a checkpoint of it."""
    config = tiny_config()
    net = build_segmentor(load_config(config))
    for name, weight in net.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            nn.init.normal_(weight.data)
    torch.save({'state_dict': net.state_dict(), 'meta': {}}, tmp_path / 'tiny.pth')
    return config, str(tmp_path / 'tiny.pth')


def test_a_segmenter_takes_a_precision(files, tiny_data):
    photo = tiny_data / 'JPEGImages' / '1.jpg'
    full, half = (Segmenter(*files, device='cpu', precision=p) for p in ('fp32', 'bf16'))
    assert half.session.model.backbone.fc7.conv.weight.dtype == torch.bfloat16
    assert full.session.model.backbone.fc7.conv.weight.dtype == torch.float32
    assert (half(photo) == full(photo)).mean() > 0.9
    with pytest.raises(UserError, match='a config runs in fp32 or bf16; for int8 export it'):
        Segmenter(*files, device='cpu', precision='int8')


def test_the_tools_take_it(files, tool, tiny_data, tmp_path, fails):
    folder = tmp_path / 'out'
    tool('predict').main(
        [*files, str(tiny_data / 'JPEGImages'), '--out-dir', str(folder), '--precision', 'bf16']
    )
    assert len(list((folder / 'index').iterdir())) == 4
    seen = []
    original = precision.compute_in_bfloat16

    def watched(model):
        original(model)
        seen.append(type(model.backbone.stages[0][0]).__name__)

    precision.compute_in_bfloat16 = watched
    try:
        tool('test').main(
            [*files, '--work-dir', str(tmp_path / 't'), '--fuse', '--precision', 'bf16']
        )
    finally:
        precision.compute_in_bfloat16 = original
    assert seen == ['_FoldedConvModule']  # after the layers were fused
    onnx = tmp_path / 'a.onnx'
    onnx.touch()
    line = fails('predict', onnx, tiny_data / 'JPEGImages', '--out-dir', tmp_path / 'o',
                 '--precision', 'bf16')  # fmt: skip
    assert 'ONNX Runtime has no convolutions in bfloat16' in line
    assert not (tmp_path / 'o').exists()


def test_openvino_files_say_that_they_are_for_bfloat16(model, tmp_path):
    need('openvino')
    file = tmp_path / 'half.xml'
    report = export(model, file, 'openvino', precision='bf16', size=(64, 96))
    assert report.agreement > 0.95 and report.passes('bf16')
    segment = Segmenter(file, threads=1)
    assert segment.session.processor.precision == 'bf16'
    assert segment(np.zeros((50, 61, 3), np.uint8)).shape == (50, 61)
    Segmenter(file, precision='fp32')  # the file holds float32
    with pytest.raises(UserError, match='holds bf16; for int8 export it anew'):
        Segmenter(file, precision='int8')
