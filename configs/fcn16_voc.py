# FCN-16s: FCN8 without pool3.
_base_ = './fcn8_voc.py'

model = dict(
    backbone=dict(out_indices=(3, 5)),  # pool4 (1/16), fc7 (1/32)
    decode_head=dict(in_channels=[512, 4096], in_index=[0, 1]),
)
