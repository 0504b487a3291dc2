# FCN-32s: FCN8 without skips.
_base_ = './fcn8_voc.py'

model = dict(
    backbone=dict(out_indices=(5,)),  # fc7 (1/32)
    decode_head=dict(in_channels=[4096], in_index=[0]),
)
