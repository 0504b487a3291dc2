"""A config's segmentor with a checkpoint's weights, ready to run."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ssnet_mm.deploy.device import check_device
from ssnet_mm.deploy.network import kind_of, names_of, pipeline_of
from ssnet_mm.engine.checkpoint import (
    compare_classes,
    dataset_meta,
    load_checkpoint,
    read_checkpoint,
    trained_otherwise,
)
from ssnet_mm.engine.config import (
    build_segmentor,
    config_errors,
    config_meta,
    single_datasets,
)
from ssnet_mm.engine.config.nested import plain
from ssnet_mm.engine.data import check_data
from ssnet_mm.engine.samples import check_samples, check_truth
from ssnet_mm.errors import UserError
from ssnet_mm.own_configs import config_names

__all__ = [
    'check_device', 'check_trained_classes', 'config_of', 'load_model', 'ready', 'scored_data',
]  # fmt: skip


def config_of(path: str | os.PathLike[str]) -> str:
    """The name of our config that a file of weights says it is of.

    A name alone is taken: a whole config from a file could run any code.

    Raises:
        UserError: It names none, or can't be read.
    """
    meta = read_checkpoint(os.fspath(path)).get('meta')
    name = meta.get('config') if isinstance(meta, Mapping) else None
    if name not in config_names():
        raise UserError(
            f'{os.fspath(path)} names no config of ssnet_mm; give its config too, and this as the '
            'checkpoint'
        )
    return str(name)


def load_model(cfg: Config, checkpoint: str, device: str) -> Any:
    """Build the config's segmentor with a checkpoint's weights, :func:`ready` and in eval mode.

    Raises:
        UserError: The model can't be built, or the weights are not its own.
    """
    model = build_segmentor(cfg)
    meta = load_checkpoint(model, checkpoint).get('meta')
    for note in trained_otherwise(checkpoint, meta, model, cfg):
        print(f'Note: {note}', file=sys.stderr)
    trained_on = dataset_meta(meta)
    # which no export is to replace, and no data set of other classes to score
    model.checkpoint, model.trained_classes = checkpoint, trained_on.get('classes') or ()
    if trained_on and not (meta or {}).get('dataset_meta'):  # of mmseg 0.x, which keeps no more
        trained_on = {**config_meta(cfg), **trained_on}
    return ready(model, cfg, trained_on).to(device).eval()


def scored_data(model: Any, loader: str) -> Any:
    """The data loader of a config to score its segmentor of ``load_model`` on.

    Args:
        model: Its ``cfg`` is read.
        loader: 'val' or 'test'.

    Raises:
        UserError: There are none, or they are of other classes or come without label maps.
    """
    check_data(model.cfg, f'{loader}_dataloader', model.num_classes)
    data_loader = Runner.build_dataloader(copy.deepcopy(model.cfg[f'{loader}_dataloader']))
    check_samples(data_loader.dataset, model)
    check_trained_classes(model, data_loader.dataset)
    check_truth(data_loader.dataset[0])
    return data_loader


def check_trained_classes(model: Any, dataset: Any) -> None:
    """UserError where a data set has other classes than a segmentor of ``load_model`` knows."""
    if getattr(model, 'trained_classes', ()):
        # with the background before the one name that one channel may have
        trained, given = (
            names_of(model, dict(meta, palette=None))[0]
            for meta in ({'classes': model.trained_classes}, dataset.metainfo)
        )
        compare_classes(trained, model.checkpoint, given)


def ready(model: Any, cfg: Config, dataset_meta: Any = None) -> Any:
    """Give a segmentor what running it on images needs, as mmseg's ``init_model`` does.

    That is ``cfg``, with a ``test_pipeline``, and ``dataset_meta``: classes and palette, by default
    those of the config's data set. UserError where the config has no test pipeline.
    """
    if 'test_pipeline' not in cfg:
        with config_errors(f'{cfg.filename} has neither test_pipeline nor test_dataloader'):
            _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
            cfg.test_pipeline = dataset.pipeline
    model.cfg = cfg
    pipeline = pipeline_of(model)
    if cfg.get('test_dataloader'):
        with config_errors(f'test_dataloader of {cfg.filename}'):
            _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
            kinds = [_without_labels(p) for p in (pipeline, dataset.get('pipeline') or [])]
        if kinds[0] != kinds[1]:
            print(
                'Note: images are read as test_pipeline says; test_dataloader.dataset.pipeline, by '
                'which the test reads them, differs',
                file=sys.stderr,
            )
    model.dataset_meta = dataset_meta or config_meta(cfg)
    return model


def _without_labels(pipeline: Any) -> list[Any]:
    names = ('LoadAnnotations', 'PackSegInputs')
    return [plain(transform) for transform in pipeline if kind_of(transform) not in names]
