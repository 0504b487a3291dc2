"""SSNeT's Keras weights under our names and in torch's layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

BN_EPS = 1e-3  # Keras' default, of which no file of weights tells; ours too

_LAYERS = {
    'fc1': 'backbone.fc6.conv',
    'fc2': 'backbone.fc7.conv',
    'score8': 'decode_head.scores.0',
    'score16': 'decode_head.scores.1',
    'score32': 'decode_head.scores.2',
    'upscore16': 'decode_head.upsamples.0',
    'upscore32': 'decode_head.upsamples.1',
}
_CONV = {
    'kernel': 'weight',
    'bias': 'bias',
    'depthwise_kernel': 'depthwise.weight',
    'pointwise_kernel': 'pointwise.weight',
}
_BN = {
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


def keras_state(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Rename and turn what :func:`~ssnet_mm.weights.read.read_weights` reads of a Keras file.

    Convolutions turn from (H, W, in, out) into (out, in, H, W), and transposed ones from
    (H, W, out, in) into (in, out, H, W): the same permutation. Depthwise kernels turn from
    (H, W, C, 1) into (C, 1, H, W). None is mirrored. Nothing is checked for being complete.

    Args:
        tensors: ``LAYER/NAME``, as ``conv1_1/kernel`` or ``conv1_1_bn/gamma``.

    Returns:
        Our names to tensors, our names to Keras', and Keras' names of what is no part of SSNeT to
        the reason.
    """
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    left: dict[str, str] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition('/')
        stage = re.fullmatch(r'conv([1-5])_([1-3])(_bn)?', layer)
        if stage:
            module = f'backbone.stages.{int(stage[1]) - 1}.{int(stage[2]) - 1}.'
            module += 'bn' if stage[3] else 'conv'
        elif layer in _LAYERS:
            module = _LAYERS[layer]
        else:
            left[key] = 'SSNeT has no such layer'
            continue
        parameter = (_BN if module.endswith('.bn') else _CONV).get(name)
        if parameter is None:
            left[key] = f'{layer} has no such weight in SSNeT'
            continue
        if name == 'bias' and f'{layer}/pointwise_kernel' in tensors:
            parameter = 'pointwise.bias'  # a separable layer's bias follows its pointwise half
        if tensor.dim() == 4:
            tensor = tensor.permute((2, 3, 0, 1) if name == 'depthwise_kernel' else (3, 2, 0, 1))
        ours = f'{module}.{parameter}'
        state[ours] = tensor.contiguous()
        used[ours] = key
    return state, used, left
