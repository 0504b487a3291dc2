"""Models that would learn nothing, or something else than the data set says."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Normalize
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import CheckpointLoader
from mmseg.registry import DATASETS
from torch import Tensor, nn

from ssnet_mm.checks.facts import transforms_of
from ssnet_mm.engine.checkpoint import load_fitting, read_checkpoint, weights_of
from ssnet_mm.engine.config import config_errors, describe, single_datasets
from ssnet_mm.engine.config.files import sources
from ssnet_mm.engine.config.nested import listed_or_single, values, walk
from ssnet_mm.engine.data import Located
from ssnet_mm.engine.val_loss import has_plain_loss
from ssnet_mm.errors import UserError, few, listed


def check_classes(model: nn.Module) -> None:
    """Can the heads tell classes apart: are there two, and do the losses suit one channel?"""
    for where, head in _heads(model):
        if not isinstance(head.ignore_index, int):
            raise UserError(
                f'{where}.ignore_index must be a whole number, the label of void pixels, got '
                f'{head.ignore_index!r}; leave it out where there are none'
            )
        if head.num_classes == 1:
            raise UserError(
                f'{where}.num_classes=1: one class of pixels and the rest are two classes; set '
                f'{where}.num_classes=2 with two names in the classes of the data set, and for one '
                f'channel {where}.out_channels=1 and {where}.loss_decode.use_sigmoid=True'
            )
        threshold = getattr(head, 'threshold', None)
        if head.out_channels == 1 and threshold is not None and not 0 < threshold < 1:
            raise UserError(f'{where}.threshold is of a probability, 0 to 1; got {threshold}')
        sigmoids = [getattr(module, 'use_sigmoid', None) for module in head.modules()]
        if head.out_channels == 1 and False in sigmoids:
            raise UserError(
                f'{where}.out_channels=1: a softmax over one channel is 1 everywhere and learns '
                f'nothing; set {where}.loss_decode.use_sigmoid=True'
            )
        if head.out_channels == 1:
            _check_one_channel(head, where)


def check_geometry(model: nn.Module) -> None:
    """Do the heads cut off what VGG16 pads? Else logits lie beside what they are of."""
    for _, backbone in model.named_modules():
        if not hasattr(backbone, 'image_padding') or not hasattr(backbone, 'stages'):
            continue
        for where, head in _heads(model):
            theirs = getattr(head, 'image_padding', None)
            if theirs != backbone.image_padding:
                raise UserError(
                    f'{where} takes image_padding={theirs}, the backbone pads '
                    f'{backbone.image_padding}: predictions would be shifted; set both alike, '
                    "with type='CaffeFCN8Head'"
                )


def _check_one_channel(head: Any, where: str) -> None:
    """Does each loss want the channel high on class 1? mmseg's one-hot has class 0 in it."""
    mend = f"set {where}.loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)"
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :3] = 1
    right = (labels[:, None] * 2.0 - 1) * 5
    for loss in _losses(head):
        weight = getattr(loss, 'loss_weight', 1.0)
        if not isinstance(weight, (int, float)) or weight <= 0:
            continue
        try:
            good, bad = (
                float(loss(scores, labels, weight=None, ignore_index=head.ignore_index).mean())
                for scores in (right, -right)
            )
        except Exception:  # its settings are looked at later, and the trial step tells
            continue
        if not good < bad:
            raise UserError(
                f'{where}.loss_decode: {type(loss).__name__} over one channel is {good:.3f} where '
                f'class 1 is predicted right and {bad:.3f} where it is predicted inverted; {mend}'
            )
    sampler = getattr(head, 'sampler', None)
    if sampler is not None:
        try:
            sampler.sample(right, labels[:, None])
        except Exception as error:
            raise UserError(
                f'{where}.sampler: {type(sampler).__name__} fails on one channel '
                f'({describe(error)}); set {where}.sampler=None'
            ) from error


def check_losses(model: nn.Module, cfg: Config) -> list[str]:
    """Has each class a weight, made for the classes of this data set, and counts each loss?"""
    notes = []
    for where, head in _heads(model):
        losses = [m for m in head.modules() if getattr(m, 'class_weight', None) is not None]
        for loss in losses:
            _check_weights(loss.class_weight, head, where)
            _check_sigmoid_weights(loss, head, where)
            _check_weighted_void(loss, head, where)
        if losses:
            _check_inherited_weights(cfg, losses)
        notes += [
            f'{where}.loss_decode: {type(loss).__name__} learns from void pixels, as of some '
            'class, where masks hold them'
            for loss in _losses(head)
            if _takes_void(loss, head)
        ]
        if getattr(head, 'sampler', None) is not None:
            notes += [
                f'{where}.sampler: {type(loss).__name__} takes no weights of pixels, by which it '
                'chooses them, and learns from all'
                for loss in _losses(head)
                if _ignores_weights(loss, head)
            ]
        for loss in head.modules():
            _check_focal(loss, head, where)
            notes += _uncounted(loss, where, f'{where}.loss_decode')
    distill = getattr(model, 'distill_loss', None)  # of a student, whose heads do not have it
    return notes + _uncounted(distill, 'model.distill_loss', 'model.distill_loss')


def _uncounted(loss: Any, where: str, setting: str) -> list[str]:
    """A note where a loss has no part in training; UserError where it counts the wrong way."""
    weight = getattr(loss, 'loss_weight', 1.0)
    if isinstance(weight, (int, float)) and not 0 <= weight < math.inf:
        raise UserError(f'{where}: loss_weight must be a number from 0 on, got {weight}')
    if 'loss' in str(getattr(loss, 'loss_name', 'loss')):
        return []
    return [
        f'{setting}: {loss.loss_name} is logged and not trained on, since loss_name does not hold '
        "'loss'"
    ]


def _losses(head: Any) -> list[nn.Module]:
    """What a head is trained by, one loss or several."""
    given = getattr(head, 'loss_decode', None)
    listed = given if isinstance(given, nn.ModuleList) else [given]
    return [loss for loss in listed if isinstance(loss, nn.Module)]


def _takes_void(loss: nn.Module, head: Any) -> bool:
    """Does a loss have a gradient where the label is the ignored one? mmseg's Dice loss has."""
    scores, labels = _example(head)
    labels[..., 4:] = head.ignore_index
    try:
        loss(scores, labels, weight=None, ignore_index=head.ignore_index).sum().backward()
    except Exception:  # it takes something else; the trial step tells
        return False
    return scores.grad is not None and bool(scores.grad[..., 4:].abs().max() > 1e-9)


def _ignores_weights(loss: nn.Module, head: Any) -> bool:
    """Is a loss the same whatever weights its pixels have, as our and mmseg's Lovasz are?"""
    scores, labels = _example(head)
    try:
        none, all_ = (
            float(loss(scores, labels, weight=weight, ignore_index=head.ignore_index).mean())
            for weight in (torch.zeros(labels.shape), torch.ones(labels.shape))
        )
    except Exception:  # the same
        return False
    return none == all_ != 0


def _example(head: Any) -> tuple[Tensor, Tensor]:
    """Scores and labels of one image."""
    labels = torch.arange(64).view(1, 8, 8) % 2
    scores = torch.linspace(-1, 1, 64 * head.out_channels).sin().view(1, -1, 8, 8)
    return scores.requires_grad_(), labels


def _check_focal(loss: Any, head: Any, where: str) -> None:
    """Does this mmseg's focal loss run without CUDA?"""
    if type(loss).__name__ != 'FocalLoss' or get_device() == 'cuda':
        return
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    try:
        loss(torch.zeros(1, head.out_channels, 2, 2), labels, ignore_index=head.ignore_index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f'{where}.loss_decode: FocalLoss of mmseg fails on label maps without CUDA, and torch '
            'finds none here; use another loss, as CrossEntropyLoss'
        ) from error


def _check_weights(weights: Any, head: Any, where: str) -> None:
    sized = np.ndim(weights) == 1
    if not sized or len(weights) not in {head.num_classes, head.out_channels}:
        what = f'{len(weights)} numbers' if sized else f'{weights!r}'
        raise UserError(
            f'{where}.loss_decode: class_weight has {what}, the model {head.num_classes} classes; '
            'give one a class, or class_weight=None'
        )
    numbers = [isinstance(w, (int, float, np.number)) and 0 <= w < math.inf for w in weights]
    if not all(numbers) or not any(weights):
        raise UserError(
            f'{where}.loss_decode: class_weight must be numbers from 0 on, and not all 0; got '
            f'{few(map(str, weights))}'
        )


def _check_sigmoid_weights(loss: Any, head: Any, where: str) -> None:
    """Does mmseg's binary cross-entropy get at most one weight, that of its one channel?

    It would lay several along the width of the image.
    """
    if type(loss).__name__ != 'CrossEntropyLoss' or not loss.use_sigmoid:
        return
    if head.out_channels > 1:
        raise UserError(
            f"{where}.loss_decode: mmseg's CrossEntropyLoss with use_sigmoid=True takes no "
            'class_weight for several channels; set class_weight=None, or use_sigmoid=False'
        )
    if len(loss.class_weight) > 1:
        raise UserError(
            f'{where}.loss_decode: with use_sigmoid=True and one channel class_weight is one '
            f'number, the weight of class 1 beside class 0; got {len(loss.class_weight)}'
        )


def _check_weighted_void(loss: Any, head: Any, where: str) -> None:
    """Does this mmseg's mean of a weighted cross-entropy take void pixels?"""
    if type(loss).__name__ != 'CrossEntropyLoss' or loss.use_sigmoid or loss.use_mask:
        return
    scores = torch.zeros(1, head.out_channels, 2, 2)
    labels = torch.tensor([[[0, 0], [0, head.ignore_index]]])
    try:
        loss(scores, labels, ignore_index=head.ignore_index)
    except IndexError as error:
        raise UserError(
            f'{where}.loss_decode: with class_weight, the mean of mmseg fails on void pixels; set '
            f"{where}.loss_decode.reduction='none', of which the model takes the mean"
        ) from error


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if all(hasattr(module, a) for a in ('num_classes', 'out_channels', 'ignore_index')):
            yield f'model.{name}', module


def _check_inherited_weights(cfg: Config, losses: Sequence[Any]) -> None:
    """Were class weights made for the classes of another data set, in a base config?"""
    classes = _classes(cfg)
    weights = [list(loss.class_weight) for loss in losses]
    for source in list(sources(str(cfg.filename)))[1:]:
        base = Config.fromfile(source.path, import_custom_modules=False)
        theirs = _classes(base)
        inherited = any(weight in weights for weight in values(base.get('model'), 'class_weight'))
        if inherited and theirs and classes and list(theirs) != list(classes):
            raise UserError(
                f'class_weight is inherited from {os.path.relpath(source.path)}, where it is made '
                f'for the classes {few(theirs)}, not for {few(classes)}; set one number a class in '
                'model.decode_head.loss_decode.class_weight, or None'
            )


def _classes(cfg: Config) -> Sequence[str]:
    """The classes of a config's training data; none if it is but a part of a config."""
    for _, dataset in single_datasets((cfg.get('train_dataloader') or {}).get('dataset') or {}, ''):
        known = DATASETS.get(dataset['type']) if 'type' in dataset else None
        meta = {**getattr(known, 'METAINFO', {}), **dataset.get('metainfo', {})}
        return meta.get('classes') or ()
    return ()


def check_ignore_index(
    model: nn.Module, datasets: Sequence[Located], metrics: Sequence[Any]
) -> list[str]:
    """Do heads, losses, padding, metrics and data sets ignore the same label, and no class's?"""
    found = {f'{where}.ignore_index': head.ignore_index for where, head in _heads(model)}
    usual = set(found.values()) <= {255}  # of what is not set the default holds
    for where, head in _heads(model):
        for loss in head.modules():
            for key in ('ignore_index', 'ignore_label'):  # which some take from their own settings
                if loss is not head and hasattr(loss, key):
                    found[f'{where}, {key} of {type(loss).__name__}'] = getattr(loss, key)
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    padded = any(getattr(preprocessor, key, None) is not None for key in ('size', 'size_divisor'))
    if padded and hasattr(preprocessor, 'seg_pad_val'):
        found['model.data_preprocessor.seg_pad_val'] = preprocessor.seg_pad_val
    for metric in metrics:
        if hasattr(metric, 'ignore_index'):
            found[f'ignore_index of {type(metric).__name__}'] = metric.ignore_index
    for where, dataset, built in datasets:
        for name, value in walk(dataset, where):
            if name.endswith(('.seg_pad_val', '.ignore_index', '.pad_val.seg')):
                found[name] = value
        for transform in [] if usual else transforms_of(getattr(built, 'pipeline', [])):
            padding = getattr(transform, 'pad_val', None)
            padding = padding.get('seg') if isinstance(padding, Mapping) else None
            value = getattr(transform, 'seg_pad_val', padding)
            if value is not None:
                found[f'{where}.pipeline, padding of {type(transform).__name__}'] = value
    if len(set(found.values())) > 1:
        values = ', '.join(f'{where} is {value}' for where, value in found.items())
        raise UserError(f'void has no one label: {values}; set all to the value in the masks')
    where, value = next(iter(found.items()), ('', 255))
    names = next((_names(built) for *_, built in datasets if hasattr(built, 'metainfo')), ())
    if not 0 <= value < len(names):
        return []
    return [
        f'{where} is {value}, the label of the class {names[value]}, which is then neither '
        'learned nor scored; if it is to be, set all labels of void to 255'
    ]


def check_heads(model: nn.Module, datasets: Sequence[Located]) -> None:
    """Does every head that learns from label maps, an auxiliary one too, know all classes?"""
    for where, _, dataset in datasets:
        classes = len(_names(dataset))
        for name, head in _heads(model):
            if has_plain_loss(head) and head.num_classes < classes:
                raise UserError(
                    f'{where} has {classes} classes, {name} {head.num_classes}; set '
                    f'{name}.num_classes={classes}'
                )


def check_meaning(datasets: Sequence[Located], num_classes: int | None) -> list[str]:
    """Do labels mean the same in all data sets, and to the model?

    Args:
        datasets: Built; of training and validation.
        num_classes: Of the model.
    """
    notes = []
    (first, _, reference), *others = datasets
    theirs = _names(reference)
    for where, _, dataset in others:
        ours = _names(dataset)
        if len(ours) != len(theirs) or (ours != theirs and sorted(ours) == sorted(theirs)):
            raise UserError(
                f'{where} has the classes {few(ours)} ({len(ours)}), {first} {few(theirs)} '
                f'({len(theirs)}); give both the same metainfo'
            )
        if ours != theirs:
            new, old = next(pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1])
            notes.append(f'{where} calls a class {new} that is {old} in {first}')
        reduces = [bool(getattr(d, 'reduce_zero_label', False)) for d in (reference, dataset)]
        if reduces[0] != reduces[1]:
            notes.append(
                f'reduce_zero_label is {reduces[1]} in {where} and {reduces[0]} in {first}; see '
                'that a label means the same in both'
            )
    if theirs and num_classes and num_classes > len(theirs):
        notes.append(
            f'model.decode_head.num_classes={num_classes}, but {first} has {len(theirs)} classes: '
            'the model may predict some that have no name'
        )
    return notes


def _names(dataset: Any) -> list[str]:
    return list(dataset.metainfo.get('classes') or ())


def check_normalisation(preprocessor: Any, batch: Any) -> list[str]:
    """Are mean and std those of grey levels, 0 to 255, where images come as such?"""
    std = getattr(preprocessor, 'std', None)
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if isinstance(std, Tensor) and isinstance(inputs, list) and std.max() < 1:
        brightest = max(float(image.max()) for image in inputs)
        if brightest > 1:
            return [
                'mean and std of model.data_preprocessor look like those of values from 0 to 1, '
                f'and images come with values up to {brightest:g}; multiply both by 255'
            ]
    return []


def check_padding(preprocessor: Any, batch: Any, crops: Iterable[Any]) -> list[str]:
    """Is what is trained on more than padding?

    Args:
        preprocessor: The model's.
        batch: To train on, as it comes from the data set.
        crops: ``crop_size`` of its transforms.

    Returns:
        A note where images are small by themselves.

    Raises:
        UserError: They are cut to another size than they are padded to.
    """
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    size = getattr(preprocessor, 'size', None)
    if size is None or not isinstance(inputs, list) or not inputs:
        return []
    size, sizes = tuple(size), [tuple(image.shape[-2:]) for image in inputs]

    def padded(given: Sequence[int]) -> float:
        return 1 - min(given[0], size[0]) * min(given[1], size[1]) / (size[0] * size[1])

    cut = {tuple(crop) if np.ndim(crop) else (crop, crop) for crop in crops} & set(sizes)
    for crop in sorted(cut - {size}):
        both = f'crop_size={crop} in train_dataloader and model.data_preprocessor.size={size}'
        if crop == size[::-1]:
            raise UserError(f'{both}: height and width are swapped in one; both are height, width')
        if padded(crop) > 0.5:
            raise UserError(
                f'{both}: {padded(crop):.1%} of what is trained on would be padding; set '
                f'model.data_preprocessor.size={crop}'
            )
    share = sum(map(padded, sizes)) / len(sizes)
    if share > 0.75:  # by chance, as a random resize makes images small, it is less
        return [
            f'images come to training with {sizes[0][1]}x{sizes[0][0]} pixels (width, height), '
            f'and {share:.1%} of what is trained on is padding; set crop_size and '
            'model.data_preprocessor.size (height, width) to about that'
        ]
    return []


def check_normalised_once(model: Any, datasets: Sequence[Located]) -> None:
    """Does no pipeline normalise what the data preprocessor will normalise again?

    Args:
        model: The segmentor, or test-time augmentation around it.
        datasets: Built; wrappers too, which may have a pipeline.
    """
    preprocessor: Any = getattr(getattr(model, 'module', model), 'data_preprocessor', None)
    mean = getattr(preprocessor, 'mean', None)
    if not isinstance(mean, Tensor) or not mean.any():
        return
    for where, _, dataset in datasets:
        for transform in transforms_of(getattr(dataset, 'pipeline', [])):
            # one without a mean brings values to 0 to 1
            if isinstance(transform, Normalize) and transform.mean.any():
                raise UserError(
                    f'{where}.pipeline: Normalize, and then mean and std of '
                    'model.data_preprocessor, normalise the images twice; leave Normalize out of '
                    'the pipelines'
                )


def check_pretrained(model: nn.Module) -> None:
    """Would ``init_cfg=dict(type='Pretrained')`` load every weight of its module?

    Args:
        model: Changed: the weights that fit are loaded.

    Raises:
        UserError: The file of one can't be read, or lacks weights.
    """
    for name, module in model.named_modules():
        for init_cfg in listed_or_single(getattr(module, 'init_cfg', None)):
            if init_cfg.get('type') == 'Pretrained' and init_cfg.get('checkpoint'):
                _check_pretrained(module, f'model.{name}' if name else 'model', init_cfg)


def check_frozen(model: nn.Module, still: Collection[str] = ()) -> list[str]:
    """Would layers of the backbone stay at the random numbers that they start from?

    Args:
        model: The segmentor.
        still: Names of its parameters whose rate is 0.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return []
    modules = [model, *backbone.modules()]
    kernels = {f'backbone.{name}': p for name, p in backbone.named_parameters() if p.dim() > 1}
    frozen = [name for name, p in kernels.items() if not p.requires_grad]
    at_zero = [name for name in kernels if name in still]
    starts = (i for m in modules for i in listed_or_single(getattr(m, 'init_cfg', None)))
    # what has its own way to load weights says so by is_init
    loads = any(i.get('checkpoint') for i in starts) or getattr(backbone, 'is_init', False)
    if not (frozen or at_zero) or loads:
        return []
    mend = 'frozen_stages=-1' if frozen else 'lr_mult above 0'
    return [
        f'{len(frozen + at_zero)} layers of model.backbone are frozen, and start from random '
        'numbers: nothing will change those; give model.backbone.init_cfg or load_from a '
        f'checkpoint, or set {mend}'
    ]


def _check_pretrained(module: nn.Module, where: str, init_cfg: Mapping[str, Any]) -> None:
    path = os.path.expanduser(init_cfg['checkpoint'])
    fetched = '://' in path
    if fetched:  # mmengine keeps what it downloads
        with config_errors(f'{where}.init_cfg: {path} can not be had'):
            checkpoint = CheckpointLoader.load_checkpoint(path, 'cpu', logger='silent')
    else:
        checkpoint = read_checkpoint(path)
    weights = {
        key.removeprefix('module.'): value for key, value in weights_of(checkpoint, path).items()
    }
    if 'init_weights' in vars(type(module)):  # it has a way of its own to load them
        with config_errors(f'{where}.init_cfg: loading {path}'):
            module.init_weights()  # type: ignore[operator]
        if not _holds_any(module, weights.values()):
            raise UserError(f'{where}.init_cfg: no weight of {path} gets into {where}')
        return
    prefix = init_cfg.get('prefix') or ''
    prefix = prefix and prefix.rstrip('.') + '.'
    part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    try:
        missing, _, misshapen = load_fitting(module, part)
    except RuntimeError as error:
        raise UserError(f'{where}.init_cfg: {path} does not fit: {describe(error)}') from error
    problems = listed(dict(missing=missing, misshapen=list(misshapen)))
    needed = [k for k in module.state_dict() if 'num_batches_tracked' not in k]
    # published weights may lack what a toolbox adds to their nets
    if not problems or (fetched and len(missing) + len(misshapen) < len(needed)):
        return
    prefixes = {k.removesuffix(needed[0]) for k in weights if needed and k.endswith(needed[0])}
    for other in sorted(prefixes - {prefix}):
        if all(other + k in weights for k in needed):
            problems += f'; its names begin with {other}: set {where}.init_cfg.prefix={other!r}'
    raise UserError(f'{where}.init_cfg: {path} does not load whole: {problems}')


def _holds_any(module: nn.Module, weights: Iterable[Any]) -> bool:
    """Whether any of some tensors is a module's now."""
    by_shape: dict[Any, list[Tensor]] = {}
    for weight in weights:
        if isinstance(weight, Tensor) and weight.numel() > 1:
            by_shape.setdefault(weight.shape, []).append(weight)
    return any(
        torch.equal(value.cpu(), weight)
        for value in module.state_dict().values()
        for weight in by_shape.get(value.shape, ())
    )
