"""The config that a checkpoint was trained with, as mmengine writes it there; it is never run."""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from typing import Any

from mmengine.config import Config

from ssnet_mm.constants import BN_EPS, TORCH_EPS
from ssnet_mm.engine.config.nested import walk
from ssnet_mm.engine.input import Input, other_input
from ssnet_mm.errors import few

_LONGEST = 1 << 20  # characters; a config has some 12,000
_NETWORK = ('backbone', 'neck', 'decode_head')
_SAME = {'SyncBN': 'BN', 'mmSyncBN': 'BN'}  # but for the batch in training
_TRAINING_ALONE = {  # what of their settings does nothing in a test
    'attn_drop_rate', 'drop_path_rate', 'drop_rate', 'dropout_ratio', 'frozen_stages',
    'ignore_index', 'init_cfg', 'loss_decode', 'momentum', 'norm_eval', 'pretrained',
    'requires_grad', 'sampler', 'train_cfg', 'with_cp',
}  # fmt: skip
_NOT_SCORED = {  # what may change of a validation whose scores are compared all the same
    'batch_size', 'data_root', 'num_workers', 'output_dir', 'persistent_workers', 'pin_memory',
    'prefetch_factor',
}  # fmt: skip


def training_config(meta: Any) -> dict[str, Any]:
    """The settings of the config in a checkpoint's ``meta``; none where there is none to read."""
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            return {}
        statements = [line for line in ast.parse(text).body if isinstance(line, ast.Assign)]
        return {ast.unparse(line.targets[0]): _value(line.value) for line in statements}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return {}


def _value(node: ast.expr | None) -> Any:
    """Literals and calls of dict as what they stand for, anything else as its text."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=words):
            return {word.arg: _value(word.value) for word in words}
        case ast.Dict(keys=keys, values=values):
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part) for part in parts]
        case ast.Constant(value=value):
            return value
    return ast.unparse(node) if node else None


def trained_otherwise(path: str, meta: Any, model: Any, cfg: Config | None) -> list[str]:
    """Notes where weights fit a model, but were trained with others of its settings.

    Such as on images normalised otherwise, or with dilated layers instead of strided ones.

    Args:
        path: Of the checkpoint.
        meta: Of it.
        model: Which takes the weights.
        cfg: Its config; None where they are but the start for another network.
    """
    before = training_config(meta)
    notes = other_input(path, expected_input(meta), model)
    return notes if cfg is None else notes + _other_network(path, before.get('model'), cfg)


def expected_input(meta: Any) -> Input | None:
    """The image that a checkpoint's weights expect, by its ``meta``; None where that does not tell.

    A converted file says it itself, another by the config that it was trained with.
    """
    given = meta.get('input') if isinstance(meta, Mapping) else None
    if not isinstance(given, Mapping):
        return trained_input(training_config(meta))
    try:
        mean, std = (tuple(map(float, given[key])) for key in ('mean', 'std'))
        return Input(str(given['channels']), mean, std)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def expected_eps(meta: Any) -> float | None:
    """The epsilon of the batch norm that a checkpoint's weights are for, by its ``meta``."""
    settings = dict(walk(training_config(meta)))
    given = settings.get('model.backbone.norm_cfg.eps')
    if given is None and str(settings.get('model.backbone.type')).endswith('VGG16'):
        norm = settings.get('model.backbone.norm_cfg.type')  # one whose eps is left to its default
        given = BN_EPS if 'model.backbone.norm_cfg' not in settings else norm and TORCH_EPS
    if given is None and isinstance(meta, Mapping):
        given = meta.get('bn_eps')  # of a converted file
    return given if isinstance(given, float) and given >= 0 else None


def trained_input(cfg: Mapping[str, Any]) -> Input | None:
    """The image that a config trains on; None where it does not tell."""
    part = cfg.get('model')
    given = part.get('data_preprocessor') if isinstance(part, dict) else None
    given = given or cfg.get('data_preprocessor')
    if not isinstance(given, dict):
        return None
    try:
        mean, std = (tuple(map(float, given.get(key) or ())) for key in ('mean', 'std'))
    except (TypeError, ValueError, OverflowError):
        return None
    swaps = given.get('bgr_to_rgb') or given.get('rgb_to_bgr')
    return Input('RGB' if swaps else 'BGR', mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0))


def changed(
    before: Mapping[str, Any],
    now: Mapping[str, Any] | Config,
    parts: Collection[str],
    aside: Collection[str],
) -> str:
    """Some of the settings in which two configs differ, in words; empty where they do not.

    Args:
        before, now: The configs, or parts of them.
        parts: What of them counts.
        aside: Names, at any depth, of what doesn't.
    """
    theirs, ours = (_leaves(cfg, parts, aside) for cfg in (before, now))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    triples = ((name, theirs.get(name, 'unset'), ours.get(name, 'unset')) for name in names)
    return few('{} {} (config: {})'.format(*map(_shown, triple)) for triple in triples)


def scored_otherwise(before: Mapping[str, Any], now: Mapping[str, Any] | Config) -> str:
    """Some of the settings in which the validations of two configs differ, as ``changed``."""
    parts = [key for key in ('val_dataloader', 'val_evaluator') if before.get(key) and now.get(key)]
    return changed(before, now, parts, _NOT_SCORED)


def chosen_otherwise(before: Mapping[str, Any], now: Mapping[str, Any] | Config) -> str:
    """Some of the settings by which two configs choose the best checkpoint, as ``changed``."""
    if 'default_hooks' not in before:  # then nothing is known of it
        return ''
    hooks = [cfg.get('default_hooks') for cfg in (before, now)]
    found = [hook.get('checkpoint') if isinstance(hook, Mapping) else None for hook in hooks]
    theirs, ours = (
        {key: part.get(key) for key in ('save_best', 'rule')} if isinstance(part, Mapping) else {}
        for part in found
    )
    return changed(theirs, ours, {**theirs, **ours}, ())


def _shown(text: str) -> str:
    """As a line of a terminal takes it: a file may hold anything."""
    return text if len(text) < 80 and text.isprintable() else repr(text[:80])


def _leaves(
    cfg: Mapping[str, Any] | Config, parts: Collection[str], aside: Collection[str]
) -> dict[str, str]:
    """Settings as text by their dotted names."""
    return {
        name: _text(value)
        for name, value in walk({key: cfg[key] for key in parts if key in cfg})
        if not isinstance(value, (dict, list, tuple)) and not {*name.split('.')} & {*aside}
    }


def _text(value: Any) -> str:
    text = f'{value.__module__}.{value.__name__}' if isinstance(value, type) else str(value)
    return _SAME.get(text, text)


def _other_network(path: str, trained: Any, cfg: Config) -> list[str]:
    if not isinstance(trained, dict):
        return []
    model = cfg.model.get('module', cfg.model)  # of what averages flips and scales
    theirs, ours = (
        {f'model.{key}': part[key] for key in _NETWORK if key in part} for part in (trained, model)
    )
    differences = changed(theirs, ours, {**theirs, **ours}, _TRAINING_ALONE)
    if not differences:
        return []
    return [
        f'{path} was trained by other settings, which its weights do not show: {differences}; give '
        'the config that it was trained with'
    ]
