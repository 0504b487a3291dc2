_base_ = './fcn8_camvid.py'

conv_cfg = dict(type='SeparableConv2d')
model = dict(backbone=dict(conv_cfg=conv_cfg), decode_head=dict(conv_cfg=conv_cfg))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
