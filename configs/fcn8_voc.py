_base_ = [
    './_base_/models/fcn8.py',
    './_base_/datasets/voc.py',
    './_base_/schedules/sgd_40k.py',
    './_base_/default_runtime.py',
]

model = dict(data_preprocessor=dict(size={{_base_.crop_size}}))
default_hooks = dict(checkpoint=dict(interval={{_base_.val_interval}}))
