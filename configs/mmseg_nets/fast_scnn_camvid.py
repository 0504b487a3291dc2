# mmseg's Fast-SCNN under the recipe of fastfcn8_camvid.py, to compare with.
_base_ = '../fastfcn8_camvid.py'

norm_cfg = dict(type='BN')
auxiliary_loss = dict(
    type='CrossEntropyLoss', class_weight={{_base_.class_weight}}, reduction='none', loss_weight=0.4
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='FastSCNN',
        downsample_dw_channels=(32, 48),
        global_in_channels=64,
        global_block_channels=(64, 96, 128),
        global_block_strides=(2, 2, 1),
        global_out_channels=128,
        higher_in_channels=64,
        lower_in_channels=128,
        fusion_out_channels=128,
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    decode_head=dict(
        _delete_=True,
        type='DepthwiseSeparableFCNHead',
        in_channels=128,
        channels=128,
        concat_input=False,
        num_classes={{_base_.num_classes}},
        in_index=-1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode={{_base_.loss_decode}},
    ),
    auxiliary_head=[
        dict(
            type='FCNHead',
            in_channels=channels,
            channels=32,
            num_convs=1,
            num_classes={{_base_.num_classes}},
            in_index=index,
            norm_cfg=norm_cfg,
            concat_input=False,
            align_corners=False,
            loss_decode=auxiliary_loss,
        )
        for channels, index in ((128, -2), (64, -3))
    ],
)
