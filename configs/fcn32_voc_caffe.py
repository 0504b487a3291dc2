# The published FCN-32s (voc-fcn32s).
_base_ = './fcn8_voc_caffe.py'

model = dict(
    backbone=dict(out_indices=(5,)),  # fc7
    decode_head=dict(in_channels=[4096], in_index=[0]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-10))
