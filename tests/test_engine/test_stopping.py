import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.training import train
from mmengine.hooks import Hook

from ssnet_mm.engine.stopping import SIGNALS, StopSignals, start_worker
from ssnet_mm.errors import Stopped, UserError

LONGER = """
train_cfg.update(max_iters=6, val_interval=3)
default_hooks['checkpoint'].update(interval=100, save_best='mIoU')
"""
GATHERED = "optim_wrapper['accumulative_counts'] = 2\n"
EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)
train_dataloader['batch_size'] = 1
default_hooks['checkpoint'].update(by_epoch=True, interval=1)
param_scheduler = []
log_processor = dict(by_epoch=True)
"""
PATIENT = """
train_cfg.update(val_interval=1)
train_cfg['max_epochs' if 'max_epochs' in train_cfg else 'max_iters'] = 12
default_hooks['checkpoint'].update(interval=1)
custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU', min_delta=100.0, patience=2)]
"""


class At(Hook):
    """Do something at one iteration of one stage; count validations."""

    def __init__(self, stage, iteration, do):
        self.stage, self.iteration, self.do = stage, iteration, do
        self.validated = []

    def before_run(self, runner):
        if self.stage == 'run':
            self.do()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (self.stage, self.iteration) == ('train', runner.iter + 1):
            self.do()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (self.stage, self.iteration) == ('val', runner.iter):
            self.do()

    def after_val_epoch(self, runner, metrics=None):
        self.validated.append(runner.iter)
        if (self.stage, self.iteration) == ('validated', runner.iter):
            self.do()


def send(*numbers):
    def do():
        for number in numbers:
            os.kill(os.getpid(), number)

    return do


@pytest.fixture(autouse=True)
def not_ignored():
    """No signal is ignored, though the tests may have been started so (nohup, or with &)."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ('changes', 'stage', 'at', 'number', 'stopped', 'name', 'validated'),
    [
        ('', 'train', 2, signal.SIGTERM, 2, 'iter_2.pth', [3, 6]),
        ('', 'train', 3, signal.SIGUSR1, 3, 'iter_3.pth', [3, 6]),  # before its validation
        ('', 'val', 3, signal.SIGHUP, 3, 'iter_3.pth', [3, 6]),  # amid it
        ('', 'val', 6, signal.SIGINT, 6, 'iter_6.pth', [6]),  # amid the last
        (GATHERED, 'train', 3, signal.SIGTERM, 4, 'iter_4.pth', [6]),
        (EPOCHS, 'train', 6, signal.SIGTERM, 6, 'iter_6.pth', [8, 12]),
        (EPOCHS, 'train', 8, signal.SIGTERM, 8, 'epoch_2.pth', [8, 12]),
        (EPOCHS, 'val', 8, signal.SIGTERM, 8, 'epoch_2.pth', [8, 12]),
    ],
)  # fmt: skip
def test_a_signal_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    tiny_config, tmp_path, changes, stage, at, number, stopped, name, validated
):
    config, work = tiny_config(LONGER + changes), tmp_path / 'work'
    losses = train(config, tmp_path / 'whole')
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        train(config, work, [At(stage, at, send(number))])
    assert signal.getsignal(number) == before
    assert caught.value.code == 128 + number
    assert str(caught.value) == (
        f'stopped by {number.name} after iteration {stopped}; --resume goes on from {work / name}'
    )
    assert (work / name).is_file()
    count = At(None, 0, None)
    resumed = train(config, work, [count], resume=True)
    assert resumed == {i: loss for i, loss in losses.items() if i > stopped}
    assert count.validated == validated
    assert sorted(p.name for p in work.glob('iter_*')) == sorted(
        {'epoch_2.pth': []}.get(name, [] if changes == EPOCHS else {name, 'iter_6.pth'})
    )


@pytest.mark.parametrize('key', ['save_optimizer', 'save_param_scheduler'])
@pytest.mark.parametrize('loop', ['', EPOCHS])
def test_a_stop_promises_no_resuming_from_what_is_saved_in_part(tiny_config, tmp_path, key, loop):
    left_out = f"default_hooks['checkpoint'].update({key}=False)\n"
    schedule = "param_scheduler = [dict(type='PolyLR', by_epoch=False)]\n"
    config, work = tiny_config(LONGER * (not loop) + loop + left_out + schedule), tmp_path / 'work'
    with pytest.raises(Stopped) as caught:
        train(config, work, [At('train', 4 if loop else 2, send(signal.SIGTERM))])
    path = work / ('epoch_1.pth' if loop else 'iter_2.pth')
    reason = f'(default_hooks.checkpoint.{key}=False)'
    assert f'--resume can not go on from {path} {reason}; start from' in str(caught.value)
    assert f'load_from={path} and another --work-dir' in str(caught.value)
    with pytest.raises(UserError):
        train(config, work, resume=True)
    train(config, tmp_path / 'other', load_from=str(path))


@pytest.mark.parametrize('interval', [3, 100])  # saved before the validation, or not
def test_a_stop_amid_a_validation_saves_weights_and_average_each_in_its_place(
    tiny_config, tmp_path, interval
):
    config = tiny_config(LONGER + "custom_hooks = [dict(type='EMAHook', momentum=0.2)]")
    train(config, tmp_path / 'whole', default_hooks__checkpoint__interval=3)
    options = {'default_hooks__checkpoint__interval': interval}
    with pytest.raises(Stopped):
        train(config, tmp_path / 'work', [At('val', 3, send(signal.SIGTERM))], **options)
    whole, stopped = (
        torch.load(tmp_path / name / 'iter_3.pth', weights_only=True) for name in ('whole', 'work')
    )
    for part in ('state_dict', 'ema_state_dict'):
        assert whole[part].keys() == stopped[part].keys()
        assert all(torch.equal(stopped[part][key], value) for key, value in whole[part].items())


def crash():
    raise RuntimeError('crashed')


@pytest.mark.parametrize('loop', ['', EPOCHS])
@pytest.mark.parametrize(
    ('stage', 'do', 'error'),
    [
        ('train', send(signal.SIGTERM), Stopped),
        ('val', send(signal.SIGTERM), Stopped),
        ('validated', send(signal.SIGTERM), Stopped),
        ('validated', crash, RuntimeError),
    ],
)
def test_early_stopping_counts_on_when_a_run_is_resumed(
    tiny_config, tmp_path, loop, stage, do, error
):
    config = tiny_config(loop + PATIENT)
    by_epoch = 4 if loop else 1  # iterations from one validation to the next
    losses = train(config, tmp_path / 'whole')
    assert max(losses) == 3 * by_epoch  # of twelve
    for at in (1, 2):
        with pytest.raises(error):
            train(config, tmp_path / 'work', [At(stage, at * by_epoch, do)], resume=at > 1)
    count = At(None, 0, None)
    resumed = train(config, tmp_path / 'work', [count], resume=True)
    assert resumed == {i: loss for i, loss in losses.items() if i > 2 * by_epoch}
    again = [2 * by_epoch] * ((stage, error) != ('validated', Stopped))
    assert count.validated == [*again, 3 * by_epoch]
    assert train(config, tmp_path / 'work', resume=True) == {}  # it has ended


class End(Hook):
    """End the training after an iteration, as a hook of one's own may."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.train_loop.stop_training |= runner.iter + 1 == self.iteration


@pytest.mark.parametrize(
    ('changes', 'name'),
    [
        ('', 'iter_2.pth'),
        (EPOCHS, 'epoch_2.pth'),
        (EPOCHS + "default_hooks['checkpoint'].update(by_epoch=False)\n", 'iter_8.pth'),
        ("default_hooks['checkpoint'].update(by_epoch=True)\n", 'epoch_1.pth'),
    ],
)
@pytest.mark.parametrize('own', [False, True])
def test_a_training_that_a_hook_ends_between_checkpoints_saves_its_last_state(
    tiny_config, tmp_path, changes, name, own
):
    rare = "default_hooks['checkpoint'].update(interval=100, save_best='mIoU')\n"
    impatient = PATIENT.replace('patience=2', 'patience=1')
    alone = PATIENT.partition('custom_hooks')[0]
    config = tiny_config(changes + (alone if own else impatient) + rare)
    done = 8 if EPOCHS in changes else 2
    hooks = [End(done - 1 if EPOCHS in changes else done)] if own else []
    assert max(train(config, tmp_path / 'work', hooks)) == done
    assert [p.name for p in (tmp_path / 'work').glob('[ei]*_*.pth')] == [name]
    saved = torch.load(tmp_path / 'work' / name, weights_only=True)
    assert saved['meta']['iter'] == done and 'optimizer' in saved
    if not own:  # resumed, it begins with the validation that ended it
        count = At(None, 0, None)
        assert train(config, tmp_path / 'work', [count], resume=True) == {}
        assert count.validated == [done]


def test_a_run_that_is_resumed_at_the_end_of_a_shorter_one_validates_as_a_longer_one(
    tiny_config, tmp_path
):
    config, count = tiny_config(LONGER), At(None, 0, None)
    train(config, tmp_path / 'work', [count], train_cfg__max_iters=4)
    assert count.validated == [3, 4]
    train(config, tmp_path / 'work', [count], resume=True)
    assert count.validated == [3, 4, 6]
    logs = [path.read_text().splitlines() for path in tmp_path.rglob('scalars.json')]
    entries = [json.loads(line) for log in logs for line in log]
    scores = [entry for entry in entries if 'mIoU' in entry]
    assert len(scores) == 3
    # what is kept for the next start is no score
    assert not {key for entry in scores for key in entry if 'valid' in key or 'stopping' in key}


def test_before_the_first_iteration_there_is_nothing_to_save(tiny_config, tmp_path):
    with pytest.raises(Stopped, match='stopped by SIGTERM before the first iteration'):
        train(tiny_config(), tmp_path / 'work', [At('run', 0, send(signal.SIGTERM))])
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_a_second_ctrl_c_ends_at_once(tiny_config, tmp_path):
    config = tiny_config()
    child = os.fork()
    if child == 0:
        try:
            train(config, tmp_path / 'work', [At('train', 1, send(signal.SIGINT, signal.SIGINT))])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT
    assert not list((tmp_path / 'work').glob('*.pth'))


def test_what_is_ignored_stays_ignored_also_in_forked_processes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup
    try:
        with StopSignals() as signals:
            send(signal.SIGHUP)()
            child = os.fork()
            if child == 0:
                send(signal.SIGTERM)()
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, 'sigwaitinfo'), reason='needs the sender of a signal')
def test_a_worker_outlives_others_signals_and_ends_at_its_parents():
    """Of a multiprocessing that ends its workers by SIGTERM when it exits, and waits for them."""
    context = multiprocessing.get_context('fork')
    started = context.Event()
    worker = context.Process(target=work, args=(started,), daemon=True)
    worker.start()
    assert started.wait(60)
    send_from_elsewhere(worker.pid, signal.SIGTERM)
    send_from_elsewhere(worker.pid, signal.SIGINT)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0

    worker = context.Process(target=work, args=(started,), daemon=True)
    started.clear()
    worker.start()
    assert started.wait(60)
    for _ in range(2):
        send_from_elsewhere(worker.pid, signal.SIGINT)
        worker.join(0.3)
    assert worker.exitcode == 128 + signal.SIGINT


def work(started):
    start_worker(None, 0)
    started.set()
    time.sleep(60)


def send_from_elsewhere(process, number):
    subprocess.run(['kill', f'-{int(number)}', str(process)], check=True)


def test_a_training_whose_loaders_are_alive_at_its_end_exits(tiny_config, tmp_path):
    """Workers that persist are ended by the exit of the process alone."""
    config = tiny_config('train_dataloader.update(num_workers=2, persistent_workers=True)')
    code = (
        'import gc; gc.disable()  # the loops and the runner refer to each other\n'
        'import runpy, sys\n'
        f'sys.argv = ["train.py", {config!r}, "--work-dir", {str(tmp_path / "work")!r}]\n'
        'runpy.run_path("tools/train.py", run_name="__main__")\n'
    )
    done = subprocess.run([sys.executable, '-c', code], timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
