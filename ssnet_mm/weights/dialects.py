"""The dialects VGG16 and FCN weights come in, each turned into ours.

Only names and layouts are known here, no model. Sources of the names: torchvision's
``models/vgg.py``, mmpretrain's ``models/backbones/vgg.py``, the layer names of SSNeT's Keras code,
and the prototxts of https://github.com/shelhamer/fcn.berkeleyvision.org, whose layer names
https://github.com/wkentaro/pytorch-fcn keeps in its state dicts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import accumulate

from torch import Tensor

from ssnet_mm.errors import UserError

from .conversion import CAFFE_BGR, IMAGENET_RGB, Conversion, convert
from .layout import BACKBONE, DEPTHS, HEAD

Tensors = Mapping[str, Tensor]

KERAS_EPS = 1e-3  # inside batch norm's square root
TORCH_EPS = 1e-5
CLASSIFIER = "the classifier of ILSVRC's 1000 classes, in whose place are score layers"


def _parts(key: str) -> tuple[str, str, str]:
    """Split one of our names: ``('conv3_1', 'conv', 'weight')``, ``('fc6', 'conv', 'bias')``,
    ``('scores.0', '', 'weight')``.
    """
    if found := re.fullmatch(rf'{BACKBONE}stages\.(\d)\.(\d)\.(conv|bn)\.(.+)', key):
        return f'conv{int(found[1]) + 1}_{int(found[2]) + 1}', found[3], found[4]
    if found := re.fullmatch(rf'{BACKBONE}(fc\d)\.(conv)\.(.+)', key):
        return found[1], found[2], found[3]
    found = re.fullmatch(rf'{HEAD}((?:scores|upsamples)\.\d|final)\.(.+)', key)
    assert found, key
    return found[1], '', found[2]


def _as_convolution(key: str, tensor: Tensor) -> Tensor:
    """Fully connected fc6 and fc7 as the convolutions they are, over C x H x W inputs."""
    kernel = {f'{BACKBONE}fc6.conv.weight': 7, f'{BACKBONE}fc7.conv.weight': 1}.get(key)
    if kernel is None or tensor.dim() != 2 or tensor.shape[1] % kernel**2:
        return tensor
    out, inputs = tensor.shape
    return tensor.reshape(out, inputs // kernel**2, kernel, kernel)


def _from_vgg(
    source: str,
    tensors: Tensors,
    convolution: Callable[[int, int, str, str], str],
    prefix: str = '',
) -> Conversion:
    """Convert a net of ``features`` and ``classifier``.

    Args:
        source: In words.
        tensors: The state dict.
        convolution: Names what is in ``features`` by stage and place in it, 'conv' or 'bn', and
            parameter.
        prefix: What all names begin with.
    """

    def name(key: str) -> str:
        layer, kind, parameter = _parts(key)
        if layer in ('fc6', 'fc7'):
            return f'{prefix}classifier.{0 if layer == "fc6" else 3}.{parameter}'
        stage, i = (int(number) - 1 for number in layer.removeprefix('conv').split('_'))
        return prefix + convolution(stage, i, kind, parameter)

    def reason(key: str) -> str | None:
        classifier = (f'{prefix}classifier.6.weight', f'{prefix}classifier.6.bias')
        return CLASSIFIER if key in classifier else None

    return convert(
        source, tensors, name, _as_convolution, reason, bn_eps=TORCH_EPS, input=IMAGENET_RGB
    )


def from_torchvision(tensors: Tensors) -> Conversion:
    """Convert torchvision's ``vgg16`` or ``vgg16_bn``, with or without its classifier.

    Its two hidden fully connected layers become fc6 (512 x 7 x 7 inputs, in this order) and fc7.

    Args:
        tensors: ``features.N.*`` and ``classifier.N.*``.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected.
    """
    bn = any(key.endswith('.running_mean') for key in tensors)
    step = 3 if bn else 2  # modules a convolution: itself, its batch norm, its ReLU
    starts = [0, *accumulate(step * depth + 1 for depth in DEPTHS)]  # a pooling ends a stage

    def convolution(stage: int, i: int, kind: str, parameter: str) -> str:
        if kind == 'bn' and not bn:
            return f'(none).{parameter}'  # in its place is the ReLU
        return f'features.{starts[stage] + step * i + (kind == "bn")}.{parameter}'

    return _from_vgg(f"torchvision's vgg16{'_bn' * bn}", tensors, convolution)


def from_mmpretrain(tensors: Tensors) -> Conversion:
    """Convert mmpretrain's ``VGG`` of depth 16, with or without norm and classifier.

    Args:
        tensors: ``features.N.conv.*``, ``features.N.bn.*`` and ``classifier.N.*``; also with the
            ``backbone.`` of a whole ``ImageClassifier`` before the names.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected.
    """
    prefix = BACKBONE if any(key.startswith(f'{BACKBONE}features.') for key in tensors) else ''
    starts = [0, *accumulate(depth + 1 for depth in DEPTHS)]  # a pooling ends a stage

    def convolution(stage: int, i: int, kind: str, parameter: str) -> str:
        return f'features.{starts[stage] + i}.{kind}.{parameter}'

    bn = any(key.endswith('.running_mean') for key in tensors)
    return _from_vgg(f"mmpretrain's VGG16{' with norm' * bn}", tensors, convolution, prefix)


_KERAS_LAYERS = {
    'fc6': 'fc1',
    'fc7': 'fc2',
    'scores.0': 'score8',
    'scores.1': 'score16',
    'scores.2': 'score32',
    'upsamples.0': 'upscore16',
    'upsamples.1': 'upscore32',
}
_KERAS_BN = dict(zip(('weight', 'bias', 'running_mean', 'running_var'),
                     ('gamma', 'beta', 'moving_mean', 'moving_variance')))  # fmt: skip
_KERAS_CONV = {
    'weight': 'kernel',
    'bias': 'bias',
    'depthwise.weight': 'depthwise_kernel',
    'pointwise.weight': 'pointwise_kernel',
    'pointwise.bias': 'bias',
}


def from_keras(tensors: Tensors) -> Conversion:
    """Convert SSNeT's Keras FCN8 or FastFCN8.

    Kernels turn from Keras' layouts into torch's: convolutions from (H, W, in, out), transposed
    ones from (H, W, out, in), depthwise ones from (H, W, C, 1). None is mirrored.

    Args:
        tensors: ``LAYER/NAME``, as ``conv1_1/kernel`` or ``conv1_1_bn/gamma``.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected.
    """

    def name(key: str) -> str:
        layer, kind, parameter = _parts(key)
        if kind == 'bn':
            return f'{layer}_bn/{_KERAS_BN.get(parameter, parameter)}'
        return f'{_KERAS_LAYERS.get(layer, layer)}/{_KERAS_CONV[parameter]}'

    def to_ours(key: str, tensor: Tensor) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        return tensor.permute((2, 3, 0, 1) if '.depthwise.' in key else (3, 2, 0, 1))

    levels = 3 if any(key.startswith('score') for key in tensors) else 0
    separable = any(key.endswith('/depthwise_kernel') for key in tensors)
    source = f"SSNeT's Keras {'Fast' * separable}FCN8"
    return convert(source, tensors, name, to_ours, levels=levels, bn_eps=KERAS_EPS)


# By levels: our names to Caffe's. The last entry takes the scores to the image.
_CAFFE_HEADS: dict[int, dict[str, str]] = {
    0: {},
    1: {'scores.0': 'score_fr', 'final': 'upscore'},
    2: {
        'scores.0': 'score_pool4',
        'scores.1': 'score_fr',
        'upsamples.0': 'upscore2',
        'final': 'upscore16',
    },
    3: {
        'scores.0': 'score_pool3',
        'scores.1': 'score_pool4',
        'scores.2': 'score_fr',
        'upsamples.0': 'upscore_pool4',
        'upsamples.1': 'upscore2',
        'final': 'upscore8',
    },
}
_CAFFE_NETS = ("Caffe's VGG16", "Caffe's FCN-32s", "Caffe's FCN-16s", "Caffe's FCN-8s")


def from_caffe(tensors: Tensors) -> Conversion:
    """Convert Caffe's VGG16, FCN-32s, FCN-16s, FCN-8s or FCN-8s-at-once.

    Which one it is shows in its score layers. FCN-8s-at-once differs from FCN-8s in its fixed
    factors on pool3 and pool4; pytorch-fcn keeps them in code, so that its state dict does not tell
    which of the two it is. Fully connected fc6 and fc7 become convolutions.

    Args:
        tensors: ``LAYER.weight`` and ``LAYER.bias`` with the layers conv1_1 ... fc7, score_fr,
            score_pool4, score_pool3, upscore2, upscore_pool4, upscore8, upscore16, upscore, and
            scale_pool4, scale_pool3.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected.
    """
    finest_first = ('score_pool3.', 'score_pool4.', 'score_fr.')
    present = (any(key.startswith(layer) for key in tensors) for layer in finest_first)
    levels = next((3 - i for i, there in enumerate(present) if there), 0)
    layers = _CAFFE_HEADS[levels]
    factors = [_common_value(tensors.get(f'scale_{pool}.weight')) for pool in ('pool3', 'pool4')]

    def name(key: str) -> str:
        layer, kind, parameter = _parts(key)
        return f'{layers.get(layer, layer)}{"_bn" * (kind == "bn")}.{parameter}'

    def reason(key: str) -> str | None:
        if not levels and key in ('fc8.weight', 'fc8.bias'):
            return CLASSIFIER
        if levels == 3 and None not in factors and key.startswith('scale_pool'):
            return 'a fixed factor: level_scales of the head'
        return None

    scales = (*factors, 1.0) if None not in factors else None
    notes: tuple[str, ...] = ()
    if levels:
        notes = ("trained with Caffe's geometry: configs/fcn8_voc_caffe.py and its kin have it",)
    return convert(
        _CAFFE_NETS[levels] + '-at-once' * bool(scales), tensors, name, _as_convolution, reason,
        levels, input=CAFFE_BGR, notes=notes, level_scales=scales,
    )  # fmt: skip


def _common_value(tensor: Tensor | None) -> float | None:
    """The number that all elements are; None if they differ."""
    if tensor is None or tensor.unique().numel() != 1:
        return None
    return round(tensor.flatten()[0].item(), 9)  # as written in the prototxt, before float32


def from_ours(tensors: Tensors) -> Conversion:
    """Take our own weights: a whole FCN8 or FastFCN8 of any class count, or its backbone alone.

    Args:
        tensors: Under our names; the backbone alone also without ``backbone.`` before them.

    Raises:
        UserError: A tensor is missing, misshapen or unexpected.
    """
    bare = any(key.startswith('stages.') for key in tensors)
    levels = len({key.split('.')[2] for key in tensors if key.startswith(f'{HEAD}scores.')})

    def name(key: str) -> str:
        return key.removeprefix(BACKBONE) if bare else key

    def reason(key: str) -> str | None:
        if key.startswith('auxiliary_head.'):
            return 'an auxiliary head, which prediction does not use'
        return None

    source = f"ssnet_mm's {'FCN8' if levels else 'VGG16'}"
    return convert(source, tensors, name, reason_to_leave=reason, levels=levels)


SOURCES: dict[str, Callable[[Tensors], Conversion]] = {
    'torchvision': from_torchvision,
    'mmpretrain': from_mmpretrain,
    'keras': from_keras,
    'caffe': from_caffe,
    'ssnet_mm': from_ours,
}

_SIGNS = {
    'torchvision': r'features\.\d+\.weight',
    'mmpretrain': r'(backbone\.)?features\.\d+\.conv\.weight',
    'keras': r'conv1_1/.+',
    'caffe': r'conv1_1\.(weight|bias)',
    'ssnet_mm': r'(backbone\.)?stages\.\d\.\d\.conv\..+',
}


def detect(tensors: Tensors) -> str:
    """Tell the dialect by its names: a key of :data:`SOURCES`.

    Raises:
        UserError: It is none of them.
    """
    for source, sign in _SIGNS.items():
        if any(re.fullmatch(sign, key) for key in tensors):
            return source
    raise UserError(
        f'the weights are none of {", ".join(SOURCES)}: their names begin with '
        f'{", ".join(list(tensors)[:3]) or "nothing"}'
    )
