"""What takes long of training and inference in bfloat16."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from mmengine.device import get_device

from ssnet_mm import build_model
from ssnet_mm.deploy import Segmenter
from ssnet_mm.deploy.export import export
from ssnet_mm.errors import UserError

pytestmark = pytest.mark.slow

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


@pytest.mark.skipif(get_device() != 'cpu', reason='needs a machine without an accelerator')
def test_two_processes_train_and_resume(tiny_config, tmp_path):
    config = tiny_config()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    train = [TOOLS / 'dist_train.sh', config, '2', '--work-dir', 'work', '--amp-dtype', 'bfloat16']
    for more in ([], ['--resume', '--cfg-options', 'train_cfg.max_iters=4']):
        done = subprocess.run(
            [*train, *more],
            cwd=tmp_path,
            env={**os.environ, 'PATH': path, 'PORT': str(port)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-8000:]
    saved = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=True)
    assert {t.dtype for t in saved['state_dict'].values()} == {torch.float32, torch.int64}


def test_a_torch_export_file_computes_in_bfloat16(tmp_path):
    need('torch-export')
    model = build_model(5, 'ds', base_channels=8, fc_channels=32).eval()
    for name, weight in model.decode_head.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data)
    file = tmp_path / 'half.pt2'
    report = export(model, file, 'torch-export', precision='bf16', size=(64, 96))
    assert report.passes('bf16') and report.difference > 0
    segment = Segmenter(file, threads=1)
    assert segment.session.processor.precision == 'bf16'
    assert segment(np.zeros((50, 61, 3), np.uint8)).shape == (50, 61)
    with pytest.raises(UserError, match='holds bf16; for fp32 export it anew'):
        Segmenter(file, precision='fp32')
