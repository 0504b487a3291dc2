"""Trainings in the tests' process, and what they went through."""

from __future__ import annotations

from typing import Any
from unittest import mock

from mmengine.config import Config
from mmengine.hooks import Hook

from ssnet_mm.engine import launch


class Losses(Hook):
    """The loss of each iteration, by its number."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.found[runner.iter + 1] = outputs['loss'].item()


def train(
    config: str, work: object, hooks: tuple = (), launcher: str = 'none', **options: Any
) -> dict[int, float]:
    """Train as ``tools/train.py`` does; the losses of the iterations.

    Args:
        config: A file.
        work: The work directory.
        hooks: To add.
        launcher: As ``--launcher``.
        options: As ``--cfg-options``, with ``__`` for the dots.
    """
    options = {key.replace('__', '.'): value for key, value in options.items()}
    cfg = launch.load_config(config, options)
    cfg.work_dir, cfg.launcher = str(work), launcher
    losses = Losses()
    # mmengine formats the config at each checkpoint, which takes longer than training
    with mock.patch.object(Config, 'pretty_text', 'model = None'):
        launch.run(cfg, 'train', [losses, *hooks], skip_data_check=True)
    return losses.found
