# For a few hundred images: AdamW, whose weight decay stays off the gradient, in a short schedule.
max_iters = 1500
warmup = min(max(2, max_iters // 40), max_iters)  # LinearLR arrives at its second step
begin = min(warmup, max_iters - 1)
val_interval = max(1, max_iters // 4)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=warmup, by_epoch=False),
    # eta_min is an absolute rate: above 0, layers with lr_mult=0 would learn.
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=begin, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
