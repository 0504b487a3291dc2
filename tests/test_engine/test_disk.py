import errno
import logging
import os
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.training import train
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

from ssnet_mm import files
from ssnet_mm.engine.config import load_config
from ssnet_mm.errors import UserError

EACH = """
train_cfg.update(max_iters=5, val_interval=5)
default_hooks['checkpoint'].update(interval=1)
"""


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tiny_config, tmp_path, monkeypatch):
    # a config that says nothing of how checkpoints are written
    config = tiny_config(EACH + "default_hooks['checkpoint'].pop('backend_args')")
    work = tmp_path / 'work'
    fsync, saves = os.fsync, iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda f: no_space() if next(saves) == 3 else fsync(f))
        with pytest.raises(UserError, match='no space left on the disk, writing .*iter_4.pth; mak'):
            train(config, work)
    assert sorted(p.name for p in work.rglob('*.*pth')) == [
        'iter_1.pth',
        'iter_2.pth',
        'iter_3.pth',
    ]
    losses = train(config, tmp_path / 'whole')
    assert train(config, work, resume=True) == {i: losses[i] for i in (4, 5)}


class FullLog(Hook):
    """Have the log file's disk full from the second iteration on."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 1:
            (handler,) = [h for h in runner.logger.handlers if isinstance(h, logging.FileHandler)]
            handler.stream.close()
            handler.stream = open('/dev/full', 'w')  # noqa: SIM115


def test_a_log_that_can_not_be_written_is_one_line(tiny_config, tmp_path, capfd):
    with pytest.raises(UserError, match='no space left on the disk, writing in .*work; make some'):
        train(tiny_config(EACH), tmp_path / 'work', (FullLog(),))
    assert 'Traceback' not in capfd.readouterr().err


def test_a_disk_that_is_full_from_the_start_is_not_the_configs_fault(
    tiny_config, tmp_path, capfd, monkeypatch
):
    config = tiny_config(EACH)
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())  # of this test alone
    monkeypatch.setattr(logging.FileHandler, '_open', lambda self: open('/dev/full', 'w'))  # noqa: SIM115
    with pytest.raises(UserError, match='^no space left on the disk, writing in .*work; make some'):
        train(config, tmp_path / 'work')
    assert 'Logging error' not in capfd.readouterr().err
    monkeypatch.setattr(Config, 'fromfile', no_space)
    with pytest.raises(UserError, match='^no space left on the disk, writing in .*; make some, an'):
        load_config(config)


def test_pictures_are_written_whole_or_not_at_all(tiny_config, tmp_path, monkeypatch):
    draw = "default_hooks['visualization'].update(draw=True, interval=1)"
    train(tiny_config(draw), tmp_path / 'work')
    pictures = sorted((tmp_path / 'work').rglob('vis_image/*.png'))
    assert len(pictures) == 4
    shown = cv2.imread(str(pictures[0]))
    assert shown.shape == (37, 90, 3) and len(np.unique(shown)) > 9
    write = files.os.replace

    def full(source, target):
        no_space() if Path(target).suffix == '.png' else write(source, target)

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='no space left on the disk, writing .*/val_0.jpg_2.png; m'):
        train(tiny_config(draw), tmp_path / 'again')
    assert not list((tmp_path / 'again').rglob('*.png'))
