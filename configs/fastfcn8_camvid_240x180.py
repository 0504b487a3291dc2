_base_ = './fcn8_camvid_240x180.py'

conv_cfg = dict(type='SeparableConv2d')
model = dict(backbone=dict(conv_cfg=conv_cfg), decode_head=dict(conv_cfg=conv_cfg))
