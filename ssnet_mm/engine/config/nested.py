"""Settings within settings: what a config holds, as one sequence of dotted names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config


def walk(node: Any, where: str = '') -> Iterator[tuple[str, Any]]:
    """All that a part of a config holds, by dotted names, each part before what is in it."""
    items: Any = ()
    if isinstance(node, (Mapping, Config)):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    for key, value in items:
        name = f'{where}.{key}' if where else str(key)
        yield name, value
        yield from walk(value, name)


def dicts(node: Any, where: str = '') -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A part of a config, if it is a dict, and all dicts that it holds."""
    for name, value in ((where, node), *walk(node, where)):
        if isinstance(value, Mapping):
            yield name, value


def values(node: Any, key: str) -> Iterator[Any]:
    """What is set by one name anywhere in a part of a config, but None."""
    for _, part in dicts(node):
        if part.get(key) is not None:
            yield plain(part[key])


def listed_or_single(value: Any) -> list[Any]:
    """A list of settings, where one may stand for a list of one, and None for an empty one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def plain(value: Any) -> Any:
    """Settings as plain Python values, which compare and print the same wherever they come from."""
    if isinstance(value, (dict, Config)):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(part) for part in value)
    return value
