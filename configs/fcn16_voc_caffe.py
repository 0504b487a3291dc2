# The published FCN-16s (voc-fcn16s).
_base_ = './fcn8_voc_caffe.py'

model = dict(
    backbone=dict(out_indices=(3, 5)),  # pool4, fc7
    decode_head=dict(in_channels=[512, 4096], in_index=[0, 1]),
)
optim_wrapper = dict(optimizer=dict(lr=1e-12))
