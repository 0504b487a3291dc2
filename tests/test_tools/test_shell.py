import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.processes import run
from mmengine.device import get_device
from mmengine.runner import Runner

from ssnet_mm.engine.launch import load_config

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
USAGE = {
    'dist_train.sh': 'CONFIG GPUS',
    'dist_test.sh': 'CONFIG CHECKPOINT GPUS',
    'slurm_train.sh': 'PARTITION JOB_NAME CONFIG',
    'slurm_test.sh': 'PARTITION JOB_NAME CONFIG CHECKPOINT',
}


@pytest.mark.parametrize('name', USAGE)
def test_without_arguments_a_script_says_how_to_use_it(name):
    assert os.access(TOOLS / name, os.X_OK)
    done = subprocess.run([TOOLS / name, 'one'], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == '' and len(done.stderr.splitlines()) == 1
    assert re.search(rf'usage: .*{name} {USAGE[name]} \[flags of (train|test).py\]', done.stderr)


@pytest.mark.parametrize('name', ['slurm_train.sh', 'slurm_test.sh'])
def test_slurm_scripts_hand_everything_to_srun(tmp_path, name):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    files = ['a b.py'] if 'train' in name else ['a b.py', 'c.pth']
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '2', 'SRUN_ARGS': '-q --mem=1',
    }  # fmt: skip
    command = (TOOLS / name, 'gpu', 'job', *files, '--work-dir', 'x y')
    given = run(*command, env=environment).splitlines()
    assert {'--partition=gpu', '--gres=gpu:2', '--ntasks=2', '-q', '--mem=1'} <= set(given)
    script = str(TOOLS / name.replace('slurm_', '').replace('.sh', '.py'))
    assert given[given.index('python') :] == [
        'python', '-u', script, *files, '--launcher', 'slurm', '--work-dir', 'x y',
    ]  # fmt: skip


@pytest.mark.skipif(get_device() != 'cpu', reason='two processes on CPU, where there is no GPU')
def test_two_processes_train_together(tiny_config, tmp_path):
    # finds every parameter that gets no gradient: DDP stops on it
    changes = (
        'train_cfg.update(max_iters=3, val_interval=3)\n'
        'model["backbone"]["norm_cfg"]["momentum"] = 0.9\n'
        'default_hooks["checkpoint"].update(interval=3, save_best="mIoU")'
    )
    config = tiny_config(changes)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    assert shutil.which('python', path=path)
    done = subprocess.run(
        [TOOLS / 'dist_train.sh', config, '2', '--work-dir', 'work'],
        cwd=tmp_path,  # not the project's folder
        env={**os.environ, 'PATH': path, 'PORT': str(port), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-12000:]
    printed = done.stdout + done.stderr
    (logged,) = re.findall(r'Iter\(val\) \[2/2\] .*mIoU: ([0-9.]+)', printed)  # 4 images, by 2
    # what was validated is what was saved: each process has its own batch norm statistics
    for name in ('iter_3.pth', 'best_mIoU_iter_3.pth'):
        cfg = load_config(config, {'experiment_name': name})
        cfg.update(load_from=str(tmp_path / 'work' / name), work_dir=str(tmp_path / 'tested'))
        assert round(Runner.from_cfg(cfg).test()['mIoU'], 4) == float(logged) > 0
    checkpoint = torch.load(tmp_path / 'work' / 'iter_3.pth', weights_only=True)
    assert not any(key.startswith('module.') for key in checkpoint['state_dict'])
