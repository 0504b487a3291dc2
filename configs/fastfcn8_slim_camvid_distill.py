_base_ = './fastfcn8_camvid_distill.py'

fc_channels = 1024  # 4096 in FCN8: fc7 alone would be 81% of FastFCN8's parameters
model = dict(
    teacher='{{ fileDirname }}/fcn8_camvid.py',  # as in the base, by this file's folder
    backbone=dict(fc_channels=fc_channels),
    decode_head=dict(in_channels=[256, 512, fc_channels]),
)
