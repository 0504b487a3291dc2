# FastFCN8 taught by FCN8: train the teacher first, with fcn8_camvid.py.
_base_ = './fastfcn8_camvid.py'

model = dict(
    type='DistilledEncoderDecoder',
    teacher='{{ fileDirname }}/fcn8_camvid.py',
    teacher_checkpoint='work_dirs/fcn8_camvid/iter_1500.pth',
    # The teacher's logits carry the class weights it was trained with, so this loss has none. At
    # this temperature and weight it pulls at the logits about as strongly as the labels do.
    distill_loss=dict(type='KLDistillLoss', temperature=2.0, loss_weight=1.0),
)
