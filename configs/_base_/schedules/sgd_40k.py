# L2 regularisation in Keras' sense: l2 * ||w||^2 is added to the loss for every conv kernel, and
# nothing for biases and batch norm. Its gradient is 2 * l2 * w, and torch's (coupled) weight decay
# adds weight_decay * w.
l2 = 2.5e-4
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=2 * l2),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=500, by_epoch=False),
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=500, end=40000, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=2000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# Scale the learning rate with the batch by --cfg-options auto_scale_lr.enable=True: it is made for
# 16 images an iteration, over all GPUs.
auto_scale_lr = dict(enable=False, base_batch_size=16)
