"""Each signal at iterations drawn by lot."""

import os
import random
import signal
import time

import pytest
from helpers.forks import Run, leftovers

from ssnet_mm.engine.stopping import SIGNALS

pytestmark = pytest.mark.slow

CONFIG = """
train_cfg.update(max_iters=100_000, val_interval=7)
param_scheduler = []
default_hooks['checkpoint'].update(interval=100_000, max_keep_ckpts=1)
"""
TIMES = 5


def test_signals_lose_nothing(tiny_config, tmp_path):
    config, work, progress = tiny_config(CONFIG), tmp_path / 'work', tmp_path / 'progress'
    rng, losses, expected = random.Random(0), {}, 0
    print('\n| signal | times | exit code | iterations lost | files left |\n|---|---|---|---|---|')
    for number in SIGNALS:
        codes, lost = set(), 0
        for turn in range(TIMES):
            workers = 2 * (turn % 2)
            # its workers too, as from a terminal, slurm and torchrun
            run = Run(config, work, progress, os.setsid, train_dataloader__num_workers=workers)
            run.wait_for_iteration()
            time.sleep(rng.uniform(0, 0.7))
            os.killpg(run.process, number)
            codes.add(run.wait())
            found = run.losses()
            assert min(found) == expected + 1
            expected = max(found)
            lost += not (work / f'iter_{expected}.pth').is_file()
            assert not set(found) & set(losses)
            losses.update(found)
            printed = run.printed.read_text()
            assert 'Traceback' not in printed, printed
            assert printed.splitlines()[-1] == (
                f'stopped by {number.name} after iteration {expected}; --resume goes on from '
                f'{work}/iter_{expected}.pth'
            )
        print(f'| {signal.Signals(number).name} | {TIMES} | {codes} | {lost} | {leftovers(work)} |')
        assert codes == {128 + number} and not lost and not leftovers(work)
    straight = Run(config, tmp_path / 'straight', tmp_path / 'other', train_cfg__max_iters=expected)
    assert straight.wait() == 0
    assert straight.losses() == losses
    assert len(list(work.glob('iter_*.pth'))) == 1
