import pickle
import random

import numpy as np
import pytest
import torch
from helpers.training import train
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader

from ssnet_mm.engine.repeatable import (
    Draw,
    ResumedIterator,
    number_draws,
    seed_cpu,
    skip_batches,
)

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
    ('changes', 'removed', 'workers'),
    [('', 'iter_[345].pth', 0), (SHUFFLED + EPOCHS, 'epoch_[23].pth', 2)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_config, tmp_path, changes, removed, workers
):
    config, work = tiny_config(AUGMENTED + changes), tmp_path / 'work'
    losses = train(config, work)
    for path in work.glob(removed):
        path.unlink()
    resumed = train(config, work, resume=True, train_dataloader__num_workers=workers)
    assert resumed == {i: losses[i] for i in losses if i > 2}
    other = train(config, tmp_path / 'other')
    assert not set(other.values()) & set(losses.values())  # no seed was given


def test_another_seed_than_the_run_s_is_told(tiny_config, tmp_path, capfd):
    config, work = tiny_config(), tmp_path / 'work'
    train(config, work)
    longer = dict(train_cfg__max_iters=4)
    resumed = train(config, work, resume=True, randomness__seed=7, **longer)
    assert 'resumed with the seed that the run had, 0; the config has 7' in ''.join(
        capfd.readouterr()
    )
    losses = train(config, tmp_path / 'whole', **longer)
    assert resumed == {i: losses[i] for i in (3, 4)}


@pytest.mark.parametrize('meta', [dict(seed='a'), dict(seed=-1), dict(iter=None), dict(epoch=2.5)])
def test_what_is_no_position_is_one_line(tiny_config, tmp_path, meta):
    config, work = tiny_config(), tmp_path / 'work'
    train(config, work)
    checkpoint = torch.load(work / 'iter_2.pth', weights_only=True)
    checkpoint['meta'].update(meta)
    torch.save(checkpoint, work / 'iter_2.pth')
    with pytest.raises(Exception, match=r'iter_2.pth is damaged or not of mmengine: meta\..* is '):
        train(config, work, resume=True)


def drawn(size=4):
    return [random.random(), *np.random.rand(size), *torch.rand(size).tolist()]


def test_states_differ_by_their_keys_alone():
    seed_cpu(0, 1)
    first = drawn()
    assert drawn() != first
    seed_cpu(0, 1)
    assert drawn() == first
    seed_cpu(1, 0)
    assert not set(drawn()) & set(first)


class Numbers:
    """Samples that hold what was drawn as they were loaded."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        assert type(index) is int
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def batches(sampler, number, skipped=0, seed=5, **loader):
    made = DataLoader(Numbers(), 2, sampler=sampler, collate_fn=list, **loader)
    numbered = number_draws(made, seed)
    round = skip_batches(made, numbered, 0, skipped)
    found = []
    while len(found) < number:
        found += list(zip(made, range(number - len(found))))
        round += 1
        numbered.start(round)
    return [batch for batch, _ in found]


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
@pytest.mark.parametrize('drop_last', [False, True])
def test_a_loader_starts_where_another_stopped(sampler, drop_last):
    def make(**kwargs):
        return batches(sampler(Numbers(), seed=3), drop_last=drop_last, **kwargs)

    whole = make(number=10)
    for skipped in range(1, 10):
        workers = 2 * (skipped == 5)
        assert make(number=10 - skipped, skipped=skipped, num_workers=workers) == whole[skipped:]
    drawn = [value for batch in whole for _, *values in batch for value in values]
    assert len(set(drawn)) == len(drawn)  # no two samples of a run draw the same
    other = [value for batch in make(number=10, seed=6) for _, *values in batch for value in values]
    assert not set(other) & set(drawn)


def test_a_draw_is_an_index_that_travels():
    draw = pickle.loads(pickle.dumps(Draw(3, (1, 2))))
    assert (draw, draw.key, type(draw)) == (3, (1, 2), Draw)


def test_loaders_that_are_not_understood_are_left_alone():
    class Whole(Numbers):
        def __getitems__(self, batch):
            return [0]

    for loader in (DataLoader(Whole(), 2), DataLoader(Numbers(), None)):
        assert number_draws(loader, 0) is None
    assert type(DataLoader(Whole(), 2).batch_sampler) is BatchSampler


def test_a_loop_that_takes_batches_to_skip_them_gets_none():
    class Iterator:
        def __next__(self):
            return 'batch'

    iterator = ResumedIterator(Iterator(), 3, 2)
    assert [next(iterator) for _ in range(3)] == [None, None, 'batch']
    assert iterator.iterator._epoch == 3
    Iterator.skip_iter = None
    assert next(ResumedIterator(Iterator(), 3, 2)) == 'batch'
