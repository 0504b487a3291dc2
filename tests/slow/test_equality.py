"""A resumed run against one that was not interrupted: the losses, bit for bit."""

import os
import signal
import socket

import pytest
from helpers.forks import Run
from mmengine.hooks import Hook

pytestmark = pytest.mark.slow

AUGMENTED = """
train_cfg.update(max_iters=9, val_interval=4)
default_hooks['checkpoint'].update(interval=100)
model['backbone']['dropout_ratio'] = 0.5
train_pipeline[2:3] = [
    dict(type='RandomResize', scale=(48, 48), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
train_dataloader['dataset']['pipeline'] = train_pipeline
"""
EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=5)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
train_dataloader['batch_size'] = 1
default_hooks['checkpoint'].update(by_epoch=True, interval=1)
param_scheduler = []
log_processor = dict(by_epoch=True)
"""


class Signal(Hook):
    """Send a signal to one of the processes before an iteration."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and os.environ.get('RANK', '0') == PROCESSES[-1]:
            os.kill(os.getpid(), signal.SIGTERM)


PROCESSES = ['0']


def start(processes, config, work, progress, **options):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    launcher = 'none' if processes == 1 else 'pytorch'
    runs = []
    for rank in map(str, range(processes)):

        def first(rank=rank):
            PROCESSES[:] = map(str, range(processes))
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(processes),
                              MASTER_ADDR='127.0.0.1', MASTER_PORT=port)  # fmt: skip

        path = progress.with_name(f'{progress.name}{rank}')
        runs.append(Run(config, work, path, first, launcher=launcher, **options))
    codes = {run.wait() for run in runs}
    assert len(codes) == 1, [run.printed.read_text()[-3000:] for run in runs]
    return codes.pop(), [run.losses() for run in runs]


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_config, tmp_path):
    print('\n| loop | processes | workers | stopped after, of | largest difference of a loss |')
    print('|---|---|---|---|---|')
    for loop, changes in (('iterations', ''), ('epochs', EPOCHS)):
        config = tiny_config(AUGMENTED + changes)
        for processes in (1, 2):
            whole = tmp_path / f'{loop}_{processes}'
            code, (losses, *others) = start(processes, config, whole, tmp_path / 'whole')
            assert code == 0 and all(other == losses for other in others)  # logged as their mean
            for workers in (0, 2):
                work = tmp_path / f'{loop}_{processes}_{workers}'
                options = dict(train_dataloader__num_workers=workers)
                stop = dict(hooks=(Signal(3),), **options)
                code, found = start(processes, config, work, tmp_path / 'a', **stop)
                assert code == 128 + signal.SIGTERM
                assert {max(part) for part in found} == {3}
                code, again = start(processes, config, work, tmp_path / 'b', **options)
                assert code == 0 and {min(part) for part in again} == {4}
                both = [{**one, **two} for one, two in zip(found, again, strict=True)]
                worst = max(abs(part[i] - losses[i]) for part in both for i in losses)
                print(f'| {loop} | {processes} | {workers} | 3 of {len(losses)} | {worst} |')
                assert both == [losses] * processes
