"""The network of ours that a file of weights is of, as far as their names and shapes tell."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from ssnet_mm.constants import VGG16_STAGES
from ssnet_mm.errors import UserError

from .conversion import BACKBONE, HEAD, Shape

_STEM = f'{BACKBONE}stages.0.0.'  # the first convolution, which everything else is measured by


def whole_network(
    get: Callable[[str], Tensor | None], name: Callable[[str], str], levels: int
) -> dict[str, Shape]:
    """Names and shapes of the whole network that some weights are of.

    Its widths are read off a few of them. The network is a real one, built without memory.

    Args:
        get: Gives, in our layout, the weight that one of our names stands for, or None.
        name: One of our names to the foreign one.
        levels: Score layers of the weights: of fc7 (or pool5) and of so many pools below.

    Raises:
        UserError: The first convolution is not there, or no network has such widths.
    """

    def has(*keys: str) -> bool:
        return any(get(key) is not None for key in keys)

    def width(*layers: str) -> int | None:
        """Outputs of the first of these layers of which anything is there."""
        keys = (f'{layer}{half}{kind}' for layer in layers for kind in ('weight', 'bias'))
        weights = (weight for key in keys if (weight := get(key)) is not None)
        return next((len(weight) for weight in weights if weight.dim()), None)

    separable = has(f'{_STEM}conv.depthwise.weight', f'{_STEM}conv.pointwise.weight')
    half = 'pointwise.' if separable else ''
    first = f'{_STEM}conv.{half}weight'
    kernel = get(first)
    if kernel is None:
        raise UserError(f'{name(first)} is missing, the first convolution; check the file')
    if kernel.dim() != 4:
        raise UserError(
            f'{name(first)}, the first convolution, is misshapen: {tuple(kernel.shape)}; check the '
            'file'
        )
    base, in_channels = kernel.shape[:2]
    fc = width(f'{BACKBONE}fc6.conv.', f'{BACKBONE}fc7.conv.')
    bn = has(*(f'{_STEM}bn.{key}' for key in ('weight', 'bias', 'running_mean', 'running_var')))
    conv_cfg = dict(type='SeparableConv2d') if separable else None
    backbone = dict(type='mmseg.VGG16', in_channels=in_channels, base_channels=base, fc_channels=fc)
    backbone.update(out_indices=(4 if fc is None else 5,), norm_cfg=dict(type='BN') if bn else None)
    parts: dict[str, dict[str, Any]] = dict(backbone=backbone)
    if levels:
        # finest first: pool1, pool2, pool3, pool4, and fc7 (or pool5)
        widths = [base * factor for _, factor in VGG16_STAGES]
        classes = width(*(f'{HEAD}scores.{i}.' for i in range(levels))) or 1
        parts['decode_head'] = dict(
            type='mmseg.FCN8Head',
            in_channels=[*widths[:-1], fc or widths[-1]][-levels:],
            num_classes=classes,
            out_channels=classes,
        )
        if has(f'{HEAD}final.weight'):
            parts['decode_head'].update(type='mmseg.CaffeFCN8Head', image_padding=100)
    try:
        with torch.device('meta'), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # mmseg's remarks on class counts and losses
            network = nn.ModuleDict(
                {part: MODELS.build(dict(cfg, conv_cfg=conv_cfg)) for part, cfg in parts.items()}
            )
    except Exception as error:  # whatever building fails with: the widths are the file's
        raise UserError(f'no network has such widths ({error}); check the file') from error
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
