_base_ = [
    './_base_/models/fcn8.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/adam_8k.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    # A schedule this short needs running statistics that follow the weights: docs/measurements.md.
    backbone=dict(norm_cfg=dict(momentum=0.1)),
    decode_head=dict(num_classes=11),
)
