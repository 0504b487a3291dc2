"""Foreign weights named in a config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmengine.logging import MMLogger
from mmengine.model.weight_init import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm.engine.checkpoint import expected_eps, expected_input
from ssnet_mm.engine.input import other_input
from ssnet_mm.errors import UserError

from .conversion import INPUTS, Conversion, with_bn_eps
from .dialects import SOURCES, detect, without_common_prefix
from .formats import read_meta, read_weights
from .match import match
from .split_kernels import with_split_kernels


def load_foreign(
    path: str | os.PathLike[str],
    source: str = 'auto',
    factorize: bool = False,
    input: str | None = None,
) -> Conversion:
    """Read a file and turn its weights into ours.

    Args:
        path: ``.pth``, ``.safetensors``, ``.npz``, ``.h5``, ``.keras`` or ``.caffemodel``.
        source: A key of :data:`ssnet_mm.weights.SOURCES`, or 'auto' to tell by the names.
        factorize: Split dense convolutions into the separable ones closest to them.
        input: The images that the weights expect, a key of :data:`ssnet_mm.weights.INPUTS`; None
            is what the source's usually do.

    Raises:
        UserError: The file can't be read, or is not a whole net of that source.
    """
    if source not in ('auto', *SOURCES):
        raise UserError(f'source must be one of auto, {", ".join(SOURCES)}, got {source!r}')
    if input is not None and input not in INPUTS:
        raise UserError(f'input must be one of {", ".join(INPUTS)}, got {input!r}')
    tensors = without_common_prefix(read_weights(path))
    with named(path):
        source = detect(tensors) if source == 'auto' else source
        conversion = SOURCES[source](tensors)
        if source == 'ssnet_mm':  # the weights do not tell themselves
            meta = read_meta(path)
            conversion = replace(conversion, input=expected_input(meta), bn_eps=expected_eps(meta))
        if input is not None:
            conversion = replace(conversion, input=INPUTS[input])
        return with_split_kernels(conversion) if factorize else conversion


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put a file's name before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{os.fspath(path)}: {error}') from error


@WEIGHT_INITIALIZERS.register_module()
class ForeignPretrained:
    """Start a net from weights of another origin: ``init_cfg=dict(type='ForeignPretrained', ...)``.

    Of the segmentor or of its backbone. Where mmengine's ``Pretrained`` takes whatever names happen
    to match, this takes all the weights, or fails with the names of those it can't place. What it
    used, left and made anew is in the log.

    Args:
        checkpoint: The file; see :func:`load_foreign`.
        source: Whose it is: torchvision, timm, mmpretrain, keras, keras_applications, hed, caffe,
            ssnet_mm, or auto to tell by the names.
        factorize: Split dense convolutions into the separable ones closest to them.
        skip: Beginnings of parameter names that stay as the net was built, as ``['fc6', 'fc7']``
            for a backbone from weights without a classifier.
        input: As of :func:`load_foreign`: 'caffe' for torchvision's names with Caffe's kernels.

    Raises:
        UserError: When called, if the weights can't be read or do not fit the module.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from ssnet_mm import VGG16
        >>> donor = VGG16(base_channels=4, fc_channels=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(donor.state_dict(), f'{folder}/vgg16.pth')
        ...     init_cfg = dict(type='ForeignPretrained', checkpoint=f'{folder}/vgg16.pth')
        ...     net = VGG16(base_channels=4, fc_channels=8, init_cfg=init_cfg)
        ...     net.init_weights()
        >>> torch.equal(net.fc6.conv.weight, donor.fc6.conv.weight)
        True
    """

    def __init__(
        self,
        checkpoint: str,
        source: str = 'auto',
        factorize: bool = False,
        skip: Sequence[str] = (),
        input: str | None = None,
    ) -> None:
        self.checkpoint = os.path.expanduser(checkpoint)
        self.source = source
        self.factorize = factorize
        self.input = input
        self.skip = (skip,) if isinstance(skip, str) else tuple(skip)

    def check(self, module: nn.Module, model: nn.Module) -> None:
        """Raise what calling it on a module would raise; nothing is loaded.

        Args:
            module: The segmentor or its backbone.
            model: The segmentor, whose data preprocessor is compared with what the weights expect.
        """
        self._check_order(module)
        _match(module, self._read(), self.skip, self.checkpoint, model)

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module. Nothing that initialises later overwrites them."""
        self._check_order(module)
        # mmengine initialises a module's children after it, unless it is by its own `Pretrained`
        for child in module.children():
            child_module: Any = child
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child_module.init_weights()  # for what the weights leave as built
                child_module.is_init = True
        conversion = load_into(module, self._read(), self.skip, self.checkpoint)
        MMLogger.get_current_instance().info(f'{self.checkpoint}: {conversion.summary}')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'ForeignPretrained: {conversion.source}, {self.checkpoint}')

    def _read(self) -> Conversion:
        return load_foreign(self.checkpoint, self.source, self.factorize, self.input)

    def _check_order(self, module: nn.Module) -> None:
        cfgs: Any = getattr(module, 'init_cfg', None)
        if isinstance(cfgs, (list, tuple)) and 'ForeignPretrained' not in str(cfgs[-1]['type']):
            raise UserError(
                'ForeignPretrained must stand last in init_cfg: what follows would overwrite the '
                f'weights of {self.checkpoint}'
            )


def load_into(
    module: nn.Module, conversion: Conversion, skip: Sequence[str] = (), path: str = 'the weights'
) -> Conversion:
    """Load converted weights into a segmentor, a VGG16 or an FCN8Head.

    Args:
        module: Its batch norm may have another epsilon than the source's.
        conversion: From :func:`load_foreign` or a function of :data:`ssnet_mm.weights.SOURCES`.
        skip: Beginnings of parameter names that stay as they are.
        path: Where the weights come from, for messages.

    Returns:
        What was used, left and made anew; see :func:`ssnet_mm.weights.match`.

    Raises:
        UserError: They do not fit; the module is as it was.
    """
    matched = _match(module, conversion, skip, path, module)
    module.load_state_dict(matched.state_dict, strict=False)  # `match` is the stricter one
    return matched


def _match(
    module: nn.Module, conversion: Conversion, skip: Sequence[str], path: str, model: nn.Module
) -> Conversion:
    """Match weights with a module, and warn if the model prepares other images than they expect."""
    eps = {
        part.eps
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and 'stages.' in name  # VGG16's: a head may have others
    }
    for value in eps:  # one, as VGG16 takes one norm_cfg
        conversion = with_bn_eps(conversion, value)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    with named(path):
        if not conversion.ours:
            _check_layers(module)
        matched = match(conversion, shapes, skip)
        theirs = matched.level_scales
        if theirs and any('scores.' in key for key in matched.used):
            scales = getattr(getattr(module, 'decode_head', module), 'level_scales', None)
            if scales is None or tuple(scales) != theirs[-len(scales) :]:
                raise UserError(
                    f'{matched.source} scales the levels by {theirs}, the net by {scales}; set '
                    f'model.decode_head.level_scales="{theirs}"'
                )
    for warning in other_input(path, matched.input, model):
        MMLogger.get_current_instance().warning(warning)
    return matched


def _check_layers(module: nn.Module) -> None:
    """Refuse layers of VGG16 that compute otherwise with the same parameters."""
    for name, part in module.named_modules():
        if 'stages.' not in name or not isinstance(part, ConvModule):
            continue
        if isinstance(part.conv, nn.Conv2d) and not _is_plain(part.conv):
            raise UserError(
                f'{name} is a {type(part.conv).__name__}, which the weights were not trained for; '
                'set model.backbone.conv_cfg=None'
            )
        if part.with_norm and not list(part.norm.parameters()):
            raise UserError(
                f'{name} normalises by {type(part.norm).__name__}, and the weights were trained '
                'without; set model.backbone.norm_cfg=None'
            )


@torch.no_grad()
def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether a convolution is that of its weights as they are, but for what it does at edges."""
    side = 2 * conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    x = (
        torch.linspace(0, 99, conv.in_channels * side**2)
        .sin()
        .view(1, -1, side, side)
        .to(conv.weight)
    )
    plain = functional.conv2d(x, conv.weight, conv.bias, 1, 0, conv.dilation, conv.groups)
    found = conv(x)
    top, left = ((a - b) // 2 for a, b in zip(found.shape[2:], plain.shape[2:]))
    found = found[..., top : top + plain.shape[2], left : left + plain.shape[3]]
    return torch.allclose(found, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
