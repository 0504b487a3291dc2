import argparse
import random
import re

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader
from PIL import ExifTags, Image
from torch import nn

from ssnet_mm.engine import launch
from ssnet_mm.engine.preflight import network, prepare
from ssnet_mm.engine.preflight.dry_run import build_evaluator, dry_run
from ssnet_mm.errors import UserError
from ssnet_mm.models import KLDistillLoss
from ssnet_mm.models.backbones.vgg16 import VGG16

TWO = """
two = dict(classes=('ground', 'thing'), palette=palette[:2])
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader['dataset']['metainfo'] = two
del loader
"""
ONE_CHANNEL = """
model['decode_head'].update(
    num_classes=2, out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
"""


def load(config, **changes):
    cfg = launch.load_config(config, changes)
    flags = argparse.Namespace(config=config, work_dir=None, launcher=None, local_rank=0)
    launch.apply_run_arguments(cfg, flags)
    return cfg


@pytest.fixture
def check(tiny_config, tmp_path, monkeypatch):
    """Look at the tiny config with some lines changed; return the notes."""
    monkeypatch.chdir(tmp_path)

    def run(lines='', mode='train', **changes):
        config = tiny_config(lines)
        before = set(tmp_path.rglob('*'))
        try:
            return prepare.preflight(load(config, **changes), mode, skip_data_check=True).notes
        finally:
            assert set(tmp_path.rglob('*')) == before

    return run


VOID_11 = """
model['decode_head']['ignore_index'] = 11
model['data_preprocessor']['seg_pad_val'] = 11
val_evaluator = dict(type='IoUMetric', ignore_index=11)
"""
MOSAIC = """
train_dataloader['dataset'] = dict(
    type='MultiImageMixDataset', dataset=dict(pipeline=train_pipeline[:2], **dataset),
    pipeline=[dict(type='RandomMosaic', prob=1.0, img_scale=(32, 32), seg_pad_val={}),
              dict(type='RandomCrop', crop_size=crop_size), dict(type='PackSegInputs')])
"""
SCHEDULE = "param_scheduler = [dict(type='{}', by_epoch=False, {})]\n"
HOOK = "custom_hooks = [dict(type='{}', {})]\n"


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        # the validation
        ("val_evaluator = dict(type='IoUMetric', iou_metrics=['mIOU'])", 'val_evaluator .*mIOU'),
        ("default_hooks['checkpoint']['save_best'] = 'miou'",
         "save_best='miou' is not among what the validation gives: aAcc, mIoU, mAcc"),
        ("default_hooks['checkpoint']['save_best'] = 'mIoU'\n"
         "val_evaluator = dict(type='IoUMetric', iou_metrics=['mFscore'])",
         "'mIoU' is not among .*: aAcc, mFscore, mPrecision, mRecall"),
        ("default_hooks['checkpoint']['save_best'] = ['mIoU', 'mDice']", "'mDice' is not among"),
        ("default_hooks['checkpoint']['save_best'] = 'mIoU'\n"
         "val_evaluator = dict(type='IoUMetric', prefix='val')", 'gives: val/aAcc, val/mIoU'),
        (HOOK.format('EarlyStoppingHook', "monitor='mIOU'"), "custom_hooks.0: monitor='mIOU'"),
        ("model['test_cfg'] = dict(mode='slide', crop_size=(32, 32))", 'slide.* needs stride='),
        ("model['test_cfg'] = dict(mode='slide', stride=(32, 32))", 'slide.* needs crop_size='),
        ("model['test_cfg'] = dict(mode='slide', crop_size=(8, 8), stride=(9, 9))", 'leaves gaps'),
        ("model['decode_head']['ignore_index'] = None",
         'model.decode_head.ignore_index must be a whole number, .* got None'),
        ("efficient_conv_bn_eval = ['bakbone']", "efficient_conv_bn_eval of .*: .*'bakbone'"),
        ("model['test_cfg'] = dict(mode='sldie')", 'first image of val_dataloader .*sldie'),
        ("val_dataloader['dataset']['pipeline'] = [dict(type='LoadImageFromFile'), "
         "dict(type='LoadAnnotations'), dict(type='Resize', scale=(90, 74)), "
         "dict(type='PackSegInputs')]",
         'Resize changes the label map, .* put LoadAnnotations after Resize'),
        ("default_hooks['checkpoint'].update(save_best='mIoU', rule='less')",
         "rule='less' takes low values of mIoU for good; set rule='greater'"),
        ("param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mIoU')]",
         "param_scheduler.0: rule='less' takes low values of mIoU"),
        ("val_dataloader['sampler'] = dict(type='InfiniteSampler')", 'Sampler it never ends'),
        ("val_dataloader.update(batch_size=3, drop_last=True)", 'leaves 1 of 4 images out of the'),
        ("val_dataloader.update(num_batch_per_epoch=1)",
         'val_dataloader: num_batch_per_epoch=1 has 1 images scored, and there are 4; leave it'),
        ("val_dataloader.update(num_batch_per_epoch=3, batch_size=2)", 'has 6 images scored, and'),
        # the data
        ("train_dataloader['dataset']['data_prefix'] = dict(img='images', seg='masks')",
         'train_dataloader.dataset.data_prefix takes img_path, seg_map_path, and has img, seg'),
        # the geometry
        ("model['backbone'].update(image_padding=100, fc6_padding=0)",
         'model.decode_head takes image_padding=None, the backbone pads 100: predictions'),
        ("model['backbone'].update(image_padding=100, fc6_padding=0)\n"
         "model['decode_head'].update(type='CaffeFCN8Head', image_padding=90)",
         'model.decode_head takes image_padding=90, the backbone pads 100: predictions'),
        ('val_dataloader = None', 'sets val_cfg and val_evaluator, but not val_dataloader'),
        # the data
        ("other = dict(dataset, metainfo=dict(classes=classes[::-1], palette=palette))\n"
         "train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=["
         "dict(pipeline=train_pipeline, **d) for d in (dataset, other)])",
         'train_dataloader of .*meta information'),
        ("train_dataloader['sampler'] = dict(type='NoSampler')", 'NoSampler is not in the'),
        ("train_dataloader.update(batch_size=5, drop_last=True, sampler="
         "dict(type='DefaultSampler', shuffle=True))",
         '4 images make no train_dataloader.batch_size of 5'),
        ("train_pipeline.pop()", 'a training step on train_dataloader of '
         r".*: samples come without inputs .*; put dict\(type='PackSegInputs'\) at the end"),
        ("train_pipeline.pop(1)", 'a training step on train_dataloader of '
         r".*: samples come without a label map .*; put dict\(type='LoadAnnotations'\) after"),
        ("val_dataloader['dataset']['pipeline'] = test_pipeline[:-1]",
         r"^val_dataloader of .* without inputs .*; put dict\(type='PackSegInputs'\) at the end"),
        ("val_dataloader['dataset']['pipeline'] = test_pipeline[::2]",
         r"^val_dataloader of .* a label map .*; put dict\(type='LoadAnnotations'\) after"),
        ("for d in (train_dataloader, val_dataloader):\n"
         "    d['dataset']['metainfo'] = dict(classes=('road'))\ndel d",
         "classes is one text, 'road', where a list of names is wanted; .* \\('road',\\)"),
        ("for d in (train_dataloader, val_dataloader):\n"
         "    d['dataset']['metainfo'] = dict(classes=('a', 'b', 'b'), palette=palette)\ndel d",
         'classes has b twice'),
        ("train_dataloader['dataset']['metainfo'] = dict(classes=(0, 1, 2), palette=palette)",
         'must be names in quotes, got 0'),
        ("train_dataloader['dataset']['metainfo'] = dict(classes=classes, palette=[[300] * 3] * 3)",
         'palette must be RGB colours of 0 to 255'),
        ("val_dataloader['dataset']['metainfo'] = dict(classes=classes[::-1], palette=palette)",
         r'val_dataloader.dataset has the classes right, left, ground \(3\), train_dataloader'),
        ("train_dataloader['dataset']['metainfo'] = dict(CLASSES=classes, PALETTE=palette)",
         r'train_dataloader.dataset has no classes; set .*dataset.metainfo=dict\(classes='),
        ("train_dataloader['dataset']['data_root'] = ['a', 'b']",
         r"train_dataloader.dataset.data_root is a list, \['a', 'b'\], .*takes one; .*ConcatDat"),
        ("train_dataloader['dataset']['ann_file'] = ['train.txt']", 'ann_file is a list, .*Concat'),
        ("train_dataloader['dataset']['data_prefix'] = dict(img_path=['a', 'b'])",
         'train_dataloader.dataset.data_prefix.img_path is a list, '),
        ("train_dataloader['dataset']['ann_file'] = 'JPEGImages'", 'ann_file is a folder'),
        # optimizer and schedule
        ("optim_wrapper['optimizer']['lr'] = float('inf')", 'a learning rate of inf is none'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbone': dict(lr_mult=-1.0)})",
         'a learning rate of -0.01 is none'),
        ("optim_wrapper['paramwise_cfg'] = dict(bias_lr_mul=2.0)",
         'nothing reads optim_wrapper.paramwise_cfg.bias_lr_mul; the setting is bias_lr_mult'),
        ("optim_wrapper['paramwise_cfg'] = dict(backbone=dict(lr_mult=0.1))",
         'nothing reads optim_wrapper.paramwise_cfg.backbone; it reads'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbone': dict(lr_mul=0.1)})",
         'nothing reads custom_keys.backbone.lr_mul; the setting is lr_mult'),
        ("optim_wrapper['paramwise_cfg'] = dict(bias_lr_mult=2.0)\n"
         + SCHEDULE.format('OneCycleLR', 'eta_max=0.1, total_steps=2'),
         'eta_max=0.1 is the rate of all layers, and lr_mult has no effect'),
        ("param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='loss', min_value=0.1)]",
         'min_value=0.1 is an absolute rate'),
        ("optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01), "
         "paramwise_cfg=dict(bias_decay_mult=0.0))",
         'SGD, has no weight_decay; set optim_wrapper.optimizer.weight_decay=0.0'),
        ("optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Rprop', lr=0.01), "
         "paramwise_cfg=dict(norm_decay_mult=0.0))",
         'Rprop, has no weight_decay; set optim_wrapper.paramwise_cfg=None'),
        ("optim_wrapper['optimizer']['type'] = 'SDG'", 'SDG is not in the optimizer registry'),
        ("optim_wrapper['clip_grad'] = dict(max_nom=1)", 'a training step .*max_nom'),
        ("optim_wrapper.update(clip_grad=dict(max_norm=0))\n"
         "optim_wrapper['optimizer']['weight_decay'] = 0.1", 'every gradient .* is 0, so that '),
        ("optim_wrapper.update(clip_grad=dict(max_norm=0), accumulative_counts=4)",
         'the first loss is .*see to optim_wrapper.clip_grad, whose max_norm must lie above 0'),
        (SCHEDULE.format('OneCycleLR', 'eta_max=0.1, total_steps=2') + "train_cfg['max_iters'] = 5",
         r'param_scheduler.0 \(OneCycle\S+\): total_steps=2 end before .*, at 5, .* total_steps=5'),
        ("auto_scale_lr = dict(enable=True, base_batch_size=0)",
         'auto_scale_lr.base_batch_size must be positive and whole, got 0'),
        ("param_scheduler = [dict(type='MultiStepLR', milestones=[1])]", 'never step; .*by_epo'),
        (SCHEDULE.format('PolyLR', 'eta_min=0.02, end=2'), 'eta_min=0.02 is an absolute rate'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbone': dict(lr_mult=0.0)})\n"
         + SCHEDULE.format('CosineAnnealingLR', 'eta_min=1e-6'), r'a lower one \(0, as by lr_mult'),
        # loops and hooks
        ("train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)",
         'with the InfiniteSampler of train_dataloader none ends; set .*DefaultSampler'),
        ("train_cfg = dict(by_epoch=True, max_epochs=2)", 'InfiniteSampler'),
        ("train_cfg = dict(type='IterLoop', max_iters=2)", 'train_cfg: IterLoop is not in the'),
        ("train_cfg = dict(type='IterBasedTrainLoop', max_iter=2)", 'takes no max_iter$'),
        ("custom_hooks = dict(type='EMAHook')", 'custom_hooks must be a list'),
        ("visualizer['vis_backends'] = [dict(type='TensorbordVisBackend')]", 'not in the vis_back'),
        ("log_processor = dict(type='LogProcessor', by_epoh=False)", 'takes no by_epoh'),
        ("val_evaluator = dict(type='IoUMetric', iou_metric=['mIoU'])", 'takes no iou_metric$'),
        ("log_level = 'INF'", "log_level must be one of .*'INF'"),
        ("randomness = dict(seed='1')", "randomness.seed must be a whole number .*'1'"),
        ("train_cfg = dict(type='IterBasedTrainLoop')", 'train_cfg lacks max_iters'),
        (HOOK.format('NoHook', ''), 'custom_hooks.0: NoHook is not in the hook registry'),
        ("default_hooks['checkpoint']['interval'] = None", 'interval must be a number, got None'),
        # classes
        ("model['decode_head']['loss_decode']['class_weight'] = [0.5, 2.0]",
         'class_weight has 2 numbers, the model 3 classes'),
        ("model['decode_head']['loss_decode']['class_weight'] = 2.0", 'class_weight has 2.0, '),
        ("model['decode_head']['loss_decode']['class_weight'] = [0.0, 0.0, 0.0]", 'and not all 0'),
        ("model['decode_head']['loss_decode']['class_weight'] = [1.0, -1.0, 1.0]", 'from 0 on'),
        ("model['decode_head']['init_cfg'] = dict(type='Normal', std=0.01, "
         "override=dict(name='conv_seg'))",
         'model.decode_head.init_cfg: override names conv_seg, .*model.decode_head has .*scores'),
        ("model['backbone']['init_cfg'] = dict(type='Xavier', layer='Conv2D')",
         "model.backbone.init_cfg: layer='Conv2D' is the class of no layer there; it has "),
        ("model['backbone']['init_cfg'] = dict(type='Xavier')",
         'backbone.init_cfg: Xavier draws no weight without layer or override'),
        ("model['backbone']['init_cfg'] = dict(type='Pretrained', "
         "checkpoint='http://127.0.0.1:9/vgg16.pth')",
         'model.backbone.init_cfg: http://127.0.0.1:9/vgg16.pth can not be had: URLError'),
        ("model['decode_head']['loss_decode']['loss_weight'] = -1.0", 'loss_weight must be '),
        ("model['data_preprocessor']['std'] = [0.0] * 3", 'the first loss is nan, before anything'),
        ("model['decode_head']['loss_decode'].update(class_weight=[1.0, 2.0, 2.0], "
         "avg_non_ignore=True)", "fails on void pixels; set .*reduction='none'"),
        ("model['decode_head']['loss_decode'].update(class_weight=[1.0, 2.0, 2.0], "
         "use_sigmoid=True, reduction='none')",
         'loss_decode: .* use_sigmoid=True takes no class_weight for several channels'),
        (TWO + ONE_CHANNEL + "model['decode_head']['loss_decode'].update(class_weight=[1.0, 2.0])",
         'decode_head.loss_decode: .* one channel class_weight is one number, .*; got 2'),
        pytest.param("model['decode_head']['loss_decode'] = dict(type='FocalLoss')",
                     'model.decode_head.loss_decode: FocalLoss .* fails on label maps without CUDA',
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason='of CPUs alone')),
        ("for d in (train_dataloader, val_dataloader):\n"
         "    d['dataset']['metainfo'] = dict(classes=['a'], palette=[[0, 0, 0]])\n"
         "del d\nmodel['decode_head']['num_classes'] = 1", 'set model.decode_head.num_classes=2 '),
        (TWO + "model['decode_head'].update(num_classes=2, out_channels=1)",
         'softmax over one channel .*use_sigmoid=True'),
        *((TWO + ONE_CHANNEL + f"model['decode_head']['loss_decode'] = {loss}",
           'decode_head.loss_decode: ' + message + ".*; set model.decode_head.loss_decode=dict"
           "\\(type='CrossEntropyLoss', use_sigmoid=True\\)$")
          for loss, message in (
              ("dict(type='DiceLoss', use_sigmoid=True)",
               'DiceLoss over one channel is 0.9.. where class 1 is predicted right and 0.0'),
              ("[dict(type='CrossEntropyLoss', use_sigmoid=True), dict(type='DiceLoss')]",
               'DiceLoss over one channel is'),
              ("dict(type='TverskyLoss')", 'TverskyLoss over one channel is'),
          )),
        (TWO + ONE_CHANNEL + "model['decode_head']['sampler'] = "
         "dict(type='OHEMPixelSampler', thresh=0.7, min_kept=9)",
         'decode_head.sampler: OHEMPixelSampler fails on one channel .*; set model.*sampler=None'),
        ("model['auxiliary_head'] = [dict(type='FCNHead', in_channels=8, in_index=2, channels=4, "
         "num_classes=n) for n in (3, 2)]",
         r'train_dataloader.dataset has 3 classes, model.auxiliary_head.1 2; set '
         r'model.auxiliary_head.1.num_classes=3$'),
        # padding
        ("model['data_preprocessor']['size'] = (320, 512)",
         r'crop_size=\(32, 32\) in train_dataloader and model.data_preprocessor.size=\(320, 512\): '
         r'99.4% of what is trained on would be padding; set .*size=\(32, 32\)$'),
        ("train_pipeline[2]['crop_size'] = (24, 32)\nmodel['data_preprocessor']['size'] = (32, 24)",
         r'crop_size=\(24, 32\) .*size=\(32, 24\): height and width are swapped'),
        # void
        ("model['decode_head']['ignore_index'] = 11",
         'decode_head.ignore_index is 11, .*seg_pad_val is 255, ignore_index of IoUMetric is 255'),
        ("model['data_preprocessor']['seg_pad_val'] = 0", 'seg_pad_val is 0'),
        ("train_pipeline.insert(2, dict(type='Pad', size=(64, 64), pad_val=dict(img=0, seg=0)))",
         r'pipeline.2.pad_val.seg is 0'),
        (VOID_11 + "model['decode_head']['loss_decode'] = dict(type='TverskyLoss')",
         'ignore_index of TverskyLoss is 255'),
        (VOID_11 + "train_pipeline.insert(2, dict(type='RandomRotate', prob=1.0, degree=9))",
         'padding of RandomRotate is 255'),
        ("val_evaluator = dict(type='IoUMetric', ignore_index=11)", 'IoUMetric is 11'),
        ("train_dataloader['dataset']['ignore_index'] = 11", 'dataset.ignore_index is 11'),
        (MOSAIC.format(0), r'train_dataloader.dataset.pipeline.0.seg_pad_val is 0'),
    ],
)  # fmt: skip
def test_what_would_fail_later_or_do_nothing_fails_before_anything_is_written(
    check, lines, message
):
    with pytest.raises(UserError, match=message):
        check(lines)


@pytest.mark.parametrize(
    'lines',
    [
        SCHEDULE.format('PolyLR', 'end=2'),
        SCHEDULE.format('PolyLR', ''),  # ends with the training
        SCHEDULE.format('CosineAnnealingLR', 'T_max=2'),
        SCHEDULE.format('MultiStepLR', 'milestones=[1]'),
        SCHEDULE.format('CosineRestartLR', 'periods=[1, 1], restart_weights=[1, 1], eta_min=0.0'),
        SCHEDULE.format('OneCycleLR', 'eta_max=0.1'),
        SCHEDULE.format('LinearLR', 'start_factor=0.1, end=1'),  # a warm-up, then constant
        'param_scheduler = []',
    "param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater')]",
        "param_scheduler = []\ndefault_hooks['checkpoint']['save_best'] = 'auto'",
        "param_scheduler = []\ndefault_hooks['checkpoint'].update(save_best='mFscore')\n"
        "val_evaluator = dict(type='IoUMetric', iou_metrics=['mFscore'])",
        "param_scheduler = []\nmodel['test_cfg'] = dict(mode='slide', crop_size=(99, 99), "
        'stride=(50, 50))',
        'param_scheduler = []\nval_dataloader = val_cfg = val_evaluator = None',
        'param_scheduler = []\ntrain_dataloader.update(batch_size=9, drop_last=True)',
        'param_scheduler = []\nval_dataloader.update(num_batch_per_epoch=2, batch_size=2)\n'
        'train_dataloader.update(num_batch_per_epoch=2)',
        "param_scheduler = []\ntrain_dataloader['dataset'] = dict(type='RepeatDataset', times=2, "
        "dataset=dict(pipeline=train_pipeline, **dataset))",
        "param_scheduler = []\ntrain_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)\n"
        "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)",
        "param_scheduler = []\nmodel['decode_head']['ignore_index'] = 11\n"
        "model['data_preprocessor']['seg_pad_val'] = 11\n"
        "val_evaluator = dict(type='IoUMetric', ignore_index=11)\n"
        # the masks' own void is 255, which is not among the three classes
        "model['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss')\n"
        "train_dataloader['dataset']['ann_file'] = 'sound.txt'\n"
        "val_dataloader['dataset']['ann_file'] = 'sound.txt'",
        'param_scheduler = []\n' + MOSAIC.format(255),
        "param_scheduler = []\nmodel['data_preprocessor']['size'] = (40, 40)",
        # learns where edges are
        "param_scheduler = []\nmodel['auxiliary_head'] = dict(type='STDCHead', in_channels=8, "
        "in_index=2, channels=4, num_convs=1, boundary_threshold=0.1, num_classes=2)",
        "param_scheduler = []\nmodel['data_preprocessor']['size'] = (64, 64)\n"
        "train_pipeline.insert(3, dict(type='Resize', scale=(64, 64)))",
        "param_scheduler = []\n" + MOSAIC.format(255) + "train_dataloader['dataset'] = "
        "dict(type='RepeatDataset', times=2, dataset=train_dataloader['dataset'])",
        'param_scheduler = []\n' + TWO + ONE_CHANNEL,
        'param_scheduler = []\n' + TWO + ONE_CHANNEL + "model['decode_head']['loss_decode'] = "
        "dict(type='LovaszLoss', loss_type='binary', reduction='none')",
        'param_scheduler = []\n' + TWO + ONE_CHANNEL
        + "model['decode_head']['loss_decode'].update(class_weight=[2.0])",
        SCHEDULE.format('LinearLR', 'start_factor=1e-9, end=2'),
        "param_scheduler = []\noptim_wrapper.update(clip_grad=dict(max_norm=1e-9), "
        'accumulative_counts=2)',
    ],
)  # fmt: skip
def test_what_is_sound_passes_without_a_warning(check, tiny_data, lines):
    labels = np.array(Image.open(tiny_data / 'SegmentationClass' / '0.png'))
    labels = labels.clip(0, 1) if 'ground' in lines else np.where(labels == 255, 11, labels)
    for i in range(4):
        if 'sound.txt' in lines or 'thing' in lines:
            Image.fromarray(labels.astype(np.uint8)).save(
                tiny_data / 'SegmentationClass' / f'{i}.png'
            )
    (tiny_data / 'sound.txt').write_text('0\n1\n')
    assert check(lines) == []


@pytest.mark.parametrize(
    ('lines', 'warning'),
    [
        ('', r'param_scheduler.0 \(PolyLR\) ends at iteration 4, the training at 2'),
        (SCHEDULE.format('PolyLR', 'end=1'), 'ends at 1, the training at 2: .* a rate of 0, which'),
        (SCHEDULE.format('PolyLR', 'end=1, eta_min=1e-3'), 'is trained at the rate where it ended'),
        (SCHEDULE.format('CosineRestartLR', 'periods=[1], eta_min=0.0'),
         'ends at 1, the training at 2: the rest is trained at the rate where it ended'),
        (SCHEDULE.format('CosineRestartLR', 'periods=[1, 9], restart_weights=[1, 1], eta_min=0.0'),
         r'param_scheduler.0 \(CosineRestart\S+\) ends at iteration 10, the training at 2'),
        ("param_scheduler = []\noptim_wrapper['optimizer']['lr'] = 0.0",
         'every learning rate is 0, so that nothing will be learned'),
        (SCHEDULE.format('MultiStepLR', 'milestones=[1, 60]'), 'ends at iteration 60, the train'),
        (SCHEDULE.format('StepLR', 'step_size=60'), 'ends at iteration 60'),
        (SCHEDULE.format('LinearLR', 'end_factor=0.1, end=60'), 'ends at iteration 60'),
        (SCHEDULE.format('CosineAnnealingLR', 'T_max=60'), 'least rate at iteration 60, the train'),
        ("param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater')]\n"
         'val_dataloader = val_cfg = val_evaluator = None',
         r'param_scheduler.0 \(Reduce\S+\) goes by the validation; there is none: it never'),
        ("default_hooks['checkpoint'].update(interval=9, save_last=False)\nparam_scheduler = []",
         'saves no checkpoint but the best'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbon_': dict(lr_mult=0.1)})",
         "no parameter has 'backbon_' in its name, so that its lr_mult has no effect"),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'norm': dict(decay_mult=0.0)})\n"
         "optim_wrapper['optimizer']['weight_decay'] = 0.1",
         "no parameter has 'norm' in its name, so that its decay_mult has no effect"),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={\n"
         "    'bn': dict(decay_mult=0.0), 'backbone': dict(lr_mult=0.1)})\n"
         "optim_wrapper['optimizer']['weight_decay'] = 0.1",
         "decay_mult of 'bn' does not get to the parameters with 'backbone' in their names"),
        ("optim_wrapper['paramwise_cfg'] = dict(norm_decay_mult=0.0,\n"
         "    custom_keys={'backbone': dict(lr_mult=0.1)})\n"
         "optim_wrapper['optimizer']['weight_decay'] = 0.1",
         "norm_decay_mult does not get to the parameters with 'backbone' in their names"),
        ("default_hooks['param_scheduler'] = None",
         'default_hooks.param_scheduler=None: no param_scheduler will ever step'),
        ("train_cfg['val_begin'] = 9\nparam_scheduler = []", 'val_begin=9 lies beyond the end, 2'),
        ("default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)",
         'checkpoint counts epochs, train_cfg iterations: it saves at the end .*by_epoch=False'),
        ("default_hooks['checkpoint'] = None", 'no checkpoint will be saved'),
        ("lr_config = dict(policy='poly')", r'lr_config is set in .*py, and nothing reads it'),
        ("model['decode_head']['num_classes'] = 5", 'num_classes=5, but train_.* has 3 classes'),
        ("model['decode_head']['loss_decode'] = [dict(type='CrossEntropyLoss'), "
         "dict(type='DiceLoss', loss_name='dice')]", 'dice is logged and not trained on'),
        ("model['decode_head']['loss_decode']['loss_weight'] = 0.0", 'the first loss is 0, from'),
        ("model['data_preprocessor'].update(mean=[0.5] * 3, std=[0.2] * 3)",
         'mean and std .* look like those of values from 0 to 1, .* multiply both by 255'),
        ("model['backbone']['frozen_stages'] = 2", '4 layers of model.backbone are frozen, and s'),
        ("optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbone': dict(lr_mult=0.0)})",
         '15 layers of model.backbone are frozen, .* or set lr_mult above 0'),
        ("model['decode_head']['sampler'] = dict(type='OHEMPixelSampler', thresh=0.7)\n"
         "model['decode_head']['loss_decode'] = [\n"
         "    dict(type='CrossEntropyLoss'), dict(type='LovaszSoftmaxLoss')]",
         'decode_head.sampler: LovaszSoftmaxLoss takes no weights of pixels, by which it chooses'),
        ("train_dataloader['sampler']['shuffle'] = False\nparam_scheduler = []",
         'shuffle=False batches hold the same images each time'),
        ('train_dataloader.update(num_batch_per_epoch=1)\nparam_scheduler = []',
         'num_batch_per_epoch=1 trains on the first 2 of 4 images alone'),
        ("train_pipeline[2]['crop_size'] = (96, 96)\nmodel['data_preprocessor']['size'] = (96, 96)",
         'images come to training with 45x37 pixels .* and 81.9% of what is trained on is padding'),
        ("val_dataloader['dataset']['metainfo'] = dict(classes=('x', 'y', 'z'), palette=palette)",
         'val_dataloader.dataset calls a class x that is ground in train_dataloader'),
        ("val_dataloader['dataset']['reduce_zero_label'] = True", 'reduce_zero_label is True in v'),
    ],
)  # fmt: skip
def test_what_is_hardly_meant_is_a_warning(check, lines, warning):
    assert any(re.search(warning, found) for found in check(lines)), warning


def test_void_that_is_the_label_of_a_class_is_noted(check, tiny_data):
    for mask in (tiny_data / 'SegmentationClass').iterdir():
        labels = np.array(Image.open(mask))
        Image.fromarray(np.where(labels == 255, 0, labels)).save(mask)
    note = (
        'model.decode_head.ignore_index is 0, the label of the class ground, which is then neither '
        'learned nor scored; if it is to be, set all labels of void to 255'
    )
    assert note in check(VOID_11.replace('11', '0'))
    assert note in check(VOID_11.replace('11', '0') + 'test_evaluator = val_evaluator', 'test')
    assert note not in check(VOID_11)


def test_windows_of_test_time_augmentation_leave_no_gaps_either(tiny_config):
    lines = "model['test_cfg'] = dict(mode='slide', crop_size=(8, 8), stride=(9, 9))"
    cfg = load(tiny_config(lines))
    launch.use_tta(cfg)
    with pytest.raises(UserError, match='leaves gaps'):
        prepare.preflight(cfg, 'test', skip_data_check=True)


def test_a_sampler_that_reaches_its_losses_is_not_noted(check):
    lines = "model['decode_head']['sampler'] = dict(type='OHEMPixelSampler', thresh=0.7)"
    assert not any('sampler' in note for note in check(lines))


def test_what_a_student_pays_counts():
    def notes(**options):
        model = nn.Module()
        model.distill_loss = KLDistillLoss(**options)
        return network.check_losses(model, {})

    assert not notes()
    assert 'model.distill_loss: kl is logged and not trained on' in notes(loss_name='kl')[0]
    with pytest.raises(UserError, match='model.distill_loss: loss_weight must be a number from 0'):
        notes(loss_weight=-1.0)


def test_frozen_layers_that_come_from_a_checkpoint_are_meant():
    def notes(**options):
        model = nn.Module()
        model.backbone = VGG16(base_channels=2, fc_channels=4, frozen_stages=1, **options)
        return network.check_frozen(model)

    assert notes()
    assert not notes(init_cfg=dict(type='Pretrained', checkpoint='vgg16.pth'))


def test_the_best_by_a_class_that_validation_does_not_hold_is_noted(tiny_config, tiny_data):
    mask = tiny_data / 'SegmentationClass' / '3.png'
    labels = np.array(Image.open(mask))
    Image.fromarray(np.where(labels == 2, 0, labels).astype(np.uint8)).save(mask)
    (tiny_data / 'val.txt').write_text('3\n')
    lines = (
        "val_dataloader['dataset']['ann_file'] = 'val.txt'\n"
        "val_evaluator = dict(type='ClassIoUMetric')\n"
        "default_hooks['checkpoint'].update(rule='greater', save_best='IoU.{}')\n"
    )
    notes = {
        name: ' '.join(prepare.preflight(load(tiny_config(lines.format(name))), 'train').notes)
        for name in ('left', 'right')
    }
    assert "save_best='IoU.right', but no mask of validation holds right" in notes['right']
    assert 'save_best' not in notes['left']


def test_what_waits_for_scores_that_never_come_is_noted(check):
    lines = HOOK.format('EarlyStoppingHook', "monitor='mIoU'")
    told = 'custom_hooks.0: EarlyStoppingHook waits for mIoU of a validation'
    assert not any(told in note for note in check(lines))
    none = 'val_dataloader = val_cfg = val_evaluator = None\n'
    assert any(told in note for note in check(lines + none))


@pytest.mark.parametrize('kind', ['DiceLoss', 'TverskyLoss', 'LovaszSoftmaxLoss'])
def test_a_loss_that_learns_from_void_is_noted(check, kind):
    notes = check(f"model['decode_head']['loss_decode'] = [dict(type='{kind}')]")
    assert any('DiceLoss learns from void pixels' in note for note in notes) is (kind == 'DiceLoss')


def test_class_weights_of_another_data_set_are_not_inherited(tiny_config, tmp_path):
    weights = (
        "model['decode_head']['loss_decode'].update(class_weight=[1.0, 2, 2], reduction='none')"
    )
    base = tiny_config(weights)
    prepare.preflight(load(base), 'train')
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{base}'\nown = dict(classes=('a', 'b', 'c'), palette=[[0] * 3] * 3)\n"
        'train_dataloader = dict(dataset=dict(metainfo=own))\nval_dataloader = train_dataloader\n'
        'test_dataloader = train_dataloader\n'
    )
    with pytest.raises(UserError, match='class_weight is inherited from .*made for the classes gr'):
        prepare.preflight(load(str(child)), 'train')
    weight = 'model.decode_head.loss_decode.class_weight'
    for own in ([1.0, 1.0, 3.0], None):
        prepare.preflight(load(str(child), **{weight: own}), 'train')


def test_pretrained_weights_load_whole_or_not_at_all(check, tiny_config, tmp_path):
    model = prepare.preflight(load(tiny_config()), 'train').model
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'whole.pth')
    part = {k: v for k, v in model.state_dict().items() if 'stage5' not in k}
    torch.save({'state_dict': part}, tmp_path / 'part.pth')
    given = "model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint={!r}{})"

    check(given.format('whole.pth', ", prefix='backbone.'"))
    with pytest.raises(
        UserError, match=r"backbone.init_cfg: whole.pth .* set .*prefix='backbone.'"
    ):
        check(given.format('whole.pth', ''))
    with pytest.raises(UserError, match="set .*prefix='backbone.'"):
        check(given.format('whole.pth', ", prefix='encoder'"))
    with pytest.raises(UserError, match='part.pth does not load whole: .* missing: .*stage'):
        torch.save({'state_dict': dict(list(part.items())[:4])}, tmp_path / 'part.pth')
        check(given.format('part.pth', ", prefix='backbone.'"))
    with pytest.raises(UserError, match='misshapen: '):
        check(given.format('whole.pth', ", prefix='backbone.'"), **{'model.backbone.fc_channels': 4,
              'model.decode_head.in_channels': [16, 32, 4]})  # fmt: skip


@pytest.mark.parametrize('kind', ["'mmengine.Pretrained'", 'PretrainedInit'])
def test_pretrained_weights_are_loaded_by_any_name_of_their_initializer(
    check, tiny_config, tmp_path, kind
):
    model = prepare.preflight(load(tiny_config()), 'train').model
    weights = {k: torch.full_like(v, 0.5) for k, v in model.state_dict().items()}
    torch.save({'state_dict': weights}, tmp_path / 'half.pth')
    lines = (
        'from mmengine.model import PretrainedInit\n'
        f"model['init_cfg'] = dict(type={kind}, checkpoint='half.pth')\n"
        "model['decode_head']['init_cfg'] = dict(type='Constant', val=9.0, layer='Conv2d')\n"
    )
    check(lines)
    started = prepare.preflight(load(tiny_config(lines)), 'train').model
    started.init_weights()
    assert all(torch.equal(value, weights[k]) for k, value in started.state_dict().items())

    torch.save({'state_dict': dict(list(weights.items())[:4])}, tmp_path / 'half.pth')
    with pytest.raises(UserError, match='half.pth does not load whole'):
        check(lines)


def test_pretrained_weights_that_are_fetched_are_looked_at(check, monkeypatch):
    fetched = {}
    monkeypatch.setitem(CheckpointLoader._schemes, 'modelzoo://', lambda *args: dict(fetched))
    lines = "model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='modelzoo://vgg')\n"
    fetched['features.0.weight'] = torch.zeros(4, 3, 3, 3)
    with pytest.raises(UserError, match='backbone.init_cfg: modelzoo://vgg does not load whole'):
        check(lines)
    fetched['stages.0.0.conv.weight'] = torch.zeros(4, 3, 3, 3)
    check(lines)


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Xavier', layer=['Linear', 'Conv2d']),
        dict(type='Constant', val=1.0, layer='_BatchNorm'),  # a base of the layers' class
        dict(type='Normal', std=0.01, override=dict(name='fc6')),
    ],
)
def test_initializers_that_draw_something_pass(check, init_cfg):
    check(f"model['backbone']['init_cfg'] = {init_cfg}\n")


def test_a_seeded_training_is_bit_for_bit_what_it_is_without_the_trial(
    tiny_config, tmp_path, monkeypatch
):
    lines = "train_pipeline.insert(3, dict(type='PhotoMetricDistortion'))\n"
    kept = []
    for trial in (True, False):
        if not trial:
            monkeypatch.setattr(prepare, 'dry_run', lambda *args: [])
        work = tmp_path / f'{trial}'
        launch.run(load(tiny_config(lines), work_dir=str(work)), 'train')
        kept.append(torch.load(work / 'iter_2.pth', weights_only=True))
    (a, b), history = (k['state_dict'] for k in kept), 'message_hub'
    assert all(torch.equal(a[key], b[key]) for key in a)
    losses = [k[history]['log_scalars']['train/loss']['log_history'] for k in kept]
    assert torch.equal(*losses) and len(losses[0]) == 2


def test_the_trial_leaves_model_and_random_numbers_alone(tiny_config):
    lines = "train_pipeline.insert(3, dict(type='PhotoMetricDistortion'))\n"
    cfg = load(tiny_config(lines))
    prepared = prepare.preflight(cfg, 'train')
    before = {key: value.clone() for key, value in prepared.model.state_dict().items()}
    (_, train_set), (_, val_set) = prepared.datasets
    datasets = dict(train_dataloader=train_set, val_dataloader=val_set)

    def numbers():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    drawn = numbers()
    dry_run(cfg, 'train', prepared.model, datasets, build_evaluator(cfg, 'train'), None)
    assert numbers() == drawn
    after = prepared.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in prepared.model.parameters())


def test_layers_with_lr_mult_0_do_not_learn(tiny_config, tmp_path):
    lines = """
optim_wrapper['paramwise_cfg'] = dict(custom_keys={'backbone': dict(lr_mult=0.0)})
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=2, by_epoch=False)]
default_hooks['checkpoint']['interval'] = 1
"""
    launch.run(load(tiny_config(lines), work_dir=str(tmp_path / 'w')), 'train')
    before, after = (
        torch.load(tmp_path / 'w' / f'iter_{i}.pth', weights_only=True)['state_dict']
        for i in (1, 2)
    )
    kernels = [k for k in before if k.startswith('backbone') and k.endswith('conv.weight')]
    assert kernels and all(torch.equal(before[k], after[k]) for k in kernels)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optim_wrapper.optimizer.lr': 0.1}, r'lr 0.01 \(config: 0.1\)'),
        ({'optim_wrapper.optimizer.momentum': 0.5}, r'momentum 0.9 \(config: 0.5\)'),
        (
            {'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=0.01)},
            'an optimizer without betas, eps',
        ),
        ({'param_scheduler.0.end': 8}, r'param_scheduler.0.end 4 \(config: 8\)'),
        ({'param_scheduler': []}, r'1 schedules \(config: 0\)'),
    ],
)
def test_resuming_with_another_rate_or_schedule_is_refused(tiny_config, tmp_path, changes, message):
    config, work = tiny_config(), str(tmp_path / 'w')
    launch.run(load(config, work_dir=work), 'train')
    before = set(tmp_path.rglob('*'))
    longer = {'work_dir': work, 'resume': True, 'train_cfg.max_iters': 4}
    with pytest.raises(UserError, match=f'--resume goes on with .*iter_2.pth: {message}'):
        launch.run(load(config, **longer, **changes), 'train')
    assert set(tmp_path.rglob('*')) == before
    launch.run(load(config, **longer), 'train')  # the schedule it was started with
    assert (tmp_path / 'w' / 'iter_4.pth').is_file()
    done = prepare.preflight(load(config, **longer), 'train', skip_data_check=True).notes
    assert any('nothing is left to train' in warning for warning in done)


@pytest.mark.parametrize('first', ['epochs', 'iterations'])
def test_resuming_iterations_as_epochs_is_refused(tiny_config, tmp_path, first):
    fixed = 'param_scheduler = []\n'
    lines = {
        'iterations': fixed,
        'epochs': fixed + "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)\n"
        "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)\n",
    }
    work = str(tmp_path / 'w')
    launch.run(load(tiny_config(lines.pop(first)), work_dir=work), 'train')
    (second,) = lines
    message = rf'--resume goes on .*iter_2.pth: a train_cfg that counts {first} \(config: {second}'
    with pytest.raises(UserError, match=message):
        launch.run(load(tiny_config(lines[second]), work_dir=work, resume=True), 'train')


def test_resuming_with_another_implementation_of_the_optimizer_keeps_that_of_the_run(
    tiny_config, tmp_path
):
    work = str(tmp_path / 'w')
    config = tiny_config("optim_wrapper['optimizer'] = dict(type='AdamW', lr=0.01)\n")
    launch.run(load(config, work_dir=work), 'train')
    longer = {'resume': True, 'train_cfg.max_iters': 4, 'optim_wrapper.optimizer.fused': True}
    launch.run(load(config, work_dir=work, **longer), 'train')
    last = torch.load(tmp_path / 'w' / 'iter_4.pth', weights_only=True)
    assert not last['optimizer']['param_groups'][0]['fused']


@pytest.mark.parametrize(
    ('changes', 'note'),
    [
        ({'train_dataloader.num_workers': 1, 'train_cfg.val_interval': 4}, None),
        ({'train_dataloader.batch_size': 1}, r'train_dataloader.batch_size 2 \(config: 1\)'),
        (
            {'model.decode_head.loss_decode.class_weight': [1.0, 2.0, 1.0]},
            r'model.decode_head.loss_decode.class_weight.0 unset \(config: 1.0\), .*',
        ),
        ({'model.decode_head.dropout_ratio': 0.25}, r'\S+.dropout_ratio \S+ \(config: 0.25\)'),
        (
            {'optim_wrapper.type': 'BFloat16OptimWrapper'},
            r'optim_wrapper.type OptimWrapper \(config: BFloat16OptimWrapper\)',
        ),
        (
            {'custom_hooks': [dict(type='EMAHook')]},
            r'custom_hooks.0.type PlainCheckpointHook \(config: EMAHook\)',
        ),
        (
            {'val_dataloader.dataset.ann_file': ''},
            r'val_dataloader.dataset.ann_file train.txt \(config: \)',
        ),
        (
            {'val_evaluator.iou_metrics': ['mIoU', 'mDice']},
            r'val_evaluator.iou_metrics.1 unset \(config: mDice\)',
        ),
        (
            {'default_hooks.checkpoint.save_best': 'mIoU'},
            r'default_hooks.checkpoint.save_best unset \(config: mIoU\)',
        ),
    ],
)
def test_resuming_by_other_settings_is_told(tiny_config, tmp_path, changes, note):
    config, work = tiny_config(), str(tmp_path / 'w')
    launch.run(load(config, work_dir=work), 'train')
    longer = {'work_dir': work, 'resume': True, 'train_cfg.max_iters': 4}
    cfg = load(config, **longer, **changes)
    notes = prepare.preflight(cfg, 'train', skip_data_check=True).notes
    told = [text for text in notes if text.startswith('resumed by')]
    if note is None:
        assert told == []
    else:
        assert len(told) == 1
        assert re.fullmatch(
            f'resumed by other settings than .*iter_2.pth was trained with: {note}', told[0]
        )


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_weights_that_were_trained_on_other_images_are_told(tiny_config, tmp_path, mode):
    work = str(tmp_path / 'w')
    launch.run(load(tiny_config(), work_dir=work), 'train')
    start = {'load_from': f'{work}/iter_2.pth', 'work_dir': str(tmp_path / 'other')}
    other = {'model.data_preprocessor.mean': [0.0, 0.0, 0.0]}
    for changes, message in (({}, None), (other, r'expect RGB, mean \[127\.5, .* mean \[0\.0, ')):
        cfg = load(tiny_config(), **start, **changes)
        notes = prepare.preflight(cfg, mode, skip_data_check=True).notes
        told = [note for note in notes if 'iter_2.pth: the weights expect' in note]
        assert len(told) == bool(message)
        assert not told or re.search(message, told[0])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({}, None),
        (
            {  # of training alone
                'model.backbone.dropout_ratio': 0.25,
                'model.backbone.norm_cfg.type': 'SyncBN',
                'model.decode_head.loss_decode.loss_weight': 2.0,
                'model.test_cfg': dict(mode='slide', crop_size=(32, 32), stride=(16, 16)),
            },
            None,
        ),
        (
            {'model.backbone.dilations': (1, 1, 1, 1, 2)},
            r'model.backbone.dilations.0 unset \(config: 1\), ',
        ),
        ({'model.decode_head.align_corners': True}, r'align_corners \S+ \(config: True\)'),
    ],
)
def test_weights_of_a_network_of_other_settings_are_told(tiny_config, tmp_path, changes, message):
    launch.run(load(tiny_config(), work_dir=str(tmp_path / 'w')), 'train')
    cfg = load(tiny_config(), load_from=str(tmp_path / 'w' / 'iter_2.pth'), **changes)
    notes = prepare.preflight(cfg, 'test', skip_data_check=True).notes
    told = [note for note in notes if 'iter_2.pth was trained by other settings' in note]
    assert len(told) == bool(message)
    assert not told or re.search(message, told[0])


@pytest.mark.parametrize('turned', [False, True])
def test_a_batch_to_validate_of_several_sizes_is_refused(check, tiny_data, turned):
    if turned:  # stored at the size of the others
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        photo = Image.open(tiny_data / 'JPEGImages' / '3.jpg')
        mask = Image.open(tiny_data / 'SegmentationClass' / '3.png').transpose(Image.ROTATE_90)
    else:
        exif, photo, mask = Image.Exif(), Image.new('RGB', (30, 40)), Image.new('L', (30, 40))
    photo.save(tiny_data / 'JPEGImages' / '3.jpg', exif=exif)
    mask.save(tiny_data / 'SegmentationClass' / '3.png')
    changes = {'val_dataloader.batch_size': 2}
    message = r'different sizes: \S+0.jpg comes with .* \S+3.jpg with .*; validate .*batch_size=1'
    with pytest.raises(UserError, match=message):
        check(**changes)
    check()
    check(**changes, **{'val_dataloader.dataset.indices': [0, 1, 2]})


def test_one_sigmoid_channel_is_scored_as_two_classes(tiny_config, tiny_data, tmp_path):
    for path in (tiny_data / 'SegmentationClass').glob('*.png'):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 2, 1, labels)).save(path)
    config = tiny_config(TWO + ONE_CHANNEL)
    launch.run(load(config, work_dir=str(tmp_path / 'w')), 'train')
    scores = {}

    class Look(Hook):
        def after_test_epoch(self, runner, metrics=None):
            scores.update(metrics)

    cfg = load(config, work_dir=str(tmp_path / 't'), load_from=str(tmp_path / 'w/iter_2.pth'))
    launch.write_predictions(cfg, str(tmp_path / 'out'))
    launch.run(cfg, 'test', hooks=[Look()])
    hits, ours, theirs = np.zeros((3, 2))
    for path in (tiny_data / 'SegmentationClass').glob('*.png'):
        labels, predicted = (np.array(Image.open(p)) for p in (path, tmp_path / 'out' / path.name))
        assert set(np.unique(predicted)) <= {0, 1}
        for i in (0, 1):
            hits[i] += ((labels == i) & (predicted == i)).sum()
            ours[i] += ((predicted == i) & (labels != 255)).sum()
            theirs[i] += (labels == i).sum()
    iou = 100 * np.mean(hits / (ours + theirs - hits))
    assert scores['mIoU'] == pytest.approx(iou, abs=0.01)


@pytest.mark.parametrize('stage', ['val', 'test'])
def test_an_only_name_is_not_scored_by_all_pixels(check, tiny_data, stage):
    for path in (tiny_data / 'SegmentationClass').glob('*.png'):
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels == 2, 1, labels)).save(path)
    one = TWO.replace("'ground', 'thing'", "'thing',").replace('palette[:2]', 'palette[1:2]')
    message = f'^{stage}_evaluator of .* would score all pixels alike under the only name, thing;'
    with pytest.raises(UserError, match=message):
        check(one + ONE_CHANNEL, 'train' if stage == 'val' else 'test')


@pytest.mark.parametrize('stage', ['train', 'val', 'test'])
def test_images_are_normalised_once(check, stage):
    lines = """
norm = dict(type='Normalize', mean={}, std=[64.0] * 3, to_rgb=True)
{}_dataloader['dataset']['pipeline'] = [*train_pipeline[:2], norm, *train_pipeline[{}:]]
"""
    mode, skipped = ('test' if stage == 'test' else 'train'), (2 if stage == 'train' else 3)
    message = f'^{stage}_dataloader.dataset.pipeline: Normalize, .* twice; leave Normalize out of'
    with pytest.raises(UserError, match=message):
        check(lines.format([127.5] * 3, stage, skipped), mode)
    check(lines.format([0.0] * 3, stage, skipped), mode)  # that is a scale
    alone = "model['data_preprocessor'].update(mean=None, std=None)\n"
    check(lines.format([127.5] * 3, stage, skipped) + alone, mode)


def test_images_are_mixed_of_a_single_data_set(tiny_config, tmp_path):
    launch.run(load(tiny_config(MOSAIC.format(255)), work_dir=str(tmp_path / 'w')), 'train')
    assert (tmp_path / 'w' / 'iter_2.pth').is_file()


def test_warnings_are_logged(tiny_config, tmp_path):
    launch.run(load(tiny_config(), work_dir=str(tmp_path / 'w')), 'train')
    (log,) = (tmp_path / 'w').rglob('*.log')
    assert 'WARNING - param_scheduler.0 (PolyLR) ends at iteration 4' in log.read_text()
