"""Runs that are killed over and over: none is lost, and none trains other than a whole one."""

import functools
import os
import random
import signal
import time
import zipfile

import pytest
from helpers.forks import Run, break_save, die, leftovers

pytestmark = pytest.mark.slow

KILLS, INTERVAL = 60, 4
CONFIG = f"""
train_cfg.update(max_iters=100_000, val_interval=100_000)
param_scheduler = []
default_hooks['checkpoint'].update(interval={INTERVAL}, max_keep_ckpts=2)
model['backbone']['dropout_ratio'] = 0.5
train_pipeline[3:3] = [dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
train_dataloader['dataset']['pipeline'] = train_pipeline
"""


def whole(work):
    """The iterations of the checkpoints that are whole."""
    found = [0]
    for path in work.glob('iter_*.pth'):
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is None:
            found.append(int(path.stem.removeprefix('iter_')))
    return sorted(found)


def test_sixty_kills_cost_no_run_and_no_more_than_an_interval(tiny_config, tmp_path):
    config, work, progress = tiny_config(CONFIG), tmp_path / 'work', tmp_path / 'progress'
    rng = random.Random(0)
    kinds = {
        'at any time': lambda: None,
        'in a save, amid the bytes': rng.random,
        'in a save, before the file takes its name': lambda: 1.5,
        'in a save, after that': lambda: 2.5,
    }
    order = [list(kinds)[0 if i % 2 else 1 + i // 2 % 3] for i in range(KILLS)]
    rows = {kind: dict(kills=0, resumed=0, lost=[], left=0) for kind in kinds}
    expected, losses = 0, {}
    for kind in order:
        share = kinds[kind]()
        first = functools.partial(break_save, rng.randrange(2), share, die) if share else bool
        run = Run(config, work, progress, first)
        if not share:
            run.wait_for_iteration()
            time.sleep(rng.uniform(0, 1))
            os.kill(run.process, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, run.printed.read_text()
        found = run.losses()
        rows[kind]['kills'] += 1
        rows[kind]['resumed'] += min(found) - 1 == expected
        for iteration, loss in found.items():  # what was lost comes out again
            assert losses.setdefault(iteration, loss) == loss
        expected = whole(work)[-1]
        rows[kind]['lost'].append(max(found) - expected)
        rows[kind]['left'] += len(leftovers(work))
    last = Run(config, work, progress, train_cfg__max_iters=max(losses) + 1)
    assert last.wait() == 0, last.printed.read_text()
    assert min(last.losses()) - 1 == expected
    losses |= last.losses()
    other = tmp_path / 'straight'
    straight = Run(config, other, tmp_path / 'other', train_cfg__max_iters=max(losses))
    assert straight.wait() == 0
    assert straight.losses() == losses

    print('\n| killed | times | resumed from the newest whole | iterations lost, at most | mean |')
    print('|---|---|---|---|---|')
    for kind, row in rows.items():
        most, mean = max(row['lost']), sum(row['lost']) / row['kills']
        print(f'| {kind} | {row["kills"]} | {row["resumed"]} | {most} of {INTERVAL} | {mean:.1f} |')
        assert row['kills'] == row['resumed'] and most <= INTERVAL
    assert sum(row['kills'] for row in rows.values()) == KILLS and not leftovers(work)
    left = [row['left'] for row in rows.values()]
    print(f'temporary files found after a kill: {sum(left)}; after the last start: 0')
