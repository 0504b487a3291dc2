# The published FCN-8s: its network, its test (whole images, unscaled, one by one) and its solver
# (voc-fcn8s/solver.prototxt). It differs in the data: the published nets learned from SBD's 8498
# training images and were tested on 736 validation images of VOC 2011.
# The published FCN-8s goes on from FCN-16s, and that from FCN-32s (fcn16_voc_caffe.py,
# fcn32_voc_caffe.py), which goes on from VGG16 trained on ILSVRC; from scratch nothing is learned
# at such a rate. fcn8_voc_caffe_atonce.py does without the steps between.
_base_ = [
    './_base_/models/fcn8_caffe.py',
    './_base_/datasets/voc.py',
    './_base_/default_runtime.py',
]

# One image an iteration, as it is.
model = dict(data_preprocessor=dict(size_divisor=1))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
test_pipeline = train_pipeline
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# The rate is for a loss summed over all pixels, not for its mean. Caffe's weight decay is torch's
# (coupled); biases have none, and twice the rate. The upsampling is fixed (lr_mult: 0).
l2 = 2.5e-4
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-14, momentum=0.99, weight_decay=2 * l2),
    paramwise_cfg=dict(
        bias_lr_mult=2.0,
        bias_decay_mult=0.0,
        custom_keys={'decode_head.upsamples': dict(lr_mult=0.0)},
    ),
)
param_scheduler = []
max_iters = 100000
val_interval = max(1, max_iters // 25)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(checkpoint=dict(interval=val_interval))
