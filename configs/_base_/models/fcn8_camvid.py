# FCN8 for the few hundred images and the 11 classes of CamVid.
_base_ = './fcn8.py'

num_classes = 11
# The square root of SegNet's median frequency balancing (https://arxiv.org/abs/1511.00561): the
# median of the classes' frequencies in training images that show them, over each one's own; then
# scaled so that a training pixel weighs 1 on average. Poles, signs, people and bicycles are 3% of
# the pixels, and in a short schedule they are hardly learned otherwise.
class_weight = [0.9, 0.77, 3.74, 0.67, 1.71, 1.11, 3.35, 2.39, 1.52, 4.3, 5.09]
# Without reduction the segmentor takes the mean over all pixels. mmseg's own mean of a weighted
# loss fails on void pixels: in mmsegmentation 1.2.2 always, in OneDL's with avg_non_ignore=True.
loss_decode = dict(type='CrossEntropyLoss', class_weight=class_weight, reduction='none')

model = dict(
    # A schedule this short needs running statistics that follow the weights: docs/measurements.md.
    backbone=dict(norm_cfg=dict(momentum=0.1)),
    decode_head=dict(num_classes=num_classes, loss_decode=loss_decode),
)
