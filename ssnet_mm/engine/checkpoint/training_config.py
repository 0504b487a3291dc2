"""The config that a checkpoint was trained with, as mmengine writes it there; it is never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ssnet_mm.engine.input import Input

_LONGEST = 1 << 20  # characters; the largest of ours has 10,000


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


def trained_input(meta: Any) -> Input | None:
    """The image that a checkpoint was trained on; None where its ``meta`` does not tell."""
    cfg = training_config(meta)
    part = cfg.get('model')
    given = part.get('data_preprocessor') if isinstance(part, dict) else None
    given = given or cfg.get('data_preprocessor')
    if not isinstance(given, dict):
        return None
    try:
        mean, std = (tuple(map(float, given.get(key) or ())) for key in ('mean', 'std'))
    except (TypeError, ValueError):
        return None
    swaps = given.get('bgr_to_rgb') or given.get('rgb_to_bgr')
    return Input('RGB' if swaps else 'BGR', mean or (0.0, 0.0, 0.0), std or (1.0, 1.0, 1.0))
