# FCN-8s as published in Caffe, layer by layer and crop by crop, for the published weights:
# https://github.com/shelhamer/fcn.berkeleyvision.org, voc-fcn8s.
_base_ = './fcn8.py'

image_padding = 100  # pixels around the image, so that fc6 needs no padding of its own

model = dict(
    data_preprocessor=dict(
        mean=[104.00699, 116.66877, 122.67892],  # BGR, as images are loaded
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
    ),
    backbone=dict(norm_cfg=None, image_padding=image_padding, fc6_padding=0),
    decode_head=dict(
        type='CaffeFCN8Head',
        image_padding=image_padding,
        # The score layers start from zero, as in Caffe.
        init_cfg=dict(type='Constant', layer='Conv2d', val=0.0, bias=0.0),
        # The sum over the pixels, void ones left out: Caffe's normalize: false.
        loss_decode=dict(reduction='sum'),
    ),
)
