"""A disk that is full when a checkpoint, a line of a log or a picture is written."""

import os
import shutil
import subprocess

import pytest
from helpers.forks import Run, break_save, leftovers, no_space
from mmengine.hooks import Hook

pytestmark = pytest.mark.slow

CONFIG = """
train_cfg.update(max_iters=8, val_interval=5)
param_scheduler = []
default_hooks['checkpoint'].update(interval=2, max_keep_ckpts=1)
default_hooks['visualization'].update(draw=True, interval=1)
default_hooks['logger']['interval'] = 3
"""


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own; None where none can be mounted."""
    path = tmp_path / 'disk'
    path.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', path]
    if shutil.which('mount') is None or subprocess.run(mount, capture_output=True).returncode:
        yield None
    else:
        yield path
        subprocess.run(['umount', '-l', path], check=True)


class Fill(Hook):
    """Fill the disk but for some bytes before an iteration, or before a validation."""

    def __init__(self, disk, left, iteration, stage='train'):
        self.disk, self.left, self.iteration, self.stage = disk, left, iteration, stage

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (self.stage, self.iteration) == ('train', runner.iter + 1):
            fill(self.disk, self.left)
        if self.stage == 'log' and runner.iter + 1 == self.iteration:
            fill(self.disk, self.left)
            runner.logger.info('more than the last block takes ' * 200)

    def before_val_epoch(self, runner):
        if self.stage == 'val':
            fill(self.disk, self.left)


def fill(disk, left):
    with open(disk / 'ballast', 'wb') as file:
        status = os.statvfs(disk)
        file.write(b'0' * max(0, status.f_bavail * status.f_bsize - left))


def check(config, work, progress, losses, done, hooks=(), first=lambda: None, disk=None):
    run = Run(config, work, progress, first, hooks)
    assert run.wait() == 2, run.printed.read_text()
    printed = run.printed.read_text()
    assert 'Traceback' not in printed and 'Logging error' not in printed, printed
    line = printed.splitlines()[-1]
    assert line.startswith('no space left on the disk, writing'), line
    left = leftovers(work)
    assert not left and (work / f'iter_{done}.pth').is_file()
    if disk:
        os.unlink(disk / 'ballast')
    again = Run(config, work, progress)
    assert again.wait() == 0, again.printed.read_text()
    assert again.losses() == {i: loss for i, loss in losses.items() if i > done}
    shutil.rmtree(work)
    return max(run.losses()) - done, len(left), line.partition(';')[0].replace(str(work), 'WORK')


def test_a_full_disk_costs_less_than_an_interval(tiny_config, tmp_path, disk):
    config, progress = tiny_config(CONFIG), tmp_path / 'progress'
    straight = Run(config, tmp_path / 'straight', progress)
    assert straight.wait() == 0, straight.printed.read_text()
    losses = straight.losses()
    size = (tmp_path / 'straight' / 'iter_8.pth').stat().st_size
    print('\n| when | iterations lost, of 2 | temporary files | line |\n|---|---|---|---|')

    def row(name, *args, **kwargs):
        lost, left, line = check(config, *args, **kwargs)
        print(f'| {name} | {lost} | {left} | {line} |')
        assert lost <= 2

    for share in (0, 0.3, 0.7, 0.99):
        row(f'a save, {share:.0%} written, injected', tmp_path / 'work', progress, losses, 2,
            first=lambda share=share: break_save(1, share, no_space))  # fmt: skip
    if disk is None:
        pytest.skip('no disk can be mounted here: injected alone')
    for share in (0, 0.3, 0.7, 0.99):
        row(f'a save, {share:.0%} of its size free', disk / 'work', progress, losses, 2,
            [Fill(disk, int(size * share), 4)], disk=disk)  # fmt: skip
    row(
        'a line of the log',
        disk / 'work',
        progress,
        losses,
        2,
        [Fill(disk, 0, 3, 'log')],
        disk=disk,
    )
    row('a picture', disk / 'work', progress, losses, 4, [Fill(disk, 0, 5, 'val')], disk=disk)
