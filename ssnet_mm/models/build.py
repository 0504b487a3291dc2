"""The original's one-call interface: a ready segmentor without a config file."""

from typing import Literal

from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmseg.registry import MODELS

from ssnet_mm.constants import IMAGENET_MEAN, IMAGENET_STD, VGG16_STAGES

from .backbones.vgg16 import KERAS_BN

CONV_TYPES: dict[str, dict | None] = {'conv': None, 'ds': dict(type='SeparableConv2d')}


def build_model(
    num_classes: int,
    conv_type: Literal['conv', 'ds'] = 'conv',
    *,
    use_bn: bool = True,
    dropout_ratio: float = 0.5,
    base_channels: int = 64,
    fc_channels: int = 4096,
    in_channels: int = 3,
    norm_cfg: dict | None = KERAS_BN,
) -> BaseModel:
    """Build FCN8 or FastFCN8 as an ``mmseg`` segmentor with freshly drawn weights.

    Args:
        num_classes: Number of classes, background included.
        conv_type: ``'conv'`` is FCN8, ``'ds'`` is FastFCN8 (depthwise separable convolutions).
        use_bn: Batch norm after each 3x3 convolution.
        dropout_ratio, base_channels, fc_channels: As in :class:`VGG16`.
        in_channels: Channels of the image. Three are taken as BGR in 0..255, and normalised with
            ImageNet's statistics as RGB; any other number is fed as it is.
        norm_cfg: The norm layer that ``use_bn`` switches on.

    Returns:
        mmseg's ``EncoderDecoder``. In tensor mode it maps (N, in_channels, H, W) to logits
        (N, num_classes, ceil(H / 8), ceil(W / 8)).

    Raises:
        ValueError: An argument makes no sense.

    Example:
        >>> import torch
        >>> from ssnet_mm import build_model
        >>> model = build_model(21, conv_type='ds', base_channels=8, fc_channels=32).eval()
        >>> model(torch.rand(1, 3, 97, 131), mode='tensor').shape
        torch.Size([1, 21, 13, 17])
    """
    if conv_type not in CONV_TYPES:
        raise ValueError(f"conv_type must be 'conv' or 'ds', got {conv_type!r}")
    if num_classes < 2:
        raise ValueError(f'num_classes must be at least 2, background included, got {num_classes}')
    conv_cfg = CONV_TYPES[conv_type]
    # with its scope: BaseModel looks for it in the root registry; 1 pads to the batch's largest
    preprocessor: dict = dict(type='mmseg.SegDataPreProcessor', size_divisor=1)
    if in_channels == 3:
        preprocessor.update(mean=IMAGENET_MEAN, std=IMAGENET_STD, bgr_to_rgb=True)
    widths = [base_channels * factor for _, factor in VGG16_STAGES]
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=preprocessor,
            backbone=dict(
                type='VGG16',
                in_channels=in_channels,
                base_channels=base_channels,
                fc_channels=fc_channels,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg if use_bn else None,
                dropout_ratio=dropout_ratio,
            ),
            decode_head=dict(
                type='FCN8Head',
                in_channels=[widths[2], widths[3], fc_channels],
                conv_cfg=conv_cfg,
                num_classes=num_classes,
            ),
            test_cfg=ConfigDict(mode='whole'),  # mmseg reads its keys as attributes
        )
    )
