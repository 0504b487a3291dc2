"""From an image to a network's input, and from its output to a label map.

A processor travels inside an exported file, so that whoever runs it needs neither config nor
toolbox: numpy and Pillow are enough. The arithmetic is that of mmseg's test pipeline and of its
``predict``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from math import isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssnet_mm.deploy.images import Maps, Pixels, bands_of_rows, full_palette, label_type
from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS, parse_json

KEY = 'ssnet_mm'  # under which a file holds its processor
Scale = float | tuple[int, int]  # a factor, or a (width, height) to fit into
_ROWS = 128  # of full-size logits held at once
_LARGEST = 1 << 16  # side of an image, or factor, of a resize
_MOST_CLASSES = 1 << 16  # that labels of 16 bits tell apart


class Port(NamedTuple):
    """An input or output of a network: name, type and sizes, of which words are free."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class Processor:
    """From an RGB image to a network's input, and from its output to a label map.

    Args:
        num_classes: How many classes the labels tell apart.
        mean, std: Of each channel in the network's order, in grey levels; empty: not normalised.
        channel_order: 'rgb' or 'bgr', what the network takes.
        resize: ``scale`` (width, height) or ``scale_factor`` (width, height) and ``keep_ratio`` of
            the test pipeline's Resize; ``None`` leaves images at their size.
        align_corners: Of the bilinear resizing of logits.
        crops: Whether the logits' top left are those of the input's pixels, as in Caffe's
            geometry, and are cut out instead of resized.
        threshold: Above it a single logit's sigmoid means class 1; ``None``: the largest logit.
        end_to_end: Whether the file takes uint8 images, NHWC in RGB order, and gives uint8 labels,
            NHW; otherwise normalised float images, NCHW, to logits, NCHW.
        precision: 'fp32', 'fp16', 'bf16' or 'int8'.
        classes: Names, or empty.
        palette: RGB colours, or empty.
        first_index: What index maps written to files hold for the first class: 1 where the data
            set's annotations do (``reduce_zero_label``).
        fixed_size: Height and width of the only input that the file takes; ``None``: any.
        scores: Whether an end-to-end file gives, after the labels, their probabilities too,
            float32, NHW.
        temperature: What logits are divided by before their softmax is taken for probabilities.
        calibration_error: Expected calibration error of these probabilities on validation images,
            before (temperature 1) and after the temperature was fitted; empty: it was not.
    """

    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channel_order: str = 'rgb'
    resize: dict[str, Any] | None = None
    align_corners: bool = False
    crops: bool = False
    threshold: float | None = None
    end_to_end: bool = False
    precision: str = 'fp32'
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    first_index: int = 0
    fixed_size: tuple[int, int] | None = None
    scores: bool = False
    temperature: float = 1.0
    calibration_error: tuple[float, ...] = ()

    def to_json(self) -> str:
        """One line of text."""
        return json.dumps(dataclasses.asdict(self))

    def described(self, file: str) -> str:
        """JSON for programs that run the file themselves: no default and no colour to be guessed.

        Beside a processor's fields it has the file's name, inputs and outputs.
        """
        colours = full_palette(self.palette, self.num_classes)[: self.num_classes]
        content = {
            'file': file,
            'inputs': [port._asdict() for port in self.inputs],
            'outputs': [port._asdict() for port in self.outputs],
            **dataclasses.asdict(self),
            'palette': colours.tolist(),
        }
        lines = (f'  {json.dumps(key)}: {json.dumps(value)}' for key, value in content.items())
        return '{\n' + ',\n'.join(lines) + '\n}\n'

    @classmethod
    def from_json(cls, text: str | None, source: object) -> Processor:
        """Read a processor; UserError where a file has none, or one of another version."""
        if not text:
            raise UserError(f'{source} does not say how to use it; make it with tools/export.py')
        try:
            fields = parse_json(text)
            for name in ('mean', 'std', 'classes'):
                fields[name] = tuple(fields[name])
            fields['palette'] = tuple(tuple(colour) for colour in fields['palette'])
            fields['fixed_size'] = tuple(fields.get('fixed_size') or ()) or None
            fields['calibration_error'] = tuple(fields.get('calibration_error') or ())
            processor = cls(**fields)
            processor._check()
            return processor
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f'{source} was exported by another version ({error}); export it again'
            ) from error

    def _check(self) -> None:
        """ValueError where a field is not what it should be: a file may say anything."""
        resize = self.resize or {}
        channels = (*self.mean, *self.std)
        sound = {
            'num_classes': type(self.num_classes) is int and 2 <= self.num_classes <= _MOST_CLASSES,
            'mean and std': len(self.mean) == len(self.std)
            and len(self.mean) in (0, 1, 3)
            and all(map(_is_number, channels))
            and 0 not in self.std,
            'channel_order': self.channel_order in ('rgb', 'bgr'),
            'resize': self.resize is None
            or (
                {*resize} <= {'keep_ratio', 'scale', 'scale_factor'}
                and type(resize.get('keep_ratio')) is bool
                and len(_pair(resize)) == 2
                and all(_is_number(n) and 0 < n <= _LARGEST for n in _pair(resize))
            ),
            'threshold': self.threshold is None
            or (_is_number(self.threshold) and 0 < self.threshold < 1),
            'precision': type(self.precision) is str and len(self.precision) < 20,
            'classes': len(self.classes) <= _MOST_CLASSES
            and all(type(name) is str for name in self.classes),
            'palette': len(self.palette) <= _MOST_CLASSES
            and all(
                len(colour) == 3 and all(type(n) is int and 0 <= n < 256 for n in colour)
                for colour in self.palette
            ),
            'fixed_size': self.fixed_size is None
            or (
                len(self.fixed_size) == 2 and all(type(n) is int and n > 0 for n in self.fixed_size)
            ),
            'first_index': self.first_index in (0, 1),
            'flags': all(
                type(f) is bool
                for f in (self.align_corners, self.crops, self.end_to_end, self.scores)
            )
            and self.end_to_end >= self.scores,
            'temperature': _is_number(self.temperature) and 1e-3 <= self.temperature <= 1e3,
            'calibration_error': len(self.calibration_error) in (0, 2)
            and all(map(_is_number, self.calibration_error)),
        }
        for name, fits in sound.items():
            if not fits:
                raise ValueError(f'{name} is none')

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the network takes."""
        height, width = self.fixed_size or ('height', 'width')
        if self.end_to_end:
            return (Port('images', 'uint8', ('batch', height, width, 3)),)
        return (Port('images', 'float32', ('batch', 3, height, width)),)

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What the network gives."""
        if not self.end_to_end:
            channels = self.num_classes if self.threshold is None else 1
            return (Port('logits', 'float32', ('batch', channels, 'rows', 'columns')),)
        shape = self.inputs[0].shape[:3]
        scores = (Port('scores', 'float32', shape),) if self.scores else ()
        return (Port('labels', 'uint8', shape), *scores)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image."""
        if self.resize is None:
            return height, width
        if self.resize.get('scale') is not None:
            target = tuple(self.resize['scale'])
        else:
            factors = self.resize['scale_factor']
            target = int(width * factors[0] + 0.5), int(height * factors[1] + 0.5)
        if not self.resize['keep_ratio']:
            return target[1], target[0]
        factor = min(max(target) / max(height, width), min(target) / min(height, width))
        return int(height * factor + 0.5), int(width * factor + 0.5)

    def resized(self, image: Pixels) -> Pixels:
        """An image (H, W, 3) at the network's input size."""
        size = self.input_size(*image.shape[:2])
        if min(size) < 1 or prod(size) > max(MAX_PIXELS, prod(image.shape[:2])):
            raise UserError(
                f'the model resizes an image of {image.shape[1]}x{image.shape[0]} to '
                f'{size[1]}x{size[0]}, which is no size to segment'
            )
        return image if size == image.shape[:2] else resize_image(image, size)

    def normalised(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (N, H, W, 3) as the network takes them, (N, 3, H, W)."""
        if self.channel_order == 'bgr':
            images = images[..., ::-1]
        planes = images.transpose(0, 3, 1, 2).astype(np.float32, order='C')
        if self.mean:
            planes -= np.array(self.mean, np.float32)[:, None, None]
            planes /= np.array(self.std, np.float32)[:, None, None]
        return planes

    def batch(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """Images (N, H, W, 3) of the network's input size as what the file takes."""
        return images if self.end_to_end else self.normalised(images)

    def at_input(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """Logits (N, C, h, w) at the ``size`` of the network's input."""
        if self.crops:
            return logits[..., : size[0], : size[1]]
        down, across = (_bilinear(logits.shape[2 + i], size[i], self.align_corners) for i in (0, 1))
        return down @ (logits @ across.T)

    def decided(self, logits: NDArray[np.float32], scores: bool = False) -> Maps:
        """Classes of logits (C, h, w), and with ``scores`` their probabilities."""
        temperature = self.temperature if scores else None
        return decide(logits, self.num_classes, self.threshold, temperature)

    def maps(
        self,
        logits: NDArray[np.float32],
        size: tuple[int, int],
        original: tuple[int, int],
        scores: bool = False,
    ) -> Maps:
        """Classes of one image's logits (C, h, w), at the ``original`` (height, width).

        Logits go to the ``size`` of the network's input, then to the image's, as in mmseg. Both
        steps are linear in each direction, so that one matrix does them at once.
        """
        if self.crops:
            logits = logits[:, : size[0], : size[1]]
        down, across = (
            _two_steps(logits.shape[1 + i], size[i], original[i], self.align_corners)
            for i in range(2)
        )
        wide = logits.astype(np.float32, copy=False) @ across.T
        maps = empty_maps(original, self.num_classes, scores)
        for rows in bands_of_rows(original[0], _ROWS):
            for whole, part in zip(maps, self.decided(down[rows] @ wide, scores), strict=True):
                whole[rows] = part
        return maps


def decide(
    logits: NDArray[np.float32],
    num_classes: int,
    threshold: float | None = None,
    temperature: float | None = None,
) -> Maps:
    """Classes of logits (C, h, w), and their probabilities where there is a temperature."""
    if threshold is not None:
        labels = (1 / (1 + np.exp(-logits[0])) > threshold).astype(np.uint8)
        if temperature is None:
            return (labels,)
        signed = np.where(labels, logits[0], -logits[0])  # of the class taken, against the other
        return labels, (1 / (1 + np.exp(-signed / temperature))).astype(np.float32)
    labels = logits.argmax(0).astype(label_type(num_classes))
    if temperature is None:
        return (labels,)
    shares = np.exp((logits - logits.max(0)) * np.float32(1 / temperature))
    return labels, 1 / shares.sum(0, dtype=np.float32)


def empty_maps(size: tuple[int, int], num_classes: int, scores: bool) -> Maps:
    """What :func:`decide` gives, (height, width), to be filled."""
    labels = np.empty(size, label_type(num_classes))
    return (labels, np.empty(size, np.float32)) if scores else (labels,)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]


def _pair(resize: dict[str, Any]) -> Any:
    scale = resize.get('scale')
    return resize['scale_factor'] if scale is None else scale


def rescaled(scale: Scale) -> dict[str, Any] | None:
    """A Resize that keeps the ratio, as a processor has it; None for an image's own size."""
    if isinstance(scale, (int, float)):
        return None if scale == 1 else {'scale_factor': [scale, scale], 'keep_ratio': True}
    return {'scale': list(scale), 'keep_ratio': True}


def resize_image(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize (H, W, 3) bilinearly and without smoothing, as OpenCV does, to a grey level."""
    height, width = size
    # an affine map, since Pillow's own resize smooths where it makes smaller
    scale = (image.shape[1] / width, 0, 0, 0, image.shape[0] / height, 0)
    resized = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR
    )
    return np.array(resized)


def resize_labels(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize (H, W) by repeating or leaving out values: each is that of the nearest pixel."""
    for axis in range(2):
        index = (np.arange(size[axis]) + 0.5) * labels.shape[axis] / size[axis]
        labels = labels.take(index.astype(np.int64), axis)
    return labels


@functools.lru_cache(maxsize=64)
def _two_steps(given: int, between: int, wanted: int, align_corners: bool) -> NDArray[np.float32]:
    first = _bilinear(given, between, align_corners)
    return first if wanted == between else _bilinear(between, wanted, align_corners) @ first


def _bilinear(given: int, wanted: int, align_corners: bool) -> NDArray[np.float32]:
    """Bilinear resizing of one direction as a matrix, (wanted, given)."""
    place = np.arange(wanted, dtype=np.float64)
    if align_corners:
        place *= (given - 1) / max(wanted - 1, 1)
    else:
        place = ((place + 0.5) * given / wanted - 0.5).clip(0, given - 1)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(given)), 0).astype(np.float32)
