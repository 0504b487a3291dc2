# FastFCN8 taught by FCN8: train the teacher first, with fcn8_camvid_240x180.py.
_base_ = './fastfcn8_camvid_240x180.py'

model = dict(
    type='DistilledEncoderDecoder',
    teacher='{{ fileDirname }}/fcn8_camvid_240x180.py',
    teacher_checkpoint='work_dirs/fcn8_camvid_240x180/iter_800.pth',
    # The teacher's logits carry the class weights it was trained with, so this loss has none. At
    # this temperature and weight it pulls at the logits about as strongly as the labels do.
    distill_loss=dict(type='KLDistillLoss', temperature=2.0, loss_weight=1.0),
)
