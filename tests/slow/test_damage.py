"""Checkpoints cut short at every tenth of their length."""

import os
import shutil

import pytest
from helpers.forks import Run

pytestmark = pytest.mark.slow

CONFIG = """
train_cfg.update(max_iters=6, val_interval=100)
param_scheduler = []
default_hooks['checkpoint'].update(interval=2)
"""


def test_the_newest_whole_checkpoint_is_taken_wherever_others_are_cut(tiny_config, tmp_path):
    config, whole = tiny_config(CONFIG), tmp_path / 'whole'
    longer = dict(train_cfg__max_iters=7)
    run = Run(config, whole, tmp_path / 'first', **longer)
    assert run.wait() == 0
    (whole / 'iter_7.pth').unlink()
    losses = run.losses()
    print('\n| cut | at | started from | lost |\n|---|---|---|---|')
    for cut, best in (('iter_6', 4), ('iter_4', 6), ('iter_2', 6), ('iter_6, iter_4', 2)):
        for tenth in range(10):
            work = tmp_path / 'work'
            shutil.copytree(whole, work)
            for name in cut.split(', '):
                size = (work / f'{name}.pth').stat().st_size
                os.truncate(work / f'{name}.pth', size * tenth // 10)
            run = Run(config, work, tmp_path / 'progress', **longer)
            assert run.wait() == 0, run.printed.read_text()
            started = min(run.losses()) - 1
            print(f'| {cut} | {tenth * 10} % | iter_{started} | {6 - started} |')
            assert started == best
            assert run.losses() == {i: loss for i, loss in losses.items() if i > best}
            shutil.rmtree(work)
