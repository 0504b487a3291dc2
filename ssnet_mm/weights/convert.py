"""Foreign weights written as a checkpoint of ours."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmseg.registry import DATASETS
from torch import Tensor

from ssnet_mm.constants import BN_EPS, WEIGHTS_SUFFIXES
from ssnet_mm.engine.checkpoint import weights_only
from ssnet_mm.engine.config import (
    build_segmentor,
    config_errors,
    config_meta,
    name_of_ours,
    single_datasets,
)
from ssnet_mm.engine.hooks import to_plain
from ssnet_mm.errors import UserError, quiet
from ssnet_mm.files import write_result
from ssnet_mm.version import __version__

from .batch_norm import estimate_bn, unlabelled_loader
from .card import model_card, read_scores
from .conversion import Conversion, with_bn_eps
from .formats.checkpoints import write_safetensors
from .initializer import load_foreign, load_into, named
from .layerwise import fitted, takes_fitting
from .match import check_finite, with_num_classes
from .split_kernels import with_split_kernels


@weights_only()
def convert_weights(
    path: str | os.PathLike[str],
    dest: str | os.PathLike[str],
    source: str = 'auto',
    *,
    cfg: Config | None = None,
    num_classes: int | None = None,
    factorize: bool = False,
    bn_eps: float | None = None,
    bn_batches: int = 0,
    skip: Sequence[str] = (),
    input: str | None = None,
    scores: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a file of weights into a checkpoint that mmseg's tools load.

    Args:
        path: The file; see :func:`ssnet_mm.weights.load_foreign`.
        dest: The checkpoint to write, ``.pth`` or ``.safetensors``.
        source: Whose weights they are, or 'auto'.
        cfg: Write a checkpoint of this config's whole net; what the weights lack is as the net is
            built. Without it only what was converted is written.
        num_classes: Make the score layers anew for so many classes; only without ``cfg``, whose
            net has a number of classes.
        factorize: Split dense convolutions into the separable ones closest to them; with
            ``bn_batches``, those whose outputs are closest on the images.
        bn_eps: The epsilon of the batch norm that will take the weights; None is 1e-3, that of our
            configs. Only without ``cfg``, whose net has one.
        bn_batches: Measure batch norm on so many batches of the config's training images; 0 leaves
            it. Weights that come without batch norm, or are factorised, are fitted to it: see
            :func:`ssnet_mm.weights.layerwise.fitted`.
        skip: Beginnings of names that stay as the net is built.
        input: The images that the weights expect, as of :func:`ssnet_mm.weights.load_foreign`.
        scores: ``report.json`` of the file's test, for a model card beside ``dest``; only with a
            ``cfg`` that is one of ours.
        overwrite: Whether ``dest``, and its card, may be replaced.

    Returns:
        The account of what was used, left and made anew.

    Raises:
        UserError: The weights can't be read or do not fit, or the checkpoint can't be written.
    """
    dest = Path(dest)
    if dest.suffix not in WEIGHTS_SUFFIXES:
        raise UserError(f'{dest}: a checkpoint ends in {" or ".join(WEIGHTS_SUFFIXES)}')
    if os.path.exists(dest) and not overwrite:
        raise UserError(f'{dest} is there already; choose another name, or set overwrite')
    if bn_batches < 0:
        raise UserError(f'{bn_batches} batches for batch norm: expected 0 or more (--bn-batches)')
    if bn_eps is not None and not 0 <= bn_eps < math.inf:
        raise UserError(f'an epsilon of {bn_eps} for batch norm: expected 0 or more (--bn-eps)')
    if cfg is None and (bn_batches or skip):
        raise UserError('estimating batch norm and skipping parameters need a net: give a config')
    if cfg is not None and (num_classes is not None or bn_eps is not None):
        raise UserError(
            "num_classes and bn_eps are the config's where one is given; change them there, as in "
            'model.decode_head.num_classes=N'
        )
    name = name_of_ours(cfg) if cfg is not None else None
    card = dest.with_suffix('.md')
    tested: dict[str, Any] = {}
    if scores is not None:
        if name is None:
            raise UserError('a card is of the network of one of our configs; give that as config')
        if os.path.exists(card) and not overwrite:
            raise UserError(f'{card} is there already; choose another name, or set overwrite')
        tested = read_scores(scores, path)
    conversion = load_foreign(path, source, input=input)
    meta: dict[str, Any] = dict(ssnet_mm_version=__version__, source=conversion.source)
    state: dict[str, Tensor]
    if cfg is None:
        if factorize:
            conversion = with_split_kernels(conversion)
        if num_classes is not None:
            conversion = with_num_classes(conversion, num_classes)
        conversion = with_bn_eps(conversion, BN_EPS if bn_eps is None else bn_eps)
        state = conversion.state_dict
        with named(path):
            check_finite(state, conversion.used)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what the weights do not fill starts alike each time
            model = build_segmentor(cfg)  # other pretrained weights that it names are not read
            with config_errors(f'the model of {cfg.filename}'):
                with quiet(MMLogger.get_current_instance()):  # a line a parameter
                    model.init_weights()
        loader = unlabelled_loader(cfg, model) if bn_batches else ()
        on_images = f'the model of {cfg.filename} on images of its train_dataloader'
        fits = bool(bn_batches) and takes_fitting(model.backbone, conversion, factorize)
        if fits:
            with config_errors(on_images):
                batches = list(islice(loader, bn_batches))
        with named(path), config_errors(on_images):
            if fits:
                conversion = fitted(model, conversion, batches, bn_batches, factorize, skip)
            elif factorize:
                conversion = with_split_kernels(conversion)
        conversion = load_into(model, conversion, skip, str(path))
        if bn_batches and not fits:
            with config_errors(on_images):
                estimate_bn(model, loader, bn_batches)
        state = model.state_dict()
        meta['dataset_meta'] = config_meta(cfg)
        if name is not None:
            meta['config'] = name
    if conversion.input is not None:
        meta['input'] = asdict(conversion.input)
    if conversion.bn_eps is not None:
        meta['bn_eps'] = conversion.bn_eps
    _write(dest, state, to_plain(meta))
    if cfg is not None and name is not None and tested:
        parameters = sum(p.numel() for p in model.parameters())
        text = model_card(dest, name, parameters, tested, _licence(cfg))
        write_result(card, text.encode())
    return conversion


def _licence(cfg: Config) -> str:
    """What a config's data set says of its use."""
    _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
    return str(getattr(DATASETS.get(dataset['type']), 'LICENCE', ''))


def _write(dest: Path, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
    if dest.suffix == '.safetensors':
        write_safetensors(dest, state, meta)
    else:
        data = io.BytesIO()
        torch.save(dict(meta=meta, state_dict=state), data)
        write_result(dest, data.getvalue())
