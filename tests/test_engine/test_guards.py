import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.processes import run
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from PIL import Image

from ssnet_mm.engine import launch
from ssnet_mm.engine.checkpoint import check_classes, check_finite, load_state_dict
from ssnet_mm.engine.guards import GuardHook
from ssnet_mm.errors import UserError

DIVERGES = """
optim_wrapper['optimizer']['lr'] = 1e30
param_scheduler = []
model['backbone']['norm_cfg'] = None
train_cfg.update(max_iters=8, val_interval=8)
default_hooks['checkpoint'].update(interval=1, save_best='mIoU')
"""


def start(config, work_dir, hooks=()):
    cfg = launch.load_config(config)
    cfg.work_dir, cfg.launcher = str(work_dir), 'none'
    launch.run(cfg, 'train', hooks)


def spoilt(folder):
    """The checkpoints in a folder with NaN or infinity, and how many there are."""
    files = list(Path(folder).glob('*.pth'))
    states = [torch.load(file, weights_only=True)['state_dict'] for file in files]
    bad = [not all(v.isfinite().all() for v in state.values()) for state in states]
    return [file.name for file, is_bad in zip(files, bad, strict=True) if is_bad], len(files)


def test_a_loss_that_is_no_number_stops_the_run(tool, tiny_config, tiny_data, tmp_path, fails):
    line = fails('train', tiny_config(DIVERGES), '--work-dir', tmp_path / 'work')
    match = re.search(
        r'training stopped at iteration (\d+): loss (nan|inf), decode.loss_ce (nan|inf) at '
        r'learning rate 1e\+30, on (\S+), (\S+); lower the learning rate, or look at these',
        line,
    )
    assert match and 1 < int(match[1]) <= 3
    assert all(Path(image).parent == tiny_data / 'JPEGImages' for image in match.groups()[-2:])
    assert not spoilt(tmp_path / 'work')[0]


class Spoil(Hook):
    """Write infinity into a weight in the second iteration's step, after its loss."""

    def __init__(self, pick):
        self.pick = pick

    def before_train(self, runner):
        step = runner.optim_wrapper.update_params

        def spoiling(loss):
            step(loss)
            if runner.iter == 1:
                with torch.no_grad():
                    self.pick(runner).fill_(math.inf)

        runner.optim_wrapper.update_params = spoiling


def of_the_model(runner):
    return runner.model.decode_head.scores[0].bias


def of_the_average(runner):
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    return hook.ema_model.module.decode_head.scores[0].bias


@pytest.mark.parametrize(
    ('changes', 'pick', 'message'),
    [
        # each iteration removes the checkpoint before, ere it writes its own
        ("checkpoint = dict(interval=1, max_keep_ckpts=1, backend_args=None, save_best='mIoU')",
         of_the_model, 'the model at iteration 2 is spoilt'),
        # validation alone
        ('checkpoint = dict(interval=9, save_last=False)\ntrain_cfg["max_iters"] = 3',
         of_the_model, 'the model at iteration 2 is spoilt'),
        # a moving average of weights
        ("checkpoint = dict(interval=1)\ncustom_hooks += [dict(type='EMAHook')]",
         of_the_average, 'what iteration 2 would save is spoilt'),
    ],
)  # fmt: skip
def test_weights_that_are_no_numbers_are_neither_saved_nor_scored(
    tiny_config, tmp_path, changes, pick, message
):
    config = tiny_config(changes + "\ndefault_hooks['checkpoint'].update(checkpoint)")
    with pytest.raises(UserError, match=message + ': NaN or infinity in decode_head.scores.0.bias'):
        start(config, tmp_path / 'work', [Spoil(pick)])
    bad, count = spoilt(tmp_path / 'work')
    assert not bad
    assert count == ('interval=1' in changes)  # that of the first iteration is still there


def test_epochs_are_guarded_too(tiny_config, tmp_path):
    config = tiny_config("""
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
default_hooks['checkpoint'].update(by_epoch=True, interval=1)
param_scheduler = []
""")
    with pytest.raises(UserError, match='is spoilt: NaN or infinity in decode_head.scores.0.bias'):
        start(config, tmp_path / 'work', [Spoil(of_the_model)])
    assert spoilt(tmp_path / 'work') == ([], 0)


@pytest.mark.parametrize('one', [False, True])
def test_accuracy_is_logged_where_it_is_one(tiny_config, tmp_path, one):
    # mmseg's takes the largest of the channels, which of one is always the first
    channels = 'model["decode_head"].update(num_classes=2, out_channels=1, threshold=0.5)\n'
    classes = """
model['decode_head']['loss_decode']['use_sigmoid'] = True
for loader in (train_dataloader, val_dataloader):
    loader['dataset'].update(metainfo=dict(classes=('no', 'yes'), palette=palette[:2]))
"""
    seen = []

    class Look(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(set(outputs))

    data = tmp_path / 'data' / 'SegmentationClass'
    if one:
        for path in data.iterdir():
            Image.open(path).point(lambda v: 1 if v == 2 else v).save(path)
    start(tiny_config(channels + classes if one else ''), tmp_path / 'work', [Look()])
    assert seen == [{'loss', 'decode.loss_ce'} | (set() if one else {'decode.acc_seg'})] * 2


@pytest.mark.parametrize(
    ('loader', 'mend'),
    [('train', 'crop them to 32x32'), ('val', 'validate and test with'), ('test', 'validate and')],
)
def test_images_of_different_sizes_in_a_batch_are_named(
    tiny_config, tiny_data, tmp_path, loader, mend
):
    for folder, suffix in (('JPEGImages', 'jpg'), ('SegmentationClass', 'png')):
        path = tiny_data / folder / f'1.{suffix}'
        Image.open(path).crop((0, 0, 40, 32)).save(path)
    changes = 'train_dataloader["sampler"]["shuffle"] = False\n' + (
        'del train_pipeline[2]' if loader == 'train' else f'{loader}_dataloader["batch_size"] = 2'
    )
    cfg = launch.load_config(tiny_config(changes))
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    message = f'0.jpg comes with 45x37 pixels, .*1.jpg with 40x32; {mend}'
    with pytest.raises(UserError, match=message):
        launch.run(cfg, 'test' if loader == 'test' else 'train')


TWO_PROCESSES = """
import sys
from types import SimpleNamespace
import torch
from torch import nn
from ssnet_mm.engine.guards import GuardHook
from ssnet_mm.errors import UserError

rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group('gloo', f'file://{store}', rank=rank, world_size=2)
model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.InstanceNorm2d(2))
model[1].eval()
for norm in model[:2]:
    norm.running_mean.fill_(rank)
wrapper = SimpleNamespace(get_lr=lambda: {'lr': [0.5, 0.5]})
runner = SimpleNamespace(model=model, hooks=[], iter=4, max_iters=9, optim_wrapper=wrapper)
outputs = {'loss': torch.tensor(float(rank), requires_grad=True), 'acc_seg': torch.tensor(rank)}
GuardHook().after_train_iter(runner, 4, None, outputs)
print(model[0].running_mean.tolist(), model[1].running_mean.tolist(), outputs['loss'].item())
outputs = {'loss': torch.tensor(float('nan') if rank else 1.0)}
try:
    GuardHook().after_train_iter(runner, 4, dict(data_samples=[]), outputs)
except UserError as error:
    print(error)
torch.distributed.destroy_process_group()
"""


def test_processes_share_statistics_and_losses_and_stop_together(tmp_path):
    def process(rank):
        return run(sys.executable, '-W', 'ignore', '-c', TWO_PROCESSES, rank, tmp_path / 'store')

    with ThreadPoolExecutor(2) as pool:
        outputs = [text.splitlines()[-2:] for text in pool.map(process, (0, 1))]
    for rank, (values, message) in enumerate(outputs):
        assert values == f'[0.5, 0.5] [{rank}.0, {rank}.0] 0.5'
        assert message.startswith('training stopped at iteration 5: loss nan at learning rate 0.5')


def test_numbers_that_are_none_are_named():
    sound = {'a.weight': torch.ones(2), 'b.count': torch.tensor(3)}
    check_finite(sound | {'attn_mask': torch.tensor(-math.inf)}, 'a.pth')
    with pytest.raises(UserError, match=r'^a.pth is spoilt: NaN or infinity in c \(1 of 3 tensor'):
        check_finite(sound | {'c': torch.tensor([0, -math.inf])}, 'a.pth')
    linear = torch.nn.Linear(1, 1)
    weights = {'weight': torch.tensor([[math.nan]]), 'bias': torch.zeros(1)}
    with pytest.raises(UserError, match='a.pth is spoilt: NaN or infinity in weight'):
        load_state_dict(linear, weights, 'a.pth')


def test_spoilt_checkpoints_are_not_used(tool, tiny_config, tiny_data, tmp_path, fails):
    config, work = tiny_config(), tmp_path / 'work'
    start(config, work)
    file = work / 'iter_2.pth'
    checkpoint = torch.load(file, weights_only=True)
    checkpoint['state_dict']['backbone.stages.1.0.conv.weight'][0, 0, 0, 0] = math.nan
    torch.save(checkpoint, file)
    for name, args in (
        ('test', [config, file, '--work-dir', tmp_path / 'new']),
        ('train', [config, '--work-dir', work, '--resume']),
        ('train', [config, '--work-dir', tmp_path / 'new', '--cfg-options', f'load_from={file}']),
        ('predict', [config, file, tiny_data / 'JPEGImages', '--out-dir', tmp_path / 'new']),
    ):
        line = fails(name, *args)
        assert 'iter_2.pth is spoilt: NaN or infinity in backbone.stages.1.0.conv.weight' in line
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('meta', 'message'),
    [
        ({'dataset_meta': {'classes': ('a', 'c', 'b')}},
         r"in another order: label 1 is 'c' there, 'b' in the data set; give"),
        ({'dataset_meta': {'classes': ['a', 'x', 'c']}}, "of other names: label 1 is 'x' there"),
        ({'CLASSES': ('a', 'b')}, 'label 2 is None there'),
    ],
)  # fmt: skip
def test_classes_of_another_order_are_told(meta, message):
    with pytest.raises(UserError, match='^a.pth was trained on classes .*' + message):
        check_classes({'meta': meta}, 'a.pth', ('a', 'b', 'c'))


def test_classes_that_nobody_names_are_noted(capsys):
    for checkpoint in ({}, {'meta': None}, {'meta': {'dataset_meta': None}}):
        check_classes(checkpoint, 'a.pth', ('a', 'b'))
        assert capsys.readouterr().out.startswith('Note: a.pth does not name its classes')
    check_classes({'meta': {'dataset_meta': {'classes': ['a', 'b']}}}, 'a.pth', ('a', 'b'))
    assert capsys.readouterr().out == ''


def test_testing_on_classes_in_another_order_is_refused(tiny_config, tmp_path, fails):
    start(tiny_config(), tmp_path / 'work')
    turned = "dataset['metainfo']['classes'] = ('ground', 'right', 'left')\n"
    turned += "test_dataloader['dataset'].update(metainfo=dataset['metainfo'])"
    config = tiny_config(turned)
    line = fails('test', config, tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'new')
    assert "iter_2.pth was trained on classes in another order: label 1 is 'left' there" in line
    assert not (tmp_path / 'new').exists()


def test_the_guard_is_added_whatever_the_hooks_of_a_config(tiny_config, tmp_path, monkeypatch):
    cfg = launch.load_config(tiny_config('custom_hooks = []'))
    cfg.work_dir, cfg.launcher = str(tmp_path / 'work'), 'none'
    seen = []
    monkeypatch.setattr(Runner, 'train', lambda self: seen.extend(self.hooks))
    launch.run(cfg, 'train')
    assert [type(hook).__name__ for hook in seen].count('GuardHook') == 1


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_a_network_that_gives_nan_is_not_scored(tiny_config, tiny_data, tmp_path, mode):
    start(tiny_config(), tmp_path / 'work')
    checkpoint = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=True)
    variance = next(k for k in checkpoint['state_dict'] if k.endswith('running_var'))
    checkpoint['state_dict'][variance].fill_(-1.0)  # finite, and its root is none
    torch.save(checkpoint, tmp_path / 'bad.pth')
    cfg = launch.load_config(tiny_config())
    cfg.work_dir, cfg.launcher = str(tmp_path / 'new'), 'none'
    cfg.load_from = str(tmp_path / 'bad.pth')
    with pytest.raises(UserError, match=r'the network gives NaN for .*0\.jpg; the weights'):
        launch.run(cfg, mode)
    samples = [SimpleNamespace(seg_logits=SimpleNamespace(data=torch.tensor([math.nan])))]
    for look in (GuardHook().after_val_iter, GuardHook().after_test_iter):
        with pytest.raises(UserError, match='gives NaN for an image'):
            look(None, 0, None, samples)
