"""A config's segmentor with a checkpoint's weights, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config

from ssnet_mm.engine.checkpoint import load_checkpoint
from ssnet_mm.engine.config import build_segmentor, config_errors, config_meta, single_datasets
from ssnet_mm.errors import UserError


def check_device(device: str | None) -> str:
    """A device that torch can use, or a UserError; None takes CUDA where there is some."""
    count = torch.cuda.device_count()
    if device is None:
        return 'cuda:0' if count else 'cpu'
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'torch knows no device {device}; take cpu or cuda:0') from error
    if parsed.type == 'cuda' and (parsed.index or 0) >= count:
        raise UserError(f'device {device}: torch finds {count} CUDA devices here; take cpu')
    return device


def load_model(cfg: Config, checkpoint: str, device: str) -> Any:
    """Build the config's segmentor with a checkpoint's weights, :func:`ready` and in eval mode.

    Raises:
        UserError: The model can't be built, or the weights are not its own.
    """
    model = build_segmentor(cfg)
    meta = load_checkpoint(model, checkpoint).get('meta')
    dataset_meta = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    return ready(model, cfg, dataset_meta).to(device).eval()


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
    model.dataset_meta = dataset_meta or config_meta(cfg)
    return model
