"""A network that is loaded and ready to run."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ssnet_mm.deploy.images import Maps, Pixels, read_image, to_rgb
from ssnet_mm.deploy.processor import Processor, Scale, empty_maps, rescaled, resize_labels
from ssnet_mm.deploy.tiling import Tiling, Window, label_tiles
from ssnet_mm.errors import UserError
from ssnet_mm.files import digest

# What a file that gives labels has in their place where its logits were not finite; none of up to
# 255 classes has it.
NOT_FINITE = 255


class Session:
    """An exported network with its processor; several threads may call it at once.

    Args:
        run: From a batch to a batch, as the processor says; with its ``scores`` to two of them.
        processor: Read from the file.
    """

    read = staticmethod(read_image)
    convert = staticmethod(to_rgb)

    def __init__(self, run: Callable[[Any], Any], processor: Processor) -> None:
        self.run = run
        self.processor = processor
        self.classes = processor.classes
        self.palette = processor.palette
        self.num_classes = processor.num_classes
        self.first_index = processor.first_index
        self.gives_scores = processor.scores or not processor.end_to_end

    def rescaled(self, scale: Scale) -> Session:
        """The same network for images of another size than the test pipeline's."""
        made = copy.copy(self)
        made.processor = dataclasses.replace(self.processor, resize=rescaled(scale))
        return made

    @property
    def largest_input(self) -> int | None:
        """The longest side that the network's input can have; None: any."""
        scale = (self.processor.resize or {}).get('scale')
        return max(scale) if scale else None

    def __call__(self, images: list[Pixels], scores: bool = False) -> list[Any]:
        """Label maps of images of one size, at that size; with ``scores`` pairs, with these."""
        processor, original = self.processor, images[0].shape[:2]
        batch = np.stack([processor.resized(image) for image in images])
        size = batch.shape[1:3]
        outputs = self._checked_run(batch)
        if processor.end_to_end:
            sized = [[resize_labels(one, original) for one in output] for output in outputs]
            found: list[Maps] = list(zip(*sized[: 1 + scores], strict=True))
        else:
            found = [processor.maps(logits, size, original, scores) for logits in outputs[0]]
        return found if scores else [labels for (labels,) in found]

    def tiled(self, image: Pixels, tiling: Tiling, batch_size: int, scores: bool = False) -> Maps:
        """The label map of an image that goes through the network in tiles, and its scores."""
        processor = self.processor
        if processor.end_to_end:
            raise UserError(
                'tiles are blended by their logits, and an end-to-end file gives labels; export '
                'without --end-to-end'
            )
        pixels = processor.resized(image)

        def run(windows: list[Window]) -> Any:
            batch = np.stack([pixels[window] for window in windows])
            return processor.at_input(self._checked_run(batch)[0], batch.shape[1:3])

        return label_tiles(
            run, tiling, batch_size, pixels.shape[:2], image.shape[:2],
            empty_maps(image.shape[:2], processor.num_classes, scores),
            lambda logits: processor.decided(logits, scores), processor.align_corners,
        )  # fmt: skip

    def _checked_run(self, batch: Pixels) -> tuple[Any, ...]:
        """The network's outputs for images (N, H, W, 3) of its input size."""
        processor, size = self.processor, batch.shape[1:3]
        if processor.fixed_size not in (None, size):
            height, width = processor.fixed_size or size
            raise UserError(
                f'this file takes {height}x{width} pixels alone, not {size[0]}x{size[1]}; leave '
                'scale and tile out, or export at another size'
            )
        outputs = self.run(processor.batch(batch))
        outputs = tuple(outputs) if processor.scores else (outputs,)
        output = outputs[0]
        # some runtimes give nothing, or an old result, for images of a few pixels
        whole = len(output) == len(batch) and 0 not in output.shape
        channels = () if processor.end_to_end else processor.outputs[0].shape[1:2]
        if (
            any(one.shape != output.shape for one in outputs)
            or len(outputs) != len(processor.outputs)
            or (channels and output.shape[1:2] != channels)
        ):
            raise _not_as_told()
        if not whole or (processor.end_to_end and output.shape[1:] != size):
            raise UserError(
                f'the runtime gave a result of shape {output.shape} for {len(batch)} images; such '
                'small images need another format, or torch'
            )
        if processor.end_to_end:
            largest = output.max()
            finite = processor.num_classes > NOT_FINITE or largest < NOT_FINITE
            if finite and largest >= processor.num_classes:
                raise _not_as_told()
        else:
            finite = np.isfinite(output).all()
        if not finite:
            raise not_finite()
        return outputs


def _not_as_told() -> UserError:
    """The error for a file whose network is not the one that its processor tells of."""
    return UserError('this file does not give what it says of itself; export it again')


def not_finite() -> UserError:
    """The error for logits that hold NaN or infinity, which mean no class."""
    return UserError(
        'the network gives NaN or infinity; its weights are damaged, or its precision is too low '
        'for this image: run float32'
    )


def check_weights(path: Path, weights: Path, expected: str) -> None:
    """UserError where the weights beside a file are not those that it was exported with."""
    if not weights.is_file() or digest(weights) != expected:
        raise UserError(
            f'{weights} does not hold the weights that {path} was exported with; copy both files, '
            'or export again'
        )


def check_precision(path: object, processor: Processor, precision: str | None) -> None:
    """Refuse a precision that a file was not written in, where the runtime leaves no choice."""
    if precision not in (None, processor.precision):
        raise UserError(f'{path} holds {processor.precision}; for {precision} export it anew')


def check_process(made_in: int, threads: int) -> None:
    """UserError in a process forked from the one that a torch session was made in.

    torch's threads are not forked with it, and it would wait for them for ever; with one it has
    none.

    Args:
        made_in: Number of the process that the session was made in.
        threads: That torch uses now.
    """
    if os.getpid() != made_in and threads > 1:
        raise UserError(
            'this Segmenter was made before the process was forked, and torch would hang with its '
            f'{threads} threads; make one in each process, or start processes by spawn '
            "(multiprocessing.get_context('spawn')), or call torch.set_num_threads(1) in them"
        )
