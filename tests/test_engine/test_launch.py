import argparse
import errno
import os
import re
import shlex
import shutil
from importlib import metadata

import pytest
import torch
from helpers.training import train
from mmengine.device import get_device
from mmengine.hooks import Hook

from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor, single_datasets
from ssnet_mm.engine.preflight import prepare
from ssnet_mm.errors import UserError

ON_CPU = get_device() == 'cpu'


def flags(**changes):
    values = dict(config='a/name.py', work_dir=None, launcher=None, local_rank=0)
    return argparse.Namespace(**{**values, **changes})


def load(config, **changes):
    cfg = launch.load_config(config, changes)
    launch.apply_run_arguments(cfg, flags(config=config))
    return cfg


def test_a_config_that_can_not_be_read_is_named(tmp_path):
    for name, text, message in (
        ('none.py', None, 'config .*none.py not found'),
        ('syntax.py', 'model = dict(', 'config .*syntax.py: '),
        ('import.py', "custom_imports = dict(imports=['no_such'])\nmodel = dict()", 'no_such'),
        ('base.py', "_base_ = './no_such.py'", 'config .*base.py: .*no_such.py'),
        ('part.py', 'a = 1', 'part.py has no model; is it one of the parts'),
        ('text.txt', 'a = 1', 'config .*text.txt: '),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            launch.load_config(str(tmp_path / name))


def test_a_config_of_ours_needs_no_path(tmp_path, monkeypatch, tiny_config):
    monkeypatch.chdir(tmp_path)
    for name in ('fastfcn8_voc', 'fastfcn8_voc.py'):
        cfg = launch.load_config(name)
        assert cfg.model.backbone.conv_cfg.type == 'SeparableConv2d'
        assert os.path.isfile(cfg.filename)
    shutil.copy(tiny_config(), 'fcn8_voc.py')  # a file of one's own comes first
    assert launch.load_config('fcn8_voc.py').model.decode_head.num_classes == 3
    for name in ('fastfcn8_vco', 'configs/fastfcn8_voc.py'):
        with pytest.raises(UserError, match=f'config {name} not found; .* has fastfcn8_voc.*, whi'):
            launch.load_config(name)
    with pytest.raises(UserError, match='config a/b.py not found; check the path'):
        launch.load_config('a/b.py')


def test_bases_that_would_have_a_toolbox_installed_over_the_other_are_refused(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = ['ssnet_mm::fcn8_voc.py']")
    with pytest.raises(UserError, match='mine.py: mmengine can not find ssnet_mm::') as caught:
        launch.load_config(str(path))
    written = re.search("in _base_: '(.*)'", str(caught.value))
    path.write_text(f'_base_ = [{written.group(1)!r}]')
    assert launch.load_config(str(path)).model.decode_head.type == 'FCN8Head'
    if 'mmsegmentation' in {d.name for d in metadata.distributions()}:
        return  # the package that mmengine looks for
    child = tmp_path / 'child.py'
    child.write_text("_base_ = './mine.py'")
    path.write_text("_base_ = 'mmseg::_base_/default_runtime.py'\nmodel = dict()")
    with pytest.raises(UserError, match='mine.py: .*do not install mmsegmentation, ') as caught:
        launch.load_config(str(child))
    assert os.path.isfile(re.search("in _base_: '(.*)'", str(caught.value)).group(1))


def test_options_override_the_config(tiny_config):
    cfg = launch.load_config(tiny_config(), {'train_cfg.max_iters': 7, 'randomness.seed': 3})
    assert cfg.train_cfg.max_iters == 7 and cfg.randomness.seed == 3
    with pytest.raises(UserError, match='--cfg-options on .*: '):
        launch.load_config(tiny_config(), {'train_cfg.max_iters.x': 1})


def test_work_dir_is_the_flags_then_the_configs_then_the_name(tiny_config):
    cfg = launch.load_config(tiny_config())
    launch.apply_run_arguments(cfg, flags())
    assert cfg.work_dir == './work_dirs/name' and cfg.launcher == 'none'
    cfg = launch.load_config(tiny_config("work_dir = 'mine'\nlauncher = 'slurm'\n"))
    launch.apply_run_arguments(cfg, flags())
    assert cfg.work_dir == 'mine' and cfg.launcher == 'slurm'
    launch.apply_run_arguments(cfg, flags(work_dir='flag', launcher='none'))
    assert cfg.work_dir == 'flag' and cfg.launcher == 'none'


def test_tta_reaches_wrapped_data_sets(tiny_config):
    cfg = launch.load_config(tiny_config())
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[cfg.dataset, cfg.dataset])
    launch.use_tta(cfg)
    assert [d.pipeline for d in cfg.test_dataloader.dataset.datasets] == [cfg.tta_pipeline] * 2
    assert cfg.model.type == 'MeanProbabilityTTAModel' and cfg.model.module.type == 'EncoderDecoder'
    with pytest.raises(UserError, match='--tta needs tta_model and tta_pipeline'):
        launch.use_tta(launch.load_config(tiny_config('tta_model = None')))


@pytest.mark.parametrize(
    ('tested', 'tried', 'note'),
    [
        ({}, dict(scale=(2048, 512)), '2048 to 2048 pixels .*dataset.pipeline not at all'),
        (dict(scale=(64, 64)), dict(scale=(2048, 512)), '2048 to 2048 pixels .*pipeline to 64; '),
        (dict(scale=(2048, 512)), dict(scale=(2048, 512)), None),
        ({}, dict(scale_factor=1.5), None),
        ({}, {}, None),
    ],
)
def test_tta_at_sizes_that_are_not_tested_is_noted(tiny_config, tested, tried, note):
    cfg = launch.load_config(tiny_config())
    if tested:
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', **tested))
    if tried:
        cfg.tta_pipeline[1].transforms.insert(0, [dict(type='Resize', **tried)])
    notes = launch.use_tta(cfg)
    assert [bool(re.search(note or '', found)) for found in notes] == [True] * bool(note)


def test_predictions_are_asked_of_every_metric(tiny_config):
    cfg = launch.load_config(tiny_config('test_evaluator = [dict(test_evaluator)] * 2'))
    launch.write_predictions(cfg, 'out')
    assert [metric.output_dir for metric in cfg.test_evaluator] == ['out', 'out']


def test_painting_needs_the_visualization_hook(tiny_config):
    cfg = launch.load_config(tiny_config())
    launch.paint_predictions(cfg, show=True, show_dir='painted', wait_time=3)
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.show, hook.wait_time) == (True, True, 3)
    assert cfg.visualizer.save_dir == 'painted'
    del cfg.default_hooks['visualization']
    with pytest.raises(UserError, match='need default_hooks.visualization'):
        launch.paint_predictions(cfg, show=False, show_dir='painted', wait_time=3)


def test_a_sound_config_passes(tiny_config):
    for mode in ('train', 'test'):
        prepare.preflight(load(tiny_config()), mode)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train_dataloader.dataset.data_root': 'no/where'},
         r'no folder no/where \(train_dataloader.dataset, data_root\); put it there, or point to '
         'it with --cfg-options train_dataloader.dataset.data_root=DIR'),
        ({'val_dataloader.dataset.data_root': 'data/miniature_'}, 'with ssnet_mm miniature'),
        ({'train_dataloader.dataset.data_prefix.seg_map_path': 'nomasks'},
         r'no folder .*nomasks \(train_dataloader.dataset, seg_map_path\)'),
        ({'train_dataloader.dataset.ann_file': 'none.txt'}, 'no .*none.txt .*, ann_file'),
        ({'train_dataloader.dataset.ann_file': 'empty.txt'}, 'is empty: .*empty.txt'),
        ({'train_dataloader.dataset.ann_file': 'empty.txt',
          'train_dataloader.dataset.serialize_data': True}, 'is empty: .*empty.txt'),
        ({'train_dataloader.dataset.img_suffix': '.tif'}, '0.tif not found, the first img_path'),
        ({'train_dataloader.dataset.seg_map_suffix': '.x'}, '0.x not found, the first seg_map'),
        ({'train_dataloader.dataset.ann_file': 'broken.txt'},
         'train_dataloader.dataset: its first sample, .*broken.jpg, does not load: '),
        ({'train_dataloader.dataset.type': 'NoSuch'}, 'NoSuch is not in the'),
        ({'train_dataloader': None}, 'has no train_dataloader, which training needs'),
        ({'model.decode_head.num_classes': 2}, 'has 3 classes, the model 2; set'),
        ({'model.backbone.type': 'VGG17'}, 'the model of .*: KeyError: VGG17 is not in the'),
        ({'model.backbone.no_such': 1}, 'nothing reads model.backbone.no_such'),
        ({'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='none.pth')},
         'checkpoint none.pth not found'),
        ({'load_from': 'none.pth'}, 'checkpoint none.pth not found'),
        ({'train_dataloader.batch_size': 0}, 'train_dataloader.batch_size must be positive .* 0$'),
        ({'train_dataloader.batch_size': 'x'}, "batch_size must be positive and whole, got 'x'"),
        ({'val_dataloader.persistent_workers': True}, 'set val_dataloader.persistent_work'),
        ({'train_cfg.max_iters': -1}, 'train_cfg.max_iters must be'),
        ({'model.data_preprocessor.size': (32, 0)}, r'data_preprocessor.size must .*\(32, 0\)'),
        ({'train_pipeline.2.crop_size': (1.5, 2)}, r'train_pipeline.2.crop_size must be'),
        ({'launcher': 'pytorch'}, 'to be started by it .RANK is not set.; use .*dist_train.sh'),
        ({'launcher': 'slurm'}, 'use tools/slurm_train.sh'),
    ],
)  # fmt: skip
def test_what_would_fail_is_said_before(tiny_config, tiny_data, monkeypatch, changes, message):
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(name, raising=False)
    (tiny_data / 'empty.txt').touch()
    (tiny_data / 'broken.txt').write_text('broken\n')
    (tiny_data / 'JPEGImages' / 'broken.jpg').write_text('no image')
    (tiny_data / 'SegmentationClass' / 'broken.png').write_text('no image')
    with pytest.raises(UserError, match=message):
        prepare.preflight(load(tiny_config(), **changes), 'train')


def test_data_sets_inside_wrappers_are_found():
    inner = [dict(type='A'), dict(type='RepeatDataset', times=2, dataset=dict(type='B'))]
    found = single_datasets(dict(type='ConcatDataset', datasets=inner), 'loader.dataset')
    assert [(where, dataset['type']) for where, dataset in found] == [
        ('loader.dataset.datasets.0', 'A'),
        ('loader.dataset.datasets.1.dataset', 'B'),
    ]


@pytest.mark.skipif(not ON_CPU, reason='needs a machine without an accelerator')
def test_cuda_where_there_is_none(tiny_config, monkeypatch):
    cfg = load(tiny_config(), **{'optim_wrapper.type': 'AmpOptimWrapper'})
    prepare.check_machine(cfg, 'test')
    with pytest.raises(UserError, match='AmpOptimWrapper .* needs CUDA, and torch finds none'):
        prepare.check_machine(cfg, 'train')
    monkeypatch.setenv('RANK', '0')
    cfg = load(tiny_config(), launcher='pytorch')
    prepare.check_machine(cfg, 'train')  # gloo
    cfg.env_cfg.dist_cfg.backend = 'nccl'
    with pytest.raises(UserError, match='backend nccl needs CUDA.*env_cfg.dist_cfg.backend=gloo'):
        prepare.check_machine(cfg, 'train')


def test_more_processes_than_gpus(tiny_config, monkeypatch):
    monkeypatch.setattr(prepare, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('RANK', '2')
    cfg = load(tiny_config(), launcher='pytorch')
    monkeypatch.setenv('LOCAL_RANK', '1')
    prepare.check_machine(cfg, 'train')
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(UserError, match='more processes than GPUs: torch finds 2'):
        prepare.check_machine(cfg, 'train')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'val_evaluator.type': 'NoSuch'}, 'val_evaluator: NoSuch is not'),
        ({'custom_hooks': [dict(type='EMAHook', momentum='0.1')]}, 'config .*py: TypeError: .*EMA'),
        ({'default_hooks.checkpoint.backend_args.backend': 's4'}, 'config .*py: KeyError: s4'),
    ],
)
def test_a_mistake_that_only_running_showed_is_one_line(tiny_config, tmp_path, changes, message):
    cfg = load(tiny_config(), work_dir=str(tmp_path / 'w'), **changes)
    with pytest.raises(UserError, match=message):
        launch.run(cfg, 'train')


def test_a_config_without_a_training_is_tested(tiny_config, tmp_path):
    cfg = load(tiny_config('optim_wrapper = param_scheduler = train_cfg = train_dataloader = None'))
    torch.save({'state_dict': build_segmentor(cfg).state_dict()}, tmp_path / 'a.pth')
    cfg.work_dir, cfg.load_from = str(tmp_path / 'w'), str(tmp_path / 'a.pth')
    launch.run(cfg, 'test')


def test_images_without_masks_are_predicted_for_a_test_server(tiny_config, tmp_path):
    """mmseg's way: format_only=True, an output_dir, and a pipeline without LoadAnnotations."""
    config = tiny_config(
        "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]\n"
        "data_prefix = dict(img_path='JPEGImages')\n"
        'test_dataloader = dict(test_dataloader, dataset=dict(\n'
        '    dataset, pipeline=test_pipeline, data_prefix=data_prefix))\n'
        "test_evaluator = dict(type='IoUMetric', format_only=True)"
    )
    with pytest.raises(UserError, match='test_evaluator of .*; set the output_dir that they go to'):
        launch.run(load(config, work_dir=str(tmp_path / 'w')), 'test')
    folder = tmp_path / 'labels'
    options = {'work_dir': str(tmp_path / 'w'), 'test_evaluator.output_dir': str(folder)}
    launch.run(load(config, **options), 'test')
    assert sorted(path.name for path in folder.iterdir()) == [f'{i}.png' for i in range(4)]


def test_our_tools_load_strictly_whatever_the_hooks_of_a_config(tiny_config, tmp_path, monkeypatch):
    cfg = load(tiny_config('custom_hooks = []'), work_dir=str(tmp_path / 'w'))
    seen = []
    monkeypatch.setattr('mmengine.runner.Runner.test', lambda self: seen.extend(self.hooks))
    launch.run(cfg, 'test')
    assert 'PlainCheckpointHook' in [type(hook).__name__ for hook in seen]
    assert os.environ['LOCAL_RANK'] == '0'


@pytest.mark.skipif(not ON_CPU, reason='on a GPU nothing is rearranged')
def test_a_cpu_trains_channels_last_and_keeps_memory(tiny_config, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, 'keep_freed_memory', lambda: asked.append(True))
    layouts = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            layouts.extend(
                p.is_contiguous(memory_format=torch.channels_last)
                for p in runner.model.parameters()
                if p.dim() == 4
            )

    config = tiny_config()
    for resume in (False, True):  # weights that are loaded take the layout too
        options = {'resume': resume, 'train_cfg.max_iters': 3 if resume else 2}
        cfg = load(config, work_dir=str(tmp_path / 'run'), **options)
        launch.run(cfg, 'train', hooks=[Look()])
    assert asked and layouts and all(layouts)


@pytest.mark.parametrize(
    'lines',
    [
        "model['backbone']['conv_cfg'] = dict(type='ConvWS')",
        "model['decode_head'] = dict(\n"
        "    type='DMHead', filter_sizes=(1, 3), in_channels=8, in_index=2, channels=4,\n"
        '    norm_cfg=norm_cfg, num_classes=3)',
    ],
    ids=['ConvWS', 'DMHead'],
)
def test_networks_that_fail_channels_last_are_trained_in_the_plain_layout(
    tiny_config, tmp_path, lines
):
    assert len(train(tiny_config(lines), tmp_path / 'work')) == 2


def test_a_head_of_mmseg_is_trained_from_its_own_initializer(tiny_config, tmp_path):
    head = dict(type='FCNHead', in_channels=8, in_index=2, channels=4, num_classes=21)
    train(tiny_config(f"model['auxiliary_head'] = {head}"), tmp_path / 'work')
    assert list((tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize('mixed_precision', [False, True])
def test_an_accelerator_trains_channels_last_in_mixed_precision(mixed_precision):
    conv = torch.nn.Conv2d(4, 8, 3, device='meta')
    launch.tune(conv, mixed_precision)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) is mixed_precision


@pytest.mark.parametrize('options', [{}, {'load_from': 'iter_1.pth'}, {'resume': 'iter_1.pth'}])
def test_an_earlier_training_is_not_mixed_with_another(tiny_config, tmp_path, options):
    config, work = tiny_config("default_hooks['checkpoint']['interval'] = 1"), tmp_path / 'work'
    train(config, work)
    before = {path: path.read_bytes() for path in work.glob('*.pth')}
    options = {key: str(work / value) for key, value in options.items()}
    if 'resume' in options:
        options = {'load_from': options['resume'], 'resume': True}
    message = 'work holds the checkpoints of an earlier training, as .*iter_2.pth; go on with it by'
    with pytest.raises(UserError, match=message):
        train(config, work, **options)
    assert {path: path.read_bytes() for path in work.glob('*.pth')} == before
    train(config, work, resume=True, train_cfg__max_iters=3)
    assert (work / 'iter_3.pth').is_file()


@pytest.mark.parametrize('first', [False, True])  # a queue starts a job by --resume at once
def test_a_run_with_load_from_is_resumed_by_the_same_command(tiny_config, tmp_path, first, capfd):
    config, work, start = tiny_config(), tmp_path / 'work', tmp_path / 'start.pth'
    train(config, tmp_path / 'other')
    other = tmp_path / 'other' / 'iter_2.pth'
    torch.save({'state_dict': torch.load(other, weights_only=True)['state_dict']}, start)
    assert set(train(config, work, load_from=str(start), resume=first)) == {1, 2}
    assert ('is the start' in ''.join(capfd.readouterr())) is first
    options = dict(load_from=str(start), resume=True)
    assert set(train(config, work, train_cfg__max_iters=3, **options)) == {3}
    said = f'{work}/iter_2.pth is resumed; load_from={start} is not loaded again'
    assert said in ''.join(capfd.readouterr())


def test_a_whole_checkpoint_of_elsewhere_is_gone_on_with_where_there_is_none_yet(
    tiny_config, tmp_path
):
    config, work = tiny_config(), tmp_path / 'work'
    train(config, tmp_path / 'other')
    options = dict(load_from=str(tmp_path / 'other' / 'iter_2.pth'), resume=True)
    assert set(train(config, work, train_cfg__max_iters=3, **options)) == {3}
    assert set(train(config, work, train_cfg__max_iters=4, **options)) == {4}


@pytest.mark.parametrize('place', ['', "out_dir='elsewhere', "])
def test_a_run_of_which_the_best_checkpoint_alone_is_left_is_not_started_anew(
    tiny_config, tmp_path, monkeypatch, place
):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(f"default_hooks['checkpoint'].update({place}save_best='mIoU')\n")
    train(config, tmp_path / 'work')
    (best,) = tmp_path.rglob('best_mIoU_iter_2.pth')
    for left in [*tmp_path.rglob('iter_*.pth'), tmp_path / 'work' / 'last_checkpoint']:
        left.unlink()
    before = best.read_bytes()
    with pytest.raises(
        UserError, match='holds no checkpoint that --resume can go on from, but .*b'
    ):
        train(config, tmp_path / 'work', resume=True)
    assert best.read_bytes() == before


def test_the_advice_to_remove_checkpoints_can_be_pasted_into_a_shell(tiny_config, tmp_path):
    work = tmp_path / "one's own"
    work.mkdir()
    (work / 'iter_1.pth').write_bytes(b'')
    with pytest.raises(UserError) as caught:
        train(tiny_config(), work)
    assert str(caught.value).endswith(f'rm {shlex.quote(str(work))}/*.pth')


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning_and_training_goes_on(
    tiny_config, tmp_path, monkeypatch, capfd, number
):
    def lockf(file, how):
        raise OSError(number, os.strerror(number))

    config, work, half = tiny_config(), tmp_path / 'work', '.iter_1.999999.tmp.pth'
    work.mkdir()
    (work / '.lock').touch()
    (work / half).write_bytes(b'of another, perhaps')
    monkeypatch.setattr(launch.fcntl, 'lockf', lockf)
    train(config, work)
    assert (work / 'iter_2.pth').is_file() and (work / half).is_file()
    assert ''.join(capfd.readouterr()).count(f'the file system of {work} has no locks') == 1


def test_a_work_dir_that_can_not_be_written_is_one_line(tiny_config, tmp_path, monkeypatch):
    def read_only(path, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    work = tmp_path / 'work'
    work.mkdir()
    (work / '.lock').touch()
    monkeypatch.setattr(launch, 'open', read_only, raising=False)
    with pytest.raises(UserError, match=r"^work_dir .*work: OSError: .*Read-only .*\.lock'$"):
        train(tiny_config(), work)
