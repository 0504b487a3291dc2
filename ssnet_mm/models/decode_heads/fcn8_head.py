"""The skip fusion of FCN-8s, FCN-16s and FCN-32s as a decode head.

Source: Shelhamer, Long and Darrell, https://arxiv.org/abs/1605.06211.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ssnet_mm.layers import SeparableConv2d, bilinear_upsampling


def _score(conv_cfg: dict | None, channels: int, classes: int) -> nn.Module:
    """A 1x1 score layer whose logits start close to zero."""
    score = build_conv_layer(conv_cfg, channels, classes, 1)
    classifier: Any = score.pointwise if isinstance(score, SeparableConv2d) else score
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return score


def _fit(logits: Tensor, height: int, width: int) -> Tensor:
    """Crop or extend a level upsampled x2, at the bottom and right, to its skip's size.

    Doubling a level that was rounded up gives a row (column) too many; one that was rounded down,
    as in backbones which pool without padding, gives one too few: its last one is repeated.
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
    FCN-32s, over any backbone whose levels differ by a factor of 2. Each upsampling is a learned
    transposed convolution (4x4, stride 2, classes x classes, no bias) that starts bilinear; a row
    or column too many or too few is cropped or extended at the bottom and right. The rest of the
    way to the image (x8 in FCN-8s) is :class:`BaseDecodeHead`'s bilinear resizing.

    The head of Caffe's published nets is :class:`CaffeFCN8Head`.

    Args:
        in_channels: Channels of each level, finest first.
        in_index: Places of the levels in the backbone's output; ``None`` is 0, 1, 2, ...
        conv_cfg: Conv layer type of the score layers; ``None`` is ``nn.Conv2d``.
        dropout_ratio: Chance of a level's channel to be dropped before its score layer. The
            original's dropout is in the backbone, after fc6 and fc7.
        level_scales: Factors on the levels before their score layers, finest first. Caffe's FCN-8s
            trained "at once" has (1e-4, 1e-2, 1).
        image_padding: Anything but ``None`` makes a :class:`CaffeFCN8Head` instead.
        init_cfg: Initialisation as in mmengine; ``None`` is a normal distribution of standard
            deviation 0.01 for the scores, and bilinear upsampling.
        **kwargs: Other arguments of :class:`BaseDecodeHead`: ``num_classes``, ``loss_decode``,
            ``ignore_index``, ``sampler``, ``align_corners``, ``out_channels``, ``threshold``.

    Raises:
        ValueError: ``in_channels``, ``in_index`` and ``level_scales`` differ in length or are
            empty, or, at run time, two neighbouring levels do not differ by a factor of 2.

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

    upsample_padding = 1  # with it the size doubles exactly

    def __new__(cls, *args: Any, image_padding: int | None = None, **kwargs: Any) -> 'FCN8Head':
        """Older configs name FCN8Head for both geometries: ``image_padding`` tells Caffe's."""
        if cls is FCN8Head and image_padding is not None:
            from .caffe_fcn8_head import CaffeFCN8Head

            return super().__new__(CaffeFCN8Head)
        return super().__new__(cls)

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int] | None = None,
        conv_cfg: dict | None = None,
        dropout_ratio: float = 0.0,
        level_scales: Sequence[float] | None = None,
        image_padding: None = None,
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
        if level_scales is not None and len(level_scales) != len(in_channels):
            raise ValueError(
                f'level_scales must be {len(in_channels)} numbers, one a level, got {level_scales}'
            )
        if not 0 <= dropout_ratio < 1:
            raise ValueError(f'dropout_ratio must lie in [0, 1), got {dropout_ratio}')
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
        # Every level has its own classifier. The base class's, unused, would get no gradient, on
        # which distributed training stalls.
        del self.conv_seg
        classes = self.out_channels
        self.scores = nn.ModuleList(_score(conv_cfg, channels, classes) for channels in in_channels)
        self.level_scales = None if level_scales is None else tuple(level_scales)
        self.upsamples = nn.ModuleList(
            bilinear_upsampling(classes, 2, self.upsample_padding) for _ in in_channels[1:]
        )

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the backbone's levels to logits, as the class's Shape says."""
        levels = self._transform_inputs(inputs)
        kind = levels[0].device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._logits(levels)
        return self._logits(levels)

    def _logits(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits of the selected levels, in the precision of the weights.

        That is float32 under autocast too. The loss takes them so anyway; in half precision logits
        of 10 are 0.06 apart (bfloat16); and the backward pass of oneDNN's AMX kernels writes
        beyond its memory where bfloat16 is to become fewer than 16 classes (docs/performance.md).
        """
        dtype = next(self.scores.parameters()).dtype
        levels = [x if x.dtype == dtype else x.to(dtype) for x in levels]
        if self.level_scales is not None:
            levels = [x * scale for x, scale in zip(levels, self.level_scales, strict=True)]
        if self.dropout is not None:
            levels = [self.dropout(level) for level in levels]
        logits = self.scores[-1](levels[-1])
        for i in reversed(range(len(levels) - 1)):
            logits = self._fuse(self.upsamples[i](logits), self.scores[i](levels[i]), i)
        return logits

    def _fuse(self, logits: Tensor, skip: Tensor, level: int) -> Tensor:
        """Add the scores of a level to the upsampled logits of the coarser ones."""
        return _fit(logits, *skip.shape[2:]) + skip

    def to_image(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Resize :meth:`forward`'s logits to (N, num_classes, height, width), the image's size."""
        return resize(logits, tuple(size), mode='bilinear', align_corners=self.align_corners)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict:
        """Compute the losses; they are 0 for one channel where all is void.

        mmseg's cross-entropy is 0 there for several channels, and fails for one.
        """
        labels = (sample.gt_sem_seg.data for sample in batch_data_samples)
        if self.out_channels == 1 and all((label == self.ignore_index).all() for label in labels):
            several = isinstance(self.loss_decode, nn.ModuleList)
            losses = self.loss_decode if several else [self.loss_decode]
            zeros = {loss.loss_name: seg_logits.sum() * 0.0 for loss in losses}
            return {**zeros, 'acc_seg': seg_logits.new_zeros(1)}
        return super().loss_by_feat(seg_logits, batch_data_samples)
