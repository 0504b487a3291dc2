"""The config that a fit writes: short, to be read and changed."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path

from ssnet_mm.fit.plan import Plan
from ssnet_mm.prepare.run import Prepared

NETS = {  # what they are trained with here: the schedule for a few hundred images
    'fastfcn8': 'fastfcn8_camvid_240x180',
    'fastfcn8-slim': 'fastfcn8_slim_camvid_240x180',
    'fcn8': 'fcn8_camvid_240x180',
}
_AMP = '# Mixed precision, for the kind of machine that this was made on.'
_HIGHEST_WEIGHT = 10.0  # of a class; beyond, a few pixels would be all that is learned

_TEXT = '''\
# Made by ssnet_mm fit. To be read and changed; then train it into another folder:
#   ssnet_mm train {file} --work-dir DIR
_base_ = {base!r}

data_root = {data_root!r}
classes = {classes}
palette = {palette}
num_classes = {num_classes}

# Images are scaled to fit into this, in training to 0.75 to 1.5 of it.
scale = {scale}  # width, height
crop_size = {crop_size}  # height, width
batch_size = {batch_size}
max_iters = {max_iters}{time}
val_interval = {val_interval}

# The rarer a class, the more its pixels count: the square root of SegNet's median frequency
# balancing (https://arxiv.org/abs/1511.00561), so that a pixel weighs 1 on average.
class_weight = {class_weight}
model = dict(
    # From VGG16's kernels a net learns more in little time (docs/weights.md of the project):
    # backbone=dict(init_cfg=dict(type='ForeignPretrained', checkpoint='vgg16_bn.pth')),
    decode_head=dict(loss_decode=dict(class_weight=class_weight)),
)
{amp}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),  # leave it out where left and right are not alike
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix='.{suffix}',
    seg_map_suffix='.png',
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers={workers},
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(num_workers={workers}, dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader

train_cfg = dict(val_interval=val_interval)
default_hooks = dict(checkpoint=dict(interval=val_interval))
# Ends where mIoU has not risen in so many validations.
patience = {patience}
custom_hooks = [
    dict(
        type='EarlyStoppingHook', monitor='mIoU', rule='greater', min_delta=0.1, patience=patience
    ),
]
'''  # fmt: skip


def config_text(
    file: Path,
    base: str,
    data: Prepared,
    weights: Sequence[float],
    plan: Plan,
    amp: str = '',
    workers: int = 2,
) -> str:
    """A config that states what differs from one of ours.

    Args:
        file: Where it will stand.
        base: Path of ours.
        data: What was prepared.
        weights: Of each class in the loss.
        plan: Sizes and lengths.
        amp: Type of an optim_wrapper for mixed precision; empty for float32.
        workers: Processes that load images.
    """
    minutes = plan.seconds * plan.max_iters / 60
    time = f'  # measured: {plan.seconds:.2f} s each, {minutes:.0f} minutes' if minutes else ''
    record = data.record
    wrapper = f'\n{_AMP}\noptim_wrapper = dict(type={amp!r})\n' if amp else ''
    return _TEXT.format(
        file=file,
        base=base,
        data_root=str(data.root.resolve()),
        classes=_pretty(record.classes),
        palette=_pretty([list(colour) for colour in record.palette]),
        num_classes=len(record.classes),
        scale=plan.scale,
        crop_size=plan.crop_size,
        batch_size=plan.batch_size,
        max_iters=plan.max_iters,
        time=time,
        val_interval=plan.val_interval,
        class_weight=_pretty([round(min(float(w), _HIGHEST_WEIGHT), 2) for w in weights]),
        amp=wrapper,
        suffix=record.suffix,
        workers=workers,
        patience=max(3, round(plan.max_iters / plan.val_interval / 2)),
    )


def _pretty(values: Sequence) -> str:
    return pprint.pformat(list(values), width=96, compact=True)
