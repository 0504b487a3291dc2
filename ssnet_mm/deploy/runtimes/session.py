"""A network that is loaded and ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ssnet_mm.deploy.images import Labels, Pixels, read_image
from ssnet_mm.deploy.processor import Processor, resize_labels
from ssnet_mm.errors import UserError


class Session:
    """An exported network with its processor; several threads may call it at once.

    Args:
        run: From a batch to a batch, as the processor says.
        processor: Read from the file.
    """

    read = staticmethod(read_image)

    def __init__(self, run: Callable[[Any], Any], processor: Processor) -> None:
        self.run = run
        self.processor = processor
        self.classes = processor.classes
        self.palette = processor.palette
        self.num_classes = processor.num_classes
        self.first_index = processor.first_index

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        """Label maps of images of one size, at that size."""
        processor, original = self.processor, images[0].shape[:2]
        batch = np.stack([processor.resized(image) for image in images])
        size = batch.shape[1:3]
        try:
            output = self.run(processor.batch(batch))
        except UserError:
            raise
        except Exception as error:  # runtimes' errors share no base
            raise UserError(
                f'the model fails on an image of {size[1]}x{size[0]}: '
                f'{" ".join(str(error).split()) or type(error).__name__}'
            ) from error
        # some runtimes give nothing, or an old result, for images of a few pixels
        whole = len(output) == len(batch) and 0 not in output.shape
        if not whole or (processor.end_to_end and output.shape[1:] != size):
            raise UserError(
                f'the runtime gave a result of shape {output.shape} for {len(batch)} images; such '
                'small images need another format, or torch'
            )
        if processor.end_to_end:
            return [resize_labels(labels, original) for labels in output]
        return [processor.labels(logits, size, original) for logits in output]


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
