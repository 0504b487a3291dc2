# For training from scratch on a few hundred images. The L2 term is Keras', as in sgd_40k.py, so
# the optimizer is Adam, whose weight decay joins the gradient, and not AdamW.
max_iters = 8000
val_interval = max(1, max_iters // 10)

l2 = 1e-6
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=5e-4, weight_decay=2 * l2, fused=True),
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0),
)
# eta_min is an absolute rate: above 0, layers with lr_mult=0 would learn.
param_scheduler = [
    dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
