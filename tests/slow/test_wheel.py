"""The wheel in an environment of its own, from another folder: every command once.

It downloads what the extra [onedl] asks for, which takes gigabytes, so it wants to be told where:

    FRESH_VENV=DIR make test-slow ARGS=tests/slow/test_wheel.py
"""

import os
import sys
from pathlib import Path

import pytest
from helpers.processes import run
from test_packaging import copy_checkout

from ssnet_mm.commands import COMMANDS

pytestmark = pytest.mark.slow
NARROW = (
    '--cfg-options model.backbone.base_channels=4 model.backbone.fc_channels=8 '
    'model.decode_head.in_channels=[16,32,8]'
)
RUN = 'work_dirs/fastfcn8_miniature'
DATA = 'data/miniature'
CALLS = [
    f'miniature {DATA} --train 12 --val 4',
    'check fastfcn8_miniature',
    f'train fastfcn8_miniature {NARROW} max_iters=2',
    f'test fastfcn8_miniature {RUN}/best --report report {NARROW}',
    f'show fastfcn8_miniature {RUN}/best --num 2 {NARROW}',
    f'plot {RUN}',
    f'convert {RUN}/iter_2.pth net.pth --config fastfcn8_miniature {NARROW}',
    f'export fastfcn8_miniature net.pth --format torch-export --end-to-end --out net.pt2 {NARROW}',
    f'predict fastfcn8_miniature net.pth {DATA}/JPEGImages --out-dir out {NARROW}',
    f'predict net.pt2 {DATA}/JPEGImages --out-dir again',
    'benchmark fastfcn8_miniature fcn8_voc --backends torch fused --shape 64 64 --rounds 1',
    f'prepare {DATA}/JPEGImages data/mine --masks {DATA}/SegmentationClass',
    f'fit {DATA}/JPEGImages {DATA}/SegmentationClass --iters 2 --net fastfcn8-slim',
]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    folder = os.environ.get('FRESH_VENV')
    if not folder:
        pytest.skip('FRESH_VENV names no folder for an environment, which takes gigabytes')
    made = tmp_path_factory.mktemp('wheel')
    bin = Path(folder).resolve() / 'bin'
    if not (bin / 'pip').exists():
        run(sys.executable, '-m', 'venv', folder)
    run(bin / 'pip', 'wheel', '--no-deps', '--wheel-dir', made, copy_checkout(made))
    (wheel,) = made.glob('*.whl')
    run(bin / 'pip', 'install', f'{wheel}[onedl]')
    run(bin / 'pip', 'install', '--no-deps', '--force-reinstall', wheel)  # of the same version
    if not _imports(bin, 'cv2'):  # libGL is missing, as on servers
        run(bin / 'pip', 'install', '--force-reinstall', '--no-deps', 'opencv-python-headless')
    return bin


def _imports(bin, module):
    try:
        run(bin / 'python', '-c', f'import {module}')
    except AssertionError:
        return False
    return True


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('elsewhere')


def test_every_command_is_called():
    assert {call.split()[0] for call in CALLS} == set(COMMANDS)


@pytest.mark.parametrize('call', CALLS, ids=lambda call: call.split()[0])
def test_a_command_of_the_wheel_runs_anywhere(environment, folder, call):
    clean = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    said = run(environment / 'ssnet_mm', *call.split(), cwd=folder, env=clean)
    assert 'Traceback' not in said
