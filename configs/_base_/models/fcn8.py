# FCN8: VGG16 with batch norm, skip fusion of pool3, pool4 and fc7.
num_classes = 21
conv_cfg = dict(type='Conv2d')  # 'SeparableConv2d' makes it FastFCN8
# The original's batch norm: Keras' momentum 0.99 is 0.01 in torch's terms.
norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='VGG16',
        base_channels=64,
        fc_channels=4096,
        out_indices=(2, 3, 5),  # pool3 (1/8), pool4 (1/16), fc7 (1/32)
        conv_cfg=conv_cfg,
        norm_cfg=norm_cfg,
        dropout_ratio=0.5,
    ),
    decode_head=dict(
        type='FCN8Head',
        in_channels=[256, 512, 4096],
        in_index=[0, 1, 2],
        conv_cfg=conv_cfg,
        num_classes=num_classes,
        align_corners=False,
        # The mean is taken over all pixels, void ones included: mmseg's default.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
