"""Do image and label map stay together in a pipeline? Its transforms are tried on drawn ones."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ssnet_mm.engine.data import Located
from ssnet_mm.errors import UserError

_SIZES = ((121, 163), (1101, 1303))  # one that usual paddings enlarge, one that usual crops cut
_BLOCKS = (4, 5)  # of one label each, in a drawn label map: large, so that they outlast a resize
_DRAWS = 4  # of each size, for what happens by chance
_SCALED = 0.8  # share of labels that are back in their place when a resize is undone


class Effect(NamedTuple):
    """What a transform does to an image and its label map."""

    moves: bool = False  # labels are elsewhere, or more or fewer
    distorts: bool = False  # ... by more than a scale and what metadata say was flipped
    random: bool = False  # what comes out depends on chance


def check_pipelines(datasets: Sequence[Located]) -> list[str]:
    """Do pipelines load label maps where these still, or already, fit the image?

    Args:
        datasets: Built; of training, and of validation or testing.

    Returns:
        Notes on scores that depend on chance.

    Raises:
        UserError: Training moves an image and not its label map; or what is predicted and what it
            is compared with lie apart.
    """
    notes = []
    for where, _, dataset in datasets:
        transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
        for variant in _variants(list(transforms)):
            notes += _check_variant(where, variant)
    return list(dict.fromkeys(notes))


def _variants(transforms: list[Any]) -> Iterator[list[Any]]:
    """A pipeline for each of TestTimeAug's augmentations, or the pipeline itself without it."""
    place = next((i for i, t in enumerate(transforms) if hasattr(t, 'subroutines')), None)
    if place is None:
        yield transforms
        return
    for part in transforms[place].subroutines:
        yield from _variants([*transforms[:place], *part.transforms, *transforms[place + 1 :]])


def _check_variant(where: str, transforms: Sequence[Any]) -> list[str]:
    """As ``check_pipelines``, of transforms that are applied one after the other."""
    places = [i for i, t in enumerate(transforms) if _loads(t) and 'Anno' in type(t).__name__]
    if not places:
        return []
    notes = []
    for i, transform in enumerate(transforms):
        name = type(transform).__name__
        if _loads(transform) or name.startswith('Pack'):
            continue
        training, before = where.startswith('train'), i < places[0]
        if training and not before:
            continue
        effect = effect_of(transform)
        if training and effect.moves:
            raise UserError(
                f'{where}.pipeline: {name} moves the image, and the label map is loaded after '
                f'it as it is; put LoadAnnotations before {name}'
            )
        if not training and effect.moves and not before:
            raise UserError(
                f'{where}.pipeline: {name} changes the label map, but predictions are compared '
                f'at the size and place of the image as it is stored; put LoadAnnotations '
                f'after {name}'
            )
        if not training and effect.distorts:
            raise UserError(
                f'{where}.pipeline: {name} cuts, pads or turns the image, and its prediction '
                'is stretched over the whole one; leave it out'
            )
        if not training and effect.random:
            notes.append(f'{where}.pipeline: {name} draws at random, so that scores do, too')
    return notes


def _loads(transform: Any) -> bool:
    return type(transform).__name__.startswith('Load')


def effect_of(transform: Any) -> Effect:
    """Try a transform on drawn images; one that fails on them is taken to have no effect."""
    found = Effect()
    for height, width in _SIZES:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        labels = _enlarged(rng.integers(0, 5, _BLOCKS, dtype=np.uint8), (height, width))
        outputs = []
        for seed in range(_DRAWS):
            random.seed(seed)
            np.random.seed(seed)
            data = dict(
                img=image.copy(), gt_seg_map=labels.copy(), seg_fields=['gt_seg_map'],
                img_path='', seg_map_path='', img_shape=labels.shape, ori_shape=labels.shape,
            )  # fmt: skip
            try:
                data = transform(data)
                outputs.append(data['img'])
                made = data['gt_seg_map']
            except Exception:  # it needs more than that
                return Effect()
            moves = made.shape != labels.shape or _agreement(labels, made) < 1
            back = _enlarged(_unflipped(made, data), labels.shape)
            found = Effect(
                found.moves or moves,
                found.distorts or _agreement(labels, back) < _SCALED,
                found.random or not np.array_equal(outputs[0], outputs[-1]),
            )
    return found


def _enlarged(labels: NDArray[Any], size: tuple[int, ...]) -> NDArray[Any]:
    labels = np.ascontiguousarray(labels)
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)


def _unflipped(labels: NDArray[Any], data: dict[str, Any]) -> NDArray[Any]:
    """A label map turned back as its metadata say, as mmseg turns predictions."""
    direction = (data.get('flip') and data.get('flip_direction')) or ''
    return {'horizontal': labels[:, ::-1], 'vertical': labels[::-1]}.get(direction, labels)


def _agreement(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Share of pixels of which each has become what most of its label have: 1 if just renamed."""
    pairs, counts = np.unique(before.astype(int) * 256 + after, return_counts=True)
    return sum(counts[pairs // 256 == label].max() for label in np.unique(before)) / before.size
