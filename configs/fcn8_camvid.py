# The recipe of docs/results.md.
_base_ = [
    './_base_/models/fcn8_camvid.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/adamw_1500.py',
    './_base_/default_runtime.py',
]

# Lovasz' loss is made for the IoU, where cross entropy is for the share of pixels.
loss_decode = [
    {{_base_.loss_decode}},
    dict(type='LovaszSoftmaxLoss'),
]
model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    decode_head=dict(loss_decode=loss_decode),
)
default_hooks = dict(checkpoint=dict(interval={{_base_.val_interval}}))
