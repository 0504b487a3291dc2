"""The config that a fit writes: short, to be read and changed."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path

from ssnet_mm.fit.plan import Plan
from ssnet_mm.prepare.run import Prepared

NETS = {  # the recipe for a few hundred images, as docs/results.md tells it
    'fastfcn8': 'fastfcn8_camvid',
    'fastfcn8-slim': 'fastfcn8_slim_camvid',
    'fcn8': 'fcn8_camvid',
}
_AMP = '# Mixed precision, for the kind of machine that this was made on.'
_HIGHEST_WEIGHT = 10.0  # of a class; beyond, a few pixels would be all that is learned

_TEXT = '''\
# Made by ssnet_mm fit. To be read and changed; then train it into another folder:
#   ssnet_mm train {file} --work-dir DIR
# The rest is in the base and its bases: random sizes, crops, flips and colours, the losses and the
# schedule, which follow the numbers below.
_base_ = {base!r}

data_root = {data_root!r}
classes = {classes}
palette = {palette}
num_classes = {num_classes}

scale = {scale}  # width, height that images are scaled to fit into
crop_size = {crop_size}  # height, width of what training cuts out of them
batch_size = {batch_size}
max_iters = {max_iters}{time}
val_interval = {val_interval}
# Ends where mIoU has not risen by {min_delta} in so many validations.
patience = {patience}

# The rarer a class, the more its pixels count: the square root of SegNet's median frequency
# balancing (https://arxiv.org/abs/1511.00561), so that a pixel weighs 1 on average.
class_weight = {class_weight}
{amp}
# From VGG16's kernels a net learns more in little time (docs/weights.md of the project):
# model = dict(backbone=dict(init_cfg=dict(type='ForeignPretrained', checkpoint='vgg16_bn.pth')))
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix='.{suffix}',
    seg_map_suffix='.png',
)
train_dataloader = dict(batch_size=batch_size, num_workers={workers}, dataset=dataset)
val_dataloader = dict(num_workers={workers}, dataset=dataset)
test_dataloader = val_dataloader

train_cfg = dict(val_interval=val_interval)
default_hooks = dict(logger=dict(interval={log_interval}), checkpoint=dict(interval=val_interval))
custom_hooks = [
    dict(
        type='EarlyStoppingHook',
        monitor='mIoU',
        rule='greater',
        min_delta={min_delta},
        patience=patience,
    ),
]
'''  # fmt: skip
_MIN_DELTA = 0.1


def class_weights(weights: Sequence[float]) -> list[float]:
    """What the config trains with."""
    return [round(min(float(w), _HIGHEST_WEIGHT), 2) for w in weights]


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
    minutes = plan.step * plan.max_iters / 60
    record = data.record
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
        time=f'  # measured: {plan.step:.2f} s each, {minutes:.1f} minutes' if minutes else '',
        val_interval=plan.val_interval,
        log_interval=min(max(plan.max_iters // 30, 1), 50),
        min_delta=_MIN_DELTA,
        patience=max(3, round(plan.validations / 2)),
        class_weight=_pretty(class_weights(weights)),
        amp=f'\n{_AMP}\noptim_wrapper = dict(type={amp!r})\n' if amp else '',
        suffix=record.suffix,
        workers=workers,
    )


def _pretty(values: Sequence) -> str:
    return pprint.pformat(list(values), width=96, compact=True)
