"""``--cfg-options``: every option takes effect, or is refused.

A config file is a Python program: ``max_iters = 200`` is a variable, from which the settings that a
Runner reads are computed. mmengine merges an option into the result, where a variable has no effect
any more. Here the files are run again with the variable set to the option's value, so that whatever
is computed from it follows; an option that changes no setting is an error.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import mmseg.registry
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from ssnet_mm.engine.config.files import sources, with_variables
from ssnet_mm.engine.config.nested import dicts, plain, walk
from ssnet_mm.errors import UserError, few

# The variables of our configs that a child config, or an option, may set alone: its base files then
# compute with that value too. Each with the setting that it has to reach, where there is one.
KNOBS = {
    'max_iters': 'train_cfg.max_iters',
    'crop_size': 'model.data_preprocessor.size',
    'num_classes': 'model.decode_head.num_classes',
    'data_root': 'train_dataloader.dataset.data_root',
    # in steps of pipelines and in losses, of which there are several
    'scale': '',
    'class_weight': '',
}

# The top-level names of a config that a Runner or our tools read; all others are variables.
READ = (set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}) | {
    'runner_type', 'custom_imports', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn',
    'activation_checkpointing', 'efficient_conv_bn_eval', 'compile', 'tta_model', 'tta_pipeline',
}  # fmt: skip

# What is read of settings that are given to no class, by the end of their names.
_DATALOADER = set(inspect.signature(DataLoader).parameters) | {
    'num_batch_per_epoch', 'disable_subprocess_warning',
}  # fmt: skip
_KEYS = {
    'model.test_cfg': {'mode', 'crop_size', 'stride', 'threshold'},
    'train_dataloader': _DATALOADER,
    'val_dataloader': _DATALOADER,
    'test_dataloader': _DATALOADER,
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'randomness': set(inspect.signature(set_random_seed).parameters),
    # mmengine's DefaultOptimWrapperConstructor takes them by name from a dict
    'paramwise_cfg': {
        'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult',
        'dcn_offset_lr_mult', 'flat_decay_mult', 'bypass_duplicate',
    },
}  # fmt: skip
_MULTIPLES = {'lr_mult', 'decay_mult'}  # what it reads for layers of some name
# Switches that no class has with a bool for its default.
_SWITCHES = {
    'enable', 'cudnn_benchmark', 'find_unused_parameters', 'bypass_duplicate', 'by_epoch',
    'convert_to_iter_based', 'requires_grad',
}  # fmt: skip
# Taken out by whoever builds a class, before the class sees its arguments.
_BUILDER_KEYS = {
    'type', '_scope_', 'constructor', 'paramwise_cfg', 'requires_grad', 'priority', 'by_epoch',
    'convert_to_iter_based',
}  # fmt: skip


class _CfgOptions(DictAction):
    """``--cfg-options key=value ...``; a malformed pair is a usage error, not a traceback."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, RecursionError) as error:
            raise argparse.ArgumentError(self, f'expected key=value pairs, got {values}') from error


def parse_options(options: Sequence[str] | None) -> dict[str, Any]:
    """What ``key=value`` words mean, as mmengine's ``--cfg-options`` takes them.

    Raises:
        UserError: A word is no such pair.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('--cfg-options', nargs='+', action=_CfgOptions)
    try:
        parsed = parser.parse_args(['--cfg-options', *options] if options else [])
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    return parsed.cfg_options or {}


def apply_options(cfg: Config, options: Mapping[str, Any]) -> Config:
    """Set variables and settings of a config.

    Args:
        cfg: As read from its file.
        options: Dotted names to values; the name of a variable sets it where it is defined.

    Returns:
        The config with all of them in effect.

    Raises:
        UserError: An option would change nothing; names the setting that does what was meant, where
            there is one that looks like it.
    """
    _check_spelling(str(cfg.filename))
    _check_nested(cfg)
    variables = {key: value for key, value in options.items() if _is_variable(cfg, key)}
    for key, value in options.items():
        if key not in variables:
            _check_known(cfg, key, options)
        if isinstance(value, str) and _is_switch(cfg, key, options):
            raise UserError(
                f'--cfg-options {key}={value}: it is a switch, for which any word means yes; write '
                'True or False'
            )
    values = {name: cfg[name] for name in KNOBS if name in cfg}
    cfg = with_variables(cfg, values)
    for key, value in variables.items():
        name, _, rest = key.partition('.')
        before = cfg
        if rest:  # one part of the variable's value
            part = Config({name: copy.deepcopy(cfg[name])})
            part.merge_from_dict({key: value})
            value = part[name]
        values[name] = value
        cfg = with_variables(cfg, values)
        _check_effect(before, cfg, key, value)
    cfg.merge_from_dict({key: value for key, value in options.items() if key not in variables})
    return cfg


def _check_spelling(path: str) -> None:
    """Does a config file assign what is one letter off a setting, and not the setting itself?"""
    for source in sources(path):
        names = {name for _, name in source.assigned}
        for name in sorted(names - READ):
            meant = difflib.get_close_matches(name, READ - names, n=1, cutoff=0.92)
            if meant:
                raise UserError(
                    f'config {source.path} sets {name}, which nothing reads; the setting is '
                    f'{meant[0]}'
                )


def _check_nested(cfg: Config) -> None:
    """The same for settings that are given to no class, which would refuse what it does not know.

    Names of one's own are left alone, but where mmengine reads no others.
    """
    paramwise = (cfg.get('optim_wrapper') or {}).get('paramwise_cfg') or {}
    usual = not (cfg.get('optim_wrapper') or {}).get('constructor')
    of_layers = paramwise.get('custom_keys') or {}
    places = [
        *dicts({key: cfg[key] for key in cfg if key in READ}),
        *((f'custom_keys.{layer}', part) for layer, part in of_layers.items()),
    ]
    for where, node in places:
        known = _MULTIPLES if where.startswith('custom_keys.') else _keys_at(where, node)
        for name in sorted(set(node) - known) if known and isinstance(node, Mapping) else ():
            meant = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if meant or (where == 'optim_wrapper.paramwise_cfg' and usual):
                hint = (
                    f'; the setting is {meant[0]}' if meant else f'; it reads {few(sorted(known))}'
                )
                raise UserError(f'config {cfg.filename}: nothing reads {where}.{name}{hint}')


def _read(cfg: Config) -> set[str]:
    """The top-level names that are read of a config."""
    own = 'data_preprocessor' in (cfg.get('model') or {})  # mmengine's Runner takes that one
    return READ - {'data_preprocessor'} if own else READ


def hand_on_preprocessor(cfg: Config) -> None:
    """Give the model a data preprocessor that is set beside it, as mmengine's Runner does.

    Raises:
        UserError: The model has its own, so that one beside it, from which no file computes
            anything, has no effect.
    """
    given, path = cfg.get('data_preprocessor'), str(cfg.filename)
    if given is None or not isinstance(cfg.get('model'), dict):
        return
    ours = cfg.model.setdefault('data_preprocessor', copy.deepcopy(given))
    if plain(ours) == plain(given) or Config._is_lazy_import(path):
        return
    for source in sources(path):
        names = {name for _, name in source.assigned}
        if 'data_preprocessor' in names - source.read:
            raise UserError(
                f'config {source.path}: data_preprocessor has no effect, as the model has its own; '
                'set model.data_preprocessor'
            )


def unread_variables(path: str) -> list[str]:
    """Notes on variables of a config file from which no setting is computed.

    A child config that sets one of its base's, as ``train_pipeline``, comes too late: the base has
    computed its settings already.
    """
    files = list(sources(path))
    if not files or Config._is_lazy_import(path):
        return []
    own, *bases = files
    notes = []
    for name in dict.fromkeys(name for _, name in own.assigned):
        if name in READ | set(KNOBS) | {'test_pipeline'} or name in own.read or name[0] == '_':
            continue
        base = next((base.path for base in bases if name in base.read), None)
        if base and _value(base, name) == _value(path, name):
            continue
        if base:
            notes.append(
                f'{name} is set in {path}, but {base} has computed its settings from its own by '
                'then; set those'
            )
        else:
            notes.append(f'{name} is set in {path}, and nothing reads it')
    return notes


def _value(path: str, name: str) -> Any:
    return plain(Config.fromfile(path, import_custom_modules=False).get(name))


def _is_variable(cfg: Config, key: str) -> bool:
    name = key.partition('.')[0]
    return name not in _read(cfg) and name in cfg


def _check_effect(before: Config, after: Config, key: str, value: Any) -> None:
    """Has a variable reached any setting, and one of ours the setting that it is made for?"""
    place = KNOBS.get(key, '')
    reached = dict(walk(after)).get(place)
    if reached is not None and plain(reached) != plain(value):
        if isinstance(value, (tuple, list)) and list(reached) == list(value):
            return
        raise UserError(
            f'--cfg-options {key}={value} has no effect on {place}, which the config sets to '
            f'{reached} by itself; use {place}={value}'
        )
    if plain(before.get(key.partition('.')[0])) == plain(after.get(key.partition('.')[0])):
        return  # it has that value anyway
    if all(plain(before.get(name)) == plain(after.get(name)) for name in _read(after)):
        raise UserError(
            f'--cfg-options {key}={value} has no effect: {before.filename} computes no setting '
            f'from it{_suggest(before, key)}'
        )


def _check_known(cfg: Config, key: str, options: Mapping[str, Any]) -> None:
    """Does anything read a setting of this name? Names that the config has are taken as read."""
    node: Any = cfg
    parts = key.split('.')
    for i, part in enumerate(parts):
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f'--cfg-options {key}: {".".join(parts[:i])} is a list of {len(node)}, '
                    f'which has no {part}'
                )
            node = node[int(part)]
        elif not isinstance(node, (dict, Config)):
            return  # merging tells that this can't be
        elif part in node:
            node = node[part]
        else:
            where = '.'.join(parts[:i])
            kind = options.get(f'{where}.type')  # the class that takes it may be an option too
            given = node if kind is None else dict(node, type=kind)
            known = _read(cfg) if i == 0 else _known_keys(given, where)
            if parts[i - 1] == 'paramwise_cfg' and cfg.optim_wrapper.get('constructor'):
                known = None  # another constructor reads other names
            if known is not None and part not in known:
                raise UserError(
                    f'--cfg-options {key} has no effect: nothing reads '
                    f'{".".join(parts[: i + 1])}{_suggest(cfg, key, known, i)}'
                )
            return


def _is_switch(cfg: Config, key: str, options: Mapping[str, Any]) -> bool:
    """Whether a setting is on or off: by its value, or else by the default of what reads it."""
    settings = dict(walk(cfg))
    if settings.get(key) is not None:
        return isinstance(settings[key], bool)
    where, _, name = key.rpartition('.')
    node = settings.get(where)
    kind = options.get(f'{where}.type', node.get('type') if isinstance(node, Mapping) else None)
    readers: list[Any] = [kind]
    if isinstance(kind, str):
        readers = [registry.get(kind) for registry in _registries()]
    elif kind is None:
        ending = where.rpartition('_')[2]
        readers = [
            {'': Runner, 'dataloader': DataLoader, 'randomness': set_random_seed}.get(ending)
        ]
    return name in _SWITCHES or any(isinstance(default_of(r, name), bool) for r in readers if r)


def default_of(reader: Any, name: str) -> Any:
    """What an argument is where it is not given: of a function, or of a class or its parents.

    None where it has none.
    """
    functions = [reader]
    if inspect.isclass(reader):
        functions = [vars(c)['__init__'] for c in reader.__mro__[:-1] if '__init__' in vars(c)]
    found = (inspect.signature(function).parameters.get(name) for function in functions)
    return next((parameter.default for parameter in found if parameter is not None), None)


def _known_keys(node: Mapping[str, Any], where: str) -> set[str] | None:
    """The names that are read of a dict of settings; None if that can't be told."""
    if keys := _keys_at(where, node):
        return keys
    kind = node.get('type')
    if isinstance(kind, str):
        classes = [registry.get(kind) for registry in _registries()]
    else:
        classes = [kind]
    names = [arguments(cls) for cls in classes if inspect.isclass(cls)]
    return set().union(_BUILDER_KEYS, *names) if names else None


def _keys_at(where: str, node: Mapping[str, Any]) -> set[str]:
    """The names that are read of a dict that is given to no class; empty if it may be."""
    endings = (keys for ending, keys in _KEYS.items() if f'.{where}'.endswith(f'.{ending}'))
    return next(endings, set()) if 'type' not in node else set()


def _registries() -> Iterator[Registry]:
    for value in vars(mmseg.registry).values():
        if isinstance(value, Registry):
            yield value


def arguments(cls: type) -> set[str]:
    """The names of the arguments that a class takes, those that it hands to its parents too."""
    names: set[str] = set()
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def hands_on(cls: type) -> bool:
    """Whether a class takes arguments for others, beside those of its own and of its parents."""
    inits = [vars(base)['__init__'] for base in cls.__mro__[:-1] if '__init__' in vars(base)]
    kinds = [{p.kind for p in inspect.signature(init).parameters.values()} for init in inits]
    return bool(kinds) and all(inspect.Parameter.VAR_KEYWORD in kind for kind in kinds)


def _suggest(cfg: Config, key: str, known: Iterable[str] = (), depth: int = 0) -> str:
    """Name the settings that may be meant, as the end of a message.

    Args:
        cfg: The config.
        key: The name that nothing reads.
        known: What could stand in place of its part at ``depth``.
        depth: How many parts of the name are right.
    """
    read = {key: cfg[key] for key in cfg if key in _read(cfg)}
    settings = [*(name for name, _ in walk(read)), 'randomness.seed']
    found = [name for name in settings if name == KNOBS.get(key) or name.endswith(f'.{key}')]
    if not found:  # a typing error
        parts = key.split('.')
        close = difflib.get_close_matches(parts[depth], known, n=1, cutoff=0.8)
        found = ['.'.join([*parts[:depth], name, *parts[depth + 1 :]]) for name in close]
    if not found:
        last = key.rpartition('.')[2]
        lasts = {name.rpartition('.')[2] for name in settings}
        close = difflib.get_close_matches(last, lasts, n=1, cutoff=0.8)
        found = [name for name in settings if name.rpartition('.')[2] in close]
    return f'; the setting is {few(dict.fromkeys(found))}' if found else ''
