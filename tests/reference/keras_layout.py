"""Read the stored Keras reference and rename its weights: for the tests that compare with it."""

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(os.environ.get('SSNET_KERAS_REFERENCE', Path(__file__).parent))

LAYERS = {
    'fc1': 'backbone.fc6.conv',
    'fc2': 'backbone.fc7.conv',
    'score8': 'decode_head.scores.0',
    'score16': 'decode_head.scores.1',
    'score32': 'decode_head.scores.2',
    'upscore16': 'decode_head.upsamples.0',
    'upscore32': 'decode_head.upsamples.1',
}
WEIGHTS = {
    'kernel': 'weight',
    'bias': 'bias',
    'depthwise_kernel': 'depthwise.weight',
    'pointwise_kernel': 'pointwise.weight',
    'gamma': 'weight',
    'beta': 'bias',
    'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


@cache
def load_reference(conv_type: str) -> dict[str, np.ndarray]:
    """Read what ``make_keras_reference.py`` stored for a conv type."""
    with np.load(FOLDER / f'keras_{conv_type}.npz') as stored:
        return dict(stored)


def load_image(reference: dict[str, np.ndarray]) -> Tensor:
    """Give the stored image, (N, H, W, C) in Keras, as (N, C, H, W)."""
    return torch.from_numpy(reference['image']).permute(0, 3, 1, 2).contiguous()


def layer_name(keras_layer: str) -> str:
    """Translate a Keras layer's name: ``conv3_1_bn`` is ``backbone.stages.2.0.bn``."""
    if keras_layer in LAYERS:
        return LAYERS[keras_layer]
    stage, conv, *bn = keras_layer.removeprefix('conv').split('_')
    return f'backbone.stages.{int(stage) - 1}.{int(conv) - 1}.{"bn" if bn else "conv"}'


def to_torch(reference: dict[str, np.ndarray], group: str) -> dict[str, Tensor]:
    """Give the arrays ``GROUP/LAYER/NAME`` under torch's names and in torch's layouts.

    Convolutions turn from (H, W, in, out) into (out, in, H, W), and transposed ones from
    (H, W, out, in) into (in, out, H, W): the same permutation. Depthwise kernels turn from
    (H, W, C, 1) into (C, 1, H, W). None is flipped.
    """
    state = {}
    for key, value in reference.items():
        if not key.startswith(f'{group}/'):
            continue
        layer, name = key.split('/')[1:]
        tensor = torch.from_numpy(value)
        if name == 'depthwise_kernel':
            tensor = tensor.permute(2, 3, 0, 1)
        elif tensor.dim() == 4:
            tensor = tensor.permute(3, 2, 0, 1)
        # A separable layer's bias follows its pointwise half.
        pointwise = f'weights/{layer}/pointwise_kernel' in reference and name == 'bias'
        name = 'pointwise.bias' if pointwise else WEIGHTS[name]
        state[f'{layer_name(layer)}.{name}'] = tensor.contiguous()
    return state


def count_parameters(reference: dict[str, np.ndarray]) -> dict[str, int]:
    """Give the stored numbers of trainable parameters at full width under torch's layer names."""
    return {
        layer_name(key.split('/')[1]): int(count)
        for key, count in reference.items()
        if key.startswith('parameters/')
    }
