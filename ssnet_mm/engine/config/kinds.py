"""What kind of value each setting takes that is looked into here or by a Runner."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mmengine.config import Config

from ssnet_mm.engine.config.nested import walk
from ssnet_mm.errors import UserError

_DATASET = r'\w+_dataloader\.dataset(\.dataset|\.datasets\.\d+)*'
_SCHEDULE = r'param_scheduler(\.\d+)?'
_NONE = type(None)

# Names, by regular expressions; what their values may be, and this in words. Where one thing may
# stand for a list, or a list has a message of its own, both are taken.
_KINDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    (r'model|env_cfg|randomness', (Mapping,), 'a dict'),
    (
        r'(train|val|test)_(dataloader|cfg)|optim_wrapper|default_hooks|log_processor|visualizer'
        r'|model\.(data_preprocessor|(train|test)_cfg|module)'
        r'|default_hooks\.\w+|\w+_dataloader\.(dataset|sampler|batch_sampler|collate_fn)'
        rf'|{_DATASET}\.(data_prefix|metainfo)|optim_wrapper\.(optimizer|paramwise_cfg|clip_grad)'
        r'|.+\.backend_args',
        (Mapping, _NONE),
        'a dict',
    ),
    (
        r'model\.(backbone|neck|(decode|auxiliary)_head)|param_scheduler|(val|test)_evaluator'
        r'|custom_hooks|visualizer\.vis_backends',
        (Mapping, list, tuple, _NONE),
        'a dict, or a list of them',
    ),
    (rf'{_DATASET}\.(pipeline|datasets)', (list, tuple, _NONE), 'a list of dicts'),
    (
        r'(model\.(decode|auxiliary)_head|param_scheduler|(val|test)_evaluator|custom_hooks'
        rf'|visualizer\.vis_backends|{_DATASET}\.(pipeline|datasets))\.\d+',
        (Mapping,),
        'a dict',
    ),
    (rf'{_DATASET}\.(data_root|ann_file|data_prefix\.\w+)', (str, list, tuple, _NONE), 'text'),
    (r'work_dir|load_from|default_scope|.+\.backend_args\.backend', (str, _NONE), 'text'),
    (rf'(train|val|test)_cfg\.type|{_DATASET}\.type', (str, type), 'a name'),
    (r'log_level', (str, int), 'one of DEBUG, INFO, WARNING, ERROR'),
    (
        r'\w+_dataloader\.batch_size|train_cfg\.(max_iters|max_epochs|val_interval)',
        (int,),
        'positive and whole',
    ),
    (
        r'\w+_dataloader\.num_workers'
        r'|(default|custom)_hooks\.(\w+\.max_keep_ckpts|(?!checkpoint)\w+\.interval)',
        (int,),
        'a whole number',
    ),
    (
        rf'{_SCHEDULE}\.(begin|end|start_factor|end_factor|factor|gamma|power)'
        r'|optim_wrapper\.optimizer\.lr',
        (int, float),
        'a number',
    ),
    (rf'{_SCHEDULE}\.eta_min', (int, float, _NONE), 'a number'),
    (rf'{_SCHEDULE}\.by_epoch|\w+_dataloader\.persistent_workers|resume', (int,), 'True or False'),
    (r'.+\.(seg_pad_val|pad_val\.seg)', (int, _NONE), 'a whole number'),
)


def check_kinds(cfg: Config) -> None:
    """UserError, naming the first setting whose value is of another kind than can be used."""
    for name, value in walk(cfg):
        for names, kinds, words in _KINDS:
            if re.fullmatch(names, name) and not isinstance(value, kinds):
                raise UserError(f'{name} must be {words}, got {value!r}')
