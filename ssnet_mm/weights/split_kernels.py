"""Dense convolutions split into the depthwise separable ones closest to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ssnet_mm.errors import UserError

from .conversion import Conversion
from .layout import BACKBONE, HEAD

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


def factorize(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """FastFCN8's weights from FCN8's: every convolution split, everything else as it is.

    Args:
        state_dict: FCN8's, under our names.

    Returns:
        FastFCN8's state dict, and by layer the error's share of the kernel's norm.

    Raises:
        UserError: The convolutions are separable already.
    """
    state: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for key, tensor in state_dict.items():
        layer, _, parameter = key.rpartition('.')
        if layer.endswith(('.depthwise', '.pointwise')):
            raise UserError(f'there is nothing to factorize: {key} is separable already')
        if not re.fullmatch(_CONVOLUTION, layer):
            state[key] = tensor
        elif parameter == 'bias':
            state[f'{layer}.pointwise.bias'] = tensor
        else:
            depthwise, pointwise, errors[layer] = split_kernel(tensor)
            state[f'{layer}.depthwise.weight'] = depthwise
            state[f'{layer}.pointwise.weight'] = pointwise
    return state, errors


def factorized(conversion: Conversion) -> Conversion:
    """A conversion of dense weights as one of separable weights.

    ``used`` names the dense tensor each half comes from, ``errors`` what each kernel lost.

    Raises:
        UserError: The convolutions are separable already.
    """
    state, errors = factorize(conversion.state_dict)
    dense = {key: re.sub(r'\.(depthwise|pointwise)\.', '.', key) for key in state}
    note = (
        'relative errors of the kernels from '
        f'{min(errors.values()):.3f} to {max(errors.values()):.3f}'
    )
    return replace(
        conversion,
        source=f'{conversion.source}, factorised',
        state_dict=state,
        used={key: conversion.used[dense[key]] for key in state},
        notes=(*conversion.notes, note),
        errors=errors,
    )
