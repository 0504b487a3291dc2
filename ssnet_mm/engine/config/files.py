"""Config files as programs: what they inherit, what they assign, and run with other values."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from ssnet_mm.engine.config.nested import plain
from ssnet_mm.errors import UserError


class Source(NamedTuple):
    """A config file in Python, as text."""

    path: str
    bases: list[str]  # as it names them
    assigned: list[tuple[int, str]]  # last line and name of each assignment
    read: set[str]  # names from which something is computed


def sources(path: str, above: Sequence[str] = ()) -> Iterator[Source]:
    """A config file and those that it inherits from, itself first; only what is Python.

    Args:
        path: Of the file.
        above: Those that inherit from it.

    Raises:
        UserError: It inherits from itself.
    """
    if not path.endswith('.py'):
        return
    with open(path, encoding='utf-8') as file:
        source = _parse(path, file.read())
    yield source
    for base in source.bases:
        if '::' in base:  # of another package
            continue
        inherited = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if inherited in (path, *above):
            raise UserError(
                f'{path}: its _base_ leads back to {inherited}; name another file there'
            )
        yield from sources(inherited, (path, *above))


def _parse(path: str, text: str) -> Source:
    tree = ast.parse(text)
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    source = Source(path, [], [], read | set(re.findall(r'_base_\.(\w+)', text)))
    for statement in tree.body:
        targets: Sequence[ast.expr] = ()
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        for target in targets:
            if isinstance(target, ast.Name):
                source.assigned.append((statement.end_lineno or 0, target.id))
                if target.id == '_base_' and isinstance(statement, ast.Assign):
                    given = ast.literal_eval(statement.value)
                    source.bases[:] = given if isinstance(given, list) else [given]
    return source


def with_variables(cfg: Config, values: Mapping[str, Any]) -> Config:
    """Run a config's files again, with each variable set to one value wherever it is assigned."""
    if not str(cfg.filename).endswith('.py') or Config._is_lazy_import(cfg.filename):
        return cfg
    with tempfile.TemporaryDirectory() as folder:
        copied = _copy_config(os.path.abspath(cfg.filename), values, folder)
        again = Config.fromfile(copied, import_custom_modules=False)
    return Config(again._cfg_dict, filename=cfg.filename, env_variables=cfg.env_variables)


def _copy_config(path: str, values: Mapping[str, Any], folder: str) -> str:
    """Copy a config file and its bases into a folder, with assignments added after the variables'.

    Returns:
        The path of the copy.
    """
    with open(path, encoding='utf-8') as file:
        text = file.read()
    stem, suffix = os.path.splitext(os.path.basename(path))
    # mmengine would put in those of the copy
    for name, value in (
        ('fileDirname', os.path.dirname(path)),
        ('fileBasename', stem + suffix),
        ('fileBasenameNoExtension', stem),
        ('fileExtname', suffix),
    ):
        text = re.sub(rf'\{{\{{\s*{name}\s*\}}\}}', value.replace('\\', '/'), text)
    source = _parse(path, text)
    lines = text.splitlines()
    for line, name in reversed(source.assigned):
        if name in values:
            lines.insert(line, f'{name} = {plain(values[name])!r}')
        elif name == '_base_':
            copies = [_copy_base(base, path, values, folder) for base in source.bases]
            # mmengine takes the first assignment, and leaves it out when the file is run
            lines.insert(0, f'_base_ = {copies!r}')
    number = len(os.listdir(folder))
    copied = os.path.join(folder, f'{number}{suffix}')
    with open(copied, 'w', encoding='utf-8') as file:
        file.write('\n'.join(lines) + '\n')
    return copied


def _copy_base(base: str, path: str, values: Mapping[str, Any], folder: str) -> str:
    if '::' in base:  # of another package
        return base
    base = os.path.join(os.path.dirname(path), base)
    return _copy_config(base, values, folder) if base.endswith('.py') else base
