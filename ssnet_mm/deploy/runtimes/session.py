"""A network that is loaded and ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssnet_mm.deploy.images import Labels, Pixels, read_image
from ssnet_mm.deploy.processor import Processor, resize_labels
from ssnet_mm.errors import UserError


@dataclass(frozen=True)
class Session:
    """An exported network with its processor; several threads may call it at once.

    Args:
        run: From a batch to a batch, as the processor says.
        processor: Read from the file.
    """

    run: Callable[[Any], Any]
    processor: Processor

    read = staticmethod(read_image)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by label."""
        return self.processor.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """RGB colours, by label."""
        return self.processor.palette

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart."""
        return self.processor.num_classes

    def __call__(self, images: list[Pixels]) -> list[Labels]:
        """Label maps of images of one size, at that size.

        Raises:
            UserError: The runtime's result is not one for these images.
        """
        original = images[0].shape[:2]
        batch = np.stack([self.processor.resized(image) for image in images])
        size = batch.shape[1:3]
        if not self.processor.end_to_end:
            logits = self._checked(self.run(self.processor.normalised(batch)), len(batch), None)
            return [self.processor.labels(one, size, original) for one in logits]
        labels = self._checked(self.run(batch), len(batch), size)
        return [one if size == original else resize_labels(one, original) for one in labels]

    def _checked(self, output: Any, count: int, size: tuple[int, int] | None) -> Any:
        """Refuse what some runtimes give for images of a few pixels: nothing, or an old result."""
        if len(output) != count or 0 in output.shape or size not in (None, output.shape[1:]):
            raise UserError(
                f'the runtime gave a result of shape {output.shape} for {count} images; such small '
                'images need another format, or torch'
            )
        return output


def check_precision(path: object, processor: Processor, precision: str | None) -> None:
    """Refuse a precision that a file was not written in, where the runtime leaves no choice."""
    if precision not in (None, processor.precision):
        raise UserError(f'{path} holds {processor.precision}; for {precision} export it anew')
