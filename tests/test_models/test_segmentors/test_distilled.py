"""A student learns from its teacher and keeps nothing of it."""

import copy
import json
import logging

import pytest
import torch
from helpers.nets import SEPARABLE, data_sample, draw_statistics
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import Tensor, nn

from ssnet_mm import KLDistillLoss
from ssnet_mm.engine import launch, load_checkpoint
from ssnet_mm.engine.preflight import preflight
from ssnet_mm.errors import UserError

TEACHER = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size=(40, 48)
    ),
    backbone=dict(
        type='VGG16',
        base_channels=4,
        fc_channels=8,
        out_indices=(2, 3, 5),
        norm_cfg=dict(type='BN'),
        conv_cfg=None,
    ),
    decode_head=dict(
        type='FCN8Head', in_channels=[16, 32, 8], num_classes=3, align_corners=False, conv_cfg=None
    ),
    test_cfg=ConfigDict(mode='whole'),
)
AUXILIARY = dict(type='FCNHead', in_channels=16, in_index=0, channels=4, num_convs=1, num_classes=3)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture
def weights(tmp_path) -> str:
    """A teacher's checkpoint, with statistics of its own."""
    teacher = draw_statistics(MODELS.build(copy.deepcopy(TEACHER)))
    for score in teacher.decode_head.scores:
        nn.init.normal_(score.weight)
    torch.save({'state_dict': teacher.state_dict()}, tmp_path / 'teacher.pth')
    return str(tmp_path / 'teacher.pth')


def plain(**changes) -> dict:
    cfg = copy.deepcopy(TEACHER)
    cfg['backbone']['conv_cfg'] = cfg['decode_head']['conv_cfg'] = SEPARABLE
    return {**cfg, **changes}


def student(weights: str | None, **changes) -> nn.Module:
    distilled = dict(
        type='DistilledEncoderDecoder',
        teacher=copy.deepcopy(TEACHER),
        teacher_checkpoint=weights,
        distill_loss=dict(type='KLDistillLoss', temperature=2.0, loss_weight=0.5),
    )
    return MODELS.build(plain(**{**distilled, **changes}))


def batch(labels: int | None = None) -> dict:
    """Two images of noise, with noisy labels or one everywhere."""
    generator = torch.Generator().manual_seed(0)
    data: dict = dict(inputs=[], data_samples=[])
    for _ in range(2):
        image = torch.randint(256, (3, 40, 48), generator=generator, dtype=torch.uint8)
        label = torch.randint(3, (1, 40, 48), generator=generator)
        if labels is not None:
            label.fill_(labels)
        data['inputs'].append(image)
        data['data_samples'].append(data_sample((40, 48), label))
    return data


def losses(model: nn.Module, **kwargs) -> dict[str, Tensor]:
    return model(**model.data_preprocessor(batch(**kwargs), training=True), mode='loss')


def test_the_loss_compares_with_the_teacher_in_evaluation_mode(weights):
    model = student(weights)
    model.backbone.dropout.p = 0.0
    model.train()
    inputs = model.data_preprocessor(batch(), training=True)['inputs']
    teacher = MODELS.build(copy.deepcopy(TEACHER))
    load_checkpoint(teacher, weights)
    with torch.no_grad():
        target = teacher.eval()(inputs, mode='tensor')
        logits = model(inputs, mode='tensor')  # in training mode: batch norm takes the batch's
    expected = KLDistillLoss(2.0, 0.5)(logits, target)
    found = losses(model)
    torch.testing.assert_close(found['distill.loss_kl'], expected)
    assert found['distill.loss_kl'] > 0.1
    assert set(found) == {'decode.loss_ce', 'decode.acc_seg', 'distill.loss_kl'}

    # and again after a step, in which nothing of the teacher moves
    total, logs = model.parse_losses(found)
    torch.testing.assert_close(total, found['decode.loss_ce'] + found['distill.loss_kl'])
    total.backward()
    torch.testing.assert_close(model.load_teacher()(inputs, mode='tensor'), target)


def test_the_hard_losses_are_the_plain_segmentors(weights):
    model = student(weights, auxiliary_head=AUXILIARY).train()
    other = MODELS.build(plain(auxiliary_head=AUXILIARY)).train()
    other.load_state_dict(model.state_dict())
    model.load_teacher()
    torch.manual_seed(1)
    found = losses(model)
    torch.manual_seed(1)
    expected = losses(other)
    assert set(found) == {*expected, 'distill.loss_kl'}
    assert {'decode.loss_ce', 'aux.loss_ce'} < set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_loading_the_teacher_draws_no_random_number_from_the_student(weights):
    model = student(weights)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model.load_teacher()
    assert torch.equal(torch.rand(3), expected)


def test_pixels_without_label_are_taught(weights):
    model = student(weights).train()
    found = losses(model, labels=255)
    assert found['decode.loss_ce'] == 0 and found['distill.loss_kl'] > 0.1
    model.parse_losses(found)[0].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert model.decode_head.scores[0].pointwise.weight.grad.abs().sum() > 0


def test_the_student_keeps_nothing_of_the_teacher(weights):
    model, other = student(weights).train(), MODELS.build(plain())
    total, _ = model.parse_losses(losses(model))
    total.backward()
    teacher = model.load_teacher()

    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(model.state_dict(), strict=True)
    own = {id(p) for p in (*model.parameters(), *model.buffers())}
    assert not own & {id(p) for p in (*teacher.parameters(), *teacher.buffers())}
    assert not {id(m) for m in model.modules()} & {id(m) for m in teacher.modules()}
    count = sum(p.numel() for p in other.parameters())
    optimizer = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1))).optimizer
    assert sum(p.numel() for g in optimizer.param_groups for p in g['params']) == count
    average = ExponentialMovingAverage(model)
    assert sum(p.numel() for p in average.parameters()) == count
    assert {key.removeprefix('module.') for key in average.state_dict()} - {'steps'} == set(
        other.state_dict()
    )

    # frozen, and in evaluation mode whatever the student does
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    model.train()
    assert not any(m.training for m in teacher.modules())
    before = torch.load(weights)['state_dict']
    losses(model)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_a_step_brings_the_student_closer(weights):
    model = student(weights, distill_loss=dict(type='KLDistillLoss', loss_weight=20.0)).train()
    model.backbone.dropout.p = 0.0
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='Adam', lr=3e-3)))
    logs = [model.train_step(batch(), wrapper)['distill.loss_kl'].item() for _ in range(15)]
    assert logs[-1] < 0.5 * logs[0], logs


def test_another_resolution_is_brought_to_the_students(weights, tmp_path):
    teacher = copy.deepcopy(TEACHER)
    # pool2, at a quarter, is one level more
    teacher['backbone']['out_indices'] = (1, 2, 3, 5)
    teacher['decode_head']['in_channels'] = [8, 16, 32, 8]
    built = MODELS.build(copy.deepcopy(teacher))
    torch.save(built.state_dict(), tmp_path / 'fine.pth')
    model = student(str(tmp_path / 'fine.pth'), teacher=teacher).eval()
    inputs = model.data_preprocessor(batch(), training=True)['inputs']
    with torch.no_grad():
        logits, fine = model(inputs, mode='tensor'), built.eval()(inputs, mode='tensor')
        found = losses(model)
    assert (logits.shape[2:], fine.shape[2:]) == ((5, 6), (10, 12))
    fine = nn.functional.interpolate(fine, (5, 6), mode='bilinear', align_corners=False)
    torch.testing.assert_close(found['distill.loss_kl'], KLDistillLoss(2.0, 0.5)(logits, fine))


def test_mixed_precision_reaches_the_teacher(weights):
    model = student(weights).train()
    seen = []
    features = model.load_teacher().backbone
    features.register_forward_hook(lambda *args: seen.append(args[-1][-1].dtype))
    with torch.autocast('cpu', torch.float16):
        found = losses(model)
    assert seen == [torch.float16]
    assert found['distill.loss_kl'].dtype == torch.float32
    found['distill.loss_kl'].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_prediction_needs_no_teacher():
    model = student(None, teacher='no/where.py').eval()
    other = MODELS.build(plain()).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        predicted, expected = model.test_step(batch()), other.test_step(batch())
    for a, b in zip(predicted, expected, strict=True):
        torch.testing.assert_close(a.seg_logits.data, b.seg_logits.data, rtol=0, atol=0)
    assert model(torch.rand(1, 3, 33, 47), mode='tensor').shape == (1, 3, 5, 6)


def changed(part: str, **values) -> dict:
    cfg = copy.deepcopy(TEACHER)
    cfg[part].update(values)
    return cfg


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(teacher_checkpoint=None), 'has no teacher_checkpoint; to train it, set it with'),
        (dict(teacher_checkpoint='no.pth'), '^model.teacher_checkpoint: checkpoint no.pth not fou'),
        (dict(teacher='no/where.py'), 'config no/where.py not found'),
        (dict(teacher=changed('backbone', depth=3)), '^model.teacher: TypeError: .*depth'),
        (dict(teacher=changed('backbone', conv_cfg=SEPARABLE)), 'teacher.pth does not fit the mod'),
        (dict(teacher=changed('decode_head', num_classes=4)), 'gives 4 logits a pixel, the stud'),
        (dict(teacher=changed('data_preprocessor', mean=[1.0] * 3)), r'mean \[1.0, .* instead'),
        (dict(teacher=changed('data_preprocessor', std=[1.0] * 3)), 'differs from the student'),
        (dict(teacher=changed('data_preprocessor', bgr_to_rgb=False)), 'BGR, .* instead of RGB, '),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_do_is_named_in_one_line(weights, changes, message):
    model = student(**{'weights': weights, **changes}).train()
    with pytest.raises(UserError, match=message):
        losses(model)


def test_a_teacher_that_was_trained_by_other_settings_is_noted(weights, monkeypatch):
    records = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handle', records.append)
    state = torch.load(weights)['state_dict']
    cfg = copy.deepcopy(TEACHER)
    for settings, told in (
        ({}, ()),
        (dict(data_preprocessor=dict(mean=[0.0] * 3)), ['the weights expect RGB, mean [0.0, 0.']),
        (dict(backbone=dict(fc_dilation=2)), ['model.backbone.fc_dilation 2 (config: unset)']),
    ):
        trained = Config(dict(model=copy.deepcopy(cfg)))
        trained.merge_from_dict(dict(model=settings))
        torch.save(dict(state_dict=state, meta=dict(cfg=trained.pretty_text)), weights)
        records.clear()
        student(weights).load_teacher()
        noted = [r.getMessage() for r in records if r.levelno == logging.WARNING]
        assert len(noted) == len(told)
        assert all(part in note for part, note in zip(told, noted))


DISTIL = """
teacher = dict(model)
model = dict(
    model, type='DistilledEncoderDecoder', teacher='{teacher}', teacher_checkpoint='{weights}',
    backbone=dict(model['backbone'], conv_cfg=dict(type='SeparableConv2d')),
    distill_loss=dict(type='KLDistillLoss', temperature=2.0))
"""


def test_the_tools_train_and_test_a_student(tool, tiny_config, tmp_path):
    teacher = tiny_config()
    weights = tmp_path / 'teacher.pth'
    torch.save(MODELS.build(launch.load_config(teacher).model).state_dict(), weights)
    config = tiny_config(DISTIL.format(teacher=teacher, weights=weights))
    work = tmp_path / 'work'
    tool('train').main([config, '--work-dir', str(work)])

    (log,) = work.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines[:2]:
        assert line['loss'] == pytest.approx(line['decode.loss_ce'] + line['distill.loss_kl'])
        assert line['distill.loss_kl'] > 0
    trained = torch.load(work / 'iter_2.pth', weights_only=True)
    cfg = launch.load_config(config)
    for kind in ('teacher', 'teacher_checkpoint', 'distill_loss'):
        del cfg.model[kind]
    cfg.model.type = 'EncoderDecoder'
    MODELS.build(cfg.model).load_state_dict(trained['state_dict'], strict=True)

    weights.unlink()
    tool('test').main([config, str(work / 'iter_2.pth'), '--work-dir', str(tmp_path / 'test')])

    # what is missing is said before anything is written
    cfg = launch.load_config(config, {'work_dir': str(tmp_path / 'none'), 'launcher': 'none'})
    with pytest.raises(UserError, match='model.teacher_checkpoint: .*teacher.pth not found'):
        launch.run(cfg, 'train')
    assert not (tmp_path / 'none').exists()


def test_a_teacher_of_classes_in_another_order_is_refused(tiny_config, tmp_path):
    teacher, weights = tiny_config(), tmp_path / 'teacher.pth'
    state = MODELS.build(launch.load_config(teacher).model).state_dict()
    config = tiny_config(DISTIL.format(teacher=teacher, weights=weights))
    cfg = launch.load_config(config, {'work_dir': str(tmp_path / 'work'), 'launcher': 'none'})
    for classes in (('ground', 'left', 'right'), ('ground', 'right', 'left')):
        meta = dict(dataset_meta=dict(classes=classes))
        torch.save(dict(state_dict=state, meta=meta), weights)
        if classes[1] == 'left':
            preflight(copy.deepcopy(cfg), 'train', skip_data_check=True)
    with pytest.raises(UserError, match='teacher.pth was trained on classes in another order: la'):
        preflight(cfg, 'train', skip_data_check=True)
