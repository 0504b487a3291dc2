"""The data sets of a config: built, looked into, and what is wrong with them told."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

from ssnet_mm.checks import Report, Split, check_lists, check_names, check_splits
from ssnet_mm.checks.facts import readers_of, unfit
from ssnet_mm.engine.checkpoint import weights_only
from ssnet_mm.engine.config import check_dataset_meta, config_errors, single_datasets
from ssnet_mm.engine.config.options import default_of
from ssnet_mm.errors import UserError, few

# A data set: where it stands in the config, its own config, and built.
Located = tuple[str, Mapping[str, Any], Any]


def check_data(cfg: Config, loader: str, num_classes: int | None = None) -> list[Located]:
    """Are the data sets of a data loader there, does the first sample load, do classes suffice?

    Raises:
        UserError: One of these is not so.
    """
    if not cfg.get(loader):
        raise UserError(f'{cfg.filename} has no {loader}, whose data are needed here; give it one')
    if cfg[loader].get('persistent_workers') and not cfg[loader].get('num_workers'):
        raise UserError(
            f'{loader}: persistent_workers need num_workers above 0; without workers set '
            f'{loader}.persistent_workers=False'
        )
    found = []
    for where, dataset, built in build_datasets(cfg, loader):
        for finding in check_lists(Split(where, built, num_classes or 0)):
            if finding.check.severity == 'error':  # it explains a first image that is not there
                raise UserError(str(finding))
        info = built.get_data_info(0)
        readers = readers_of(getattr(built, 'pipeline', []))
        for key, reader in zip(('img_path', 'seg_map_path'), readers):
            path = info.get(key)
            if path and '://' not in path and not os.path.isfile(path):
                raise UserError(
                    f'{where}: {path} not found, the first {key} listed by {_listing(dataset)}; '
                    'check data_prefix and the suffixes'
                )
            problem = unfit(path) if path and reader and reader.kind != 'other' else ''
            if problem:
                raise UserError(f'{where}: {path} {problem}; mend it, or take it out of the list')
        files = ' with '.join(info[key] for key in ('seg_map_path', 'img_path') if info.get(key))
        with config_errors(f'{where}: its first sample, {files}, does not load'):
            built[0]
        classes = built.metainfo.get('classes') or ()
        if not classes:
            raise UserError(
                f'{where} has no classes; set {where}.metainfo=dict(classes=..., palette=...), in '
                'lower case, with a name for each class'
            )
        if num_classes is not None and num_classes < len(classes):
            raise UserError(
                f'{where} has {len(classes)} classes, the model {num_classes}; set '
                f'model.decode_head.num_classes={len(classes)}'
            )
        found.append((where, dataset, built))
    return found


def build_datasets(cfg: Config, loader: str) -> Iterator[Located]:
    """The data sets of a data loader.

    Raises:
        UserError: A folder or a list is not there, the config is at fault, or a data set is empty
            or has names or colours that are none.
    """
    with config_errors(f'{loader} of {cfg.filename}'):
        datasets = list(single_datasets(cfg[loader]['dataset'], f'{loader}.dataset'))
    for where, dataset in datasets:
        with config_errors(f'{where} of {cfg.filename}'):
            _check_prefix(dataset, where)
        _check_paths(dataset, where)
        with config_errors(f'{where} of {cfg.filename}'):
            try:
                built = DATASETS.build(copy.deepcopy(dataset))
                empty = len(built) == 0
            except ValueError as error:
                empty = 'at least one array' in str(error)  # from serialising a list of none
                if not empty:
                    raise
        if empty:
            raise UserError(
                f'{where} is empty: no image listed by {_listing(dataset)}{_suffixes(dataset)}'
            )
        check_dataset_meta(built.metainfo, where)
        yield where, dataset, built


def _check_prefix(dataset: Mapping[str, Any], where: str) -> None:
    """UserError where ``data_prefix`` names folders of what the data set does not have."""
    given, kind = dataset.get('data_prefix'), dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    parents = kind.__mro__ if inspect.isclass(kind) else ()
    # whoever lists the images reads them; one of one's own may read others
    lister = next((c for c in parents if 'load_data_list' in vars(c)), None)
    init = vars(lister).get('__init__') if lister else None
    taken = default_of(init, 'data_prefix') if init else None
    if not isinstance(given, Mapping) or not isinstance(taken, Mapping):
        return
    if strange := [key for key in given if key not in taken]:
        raise UserError(f'{where}.data_prefix takes {few(taken)}, and has {few(strange)}')


def whole_dataset(dataset: Any, built: Sequence[tuple[Any, Any]]) -> Any:
    """Build a data set from its config, with the parts of it that are built already.

    Args:
        dataset: Its config.
        built: Configs and data sets.
    """

    def reused(part: Any) -> Any:  # wrappers take no built wrappers
        return next((dataset for known, dataset in built if known == part), part)

    found = reused(dataset)
    if found is not dataset:
        return found
    config = dict(dataset)
    if 'datasets' in config:
        config['datasets'] = [reused(part) for part in config['datasets']]
    elif 'dataset' in config:
        config['dataset'] = reused(config['dataset'])
    try:
        return DATASETS.build(config)
    except TypeError:  # some, as MultiImageMixDataset, take no built single one either
        return DATASETS.build(copy.deepcopy(dict(dataset)))


def check_scored_once(where: str, whole: Any) -> None:
    """UserError where data sets put together give an image to the scores more than once."""
    for finding in check_lists(Split(where, whole, 0)):
        if finding.check.severity == 'error':
            raise UserError(str(finding))


def trained_on(cfg: Config, tested: Sequence[Located]) -> list[str]:
    """Notes on tested images that the config's training lists too."""
    if not cfg.get('train_dataloader'):
        return []
    try:
        located = [*build_datasets(cfg, 'train_dataloader'), *tested]
    except UserError:
        return []  # a test needs no training data
    splits = [Split(where, built, 0) for where, _, built in located]
    return [str(finding) for finding in check_names(splits)]


def look_at_data(
    cfg: Config,
    datasets: Sequence[Located],
    *,
    wholes: Sequence[Split] = (),
    whole_config: bool,
) -> Report:
    """Read every image and mask of data sets, and check them.

    Args:
        cfg: The config.
        datasets: From :func:`check_data` or :func:`build_datasets`; one whose config equals an
            earlier one's is left out.
        wholes: What some of them are put together to.
        whole_config: Whether these are all that the config has.
    """
    splits = []
    for i, (where, dataset, built) in enumerate(datasets):
        if all(dataset != other for _, other, _ in datasets[:i]):
            num_classes, ignore_index = _labels(cfg, where, built)
            splits.append(Split(where, built, num_classes, ignore_index))
    return check_splits(splits, wholes=wholes, whole_config=whole_config)


@weights_only()
def check_whole_data(cfg: Config) -> Report:
    """Check the data of all data loaders of a config.

    Raises:
        UserError: As :func:`build_datasets`, or the config has no data loader.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    datasets, wholes = [], []
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(loader):
            found = list(build_datasets(cfg, loader))
            datasets += found
            with config_errors(f'{loader} of {cfg.filename}'):
                singles = [(dataset, built) for _, dataset, built in found]
                whole = whole_dataset(cfg[loader]['dataset'], singles)
            if all(whole is not built for _, built in singles):
                wholes.append(Split(f'{loader}.dataset', whole, 0))
    if not datasets:
        raise UserError(f'{cfg.filename} has no data loader, so there is no data to check')
    return look_at_data(cfg, datasets, wholes=wholes, whole_config=True)


def _labels(cfg: Config, where: str, dataset: Any) -> tuple[int, int]:
    """How many classes a data set's labels may name, and the label that doesn't count."""
    model = cfg.model.get('module', cfg.model)  # inside test-time augmentation's
    head = model.get('decode_head') or {}
    head = head[-1] if isinstance(head, (list, tuple)) else head
    num_classes = len(dataset.metainfo.get('classes') or ()) or head.get('num_classes', 256)
    if head.get('out_channels') == 1 or head.get('num_classes') == 1:
        num_classes = max(num_classes, 2)  # one channel tells two classes apart
    evaluator = cfg.get(f'{where.split("_")[0]}_evaluator') or {}
    parts = head if where.startswith('train') else evaluator
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    ignored = [part.get('ignore_index') for part in parts if isinstance(part, Mapping)]
    return num_classes, next((label for label in ignored if label is not None), 255)


def _check_paths(dataset: Mapping[str, Any], where: str) -> None:
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    places = {'data_root': root, 'ann_file': dataset.get('ann_file')}
    for key, place in [*places.items(), *((f'data_prefix.{key}', prefix[key]) for key in prefix)]:
        if isinstance(place, (list, tuple)):
            raise UserError(
                f'{where}.{key} is a list, {place}, and a data set takes one; for several make a '
                "data set of each: dict(type='ConcatDataset', datasets=[...])"
            )
    if dataset.get('backend_args') or '://' in root:
        return  # not on this machine's disk
    folders = {'data_root': root, **{key: os.path.join(root, prefix[key] or '') for key in prefix}}
    for key, folder in folders.items():
        if folder and not os.path.isdir(folder):
            raise UserError(
                f'data set not found: no folder {folder} ({where}, {key}); {_mend(root, where)}'
            )
    if dataset.get('ann_file') and not os.path.exists(_listing(dataset)):
        raise UserError(
            f'data set not found: no {_listing(dataset)} ({where}, ann_file); {_mend(root, where)}'
        )
    if _listing(dataset).endswith('.txt') and os.path.isfile(_listing(dataset)):
        try:
            with open(_listing(dataset), encoding='utf-8') as file:
                for _ in file:
                    pass
        except UnicodeDecodeError as error:
            raise UserError(
                f'{_listing(dataset)} is not text in UTF-8 ({where}, ann_file); save it as such'
            ) from error


def _listing(dataset: Mapping[str, Any]) -> str:
    """Where the names of the images stand: a text file, or the image folder itself."""
    listing = dataset.get('ann_file') or (dataset.get('data_prefix') or {}).get('img_path') or ''
    return os.path.join(dataset.get('data_root') or '', listing)


def _suffixes(dataset: Mapping[str, Any]) -> str:
    """What the files of an image folder end in, which may not be ``img_suffix``."""
    folder = _listing(dataset)
    if not os.path.isdir(folder):
        return ''
    suffixes = {os.path.splitext(name)[1] for name in os.listdir(folder)} - {''}
    return f', whose files end in {few(sorted(suffixes))}; see to img_suffix' if suffixes else ''


def _mend(root: str, where: str) -> str:
    if 'miniature' in os.path.basename(os.path.normpath(root)):
        return 'make it with ssnet_mm miniature'
    return f'put it there, or point to it with --cfg-options {where}.data_root=DIR'
