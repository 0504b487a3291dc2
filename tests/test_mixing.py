"""The package's parts among those of mmseg and mmpretrain: whole segmentors, built from configs."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.nets import CONV_CFGS, SEPARABLE, data_sample
from mmcv.cnn.utils import fuse_conv_bn
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from torch import nn

import ssnet_mm  # noqa: F401  (registers what the configs name)
from ssnet_mm.layers import SeparableConv2d

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / 'docs' / 'mixing.md'
CLASSES = 5
TRAIN_SIZE, PREDICT_SIZE = (65, 97), (97, 131)
BN = dict(type='BN')
pytestmark = pytest.mark.usefixtures('no_default_scope')
PREPROCESSOR = dict(
    type='mmseg.SegDataPreProcessor',  # with its scope, so that it is found without a default one
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    size_divisor=1,
    pad_val=0,
    seg_pad_val=255,
)


def vgg16(**kwargs) -> dict:
    """Stages of 4, 8, 16, 32 and 32 channels."""
    return dict(type='VGG16', base_channels=4, fc_channels=None, norm_cfg=BN, **kwargs)


# Stage 5 stays at 1/8, as the dilated backbones of PSPNet, DeepLabV3+ and OCRNet do.
DILATED = dict(strides=(2, 2, 2, 1, 1), dilations=(1, 1, 1, 1, 2))


def head(type: str, **kwargs) -> dict:
    return dict(type=type, num_classes=CLASSES, channels=8, norm_cfg=BN, dropout_ratio=0, **kwargs)


def fcn8_head(in_channels: list[int], **kwargs) -> dict:
    return dict(type='FCN8Head', in_channels=in_channels, num_classes=CLASSES, **kwargs)


def net(backbone: dict, decode_head: dict | list[dict], **kwargs) -> dict:
    kwargs = {**dict(type='EncoderDecoder', test_cfg=dict(mode='whole')), **kwargs}
    return dict(
        backbone=backbone, decode_head=decode_head, data_preprocessor=PREPROCESSOR, **kwargs
    )


def under_head(name: str, conv_cfg: dict | None, whole: bool = False) -> dict:
    """VGG16 under one of mmseg's heads; ``whole``: the conv type goes into the head as well."""
    kwargs = dict(conv_cfg=conv_cfg) if whole else {}
    if name == 'PSPHead':
        return net(
            vgg16(out_indices=(4,), conv_cfg=conv_cfg, **DILATED),
            head(name, in_channels=32, in_index=0, pool_scales=(1, 2, 3, 6), **kwargs),
        )
    if name == 'DepthwiseSeparableASPPHead':
        return net(
            vgg16(out_indices=(1, 4), conv_cfg=conv_cfg, **DILATED),  # c1 is the first, at 1/4
            head(
                name,
                in_channels=32,
                in_index=1,
                dilations=(1, 2, 3),
                c1_in_channels=8,
                c1_channels=4,
                **kwargs,
            ),
        )
    if name == 'OCRHead':
        return net(
            vgg16(out_indices=(3, 4), conv_cfg=conv_cfg, **DILATED),
            [
                head('FCNHead', in_channels=32, in_index=0, num_convs=1, **kwargs),
                head('OCRHead', in_channels=32, in_index=1, ocr_channels=4, **kwargs),
            ],
            type='CascadeEncoderDecoder',
            num_stages=2,
        )
    if name == 'LRASPPHead':
        return net(
            # The head averages windows of 49x49: the coarsest level must be as large, here at 1/4.
            vgg16(out_indices=(0, 1, 2), conv_cfg=conv_cfg, strides=(2, 2, 1, 1, 1)),
            head(
                name,
                in_channels=(4, 8, 16),
                in_index=(0, 1, 2),
                input_transform='multiple_select',
                branch_channels=(4, 8),
                **kwargs,
            ),
        )
    return net(  # UPerHead, SegformerHead
        vgg16(out_indices=(1, 2, 3, 4), conv_cfg=conv_cfg),
        head(name, in_channels=[8, 16, 32, 32], in_index=[0, 1, 2, 3], **kwargs),
    )


def resnet(depth: int = 18, **kwargs) -> dict:
    return dict(
        type='ResNet',
        depth=depth,
        base_channels=8,
        stem_channels=8,
        norm_cfg=BN,
        zero_init_residual=False,  # else most gradients of the first step are zero
        **kwargs,
    )


HRNET_STAGES = dict(
    stage1=dict(
        num_modules=1, num_branches=1, block='BOTTLENECK', num_blocks=(1,), num_channels=(4,)
    ),
    stage2=dict(
        num_modules=1, num_branches=2, block='BASIC', num_blocks=(1, 1), num_channels=(4, 8)
    ),
    stage3=dict(
        num_modules=1, num_branches=3, block='BASIC', num_blocks=(1,) * 3, num_channels=(4, 8, 16)
    ),
    stage4=dict(
        num_modules=1,
        num_branches=4,
        block='BASIC',
        num_blocks=(1,) * 4,
        num_channels=(4, 8, 16, 32),
    ),
)
SWIN = dict(
    type='SwinTransformer', embed_dims=8, depths=(1,) * 4, num_heads=(1, 2, 2, 4), window_size=4
)
MIT = dict(
    type='MixVisionTransformer', embed_dims=8, num_heads=[1, 1, 2, 2], num_layers=[1, 1, 1, 1]
)
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32]),
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
    layer_scale_init_value=1.0,  # the default 1e-6 makes the first step too short to see
)
MOBILENET_V2 = dict(type='MobileNetV2', widen_factor=0.25, out_indices=(2, 4, 6), norm_cfg=BN)
VGG16_FCN8 = dict(
    type='VGG16', base_channels=4, fc_channels=8, dropout_ratio=0, norm_cfg=BN
)  # pool3, pool4, fc7

MIXES = {
    **{
        f'{conv}-{name}': under_head(name, conv_cfg)
        for conv, conv_cfg in (('VGG16', None), ('separable_VGG16', SEPARABLE))
        for name in (
            'PSPHead',
            'UPerHead',
            'DepthwiseSeparableASPPHead',
            'OCRHead',
            'LRASPPHead',
            'SegformerHead',
        )
    },
    'VGG16_with_fc7-UPerHead': net(
        dict(VGG16_FCN8, out_indices=(1, 2, 3, 5)),
        head('UPerHead', in_channels=[8, 16, 32, 8], in_index=[0, 1, 2, 3]),
    ),
    'ResNet-FCN8Head_2_levels': net(
        resnet(out_indices=(2, 3)), fcn8_head([32, 64], in_index=[0, 1])
    ),
    'ResNet-FCN8Head_3_levels': net(resnet(), fcn8_head([16, 32, 64], in_index=[1, 2, 3])),
    'ResNet-FCN8Head_4_levels': net(resnet(), fcn8_head([8, 16, 32, 64])),
    'ResNet-separable_FCN8Head': net(
        resnet(), fcn8_head([16, 32, 64], in_index=[1, 2, 3], conv_cfg=SEPARABLE)
    ),
    'MobileNetV2-FCN8Head': net(MOBILENET_V2, fcn8_head([8, 24, 80])),
    'HRNet-FCN8Head': net(
        dict(type='HRNet', extra=HRNET_STAGES, norm_cfg=BN), fcn8_head([4, 8, 16, 32])
    ),
    'SwinTransformer-FCN8Head': net(SWIN, fcn8_head([8, 16, 32, 64])),
    'MixVisionTransformer-FCN8Head': net(MIT, fcn8_head([8, 8, 16, 16])),
    'mmpretrain.ConvNeXt-FCN8Head': net(CONVNEXT, fcn8_head([4, 8, 16, 32])),
    'mmpretrain.MobileNetV3-FCN8Head': net(
        dict(type='mmpretrain.MobileNetV3', arch='small_050', out_indices=(3, 8, 12)),
        fcn8_head([16, 24, 288]),
    ),
    'mmpretrain.VGG-FCN8Head': net(
        dict(type='mmpretrain.VGG', depth=11, out_indices=(2, 3, 4), norm_cfg=BN),
        fcn8_head([256, 512, 512]),
    ),
    'separable_ResNet18-FCNHead': net(
        resnet(conv_cfg=SEPARABLE), head('FCNHead', in_channels=64, in_index=3, num_convs=1)
    ),
    'separable_ResNet50-FCNHead': net(
        resnet(50, conv_cfg=SEPARABLE), head('FCNHead', in_channels=256, in_index=3, num_convs=1)
    ),
    'ResNet-separable_FCNHead': net(
        resnet(), head('FCNHead', in_channels=64, in_index=3, conv_cfg=SEPARABLE)
    ),
    'ResNet-separable_PSPHead': net(
        resnet(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        head('PSPHead', in_channels=64, in_index=3, conv_cfg=SEPARABLE),
    ),
    'ResNet-separable_UPerHead': net(
        resnet(),
        head('UPerHead', in_channels=[8, 16, 32, 64], in_index=[0, 1, 2, 3], conv_cfg=SEPARABLE),
    ),
    'separable_VGG16-separable_PSPHead': under_head('PSPHead', SEPARABLE, whole=True),
    'separable_VGG16-separable_UPerHead': under_head('UPerHead', SEPARABLE, whole=True),
    'FCN8_auxiliary_FCNHead': net(
        VGG16_FCN8,
        fcn8_head([16, 32, 8]),
        auxiliary_head=head(
            'FCNHead',
            in_channels=32,
            in_index=1,
            num_convs=1,
            concat_input=False,
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=0.4),
        ),
    ),
    'FCN8_OHEM': net(
        VGG16_FCN8,
        fcn8_head([16, 32, 8], sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=1000)),
    ),
    'FCN8_class_weight': net(
        VGG16_FCN8,
        fcn8_head(
            [16, 32, 8],
            # 'none': mmseg takes the mean over all pixels then, and OpenMMLab's weighted 'mean'
            # raises an IndexError where pixels are ignored.
            loss_decode=dict(
                type='CrossEntropyLoss',
                class_weight=[0.5, 1.0, 2.0, 1.0, 0.1],
                reduction='none',
            ),
        ),
    ),
    'FCN8_binary': net(
        VGG16_FCN8,
        dict(
            fcn8_head([16, 32, 8]),
            num_classes=2,
            out_channels=1,
            threshold=0.5,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        ),
    ),
    'FCN8_cross_entropy_and_Dice': net(
        VGG16_FCN8,
        fcn8_head(
            [16, 32, 8],
            loss_decode=[
                dict(type='CrossEntropyLoss', loss_weight=1.0),
                dict(type='DiceLoss', use_sigmoid=False, loss_weight=3.0),
            ],
        ),
    ),
}

# Sizes that differ from the usual ones, with the reason.
TRAIN_SIZES = {name: (197, 201) for name in MIXES if 'LRASPPHead' in name}  # at least 4 * 49
PREDICT_SIZES = {
    **TRAIN_SIZES,
    # These round down: 27x32 over 13x16, 9x16 over 4x8. FCN8Head extends the coarser level.
    'mmpretrain.ConvNeXt-FCN8Head': (109, 131),
    'mmpretrain.VGG-FCN8Head': (75, 131),
}


def build(cfg: dict) -> EncoderDecoder:
    if 'mmpretrain' in cfg['backbone']['type']:
        pytest.importorskip('mmpretrain', reason='mmpretrain is not installed')
        pytest.importorskip('torchvision', reason='mmpretrain needs torchvision')
        # What `custom_imports` does in a config file.
        import_modules_from_strings(['mmpretrain.models'], allow_failed_imports=False)
    # A ConfigDict, as from a file: segmentors read the keys of test_cfg as attributes.
    model = MODELS.build(ConfigDict(deepcopy(cfg)))
    model.init_weights()
    return model


def make_batch(size: tuple[int, int], classes: int, count: int) -> dict:
    samples = []
    for _ in range(count):
        labels = torch.randint(classes, (1, *size))
        labels[:, :3] = 255
        samples.append(data_sample(size, labels))
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(count)]
    return dict(inputs=images, data_samples=samples)


def check_train_step(model: EncoderDecoder, size: tuple[int, int]) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # Three images: of two, batch norm on a 1x1 map makes +1 and -1, and no gradient.
    data = model.data_preprocessor(make_batch(size, model.num_classes, 3), training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    optimizer.step()

    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in gradients.items() if grad is None] == []
    assert [name for name, grad in gradients.items() if not grad.isfinite().all()] == []
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    kernels = {name for name, p in before.items() if p.ndim > 1}
    assert sorted(kernels - moved) == []


def check_prediction(model: EncoderDecoder, size: tuple[int, int]) -> None:
    model.eval()
    (sample,) = model.test_step(make_batch(size, model.num_classes, 1))
    logits, labels = sample.seg_logits.data, sample.pred_sem_seg.data

    assert logits.shape == (model.out_channels, *size)
    assert logits.isfinite().all() and logits.std() > 0
    assert labels.shape == (1, *size)
    assert set(labels.unique().tolist()) <= set(range(model.num_classes))


@pytest.mark.parametrize('name', MIXES)
def test_mix_trains_and_predicts(name):
    model = build(MIXES[name])

    check_train_step(model, TRAIN_SIZES.get(name, TRAIN_SIZE))
    check_prediction(model, PREDICT_SIZES.get(name, PREDICT_SIZE))


@pytest.mark.parametrize(
    'name',
    [
        'separable_VGG16-separable_UPerHead',
        'ResNet-separable_FCN8Head',
        'mmpretrain.MobileNetV3-FCN8Head',
    ],
)
def test_mix_is_the_same_under_the_default_scope_of_mmseg(name):
    without = build(MIXES[name]).state_dict()
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = build(MIXES[name])
        check_train_step(model, TRAIN_SIZE)
        check_prediction(model, PREDICT_SIZE)

    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in without.items()}


def conv_layers(module: nn.Module) -> tuple[int, int]:
    """Count separable layers, and the other conv layers outside of them."""
    separable = sum(isinstance(m, SeparableConv2d) for m in module.modules())
    return separable, sum(isinstance(m, nn.Conv2d) for m in module.modules()) - 2 * separable


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('PSPHead', (5, 1)),  # all but conv_seg, which no head of mmseg gives its conv_cfg
        ('UPerHead', (12, 1)),
        ('OCRHead', (10, 2)),  # two heads
        ('DepthwiseSeparableASPPHead', (4, 9)),  # its own separable layers stay as they are
        ('LRASPPHead', (0, 8)),  # ignores conv_cfg
        ('SegformerHead', (0, 6)),  # ignores conv_cfg
    ],
)
def test_conv_cfg_reaches_as_many_layers_of_a_head_as_the_document_says(name, expected):
    model = build(under_head(name, SEPARABLE, whole=True))

    assert conv_layers(model.decode_head) == expected
    assert conv_layers(model.backbone)[1] == 0


@pytest.mark.parametrize(('depth', 'expected'), [(18, 20), (50, 53)])
def test_conv_cfg_reaches_every_layer_of_a_resnet(depth, expected):
    backbone = build(MIXES[f'separable_ResNet{depth}-FCNHead']).backbone

    assert conv_layers(backbone) == (expected, 0)


@pytest.mark.parametrize(
    'backbone',
    [
        MOBILENET_V2,
        resnet(50, groups=4, base_width=4) | dict(type='ResNeXt'),
    ],
    ids=['MobileNetV2', 'ResNeXt'],
)
def test_backbones_that_group_their_convolutions_are_refused(backbone):
    with pytest.raises(ValueError, match='SeparableConv2d .* groups must be 1, got'):
        MODELS.build(dict(backbone, conv_cfg=SEPARABLE))


@pytest.mark.parametrize(
    ('backbone', 'in_channels'),
    [
        (resnet(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), [16, 32, 64]),
        (vgg16(out_indices=(1, 2, 3, 4), **DILATED), [16, 32, 32]),
    ],
    ids=['ResNet', 'VGG16'],
)
def test_fcn8_head_refuses_a_dilated_backbone(backbone, in_channels):
    model = build(net(backbone, fcn8_head(in_channels, in_index=[1, 2, 3])))
    with pytest.raises(ValueError, match='steps of 2.*check in_index and the backbone'):
        model(torch.rand(1, 3, 64, 64), mode='tensor')


@pytest.mark.parametrize(
    'backbone',
    [resnet(50), dict(type='mmpretrain.VGG', depth=11, num_stages=3, dilations=(1,) * 3)],
    ids=['ResNet', 'mmpretrain.VGG'],
)
def test_an_empty_init_cfg_leaves_separable_layers_as_they_start(backbone):
    def fade(**kwargs) -> float:
        """The least spread of a depthwise half against that which it starts with."""
        cfg = dict(backbone, conv_cfg=SEPARABLE, out_indices=(2,), **kwargs)
        layers = build(net(cfg, fcn8_head([1]))).backbone.modules()
        return min(
            (layer.depthwise.weight.square().mean() * layer.depthwise.weight[0].numel()).sqrt()
            for layer in layers
            if isinstance(layer, SeparableConv2d)
        ).item()

    # By default both draw every Conv2d anew, the depthwise ones too narrowly: batch norm mends it.
    assert fade() < 0.3
    assert fade(init_cfg=[]) > 0.6


@CONV_CFGS
def test_fusing_by_mmcv_keeps_the_logits(conv_cfg):
    model = build(under_head('PSPHead', conv_cfg))
    for _ in range(2):
        check_train_step(model, TRAIN_SIZE)  # so that the norms have something to do
    model.eval()
    image = torch.randn(1, 3, *PREDICT_SIZE)
    logits = model(image, mode='tensor')
    fused = fuse_conv_bn(model)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in fused.backbone.modules())

    # mmcv does not look into separable layers: they stay as they are, right but not faster.
    assert norms == (0 if conv_cfg is None else 13)
    torch.testing.assert_close(fused(image, mode='tensor'), logits, rtol=1e-4, atol=1e-4)


SNIPPETS = re.findall(r'```python\n(_base_.*?)```', DOCUMENT.read_text(), re.DOTALL)


@pytest.mark.parametrize('snippet', SNIPPETS, ids=['backbone', 'head', 'layer'])
def test_snippet_of_the_document_is_a_whole_config(snippet, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(snippet.replace("_base_ = '.", f"_base_ = '{ROOT.as_posix()}/configs"))
    cfg = Config.fromfile(path)
    scope = DefaultScope.overwrite_default_scope(cfg.default_scope)  # as the Runner does
    with scope, torch.device('meta'):  # at full width: shapes only
        model = MODELS.build(cfg.model)
        logits = model(torch.empty(2, 3, *PREDICT_SIZE), mode='tensor')

    assert logits.shape[:2] == (2, 21) and logits.shape[2] in (13, 25)
