"""How far a segmentor's probabilities can be trusted, and the temperature that mends them.

Networks tend to be surer than they are right, or less so. Dividing logits by one number, the
temperature, mends most of that and changes no label: `On Calibration of Modern Neural Networks
<https://arxiv.org/abs/1706.04599>`_.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ssnet_mm.deploy.model import scored_data
from ssnet_mm.deploy.network import threshold_of
from ssnet_mm.errors import UserError

_PIXELS = 500_000  # taken of all images together
_BINS = 15  # of equal width, for the calibration error
_COLDEST, _HOTTEST = 0.05, 20.0  # temperatures that are looked at


class Calibrated(NamedTuple):
    """A temperature, and the expected calibration error without and with it."""

    temperature: float
    before: float
    after: float
    images: int
    pixels: int

    def __str__(self) -> str:
        end = ''
        if self.temperature < 1.01 * _COLDEST:
            end = ' (the least that is looked at: hardly a pixel is labelled wrong)'
        elif self.temperature > 0.99 * _HOTTEST:
            end = ' (the most that is looked at: the scores hardly tell the classes apart)'
        return (
            f'temperature {self.temperature:.3f}{end}; expected calibration error '
            f'{100 * self.before:.2f}% before, {100 * self.after:.2f}% after ({self.images} images,'
            f' {self.pixels} pixels: fitted on every second image, measured on the others)'
        )


def calibrate(model: Any, loader: str = 'val') -> Calibrated:
    """Fit the temperature of a segmentor of ``load_model`` on its config's data.

    Pixels are drawn of every image, the same number of each; void is left out. The temperature is
    fitted (by likelihood) on every second image, and both errors are measured on the others.

    Args:
        model: In evaluation mode.
        loader: 'val' or 'test': which ``*_dataloader``.

    Raises:
        UserError: There are fewer than two images with labels, one or its label map is not sound,
            or the network gives NaN.
    """
    data_loader = scored_data(model, loader)
    share = max(_PIXELS // max(len(data_loader.dataset), 1), 1)
    random = np.random.default_rng(0)
    logits: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    for data in data_loader:
        with torch.no_grad():
            results = model.test_step(data)
        for result in results:
            truth = result.gt_sem_seg.data[0].cpu().numpy()
            found = _two_or_more(result.seg_logits.data.float().cpu())
            places = np.flatnonzero(truth < len(found))  # void has the largest number
            places = random.permutation(places)[:share]
            if len(places):
                logits.append(found.reshape(len(found), -1)[:, places].T)
                labels.append(truth.ravel()[places].astype(np.int64))
    if len(logits) < 2:
        raise UserError(
            f'{loader}_dataloader has {len(logits)} images with labels; a temperature is fitted on '
            'some and tried on others'
        )
    if not all(np.isfinite(one).all() for one in logits):
        raise UserError('the network gives NaN or infinity, which have no temperature')
    fitted = np.concatenate(logits[::2]), np.concatenate(labels[::2])
    tried = np.concatenate(logits[1::2]), np.concatenate(labels[1::2])
    temperature, threshold = fit_temperature(*fitted), threshold_of(model)
    return Calibrated(
        temperature,
        calibration_error(*tried, threshold=threshold),
        calibration_error(*tried, temperature, threshold),
        len(logits),
        sum(map(len, labels)),
    )


def _two_or_more(logits: torch.Tensor) -> NDArray[np.float32]:
    """Logits (C, H, W); of a single one, of which mmseg keeps the sigmoid, those of no and yes."""
    if len(logits) == 1:
        yes = logits.logit(eps=1e-6)
        logits = torch.cat([torch.zeros_like(yes), yes])
    return logits.numpy()


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature under which labels (N) are likeliest, given logits (N, C).

    The likelihood is concave in 1 / temperature, so that its slope changes its sign once.
    """
    logits = logits - logits.max(1, keepdims=True)
    true = np.take_along_axis(logits, labels[:, None], 1).mean(dtype=np.float64)
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    for _ in range(40):
        middle = (low * high) ** 0.5
        shares = np.exp(logits * np.float32(middle))
        expected = ((shares * logits).sum(1) / shares.sum(1)).mean(dtype=np.float64)
        low, high = (middle, high) if expected < true else (low, middle)
    return float(1 / (low * high) ** 0.5)


def calibration_error(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    temperature: float = 1.0,
    threshold: float | None = None,
) -> float:
    """Expected calibration error: how far probabilities are from shares of right pixels.

    Pixels (N, C) are put into bins by the probability of the class taken; of each the difference of
    its mean and of the share that is right counts as much as the bin has pixels. With a threshold
    the second of two classes is taken where it is likelier than that, without the temperature.
    """
    taken = logits.argmax(1)
    if threshold is not None:
        border = np.log(threshold) - np.log1p(-threshold)
        taken = (logits[:, 1] - logits[:, 0] > border).astype(np.int64)
    shares = np.exp((logits - logits.max(1, keepdims=True)) / np.float32(temperature))
    sure = np.take_along_axis(shares, taken[:, None], 1)[:, 0] / shares.sum(1)
    right = taken == labels
    bins = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=sure - right, minlength=_BINS)
    return float(np.abs(gaps).sum() / len(labels))
