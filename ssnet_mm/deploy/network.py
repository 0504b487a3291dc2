"""A segmentor as the network that an exported file holds, and the processor that goes with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.session import NOT_FINITE
from ssnet_mm.engine.input import swaps_channels
from ssnet_mm.errors import UserError
from ssnet_mm.models import CaffeFCN8Head

_LOADING = ('LoadImageFromFile', 'LoadImageFromNDArray', 'LoadAnnotations', 'PackSegInputs')

# LoadImageFromFile's defaults: RGB, turned upright as EXIF says
_READING = dict(color_type='color', imdecode_backend='cv2')


def last_head(model: Any) -> Any:
    """The head whose logits a segmentor gives: a cascade has several."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head


def threshold_of(model: Any) -> float | None:
    """Above what a single logit's sigmoid means class 1; None of heads with more channels."""
    head = last_head(model)
    return head.threshold if head.out_channels == 1 else None


def named_classes(
    model: Any,
) -> tuple[int, tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """How many classes a segmentor's labels tell apart, their names and their RGB colours.

    Where a data set names one of the two that one channel tells apart, the background is before it,
    in black. Names and colours are empty where they are not known, or are those of another
    number of classes, which is told.
    """
    num_classes = count_classes(model)
    names, palette = names_of(model, getattr(model, 'dataset_meta', None) or {})
    if names and len(names) != num_classes:
        print(
            f'Note: the data set, of the checkpoint or else of the config, names {len(names)} '
            f'classes, the network has {num_classes}: they are numbered',
            file=sys.stderr,
        )
        names, palette = (), ()
    return num_classes, names, palette


def count_classes(model: Any) -> int:
    """How many classes a segmentor's labels tell apart: one channel tells two."""
    return max(last_head(model).num_classes, 2)


def names_of(
    model: Any, meta: Mapping[str, Any]
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and RGB colours that a data set has for a segmentor's labels, the background's too."""
    names = tuple(meta.get('classes') or ())
    palette = tuple((int(r), int(g), int(b)) for r, g, b in meta.get('palette') or ())
    if last_head(model).out_channels == 1 and len(names) == 1:
        names = ('background', *names)
        palette = ((0, 0, 0), *palette) if len(palette) == 1 else palette
    return names, palette


def kind_of(transform: Any) -> str:
    """The name of a transform's class, of mmcv's and mmseg's without scope and module."""
    kind = transform['type']
    name = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__qualname__}'
    return name.rpartition('.')[2] if name.partition('.')[0] in ('mmcv', 'mmseg') else name


def pipeline_of(model: Any) -> list[Any]:
    """The transforms of a segmentor's test pipeline; none where its ``cfg`` has no pipeline.

    UserError where it is no list of transforms.
    """
    cfg = getattr(model, 'cfg', {})
    if 'test_pipeline' not in cfg:
        return []
    given = cfg['test_pipeline']
    known = isinstance(given, (list, tuple)) and given
    if not known or not all(isinstance(t, Mapping) and 'type' in t for t in given):
        raise UserError(
            f'test_pipeline of {getattr(cfg, "filename", "the config")} must be a list of '
            f"transforms, as [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]; got "
            f'{given!r}'
        )
    return list(given)


def make_processor(
    model: Any, end_to_end: bool = False, precision: str = 'fp32', scores: bool = False
) -> Processor:
    """Read off a segmentor what surrounds its network.

    UserError where a processor can't tell that: sliding windows, padding, other transforms.
    """
    preprocessor, head = model.data_preprocessor, last_head(model)
    if model.test_cfg.get('mode', 'whole') != 'whole':
        raise UserError('sliding windows are not exported; set model.test_cfg.mode=whole')
    if getattr(preprocessor, 'test_cfg', None):
        raise UserError('a data_preprocessor that pads test images (test_cfg) can not be exported')
    pipeline = pipeline_of(model)
    types = [kind_of(transform) for transform in pipeline]
    if {*types} - {*_LOADING, 'Resize'} or types.count('Resize') > 1:
        raise UserError(
            'the test pipeline can not be exported: it may load, Resize once and pack, but has '
            f'{", ".join(types)}'
        )
    load: dict[str, Any] = next((t for t in pipeline if kind_of(t) == 'LoadImageFromFile'), {})
    other = {k: load[k] for k, usual in _READING.items() if load.get(k, usual) != usual}
    if other:
        raise UserError(
            f'LoadImageFromFile of the test pipeline has {other}, and whoever runs an exported '
            f'file reads with {_READING}'
        )
    if end_to_end and head.num_classes > 256:
        raise UserError(
            f'an end-to-end file gives labels of 8 bits, and there are {head.num_classes} classes; '
            'export without --end-to-end'
        )
    normalises = preprocessor._enable_normalize
    threshold = threshold_of(model)
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(
            f'every pixel gets the same label with model.decode_head.threshold={threshold}; set '
            'one between 0 and 1, by default 0.3'
        )
    num_classes, classes, palette = named_classes(model)
    meta = getattr(model, 'dataset_meta', None) or {}
    return Processor(
        num_classes=num_classes,
        mean=tuple(preprocessor.mean.flatten().tolist()) if normalises else (),
        std=tuple(preprocessor.std.flatten().tolist()) if normalises else (),
        channel_order='rgb' if swaps_channels(preprocessor) else 'bgr',
        resize=_resize_of(pipeline[types.index('Resize')]) if 'Resize' in types else None,
        align_corners=model.align_corners,
        crops=isinstance(head, CaffeFCN8Head),
        threshold=threshold,
        end_to_end=end_to_end,
        scores=scores,
        precision=precision,
        classes=classes,
        palette=palette,
        first_index=int(bool(meta.get('reduce_zero_label'))),
    )


def _resize_of(transform: dict[str, Any]) -> dict[str, Any]:
    if strange := {*transform} - {'type', 'scale', 'scale_factor', 'keep_ratio'}:
        raise UserError(f'a Resize with {", ".join(strange)} can not be exported')
    found: dict[str, Any] = {'keep_ratio': bool(transform.get('keep_ratio', False))}
    for name in ('scale', 'scale_factor'):
        value = transform.get(name)
        if value is not None:
            found[name] = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(found) == 1:
        raise UserError('a Resize without scale and scale_factor can not be exported; give it one')
    return found


class Prepare(nn.Module):
    """From uint8 images (N, H, W, 3), RGB, to what the network takes."""

    mean: Tensor
    std: Tensor

    def __init__(self, processor: Processor) -> None:
        super().__init__()
        self.flip = processor.channel_order == 'bgr'
        self.register_buffer('mean', torch.tensor(processor.mean or [0.0]).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(processor.std or [1.0]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        planes = images.permute(0, 3, 1, 2)
        if self.flip:
            planes = planes.flip(1)
        return (planes.float() - self.mean) / self.std


class Finish(nn.Module):
    """From logits to uint8 labels at the size of the images, and their probabilities.

    Bilinear resizing is a matrix product in each direction. As such it is the same in every
    runtime, and at some twenty channels several times as fast as their own resizing.
    """

    def __init__(self, processor: Processor) -> None:
        super().__init__()
        self.processor = processor

    def forward(self, logits: Tensor, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        # false for NaN too
        finite = (logits.mean((1, 2, 3), keepdim=True).abs() < 1e30)[:, 0]  # (N, 1, 1)
        if self.processor.crops:
            logits = logits[:, :, : images.shape[1], : images.shape[2]]
        else:
            down = self._weights(logits.shape[2], images.shape[1])
            across = self._weights(logits.shape[3], images.shape[2])
            logits = down @ (logits @ across.t())
        if self.processor.threshold is None:
            labels = logits.argmax(1).to(torch.uint8)
        else:
            labels = (logits[:, 0].sigmoid() > self.processor.threshold).to(torch.uint8)
        if self.processor.num_classes <= NOT_FINITE:
            labels = torch.where(finite, labels, torch.full_like(labels, NOT_FINITE))
        return (labels, self._probabilities(logits, labels)) if self.processor.scores else labels

    def _probabilities(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the classes taken, (N, H, W)."""
        logits = logits / self.processor.temperature
        if self.processor.threshold is not None:
            return torch.where(labels == 1, logits[:, 0], -logits[:, 0]).sigmoid()
        return 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)

    def _weights(self, given: int, wanted: int) -> Tensor:
        """As the processor's matrix, (wanted, given), with sizes that may be symbols."""
        taps = torch.arange(given, dtype=torch.float32)
        place = torch.arange(wanted, dtype=torch.float32)
        if self.processor.align_corners:
            place = place * (taps[-1] / place[-1].clamp(min=1))
        else:
            place = ((place + 0.5) * (given / wanted) - 0.5).clamp(min=0)
            place = torch.minimum(place, taps[-1])
        return (1 - (place[:, None] - taps).abs()).clamp(min=0)


class MatrixPool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a matrix product in each direction.

    Exporters know no such pooling where the sizes are free, or no multiples of the output's.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        down, across = (self._shares(x.shape[2 + i], self.output_size[i], x) for i in range(2))
        return down @ (x @ across.t())

    @staticmethod
    def _shares(given: int, wanted: int, like: Tensor) -> Tensor:
        """What each input has of each output, (wanted, given), with a size that may be a symbol."""
        place, output = torch.arange(given), torch.arange(wanted)[:, None]
        start, stop = output * given // wanted, ((output + 1) * given + wanted - 1) // wanted
        within = torch.logical_and(place >= start, place < stop)
        return within.to(like) / (stop - start).to(like)


class Network(nn.Module):
    """What a file holds: a segmentor, fused and on the CPU; end to end all around it too.

    In the graph what comes before and after it has the names ``prepare`` and ``finish``.
    ``full_size_in_float`` is for INT8: its first layers, which see all pixels, are not quantised.
    """

    def __init__(self, model: Any, processor: Processor, full_size_in_float: bool = False) -> None:
        super().__init__()
        self.model = model
        self.full_size_in_float = full_size_in_float
        for parent in [*model.modules()]:
            for name, part in parent.named_children():
                if isinstance(part, nn.AdaptiveAvgPool2d):
                    size = part.output_size
                    height, width = size if isinstance(size, (tuple, list)) else (size, size)
                    if height and width and height * width > 1:
                        setattr(parent, name, MatrixPool((height, width)))
        self.processor = processor
        self.prepare = Prepare(processor)
        self.finish = Finish(processor)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        planes = self.prepare(images) if self.processor.end_to_end else images
        if self.processor.precision == 'fp16':
            planes = planes.to(next(self.model.parameters()).dtype)
        logits = self.model(planes, mode='tensor').float()
        return self.finish(logits, images) if self.processor.end_to_end else logits

    def example(self, size: tuple[int, int]) -> Tensor:
        """A batch that may be traced."""
        if self.processor.end_to_end:
            return torch.zeros(2, *size, 3, dtype=torch.uint8)
        return torch.zeros(2, 3, *size)
