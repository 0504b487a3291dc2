# The recipe of the FCN paper (https://arxiv.org/abs/1605.06211, section 4.3): no batch norm, 20
# whole images an iteration, SGD with a fixed learning rate of 1e-4 and momentum 0.9, twice that
# rate for biases, images neither scaled nor cropped nor flipped. The paper starts from VGG16
# trained on ILSVRC; from scratch this does not get far.
_base_ = './fcn8_voc.py'

# The largest side of VOC's images: smaller ones are padded at the bottom and right with the mean
# colour and void.
size = (500, 500)
model = dict(data_preprocessor=dict(size=size), backbone=dict(norm_cfg=None))

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
train_dataloader = dict(batch_size=20, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# bias_lr_mult doubles the rate of every conv bias; without batch norm there are no others.
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(bias_lr_mult=2.0))
param_scheduler = []
