# FastFCN8 on the built-in miniature (tools/make_miniature.py), from scratch in minutes on a CPU.
_base_ = [
    './_base_/models/fcn8.py',
    './_base_/datasets/miniature.py',
    './_base_/schedules/adam_8k.py',
    './_base_/default_runtime.py',
]

max_iters = 200
warmup = min(max(2, max_iters // 10), max_iters)  # LinearLR arrives at its second step
begin = min(warmup, max_iters - 1)

conv_cfg = dict(type='SeparableConv2d')
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    # Batch norm's running statistics have to follow weights that change fast.
    backbone=dict(conv_cfg=conv_cfg, norm_cfg=dict(momentum=0.1)),
    decode_head=dict(conv_cfg=conv_cfg),
)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=warmup, by_epoch=False),
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=begin, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
randomness = dict(seed=0)  # one machine reaches the same mIoU each time
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=max_iters))
