from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook, LoggerHook

from ssnet_mm.engine.config import load_config
from ssnet_mm.engine.config.nested import plain, walk
from ssnet_mm.engine.config.options import READ, hands_on, unread_variables
from ssnet_mm.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / 'configs').glob('*.py'))
VOC = str(CONFIGS[0].parent / 'fastfcn8_voc.py')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_our_tools_read_a_config_as_mmengine_does(path):
    ours, theirs = load_config(str(path)), Config.fromfile(path)
    assert {k: plain(ours.get(k)) for k in READ} == {k: plain(theirs.get(k)) for k in READ}
    assert ours.filename == str(path)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize('max_iters', [1, 2, 3, 400])
def test_schedule_validation_and_checkpoints_follow_max_iters(path, max_iters):
    cfg = load_config(str(path), {'max_iters': max_iters})
    assert cfg.train_cfg.max_iters == max_iters
    assert 1 <= cfg.train_cfg.val_interval <= max_iters
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval
    assert all(0 <= s.begin < s.end <= max_iters for s in cfg.param_scheduler)
    assert [s.end for s in cfg.param_scheduler][-1:] in ([], [max_iters])


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_classes_and_data_are_set_in_one_place(path):
    cfg = load_config(str(path), {'num_classes': 5, 'data_root': 'elsewhere'})
    assert cfg.model.decode_head.num_classes == 5
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        parts = loader.dataset.get('datasets', [loader.dataset])
        assert {part.data_root for part in parts} == {'elsewhere'}


def test_the_crop_is_that_of_the_pipeline_and_of_the_padding():
    cfg = load_config(VOC, {'crop_size': (64, 96)})
    crops = [t for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop']
    assert [crop.crop_size for crop in crops] == [cfg.model.data_preprocessor.size] == [(64, 96)]


def test_a_child_config_sets_a_knob_alone(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{VOC}'\nmax_iters = 100\ncrop_size = (32, 32)\n")
    cfg = load_config(str(child))
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == 100
    assert cfg.model.data_preprocessor.size == (32, 32)
    assert load_config(str(child), {'max_iters': 50}).param_scheduler[-1].end == 50


def test_any_variable_and_any_part_of_it_takes_effect():
    assert load_config(VOC, {'l2': 1.0}).optim_wrapper.optimizer.weight_decay == 2.0
    cfg = load_config(VOC, {'train_pipeline.3.cat_max_ratio': 0.5, 'norm_cfg.momentum': 0.2})
    assert cfg.train_dataloader.dataset.pipeline[3].cat_max_ratio == 0.5
    assert cfg.model.backbone.norm_cfg.momentum == 0.2


@pytest.mark.parametrize(
    ('option', 'setting'),
    [
        ('optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('lr', 'optim_wrapper.optimizer.lr'),
        ('optim_wraper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('optim_wrapper.optimizr.lr', 'optim_wrapper.optimizer.lr'),
        ('optim_wrapper.paramwise_cfg.bias_decay_mul',
         'optim_wrapper.paramwise_cfg.bias_decay_mult'),
        ('model.decode_head.num_class', 'model.decode_head.num_classes'),
        ('model.test_cfg.strid', 'model.test_cfg.stride'),
        ('train_dataloader.batchsize', 'train_dataloader.batch_size'),
        ('batch_size', 'train_dataloader.batch_size, val_dataloader.batch_size'),
        ('default_hooks.checkpoint.intervall', 'default_hooks.checkpoint.interval'),
        ('val_evaluator.iou_metric', 'val_evaluator.iou_metrics'),
        ('train_cfg.max_iter', 'train_cfg.max_iters'),
        ('seed', 'randomness.seed'),
    ],
)  # fmt: skip
def test_an_option_that_nothing_reads_is_refused(option, setting):
    with pytest.raises(UserError, match=f'{option} has no effect: .*; the setting is {setting}'):
        load_config(VOC, {option: 1})


def test_a_variable_that_nothing_is_computed_from_is_refused(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{VOC}'\nunused = 1\ntrain_cfg = dict(max_iters=8)\n")
    with pytest.raises(UserError, match='unused=2 has no effect: .*child.py computes no setting'):
        load_config(str(child), {'unused': 2})
    message = 'max_iters=4 has no effect on train_cfg.max_iters, .* 8 by itself; use train_cfg.max'
    with pytest.raises(UserError, match=message):
        load_config(str(child), {'max_iters': 4})
    with pytest.raises(UserError, match='nothing reads strange$'):
        load_config(str(child), {'strange': 4})
    with pytest.raises(UserError, match='param_scheduler is a list of 2, which has no 5'):
        load_config(str(child), {'param_scheduler.5.end': 4})


def test_settings_that_are_read_may_be_added():
    options = {
        'randomness.seed': 1,
        'load_from': 'a.pth',
        'model.backbone.init_cfg.type': 'Pretrained',
        'model.test_cfg.mode': 'slide',
        'model.test_cfg.stride': (8, 8),
        'train_dataloader.drop_last': True,
        'optim_wrapper.clip_grad.max_norm': 1.0,
        'optim_wrapper.optimizer.nesterov': True,
        'val_evaluator.prefix': 'val',
        'default_hooks.checkpoint.save_last': False,
        'default_hooks.early.type': 'EarlyStoppingHook',
        'model.backbone.norm_cfg.requires_grad': False,
    }
    cfg = load_config(VOC, options)
    assert cfg.default_hooks.early.type == 'EarlyStoppingHook'
    assert cfg.model.test_cfg == dict(mode='slide', stride=(8, 8))


def test_an_option_of_a_class_that_is_an_option_too():
    swapped = {'optim_wrapper.optimizer.type': 'SGD', 'optim_wrapper.optimizer.momentum': 0.9}
    cfg = load_config(str(Path(VOC).parent / 'fastfcn8_camvid.py'), swapped)
    assert cfg.optim_wrapper.optimizer.type == 'SGD' and cfg.optim_wrapper.optimizer.momentum == 0.9
    with pytest.raises(UserError, match='nothing reads optim_wrapper.optimizer.amsgrad'):
        load_config(VOC, {**swapped, 'optim_wrapper.optimizer.amsgrad': True})


@pytest.mark.parametrize(
    'switch',
    [
        'resume',  # of the Runner
        'auto_scale_lr.enable',  # of no class
        'env_cfg.cudnn_benchmark',
        'randomness.deterministic',
        'train_dataloader.persistent_workers',  # set in the config
        'val_dataloader.drop_last',  # of torch
        'train_dataloader.sampler.shuffle',
        'default_hooks.checkpoint.save_last',
        'param_scheduler.0.by_epoch',
        'model.backbone.with_cp',
        'model.backbone.norm_cfg.requires_grad',
        'train_pipeline.0.to_float32',  # a variable
    ],
)
def test_a_switch_takes_no_other_word_than_true_and_false(switch):
    for word in ('no', 'off', 'fasle'):
        with pytest.raises(
            UserError, match=f'{switch}={word}: it is a switch, .*; write True or F'
        ):
            load_config(VOC, {switch: word})
    for value in (True, False):
        assert dict(walk(load_config(VOC, {switch: value})))[switch] is value


def test_a_switch_of_a_class_that_is_an_option_too_takes_no_word():
    adam = {'optim_wrapper.optimizer.type': 'Adam', 'optim_wrapper.optimizer.amsgrad': 'no'}
    with pytest.raises(UserError, match='amsgrad=no: it is a switch'):
        load_config(VOC, adam)
    words = {'model.test_cfg.mode': 'slide', 'default_hooks.checkpoint.save_best': 'mIoU'}
    cfg = load_config(VOC, {**words, 'load_from': 'no', 'train_dataloader.sampler.type': 'A'})
    assert cfg.load_from == 'no' and cfg.default_hooks.checkpoint.save_best == 'mIoU'


def test_a_misspelled_setting_in_a_config_file_is_refused(tmp_path):
    child = tmp_path / 'child.py'
    for name in ('optim_wraper', 'train_dataloder', 'param_schedulers', 'custom_hook'):
        child.write_text(f"_base_ = '{VOC}'\n{name} = dict()\n")
        with pytest.raises(UserError, match=f'child.py sets {name}, which nothing reads; the sett'):
            load_config(str(child))
    # a variable beside the setting that is made from it is none
    child.write_text(
        f"_base_ = '{VOC}'\nparam_schedulers = []\nparam_scheduler = param_schedulers\n"
    )
    assert load_config(str(child)).param_scheduler == []


def test_classes_that_hand_on_arguments_are_told():
    assert hands_on(EMAHook) and hands_on(CheckpointHook) and not hands_on(LoggerHook)


def test_variables_that_come_too_late_are_noted(tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(
        f"_base_ = '{VOC}'\ntrain_pipeline = []\nlr_config = dict(policy='poly')\n"
        'max_iters = 100\nown = 3\nl2 = 2.5e-4\ntrain_cfg = dict(val_interval=own)\n_kept = 1\n'
    )
    late, unread = unread_variables(str(child))
    assert late.startswith(f'train_pipeline is set in {child}, but ') and 'has computed' in late
    assert unread == f'lr_config is set in {child}, and nothing reads it'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_our_configs_set_nothing_in_vain(path):
    assert unread_variables(str(path)) == []


@pytest.mark.parametrize(
    ('setting', 'meant'),
    [
        ('model = dict(test_cfg=dict(strde=(8, 8)))', 'model.test_cfg.strde; .* stride'),
        ('env_cfg = dict(cudnn_benchmrk=True)', 'env_cfg.cudnn_benchmrk; .* cudnn_benchmark'),
        ('randomness = dict(sed=1)', 'randomness.sed; .* seed'),
    ],
)
def test_a_misspelled_setting_that_no_class_takes_is_refused(tmp_path, setting, meant):
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{VOC}'\n{setting}\n")
    with pytest.raises(UserError, match=f'child.py: nothing reads {meant}$'):
        load_config(str(child))


def write(path, text):
    path.write_text(text)
    return str(path)


def test_a_data_preprocessor_beside_the_model_becomes_the_models(tmp_path):
    beside = "data_preprocessor = dict(type='SegDataPreProcessor', mean=[1.0])\n"
    path = write(tmp_path / 'own.py', beside + "model = dict(type='EncoderDecoder')\n")
    assert load_config(path).model.data_preprocessor.mean == [1.0]
    options = {'data_preprocessor.mean': [2.0]}
    assert load_config(path, options).model.data_preprocessor.mean == [2.0]
    # as in mmseg's configs
    path = write(tmp_path / 'base.py', beside + 'model = dict(data_preprocessor=data_preprocessor)')
    assert load_config(path, options).model.data_preprocessor.mean == [2.0]
    option = {'model.data_preprocessor.mean': [3.0]}
    assert load_config(path, option).model.data_preprocessor.mean == [3.0]
    child = "_base_ = './base.py'\nmodel = dict(data_preprocessor=dict(mean=[4.0]))"
    child = load_config(write(tmp_path / 'child.py', child))
    assert child.model.data_preprocessor.mean == [4.0]


def test_a_data_preprocessor_without_effect_is_refused(tmp_path):
    path = write(tmp_path / 'own.py', f"_base_ = '{VOC}'\ndata_preprocessor = dict(mean=[1.0] * 3)")
    message = 'own.py: data_preprocessor has no effect, .* its own; set model.data_preprocessor$'
    with pytest.raises(UserError, match=message):
        load_config(path)
    message = (
        'data_preprocessor.mean.* has no effect.*; the setting is model.data_preprocessor.mean'
    )
    for config in (VOC, path):
        with pytest.raises(UserError, match=message):
            load_config(config, {'data_preprocessor.mean': [2.0] * 3})
