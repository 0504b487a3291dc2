# FastFCN8 taught by FCN8: train the teacher first, with fcn8_voc.py.
_base_ = './fastfcn8_voc.py'

model = dict(
    type='DistilledEncoderDecoder',
    teacher='{{ fileDirname }}/fcn8_voc.py',
    teacher_checkpoint='work_dirs/fcn8_voc/iter_40000.pth',
    # As in fastfcn8_camvid_240x180_distill.py; not tuned for VOC.
    distill_loss=dict(type='KLDistillLoss', temperature=2.0, loss_weight=1.0),
)
