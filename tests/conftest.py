"""A data set and a config small enough to train on in a second, for the engine and the tools."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

pytest.register_assert_rewrite('helpers')

with contextlib.redirect_stdout(io.StringIO()):
    # what the toolbox prints at its import would stand behind pytest's closing line
    import_module('ssnet_mm')

ROOT = Path(__file__).resolve().parent.parent

# Tools that run in the tests' process leave its malloc alone: 65536 is what glibc has anyway.
os.environ.setdefault('MALLOC_MMAP_MAX_', '65536')

# The tests import OpenVINO, too; it reports that to its makers, from a process that it forks.
sys.modules.setdefault('openvino_telemetry', None)

# Networks this small lose by a second thread, tenfold on busy cores; the tools' processes too.
os.environ['OMP_NUM_THREADS'] = '1'
torch.set_num_threads(1)

_serial = itertools.count()

_CONFIG = """
custom_imports = dict(imports=['ssnet_mm'], allow_failed_imports=False)
default_scope = 'mmseg'
experiment_name = '{name}'  # mmengine shares loggers and histories between Runners of one name
classes = ('ground', 'left', 'right')
palette = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]
crop_size = (32, 32)
conv_cfg = dict(type='Conv2d')
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True,
        size=crop_size, pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='VGG16', base_channels=4, fc_channels=8, out_indices=(2, 3, 5),
        conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCN8Head', in_channels=[16, 32, 8], in_index=[0, 1, 2], num_classes=3,
        conv_cfg=conv_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=crop_size), dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
tta_model = dict(type='SegTTAModel')
dataset = dict(
    type='BaseSegDataset', data_root={data!r}, metainfo=dict(classes=classes, palette=palette),
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='train.txt', serialize_data=False)  # serialising takes longer than training
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **dataset))
test_dataloader = val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **dataset))
test_evaluator = val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
param_scheduler = [dict(type='PolyLR', power=0.9, begin=0, end=4, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=2, backend_args=dict(backend='atomic')),
    visualization=dict(type='SegVisualizationHook'))
custom_hooks = [dict(type='PlainCheckpointHook')]
log_processor = dict(by_epoch=False)
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='{name}')
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='gloo'))
randomness = dict(seed=0)
"""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def no_default_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ran before in this process, no default scope is set."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())
    assert DefaultScope.get_current_instance() is None


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Four images of 45x37 (width, height) with three classes and a void border, as VOC's."""
    root = tmp_path / 'data'
    for folder in ('JPEGImages', 'SegmentationClass'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = np.zeros((37, 45), np.uint8)
        mask[5:30, 4:20], mask[5:30, 24:40], mask[:, 22] = 1, 2, 255
        image = rng.integers(0, 60, (37, 45, 3)) + (mask[..., None] % 255) * 70
        Image.fromarray(image.astype(np.uint8)).save(root / 'JPEGImages' / f'{i}.jpg')
        Image.fromarray(mask).save(root / 'SegmentationClass' / f'{i}.png')
    (root / 'train.txt').write_text('0\n1\n2\n3\n')
    return root


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_data: Path) -> Callable[..., str]:
    """Write the tiny config, followed by lines that change it, and return its path."""

    def write(changes: str = '') -> str:
        name = f'tiny_{next(_serial)}'
        path = tmp_path / f'{name}.py'
        path.write_text(_CONFIG.format(name=name, data=str(tiny_data)) + changes)
        return str(path)

    return write


@pytest.fixture(scope='session')
def tool() -> Callable[[str], ModuleType]:
    """Load a module of tools/ by its name; its ``main(argv)`` then runs in this process."""

    def load(name: str) -> ModuleType:
        if f'tools_{name}' not in sys.modules:
            import_module('ssnet_mm')
            spec = util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
            assert spec is not None and spec.loader is not None
            module = sys.modules[f'tools_{name}'] = util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[f'tools_{name}']

    return load


@pytest.fixture
def fails(
    tool: Callable[[str], ModuleType],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Run a tool that must end with exit code 2 and one line; return the line."""

    def run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py'])
        with pytest.raises(SystemExit, match='^2$'):
            tool(name).main([str(arg) for arg in args])
        lines = capsys.readouterr().err.splitlines()
        lines = [line for line in lines if 'elapsed' not in line]  # the progress bar
        assert len(lines) == 1 and lines[0].startswith(f'{name}.py: error: '), lines
        return lines[0]

    return run
