"""What a checkpoint holds, loaded into a model: all of it, or an error that says what is amiss."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ssnet_mm.engine.checkpoint.meta import dataset_meta
from ssnet_mm.engine.checkpoint.reading import read_checkpoint
from ssnet_mm.errors import UserError, few, listed


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint safely and load its weights strictly.

    Returns:
        The whole checkpoint, for its ``meta``.

    Raises:
        UserError: The file can't be read (``read_checkpoint``) or does not fit
            (``load_state_dict``).
    """
    checkpoint = read_checkpoint(path)
    load_state_dict(model, weights_of(checkpoint, path), path)
    return checkpoint


def weights_of(checkpoint: Mapping[str, Any], source: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The state dict in a checkpoint, which may also be one itself; UserError if there is none."""
    weights = checkpoint.get('state_dict', checkpoint)
    if not _holds_tensors(weights):
        held = few(repr(key) for key, value in checkpoint.items() if _holds_tensors(value))
        inner = f' where they are looked for, but under {held}; save that alone' if held else ''
        raise UserError(f'{source} holds no weights{inner}')
    if not all(isinstance(key, str) for key in weights):
        raise UserError(f'{source} holds weights without names')
    return weights


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def load_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], source: str | os.PathLike[str]
) -> None:
    """Load weights into a model; every key must be there, be known and fit.

    Args:
        model: Wrappers (DDP's, test-time augmentation's) are looked through.
        state_dict: Names to tensors; the ``module.`` that DDP puts before names is dropped.
        source: Where the weights come from, for the message.

    Raises:
        UserError: The weights are not this model's. The model must not be used then.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module  # type: ignore[assignment]
    given = {key.removeprefix('module.'): value for key, value in state_dict.items()}
    try:
        missing, unexpected, misshapen = load_fitting(model, given)
    except RuntimeError as error:
        raise UserError(f'{source} does not fit the model: {error}') from error
    check_finite(given, source)
    ours = model.state_dict()
    whole = [  # which torch would take for the numbers themselves
        f'{key} of {value.dtype}'
        for key, value in given.items()
        if isinstance(value, Tensor) and not value.is_floating_point()
        if key in ours and ours[key].is_floating_point()
    ]
    problems = listed(
        {
            'missing': missing,
            'unexpected': unexpected,
            'misshapen': [f'{k} ({a} instead of {b})' for k, (a, b) in misshapen.items()],
            'not floating point': whole,
        }
    )
    if problems:
        message = '; '.join(filter(None, [problems, _class_hint(model, misshapen)]))
        raise UserError(f'{source} does not fit the model: {message}')


def load_fitting(
    module: nn.Module, weights: Mapping[str, Any]
) -> tuple[list[str], list[str], dict[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Load the weights that have a place in a module.

    Returns:
        The names that are missing, those that have no place, and those of another shape, with the
        shape given and the module's.

    Raises:
        RuntimeError: From torch, for what is no weight.
    """
    misshapen = {
        key: (tuple(weights[key].shape), tuple(value.shape))
        for key, value in module.state_dict().items()
        if isinstance(weights.get(key), Tensor) and weights[key].shape != value.shape
    }
    # load for real: some modules rename old keys as they load, so names alone would mislead
    fitting = {key: value for key, value in weights.items() if key not in misshapen}
    result = module.load_state_dict(fitting, strict=False)
    # batch counters came with torch 0.4.1; older weights are whole without them
    missing = [
        key
        for key in result.missing_keys
        if key not in misshapen and not key.endswith('num_batches_tracked')
    ]
    return missing, list(result.unexpected_keys), misshapen


def _class_hint(model: nn.Module, misshapen: Mapping[str, tuple[tuple[int, ...], ...]]) -> str:
    """Say so where the score layers differ in nothing but the number of classes."""
    classes = getattr(getattr(model, 'decode_head', None), 'out_channels', None)
    for key, (theirs, ours) in misshapen.items():
        if key.startswith('decode_head.') and ours[:1] == (classes,) and ours[1:] == theirs[1:]:
            return f'it was trained for {theirs[0]} classes, the config says {classes}'
    return ''


def check_finite(weights: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """UserError, naming the tensors, where weights hold NaN or infinity.

    Attention masks, which may hold -inf, are left out.
    """
    spoilt = [
        name
        for name, value in weights.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not name.endswith('mask')
        and not is_finite(value)
    ]
    if spoilt:
        raise UserError(
            f'{source} is spoilt: NaN or infinity in {few(spoilt)} ({len(spoilt)} of '
            f'{len(weights)} tensors); go back to an earlier checkpoint, with a lower learning rate'
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; of 8 bits torch doesn't tell."""
    return bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all())


def check_classes(
    checkpoint: Mapping[str, Any], source: str | os.PathLike[str], classes: Sequence[str]
) -> None:
    """Are a checkpoint's classes those of a data set, in the same order?

    Args:
        checkpoint: Whole; mmengine writes the classes of the training data into its ``meta``.
        source: Its file, for the message.
        classes: Of the data set; empty where it names none.

    Raises:
        UserError: As of :func:`compare_classes`.
    """
    trained = dataset_meta(checkpoint.get('meta')).get('classes')
    if not trained:
        print(f'Note: {source} does not name its classes; they are taken in the order of the data')
    else:
        compare_classes(trained, source, classes)


def compare_classes(
    trained: Sequence[str], source: str | os.PathLike[str], classes: Sequence[str]
) -> None:
    """Are the classes that a checkpoint was trained on those of a data set, in the same order?

    Args:
        trained: The checkpoint's.
        source: Its file, for the message.
        classes: Of the data set; empty where it names none.

    Raises:
        UserError: They have other names or another order, so that scores would mean nothing.
    """
    if classes and list(trained) != list(classes):
        pairs = zip_longest(trained, classes)
        label, (theirs, ours) = next(p for p in enumerate(pairs) if p[1][0] != p[1][1])
        how = 'in another order' if sorted(trained) == sorted(classes) else 'of other names'
        raise UserError(
            f'{source} was trained on classes {how}: label {label} is {theirs!r} there, {ours!r} '
            "in the data set; give the data set's metainfo the checkpoint's classes, in their order"
        )
