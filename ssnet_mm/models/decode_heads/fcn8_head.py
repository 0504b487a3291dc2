"""The skip fusion of FCN-8s, FCN-16s and FCN-32s as a decode head.

Source: E. Shelhamer, J. Long and T. Darrell, "Fully Convolutional Networks for Semantic
Segmentation", https://arxiv.org/abs/1605.06211.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from ssnet_mm.layers import SeparableConv2d


def bilinear_kernel(channels: int) -> Tensor:
    """Weights of a 4x4, stride 2 transposed convolution that upsamples each channel bilinearly.

    Away from the border its output equals that of ``F.interpolate(scale_factor=2,
    mode='bilinear', align_corners=False)``.

    Args:
        channels: Channels in and out; each is upsampled by itself.

    Returns:
        Tensor of shape (channels, channels, 4, 4), zero off the diagonal.
    """
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    weight = torch.zeros(channels, channels, 4, 4)
    weight[range(channels), range(channels)] = torch.outer(line, line)
    return weight


def _score(conv_cfg: dict | None, channels: int, classes: int) -> nn.Module:
    """A 1x1 score layer whose logits start close to zero."""
    score = build_conv_layer(conv_cfg, channels, classes, 1)
    classifier: Any = score.pointwise if isinstance(score, SeparableConv2d) else score
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return score


def _upsample_x2(classes: int) -> nn.ConvTranspose2d:
    """Learned x2 upsampling that starts bilinear."""
    upsample = nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
    with torch.no_grad():
        upsample.weight.copy_(bilinear_kernel(classes))
    return upsample


def _fit(logits: Tensor, height: int, width: int) -> Tensor:
    """Crop or extend a level upsampled x2, at the bottom and right, to its skip's size.

    Doubling a level that was rounded up gives a row (column) too many; one that was rounded down,
    as in backbones which pool without padding, gives one too few: its last one is repeated.

    Raises:
        ValueError: If more than one row or column is over or missing.
    """
    rows, columns = height - logits.shape[2], width - logits.shape[3]
    if not (-1 <= rows <= 1 and -1 <= columns <= 1):
        raise ValueError(
            'FCN8Head takes levels from fine to coarse in steps of 2, but a level of '
            f'{height}x{width} meets one of {logits.shape[2]}x{logits.shape[3]} after upsampling '
            "x2: check in_index and the backbone's strides"
        )
    if rows > 0 or columns > 0:
        logits = F.pad(logits, (0, max(columns, 0), 0, max(rows, 0)), mode='replicate')
    return logits[:, :, :height, :width]


@MODELS.register_module()
class FCN8Head(BaseDecodeHead):
    """Score each level with a 1x1 convolution, then upsample x2 and add, from coarse to fine.

    With the levels pool3, pool4 and fc7 this is FCN-8s, with pool4 and fc7 FCN-16s, with fc7
    FCN-32s. More levels go on the same way, over any backbone whose levels differ by a factor of 2.
    The logits come at the finest level's resolution; the rest of the way to the image (x8 in
    FCN-8s) is bilinear and has no parameters: :class:`BaseDecodeHead` does it.

    Each upsampling is a learned transposed convolution (4x4, stride 2, classes x classes, no bias)
    that starts bilinear. Where a level was rounded up, the upsampled map is a row or column larger
    than its skip and is cropped at the bottom and right (where it was rounded down, extended).

    Args:
        in_channels: Channels of each level, finest first.
        in_index: Places of the levels in the backbone's output, finest first; ``None`` is
            0, 1, 2, ...
        conv_cfg: Conv layer type of the score layers; ``None`` is ``nn.Conv2d``.
        dropout_ratio: Chance of a level's channel to be dropped before its score layer. The
            original has none here: its dropout follows fc6 and fc7, in the backbone.
        init_cfg: Initialisation as in mmengine; ``None`` leaves the scores drawn from a normal
            distribution of standard deviation 0.01 and the upsampling bilinear.
        **kwargs: Other arguments of :class:`BaseDecodeHead`: ``num_classes``, ``loss_decode``,
            ``ignore_index``, ``sampler``, ``align_corners``, ``out_channels``, ``threshold``.

    Raises:
        ValueError: If ``in_channels`` and ``in_index`` differ in length or are empty, or if, at
            run time, two neighbouring levels do not differ by a factor of 2.

    Shape:
        Levels (N, C_i, H_i, W_i) to logits (N, num_classes, H_0, W_0) of the finest level.

    Example:
        >>> import torch
        >>> from ssnet_mm import FCN8Head
        >>> head = FCN8Head(in_channels=[32, 64, 128], num_classes=21)
        >>> levels = [torch.rand(1, 32, 13, 17), torch.rand(1, 64, 7, 9), torch.rand(1, 128, 4, 5)]
        >>> head(levels).shape
        torch.Size([1, 21, 13, 17])
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int] | None = None,
        conv_cfg: dict | None = None,
        dropout_ratio: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        in_channels = list(in_channels)
        in_index = list(range(len(in_channels))) if in_index is None else list(in_index)
        if not in_channels or len(in_index) != len(in_channels):
            raise ValueError(
                'in_channels and in_index name one level each, finest first: got '
                f'{in_channels} and {in_index}'
            )
        super().__init__(
            in_channels=in_channels,
            in_index=in_index,
            input_transform='multiple_select',
            channels=in_channels[-1],  # of conv_seg only
            conv_cfg=conv_cfg,
            dropout_ratio=dropout_ratio,
            init_cfg=init_cfg,
            **kwargs,
        )
        # The one classifier of the base class: unused it would get no gradient, on which
        # distributed training stalls. Here every level has its own.
        del self.conv_seg
        classes = self.out_channels
        self.scores = nn.ModuleList(_score(conv_cfg, channels, classes) for channels in in_channels)
        self.upsamples = nn.ModuleList(_upsample_x2(classes) for _ in in_channels[1:])

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the backbone's levels to logits (N, num_classes, H_0, W_0)."""
        levels = self._transform_inputs(inputs)
        if self.dropout is not None:
            levels = [self.dropout(level) for level in levels]
        logits = self.scores[-1](levels[-1])
        for i in reversed(range(len(levels) - 1)):
            height, width = levels[i].shape[2:]
            logits = _fit(self.upsamples[i](logits), height, width) + self.scores[i](levels[i])
        return logits
