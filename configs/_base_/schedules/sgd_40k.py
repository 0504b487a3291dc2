# L2 regularisation in Keras' sense: l2 * ||w||^2 is added to the loss for every conv kernel, and
# nothing for biases and batch norm. Its gradient is 2 * l2 * w, and torch's (coupled) weight decay
# adds weight_decay * w.
max_iters = 40000
warmup = min(max(2, max_iters // 80), max_iters)  # LinearLR arrives at its second step
begin = min(warmup, max_iters - 1)
val_interval = max(1, max_iters // 20)

l2 = 2.5e-4
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=2 * l2),
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

# Scale the learning rate with the batch by --cfg-options auto_scale_lr.enable=True: it is made for
# 16 images an iteration, over all GPUs.
auto_scale_lr = dict(enable=False, base_batch_size=16)
