"""An image in, a label map out, whatever runs the network.

Exported models need numpy, Pillow and their own runtime here, neither torch nor a toolbox.
"""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Collection, Sequence
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssnet_mm.constants import MAX_THREADS, WEIGHTS_SUFFIXES
from ssnet_mm.deploy import runtimes
from ssnet_mm.deploy.images import ImageLike, Labels, Pixels, bands_of_rows, full_palette
from ssnet_mm.deploy.processor import Scale
from ssnet_mm.deploy.tiling import make_tiling
from ssnet_mm.errors import UserError, first_line
from ssnet_mm.limits import MAX_PIXELS

_ROWS = 256  # painted at once


class Segmenter:
    """Segment images with a trained or an exported model.

    Several threads may call one Segmenter. Pickled, it is the arguments it was made of, and loads
    the model again where it is unpickled.

    Args:
        model: A config (a file, or mmengine's ``Config``), or what ``tools/export.py`` wrote:
            ``.onnx`` (run by ONNX Runtime), ``.xml`` (OpenVINO) or ``.pt2`` (torch); or weights
            that name a config of ours, as ``ssnet_mm convert --config`` writes them; or a session,
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
        max_pixels: How many an image may have, for which files are asked before they are decoded;
            None for any number. An array may have any.
        trust: Take an exported model whatever is in it, a ``.pt2`` with code too.
        batch_size: How many images of one size, neighbours in a list, or tiles run at once.
        tile: Height and width of the overlapping tiles that an image goes through the network in,
            for images that are too large at once. The logits are averaged where tiles overlap.
        overlap: Of neighbouring tiles; the default is an eighth of the tile.
        scale: Takes the place of the test pipeline's Resize: a factor of the image's own size (1
            leaves it), or a (width, height) that it is fitted into with its ratio kept.

    Attributes:
        classes: Names of the classes, by label; empty where they are not known.
        palette: RGB colours of the classes, by label; empty where they are not known.
        colours: What labels are drawn with, the palette or else VOC's: RGB, 256 or more.

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
        tile: int | None = None,
        overlap: int | None = None,
        scale: Scale | None = None,
    ) -> None:
        for name, number in (
            ('threads', threads),
            ('batch_size', batch_size),
            ('max_pixels', max_pixels),
        ):
            if number is not None and not (isinstance(number, Integral) and number >= 1):
                raise UserError(f'{name} must be a whole number, at least 1, got {number!r}')
        if threads is not None and threads > MAX_THREADS:
            raise UserError(f'threads must be at most {MAX_THREADS}, got {threads}')
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self.tiling = make_tiling(tile, overlap)
        _check_scale(scale)
        self.session = _session(model, checkpoint, device, threads, fuse, precision, trust)
        if scale is not None:
            self.session = self.session.rescaled(scale)
        largest = self.session.largest_input if self.tiling else None
        if self.tiling and largest and largest <= self.tiling.size:
            raise UserError(
                f"the test pipeline's Resize makes images at most {largest} long, so that a tile "
                f'of {tile} changes nothing; give scale=1 to keep the size of images'
            )
        self._made = functools.partial(
            Segmenter, _absolute(model), _absolute(checkpoint), device=device, threads=threads,
            fuse=fuse, precision=precision, batch_size=batch_size, max_pixels=max_pixels,
            trust=trust, tile=tile, overlap=overlap, scale=scale,
        )  # fmt: skip
        self.classes: tuple[str, ...] = self.session.classes
        self.palette: tuple[tuple[int, ...], ...] = self.session.palette
        self.colours = full_palette(self.palette, self.session.num_classes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments; UserError where one is a session, which is of one process."""
        if callable(self._made.args[0]):
            raise UserError(
                'a Segmenter of a session can not go to another process; make it of a config and a '
                'checkpoint, or of an exported file'
            )
        return self._made, ()

    def __call__(self, image: ImageLike | Sequence[ImageLike], scores: bool = False) -> Any:
        """Label one image, or each image of a list.

        Args:
            image: A path, the bytes of a file, an open file, a PIL image, an RGB array (H, W, 3)
                of uint8; or a list of them.
            scores: Whether each pixel's probability of its class is wanted too: the softmax, of
                logits divided by the file's temperature.

        Returns:
            Class indices (H, W) at the image's own size, uint8, or uint16 for more than 256
            classes; with ``scores`` a pair, these and the probabilities, float32 of (H, W); a list
            of either for a list.

        Raises:
            UserError: Something is not such an image, or the file gives no scores.
        """
        if scores:
            self.check_scores()
        if not isinstance(image, (list, tuple)):
            return self([image], scores)[0]  # type: ignore[list-item]
        if self.tiling:
            return [self._run([self.pixels(one)], scores)[0] for one in image]
        found: list[Any] = []
        for _, group in groupby([self.pixels(one) for one in image], key=lambda one: one.shape):
            alike = list(group)
            for i in range(0, len(alike), self.batch_size):
                found += self._run(alike[i : i + self.batch_size], scores)
        return found

    def check_scores(self) -> None:
        """UserError where the model gives labels alone."""
        if not getattr(self.session, 'gives_scores', True):
            raise UserError(
                'this file gives labels alone; export it with scores, or without end_to_end'
            )

    def _run(self, images: list[Pixels], scores: bool) -> list[Any]:
        """Label maps of images of one size; UserError where the network can't have such a size."""
        try:
            if self.tiling:
                made = [self.session.tiled(i, self.tiling, self.batch_size, scores) for i in images]
                return made if scores else [labels for (labels,) in made]
            return self.session(images, scores=True) if scores else self.session(images)
        except UserError:
            raise
        except Exception as error:  # runtimes raise all kinds
            height, width = images[0].shape[:2]
            model = self._made.args[0]
            name = f'{os.path.basename(model)}: ' if isinstance(model, (str, os.PathLike)) else ''
            raise UserError(
                f'{name}the network fails on an image of {width}x{height} pixels: '
                f'{first_line(error)}'
            ) from error

    def pixels(self, image: ImageLike) -> Pixels:
        """An image as an RGB array (H, W, 3) of uint8; UserError if it is none."""
        if isinstance(image, (str, os.PathLike)):
            return self._read(Path(image), os.fspath(image))
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._read(io.BytesIO(image), 'the image')
        if hasattr(image, 'read') and not isinstance(image, Image.Image):
            data = image.read()
            if not isinstance(data, bytes):
                raise UserError("an image file must be opened in binary mode: open(path, 'rb')")
            return self._read(io.BytesIO(data), str(getattr(image, 'name', 'the image')))
        if isinstance(image, Image.Image):
            return self._read(image, getattr(image, 'filename', '') or 'the image')
        if not isinstance(image, np.ndarray):
            raise UserError(
                f'expected a path, a PIL image or an array, got {type(image).__name__}; bytes of a '
                'file and open files will do as well'
            )
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

    def _read(self, source: Any, name: str) -> Pixels:
        """Pixels of a path, a stream or a PIL image; UserError where its decoder fails."""
        try:
            if not isinstance(source, Image.Image):
                return self.session.read(source, self.max_pixels)
            if self.max_pixels is not None and source.width * source.height > self.max_pixels:
                raise UserError(
                    f'{source.width}x{source.height} pixels, the limit is {self.max_pixels:,}; set '
                    'max_pixels'
                )
            return self.session.convert(source)
        except Exception as error:  # decoders raise all kinds
            reason = '' if isinstance(error, UserError) else f'{type(error).__name__}: '
            raise UserError(f'{name} can not be read ({reason}{error})') from error

    def overlay(
        self,
        image: ImageLike,
        labels: Labels,
        opacity: float = 0.5,
        transparent: Collection[int] = (),
    ) -> Image.Image:
        """Paint the labels' colours over the image.

        Args:
            image: As for a call.
            labels: Of the image's size, whole numbers below the number of :attr:`colours`.
            opacity: Of the colours, 0 to 1.
            transparent: Labels that are not painted.
        """
        if not 0 <= opacity <= 1:
            raise UserError(f'opacity must be from 0 to 1, got {opacity}')
        pixels = self.pixels(image)
        if labels.shape != pixels.shape[:2]:
            raise UserError(f'labels of shape {labels.shape} for an image of {pixels.shape[:2]}')
        if labels.dtype != np.uint8:  # of which all have a colour
            low, high = labels.min(), labels.max()
            if labels.dtype.kind not in 'iu' or low < 0 or high >= len(self.colours):
                raise UserError(
                    f'labels must be whole numbers from 0 to {len(self.colours) - 1}, got '
                    f'{labels.dtype} from {low} to {high}'
                )
        share = np.full((len(self.colours), 1), opacity)  # of each label
        share[list(transparent)] = 0
        tint, rest = self.colours * share.astype(np.float32), (1 - share).astype(np.float32)
        painted = Image.new('RGB', labels.shape[::-1])
        for rows in bands_of_rows(len(labels), _ROWS):
            grey = pixels[rows, :, :3]  # of one band, which is repeated, of three, or of more
            blend = grey * rest[labels[rows]] + tint[labels[rows]]
            painted.paste(Image.fromarray(blend.round().astype(np.uint8)), (0, rows.start))
        return painted


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
        given = {'checkpoint': checkpoint, 'device': device, 'threads': threads}
        if unused := [name for name, value in given.items() if value is not None]:
            raise UserError(f'a session has its {unused[0]} already; leave it out')
        return model
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if path and runtimes.format_of(path):
        if checkpoint is not None:
            raise UserError(f'{path} holds its weights; leave {checkpoint} out')
        if not fuse:
            raise UserError(f'{path} is fused already; only a config runs unfused')
        return runtimes.load(path, device, threads, precision, trust)
    if path and path.suffix in WEIGHTS_SUFFIXES and checkpoint is None:
        from ssnet_mm.deploy.model import config_of

        model, checkpoint = config_of(path), path
    elif path and path.suffix != '.py':
        raise UserError(
            f'{path} is no model: expected a config (.py), weights that convert wrote for one '
            f'of ours, or a file {runtimes.SUFFIXES}'
        )
    from ssnet_mm.deploy.runtimes import eager  # needs the toolbox

    return eager.load(model, checkpoint, device, threads, fuse, precision)


def _absolute(path: Any) -> Any:
    """A path that means the same in a process with another working directory."""
    return os.path.abspath(path) if isinstance(path, (str, os.PathLike)) else path


def _check_scale(scale: Scale | None) -> None:
    if scale is None:
        return
    sizes = isinstance(scale, (tuple, list)) and len(scale) == 2
    parts: Any = scale if sizes else (scale,)
    kind: Any = Real if sizes else (int, float)
    if not all(isinstance(p, kind) and p > 0 and (not sizes or p % 1 == 0) for p in parts):
        raise UserError(f'scale must be a factor above 0, or a (width, height); got {scale}')
