"""Samples checked as they are loaded; what is wrong with one names its file, in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmseg.datasets.transforms import LoadAnnotations
from torch import Tensor, nn

from ssnet_mm.checks.facts import unfit
from ssnet_mm.engine.config import describe
from ssnet_mm.errors import UserError, few


class SampleError(UserError):
    """A sample that can't be used; the message names its file.

    torch hands an error over from a worker of a data loader as a new one of the same type, made
    from the whole text of the traceback. All but the message, at its end, is dropped here.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition('SampleError: ')[2].strip())


class CheckedPipeline(Compose):
    """A pipeline that names the files of a sample that can't be used.

    Args:
        transforms: Of the pipeline, built already.
        num_classes: Labels go from 0 to one less.
        ignore_index: The label beside them that marks void pixels.
        bands: How many an image may have; empty: any number.

    Raises:
        SampleError: When called: a file is too large or none, a transform fails, an image and its
            label map have different sizes when loaded, or what comes out has a label out of range
            or other bands.
    """

    def __init__(
        self,
        transforms: Iterable[Callable],
        num_classes: int,
        ignore_index: int = 255,
        bands: Sequence[int] = (),
    ) -> None:
        super().__init__(list(transforms))
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.bands = bands
        for transform in self.transforms:  # TestTimeAug's parts load the label map
            if hasattr(transform, 'subroutines'):
                transform.subroutines = [
                    CheckedPipeline(part.transforms, num_classes, ignore_index, bands)
                    for part in transform.subroutines
                ]

    def __call__(self, data: dict) -> dict | None:
        """Apply the transforms, as ``Compose`` does."""
        image, mask = data.get('img_path'), data.get('seg_map_path')
        where = f'{mask} (of {image})' if mask else str(image)
        mapped = data.get('reduce_zero_label') or data.get('label_map')
        looked_at = False
        for transform in self.transforms:
            _check_file(transform, image, mask)
            try:
                data = transform(data)
            except SampleError:
                raise
            except Exception as error:  # decoders and transforms raise all kinds
                name = type(transform).__name__
                at_fault = image if name.startswith('LoadImage') else where
                settings = '' if name.startswith('Load') else f', or the settings of {name}'
                raise SampleError(
                    f'{at_fault}: {name} fails with {describe(error)}; mend the file{settings}, or '
                    'take it out of the list'
                ) from error
            if data is None:
                return None  # the data set takes another sample
            if not looked_at and 'gt_seg_map' in data and 'ori_shape' in data:
                looked_at = True
                _check_size(data['gt_seg_map'].shape, data['ori_shape'], where)
        self._check_bands(data.get('inputs'), image)
        packed = getattr(data.get('data_samples'), 'gt_sem_seg', None)
        if packed is not None:
            labels = packed.data.numpy()
            found = strange_labels(labels, self.num_classes, self.ignore_index)
            if found:
                when = ' (counted after reduce_zero_label or custom classes)' if mapped else ''
                raise SampleError(f'{where} {label_problem(found, self.num_classes, when)}')
        return data

    def _check_bands(self, inputs: Any, image: str | None) -> None:
        if self.bands and isinstance(inputs, Tensor) and len(inputs) not in self.bands:
            raise SampleError(
                f'{image} comes with {len(inputs)} bands, the network takes {self.bands[0]}; set '
                'color_type of LoadImageFromFile, or in_channels of the backbone'
            )


def check_truth(sample: Mapping[str, Any]) -> None:
    """UserError where a data set's sample comes without a label map to compare predictions with."""
    if 'data_samples' not in sample:
        raise UserError(
            "samples come without inputs; put dict(type='PackSegInputs') at the end of the pipeline"
        )
    if 'gt_sem_seg' not in sample['data_samples']:
        raise UserError('the config loads no label maps, so there is no truth to show')


def _check_file(transform: Callable, image: str | None, mask: str | None) -> None:
    """Look at the header of the file that a transform is about to load.

    Raises:
        SampleError: It declares too many pixels, or is no regular file.
    """
    path = {LoadImageFromFile: image, LoadAnnotations: mask}.get(type(transform))
    problem = unfit(path) if path else ''
    if problem:
        raise SampleError(f'{path} {problem}; mend the file, or take it out of the list')


def _check_size(given: Sequence[int], image: Sequence[int], where: str) -> None:
    if len(given) != 2:
        raise SampleError(
            f'{where} has {given[-1]} values a pixel; a label map has one, the index of the class'
        )
    if tuple(given) != tuple(image[:2]):
        turned = tuple(given) == tuple(image[1::-1])
        hint = (
            "if its EXIF data turn the image, load it with color_type='color_ignore_orientation'"
            if turned
            else 'make them the same size'
        )
        raise SampleError(
            f'{where} is {given[1]}x{given[0]} pixels, the image {image[1]}x{image[0]}; {hint}'
        )


def strange_labels(labels: Any, num_classes: int, ignore_index: int) -> list[int]:
    """The values in a label map, an array or a tensor, that are neither a class nor ignored."""
    strange = (labels >= num_classes) & (labels != ignore_index)
    unsigned = isinstance(labels, np.ndarray) and labels.dtype.kind == 'u'
    if not unsigned:
        strange |= (labels < 0) & (labels != ignore_index)
    return sorted(set(labels[strange].tolist())) if strange.any() else []


def label_problem(found: Sequence[int], num_classes: int, when: str = '') -> str:
    """What is wrong with a label map that holds such values, for a message."""
    labels = f'label {few(map(str, found))}{when}'
    if num_classes == 1:
        return f'holds {labels}, but there is 1 class; give the background a name as well'
    return (
        f'holds {labels}, but there are {num_classes} classes, 0 to {num_classes - 1}; correct the '
        'labels, or the classes in metainfo and num_classes'
    )


def check_samples(dataset: Any, model: Any) -> None:
    """Have a data set, or those that it wraps, load through a ``CheckedPipeline``.

    Args:
        dataset: Changed in place. Its classes count, where it names them.
        model: The segmentor, or test-time augmentation around it.
    """
    segmentor = getattr(model, 'module', model)
    head = getattr(segmentor, 'decode_head', segmentor)
    head = head[-1] if isinstance(head, nn.ModuleList) else head  # of a cascade
    bands = image_bands(segmentor)
    for single in single_parts(dataset):
        metainfo = getattr(single, 'metainfo', None)
        names = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
        num_classes = len(names) if names else getattr(head, 'num_classes', None)
        if num_classes == 1 and getattr(head, 'out_channels', None) == 1:
            num_classes = 2  # one channel tells two classes apart
        if num_classes and type(getattr(single, 'pipeline', None)) is Compose:
            ignore_index = getattr(head, 'ignore_index', 255)
            single.pipeline = CheckedPipeline(
                single.pipeline.transforms, num_classes, ignore_index, bands
            )


def image_bands(segmentor: Any) -> tuple[int, ...]:
    """How many bands an image may have for a network; none where that can't be read off it."""
    backbone = getattr(segmentor, 'backbone', None)
    layers = backbone.modules() if isinstance(backbone, nn.Module) else ()
    first = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 5)
    if first > 4:  # a layer somewhere inside, or special images
        return ()
    mean = getattr(segmentor.data_preprocessor, 'mean', None)
    # subtracting several means repeats a single band
    return (first, 1) if isinstance(mean, Tensor) and mean.numel() == first else (first,)


def single_parts(dataset: Any) -> Iterator[Any]:
    """The data sets inside ConcatDataset, RepeatDataset and the like."""
    inner = getattr(dataset, 'datasets', None) or getattr(dataset, 'dataset', None)
    if inner is None:
        yield dataset
    else:
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from single_parts(part)
