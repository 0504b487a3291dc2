# Half size, 800 iterations: what two CPU cores train in an hour (FastFCN8: half an hour).
_base_ = [
    './_base_/models/fcn8_camvid.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/adam_8k.py',
    './_base_/default_runtime.py',
]

scale = (240, 180)  # width, height
crop_size = (180, 240)  # height, width
max_iters = 800
warmup = min(max(2, max_iters // 16), max_iters)  # LinearLR arrives at its second step
begin = min(warmup, max_iters - 1)
val_interval = max(1, max_iters // 4)

model = dict(data_preprocessor=dict(size=crop_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            # 0.75, 1 and 1.25 times the scale
            [
                dict(type='Resize', scale=s, keep_ratio=True)
                for s in ((180, 135), scale, (300, 225))
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=warmup, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=begin, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=val_interval),
)
