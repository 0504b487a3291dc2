# mmseg's BiSeNetV2 under the recipe of fastfcn8_camvid.py, to compare with.
_base_ = '../fastfcn8_camvid.py'

norm_cfg = dict(type='BN')
head = dict(
    type='FCNHead',
    concat_input=False,
    num_classes={{_base_.num_classes}},
    norm_cfg=norm_cfg,
    align_corners=False,
)
auxiliary_loss = dict(
    type='CrossEntropyLoss', class_weight={{_base_.class_weight}}, reduction='none'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='BiSeNetV2',
        detail_channels=(64, 64, 128),
        semantic_channels=(16, 32, 64, 128),
        semantic_expansion_ratio=6,
        bga_channels=128,
        out_indices=(0, 1, 2, 3, 4),
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    decode_head=dict(
        _delete_=True,
        in_channels=128,
        in_index=0,
        channels=1024,
        num_convs=1,
        dropout_ratio=0.1,
        loss_decode={{_base_.loss_decode}},
        **head,
    ),
    auxiliary_head=[
        dict(
            in_channels=in_channels,
            in_index=index,
            channels=channels,
            num_convs=2,
            loss_decode=auxiliary_loss,
            **head,
        )
        for index, in_channels, channels in ((1, 16, 16), (2, 32, 64), (3, 64, 256), (4, 128, 1024))
    ],
)
