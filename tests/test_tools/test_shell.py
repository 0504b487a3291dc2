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
    changes = 'train_cfg["max_iters"] = 3\ntrain_cfg["val_interval"] = 3'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    assert shutil.which('python', path=path)
    done = subprocess.run(
        [TOOLS / 'dist_train.sh', tiny_config(changes), '2', '--work-dir', 'work'],
        cwd=tmp_path,  # not the project's folder
        env={**os.environ, 'PATH': path, 'PORT': str(port), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r'Iter\(val\) \[2/2\] .*mIoU: ', done.stdout + done.stderr)  # 4 images, by 2
    checkpoint = torch.load(tmp_path / 'work' / 'iter_3.pth', weights_only=True)
    assert not any(key.startswith('module.') for key in checkpoint['state_dict'])
