"""Dense convolutions split into the depthwise separable ones closest to them."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from ssnet_mm.errors import UserError

from .conversion import BACKBONE, HEAD, Conversion

_CONVOLUTION = rf'{BACKBONE}.+\.conv|{HEAD}scores\.\d+'


def split_kernel(kernel: Tensor) -> tuple[Tensor, Tensor, float]:
    """The depthwise and pointwise kernels whose product is closest to a dense kernel.

    A separable kernel is ``pointwise[o, c] * depthwise[c, i, j]``: for each input channel c a
    matrix of rank one over outputs and taps. The best one, by least squares, is the leading
    singular pair of the dense kernel's slice (Eckart and Young, 1936). The taps get length 1.

    Args:
        kernel: (out, in, kh, kw).

    Returns:
        Depthwise (in, 1, kh, kw), pointwise (out, in, 1, 1), and the error's share of the kernel's
        norm, in 0..1; 0 where the kernel is separable already.
    """
    out, channels, *taps = kernel.shape
    depthwise = torch.ones(channels, taps[0] * taps[1], dtype=torch.float64)
    pointwise = torch.empty(channels, out, dtype=torch.float64)
    total = kept = 0.0
    for c in range(channels):  # one at a time: fc6 in float64 would take gigabytes
        matrix = kernel[:, c].reshape(out, -1).double()
        if matrix.shape[1] > 1:  # a 1x1 layer keeps the identity as its depthwise half
            # right singular vectors of the slice: eigenvectors of a small Gram matrix
            leading = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
            depthwise[c] = leading if leading.sum() >= 0 else -leading
        pointwise[c] = matrix @ depthwise[c]
        total += matrix.square().sum().item()
        kept += pointwise[c].square().sum().item()
    error = (max(total - kept, 0.0) / total) ** 0.5 if total else 0.0
    return (
        depthwise.reshape(channels, 1, *taps).to(kernel.dtype),
        pointwise.T.reshape(out, channels, 1, 1).to(kernel.dtype),
        error,
    )


def with_split_kernels(conversion: Conversion) -> Conversion:
    """FastFCN8's weights from FCN8's: every convolution split, everything else as it is.

    Returns:
        Of what it ``used`` each half names the dense tensor that it comes from; ``errors`` is what
        each kernel lost.

    Raises:
        UserError: The convolutions are separable already.
    """
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    errors: dict[str, float] = {}
    for key, tensor in conversion.state_dict.items():
        layer, _, parameter = key.rpartition('.')
        if layer.endswith(('.depthwise', '.pointwise')):
            raise UserError(f'there is nothing to factorize: {key} is separable already')
        if not re.fullmatch(_CONVOLUTION, layer):
            halves = {key: tensor}
        elif parameter == 'bias':
            halves = {f'{layer}.pointwise.bias': tensor}
        else:
            depthwise, pointwise, errors[layer] = split_kernel(tensor)
            halves = {
                f'{layer}.depthwise.weight': depthwise,
                f'{layer}.pointwise.weight': pointwise,
            }
        state.update(halves)
        used.update(dict.fromkeys(halves, conversion.used[key]))
    low, high = min(errors.values()), max(errors.values())
    note = f'relative errors of the kernels from {low:.3f} to {high:.3f}'
    return replace(
        conversion,
        source=f'{conversion.source}, factorised',
        state_dict=state,
        used=used,
        notes=(*conversion.notes, note),
        errors=errors,
    )
