# The published FCN-8s that learned all at once from VGG16: pool3 and pool4 are scaled down before
# they are scored (voc-fcn8s-atonce).
_base_ = './fcn8_voc_caffe.py'

model = dict(decode_head=dict(level_scales=[1e-4, 1e-2, 1.0]))
optim_wrapper = dict(optimizer=dict(lr=1e-10))
max_iters = 300000
val_interval = max(1, max_iters // 75)
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
default_hooks = dict(checkpoint=dict(interval=val_interval))
