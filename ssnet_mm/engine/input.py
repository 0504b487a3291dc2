"""The images that a network takes: how their values are normalised, and in which order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn


@dataclass(frozen=True)
class Input:
    """The image that weights were trained on: (grey value - mean) / std, channels in this order."""

    channels: str  # 'RGB' or 'BGR'
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = ([round(v, 5) for v in values] for values in (self.mean, self.std))
        return f'{self.channels}, mean {mean}, std {std}'

    @property
    def config(self) -> str:
        """The settings of mmseg's ``SegDataPreProcessor`` that give this, from BGR images."""
        swap = self.channels == 'RGB'
        return f'mean={list(self.mean)}, std={list(self.std)}, bgr_to_rgb={swap}'

    def is_close(self, other: Input) -> bool:
        """Whether the images are the same within a hundredth of a grey value."""
        ours, theirs = (*self.mean, *self.std), (*other.mean, *other.std)
        same = len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=0.01)
        return self.channels == other.channels and same


def swaps_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor turns BGR, in which images are loaded, into RGB."""
    names = ('_channel_conversion', 'channel_conversion')  # OneDL's mmseg, OpenMMLab's
    return any(getattr(preprocessor, name, False) for name in names)


def input_of(model: nn.Module) -> Input | None:
    """The image that a segmentor's data preprocessor gives; None where there is none."""
    segmentor = getattr(model, 'module', model)  # of what averages flips and scales
    preprocessor: Any = getattr(segmentor, 'data_preprocessor', None)
    if not hasattr(preprocessor, '_enable_normalize'):
        return None
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # as they are
    if preprocessor._enable_normalize:
        mean, std = (tuple(getattr(preprocessor, k).flatten().tolist()) for k in ('mean', 'std'))
    # images are loaded as BGR
    return Input('RGB' if swaps_channels(preprocessor) else 'BGR', mean, std)


def other_input(
    path: str | os.PathLike[str], expected: Input | None, model: nn.Module
) -> list[str]:
    """A note where a file's weights expect other images than a segmentor gives them."""
    actual = input_of(model)
    if expected is None or actual is None or expected.is_close(actual):
        return []
    if len(actual.mean) != len(expected.mean):  # of other bands, no settings give what is expected
        return []
    return [
        f'{os.fspath(path)}: the weights expect {expected}, the data_preprocessor gives {actual}; '
        f'set model.data_preprocessor to dict({expected.config})'
    ]
