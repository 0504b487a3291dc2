"""An image in, a label map out, whatever runs the network.

Exported models need numpy, Pillow and their own runtime here, neither torch nor a toolbox.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssnet_mm.deploy import runtimes
from ssnet_mm.deploy.images import ImageLike, Labels, Pixels, full_palette, to_rgb
from ssnet_mm.errors import UserError
from ssnet_mm.limits import MAX_PIXELS

_ROWS = 128  # of an overlay mixed at once


class Segmenter:
    """Segment images with a trained or an exported model.

    Several threads may call one Segmenter.

    Args:
        model: A config (a file, or mmengine's ``Config``), or what ``tools/export.py`` wrote:
            ``.onnx`` (run by ONNX Runtime), ``.xml`` (OpenVINO) or ``.pt2`` (torch); or a session,
            such as a ``TorchSession`` around a model that is loaded already.
        checkpoint: For a config: the weights, which must fit the model.
        device: ``'cpu'``, ``'cuda:0'`` or what else the runtime knows. The default is CUDA where
            torch finds some for a config, and the CPU for an exported model.
        threads: How many the runtime may use; the default is its own choice. torch has one setting
            for the whole process.
        fuse: Whether to fuse the layers of a config's model (:func:`ssnet_mm.deploy.fuse`), and on
            a CPU to lay out its weights for the kernels.
        precision: To compute in: ``'bf16'`` for a config or an ``.xml`` file of float32. The
            default is a file's own precision, and ``'fp32'`` for a config.
        batch_size: How many images of one size, neighbours in a list, run at once.
        max_pixels: How many an image may have, for which files are asked before they are decoded;
            None for any number. An array may have any.
        trust: Take an exported model whatever is in it, a ``.pt2`` with code too.

    Attributes:
        classes: Names of the classes, by label; empty where they are not known.
        palette: RGB colours of the classes, by label; empty where they are not known.
        colours: What labels are drawn with, the palette or else VOC's: (256, 3), RGB.

    Raises:
        UserError: A file is missing or unreadable, a runtime or device is not here, or the weights
            do not fit.

    Example:
        >>> import numpy as np
        >>> from ssnet_mm.deploy import Segmenter
        >>> segment = Segmenter('fastfcn8.onnx')  # doctest: +SKIP
        >>> labels = segment('street.jpg')  # doctest: +SKIP
        >>> labels.shape, labels.dtype  # the image's height and width  # doctest: +SKIP
        ((360, 480), dtype('uint8'))
        >>> segment.overlay('street.jpg', labels).save('overlay.png')  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        threads: int | None = None,
        fuse: bool = True,
        precision: str | None = None,
        batch_size: int = 1,
        max_pixels: int | None = MAX_PIXELS,
        trust: bool = False,
    ) -> None:
        for name, number in (
            ('threads', threads),
            ('batch_size', batch_size),
            ('max_pixels', max_pixels),
        ):
            if number is not None and number < 1:
                raise UserError(f'{name} must be at least 1, got {number}')
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.session = _session(model, checkpoint, device, threads, fuse, precision, trust)
        self.classes: tuple[str, ...] = self.session.classes
        self.palette: tuple[tuple[int, ...], ...] = self.session.palette
        self.colours = full_palette(self.palette, self.session.num_classes)

    def __call__(self, image: ImageLike | Sequence[ImageLike]) -> Any:
        """Label one image, or each image of a list.

        Args:
            image: A path, a PIL image, an RGB array (H, W, 3) of uint8; or a list of them.

        Returns:
            Class indices (H, W), uint8, at the image's own size; a list of them for a list.

        Raises:
            UserError: Something is not such an image.
        """
        if not isinstance(image, (list, tuple)):
            return self.session([self.pixels(image)])[0]  # type: ignore[arg-type]
        found: list[Labels] = []
        for _, group in groupby([self.pixels(one) for one in image], key=lambda one: one.shape):
            alike = list(group)
            for i in range(0, len(alike), self.batch_size):
                found += self.session(alike[i : i + self.batch_size])
        return found

    def pixels(self, image: ImageLike) -> Pixels:
        """An image as an RGB array (H, W, 3) of uint8; UserError if it is none."""
        if isinstance(image, (str, os.PathLike)):
            try:
                return self.session.read(Path(image), self.max_pixels)
            except Exception as error:  # decoders raise all kinds
                raise UserError(
                    f'{os.fspath(image)} can not be read ({type(error).__name__}: {error})'
                ) from error
        if isinstance(image, Image.Image):
            if self.max_pixels is not None and image.width * image.height > self.max_pixels:
                raise UserError(
                    f'an image of {image.width}x{image.height} pixels, the limit is '
                    f'{self.max_pixels:,}; set max_pixels'
                )
            return to_rgb(image)
        if not isinstance(image, np.ndarray):
            raise UserError(f'expected a path, a PIL image or an array, got {type(image).__name__}')
        bands = getattr(self.session, 'bands', ()) or (3,)
        if (
            image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] not in bands
            or not image.size
        ):
            raise UserError(
                f'an image array must be uint8 of shape (height, width, {bands[0]}), RGB; got '
                f'{image.dtype} of shape {image.shape}'
            )
        return image

    def overlay(self, image: ImageLike, labels: Labels, opacity: float = 0.5) -> Image.Image:
        """Paint the labels' colours over the image.

        Args:
            image: As for a call.
            labels: Of the image's size.
            opacity: Of the colours, 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise UserError(f'opacity must be from 0 to 1, got {opacity}')
        pixels = self.pixels(image)
        if labels.shape != pixels.shape[:2]:
            raise UserError(f'labels of shape {labels.shape} for an image of {pixels.shape[:2]}')
        pixels = pixels[..., :3]  # of one band, which is repeated, of three, or of more
        mixed = np.empty((*labels.shape, 3), np.uint8)
        for top in range(0, len(labels), _ROWS):
            rows = slice(top, top + _ROWS)
            colours = self.colours[labels[rows]].astype(np.float32)
            mixed[rows] = (
                pixels[rows] * np.float32(1 - opacity) + colours * np.float32(opacity)
            ).round()
        return Image.fromarray(mixed)


def _session(
    model: Any,
    checkpoint: Any,
    device: str | None,
    threads: int | None,
    fuse: bool,
    precision: str | None,
    trust: bool,
) -> Any:
    """What runs the model that a Segmenter is given."""
    if callable(model):  # a session already
        return model
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if path and runtimes.format_of(path):
        if checkpoint is not None:
            raise UserError(f'{path} holds its weights; leave {checkpoint} out')
        return runtimes.load(path, device, threads, precision, trust)
    if path and path.suffix != '.py':
        raise UserError(
            f'{path} is no model: expected a config (.py) or a file {runtimes.SUFFIXES}'
        )
    from ssnet_mm.deploy.runtimes import eager  # needs the toolbox

    return eager.load(model, checkpoint, device, threads, fuse, precision)
