"""Config files read, looked into, and turned into models."""

from __future__ import annotations

import copy
import inspect
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmengine.registry
import mmseg.registry
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import Registry, init_default_scope
from mmengine.utils import get_object_from_string
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS

from ssnet_mm.engine.config.files import sources
from ssnet_mm.engine.config.kinds import check_kinds
from ssnet_mm.engine.config.nested import dicts, plain
from ssnet_mm.engine.config.options import apply_options, hand_on_preprocessor
from ssnet_mm.engine.disk import full_disk, is_full
from ssnet_mm.errors import UserError, few
from ssnet_mm.own_configs import config_names, configs_folder, find_config
from ssnet_mm.palette import is_palette


def load_config(path: str, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config, a file or one of ours by its name, and set ``--cfg-options`` in it.

    Variables of config files may be set too: ``max_iters=200`` makes the schedule, the validation
    and the checkpoints of our configs follow. See :mod:`ssnet_mm.engine.config.options`.

    Classes and functions that a config in pure Python has as types become the names under which
    they are registered, by which all else here knows them.

    Raises:
        UserError: The file is missing or fails, a setting is of a kind that can't be used, or an
            option contradicts its structure or would have no effect.
    """
    path = find_config(path)
    # mmengine copies configs to a folder for temporary files
    with full_disk(tempfile.gettempdir(), 'start again'), config_errors(f'config {path}'):
        _check_foreign_bases(path)
        cfg = _with_names(Config.fromfile(path))
    with config_errors(f'--cfg-options on {path}'):
        cfg = apply_options(cfg, options or {})
    if cfg.get('model') is None:
        raise UserError(f'config {path} has no model; is it one of the parts in _base_?')
    check_kinds(cfg)
    hand_on_preprocessor(cfg)
    return cfg


def _with_names(cfg: Config) -> Config:
    """Put names in place of a config's types that are objects."""
    if _name_types(cfg._cfg_dict) and cfg.get('default_scope') is None:
        cfg.default_scope = 'mmseg'  # in which the names are looked up
    return cfg


def _name_types(node: Any) -> int:
    """The same in a part of it, in place; how many there were."""
    if isinstance(node, (list, tuple)):
        return sum(_name_types(item) for item in node)
    if not isinstance(node, dict):
        return 0
    # what is imported otherwise stays as mmengine keeps it, to be imported when it is asked for
    found = sum(_name_types(value) for value in dict.values(node))
    kind = node.get('type')
    if kind is None or isinstance(kind, str):
        return found
    node['type'] = _registered_name(kind)
    return found + 1


def _registered_name(kind: Any) -> Any:
    """A class's or function's name in mmseg's registries; of no registered one its full path."""
    known = [*vars(mmengine.registry).values(), *vars(mmseg.registry).values()]
    # of those of one name mmseg's, in which names of mmengine's may mean something else
    registries = {part.name: part for part in known if isinstance(part, Registry)}
    for registry in registries.values():
        registry.import_from_location()
        parents = [registry, *([registry.parent] if registry.parent else [])]
        names = [n for p in parents for n, other in p.module_dict.items() if other is kind]
        names = [name for name in names if registry.get(name) is kind]  # hidden by no other
        if names:
            return min(names, key=lambda name: name != kind.__name__)
    path = f'{kind.__module__}.{kind.__qualname__}' if hasattr(kind, '__qualname__') else ''
    with suppress(Exception):  # what is local to a function, or has no name, stays what it is
        return path if get_object_from_string(path) is kind else kind
    return kind


def _check_foreign_bases(path: str) -> None:
    """Would mmengine look for a base config in a package that others than it stand in for?

    It knows modules by the names of OpenMMLab's packages. Told that ``mmsegmentation`` is missing,
    a user would install that over OneDL's, which provides the same module; mmengine's
    ``get_config`` even does it by itself.
    """
    foreign = [(s.path, base) for s in sources(path) for base in s.bases if '::' in base]
    for file, base in foreign:
        module, _, name = base.partition('::')
        package = MODULE2PACKAGE.get(module)
        found = find_spec(module)
        if _is_installed(package) or found is None or found.origin is None:
            continue  # mmengine finds it, or tells what is missing
        folder = configs_folder() if module == 'ssnet_mm' else None
        folder = folder or Path(found.origin).parent / '.mim' / 'configs'
        install = f', and do not install {package}, which would overwrite it' if package else ''
        raise UserError(
            f"{file}: mmengine can not find {base}; write the path in _base_: '{folder}/{name}'"
            f'{install}'
        )


def _is_installed(package: str | None) -> bool:
    try:
        return bool(package and distribution(package))
    except PackageNotFoundError:
        return False


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Turn whatever building from a config raises into a UserError: the config is the user's.

    But not that a disk is full, which ``full_disk`` tells.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_full(error):
            raise
        raise UserError(f'{where}: {describe(error)}') from error


def describe(error: BaseException) -> str:
    """An exception as one line; of a bare assertion, what it asserts and where."""
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if not message and isinstance(error, AssertionError) and error.__traceback__:
        last = traceback.extract_tb(error.__traceback__)[-1]
        message = f'{last.line} ({last.filename}, line {last.lineno})'
    return f'{type(error).__name__}: {message}' if message else type(error).__name__


def build_segmentor(cfg: Config, where: str | None = None, *, training: bool = False) -> Any:
    """Build a config's model on the CPU, with its weights as its layers draw them.

    Args:
        cfg: Its ``default_scope`` becomes that of the process, unless it is None; nothing in it is
            changed.
        where: What to call the model in an error; by default that of the config's file.
        training: Keep what only training needs: synchronised batch norm, which runs on GPUs only,
            and the settings by which ``init_weights`` loads pretrained weights.

    Raises:
        UserError: It does not build.
    """
    scope = cfg.get('default_scope', 'mmseg')
    if scope is not None:
        init_default_scope(scope)
    with config_errors(where or f'the model of {cfg.filename}'):
        model_cfg = copy.deepcopy(cfg.model)
        try:
            if training:
                return MODELS.build(model_cfg)
            return revert_sync_batchnorm(MODELS.build(without_pretrained(model_cfg)))
        except KeyError as error:
            if 'Cannot find None' in str(error):  # mmcv tells what it found, not what it sought
                _name_unknown_layers(cfg.model)
            raise


def _name_unknown_layers(model_cfg: Any) -> None:
    kinds = {
        f'{name}.type={part["type"]!r}'
        for name, part in dicts(model_cfg, 'model')
        if name.endswith('_cfg') and isinstance(part.get('type'), str)
        if MODELS.get(part['type']) is None
    }
    if kinds:
        raise UserError(
            f'{few(sorted(kinds))}: no such layer is registered; check the spelling, and '
            'custom_imports if it is your own'
        )


def without_pretrained(part: Any) -> Any:
    """A copy of a model config that names no pretrained weights."""
    if isinstance(part, dict):
        kept = {
            key: without_pretrained(value)
            for key, value in part.items()
            if key != 'pretrained' and not (key == 'init_cfg' and 'Pretrained' in str(value))
        }
        return type(part)(kept)
    if isinstance(part, (list, tuple)):
        return type(part)(without_pretrained(item) for item in part)
    return part


def single_datasets(dataset: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The data sets inside ConcatDataset, RepeatDataset and the like, with their config paths."""
    if 'datasets' in dataset:
        for i, part in enumerate(dataset['datasets']):
            yield from single_datasets(part, f'{where}.datasets.{i}')
    elif 'dataset' in dataset:
        yield from single_datasets(dataset['dataset'], f'{where}.dataset')
    else:
        yield where, dataset


def config_meta(cfg: Config) -> dict[str, Any]:
    """Classes and palette of a config's data set, as mmseg finds them.

    Its images need not be on this machine. UserError where the classes are no list of names, or the
    palette is none of RGB colours.
    """
    if not cfg.get('test_dataloader'):
        return {}
    where, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader.dataset'))
    known = DATASETS.get(dataset['type'])
    # some of mmseg's data sets have it by default
    reduced = inspect.signature(known).parameters.get('reduce_zero_label') if known else None
    default = reduced is not None and reduced.default is True
    # several of mmseg's data sets ask for their folders, their base class does not
    base = type('Meta', (BaseSegDataset,), {'METAINFO': getattr(known, 'METAINFO', {})})
    with config_errors(f'{where} of {cfg.filename}'):
        meta = base(
            metainfo=dataset.get('metainfo'),
            reduce_zero_label=dataset.get('reduce_zero_label', default),
            lazy_init=True,
        ).metainfo
    check_dataset_meta(meta, where)
    return meta


def check_dataset_meta(meta: Mapping[str, Any], where: str) -> None:
    """UserError where classes and palette of a data set are not what checkpoints can hold."""
    classes: Any = meta.get('classes') or ()
    palette = meta.get('palette')
    if isinstance(classes, str):
        raise UserError(
            f'{where}.metainfo.classes is one text, {classes!r}, where a list of names is wanted; '
            f'of a single class it is ({classes!r},)'
        )
    if not all(isinstance(name, str) for name in classes):
        raise UserError(f'{where}.metainfo.classes must be names in quotes, got {classes[0]!r}')
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f'{where}.metainfo.classes has {few(repeated)} twice; name each once')
    if palette is not None and not is_palette(palette):
        raise UserError(f'{where}.metainfo.palette must be RGB colours of 0 to 255 for each class')


def name_of_ours(cfg: Config) -> str | None:
    """The config of this package that has the network and the test pipeline of a config."""
    name = Path(str(cfg.filename)).stem
    if name not in config_names() or find_config(name) != str(Path(str(cfg.filename)).resolve()):
        return None
    ours = load_config(name)
    alike = all(plain(ours.get(k)) == plain(cfg.get(k)) for k in ('model', 'test_pipeline'))
    return name if alike else None
