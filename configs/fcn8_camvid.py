_base_ = [
    './_base_/models/fcn8.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/adam_8k.py',
    './_base_/default_runtime.py',
]

# The square root of SegNet's median frequency balancing (https://arxiv.org/abs/1511.00561): the
# median of the classes' frequencies in training images that show them, over each one's own. Poles,
# signs, people and bicycles are 3% of the pixels and are not learned in a short schedule otherwise.
class_weight = [0.53, 0.45, 2.19, 0.39, 1.0, 0.65, 1.96, 1.4, 0.89, 2.52, 2.98]

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    # A schedule this short needs running statistics that follow the weights: docs/measurements.md.
    backbone=dict(norm_cfg=dict(momentum=0.1)),
    decode_head=dict(num_classes=11, loss_decode=dict(class_weight=class_weight)),
)
