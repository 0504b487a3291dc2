import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from helpers.training import train
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from ssnet_mm.engine.repeatable import Draw, number_draws, seed_everything, skip_batches

# the tiny network has dropout
AUGMENTED = """
train_pipeline[2:3] = [
    dict(type='RandomResize', scale=(48, 48), ratio_range=(0.8, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion')]
train_dataloader['dataset']['pipeline'] = train_pipeline
randomness = dict(seed=None)
train_cfg.update(max_iters=5, val_interval=2)
default_hooks['checkpoint'].update(interval=1)
"""
SHUFFLED = "train_dataloader['sampler'] = dict(type='DefaultSampler', shuffle=True)\n"
EPOCHS = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
default_hooks['checkpoint'].update(by_epoch=True, interval=1)
param_scheduler = []
log_processor = dict(by_epoch=True)
"""


@pytest.mark.parametrize(
    ('changes', 'removed'),
    [('', 'iter_[345].pth'), (SHUFFLED + EPOCHS, 'epoch_[23].pth')],
    ids=['iterations', 'epochs'],
)
@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny_config, tmp_path, changes, removed, workers):
    config, work = tiny_config(AUGMENTED + changes), tmp_path / 'work'
    losses = train(config, work)
    for path in work.glob(removed):
        path.unlink()
    resumed = train(config, work, resume=True, train_dataloader__num_workers=workers)
    assert resumed and min(resumed) > 1
    assert resumed == {i: losses[i] for i in resumed}
    other = train(config, tmp_path / 'other')
    assert not set(other.values()) & set(losses.values())  # no seed was given
