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
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from ssnet_mm.layers import SeparableConv2d, bilinear_kernel

# VGG16's own geometry, on which that of Caffe's nets rests.
COARSEST_STRIDE = 32  # of fc7


def _score(conv_cfg: dict | None, channels: int, classes: int) -> nn.Module:
    """A 1x1 score layer whose logits start close to zero."""
    score = build_conv_layer(conv_cfg, channels, classes, 1)
    classifier: Any = score.pointwise if isinstance(score, SeparableConv2d) else score
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return score


def _upsample(classes: int, stride: int, padding: int) -> nn.ConvTranspose2d:
    """Upsampling by a transposed convolution that starts bilinear."""
    upsample = nn.ConvTranspose2d(classes, classes, 2 * stride, stride, padding, bias=False)
    with torch.no_grad():
        upsample.weight.copy_(bilinear_kernel(classes, 2 * stride))
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


def _crop(x: Tensor, offset: int, height: int, width: int) -> Tensor:
    """Cut out height x width from an offset at the top and left on, as Caffe's Crop layer does.

    Raises:
        ValueError: If the map does not reach that far.
    """
    if x.shape[2] < offset + height or x.shape[3] < offset + width:
        raise ValueError(
            f'FCN8Head with image_padding can not cut {height}x{width} out of a map of '
            f'{x.shape[2]}x{x.shape[3]} at {offset}: it needs a VGG16 with the same image_padding, '
            'fc6_padding=0 and its default strides and dilations'
        )
    return x[:, :, offset : offset + height, offset : offset + width]


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

    With ``image_padding`` it has the geometry of Caffe's published nets instead
    (https://github.com/shelhamer/fcn.berkeleyvision.org), exactly: the upsampling has no padding,
    the skips are cropped to it in the middle, and a last fixed bilinear transposed convolution,
    ``final``, leads to the image's resolution, where the image is cut out in the middle.

    Args:
        in_channels: Channels of each level, finest first.
        in_index: Places of the levels in the backbone's output, finest first; ``None`` is
            0, 1, 2, ...
        conv_cfg: Conv layer type of the score layers; ``None`` is ``nn.Conv2d``.
        dropout_ratio: Chance of a level's channel to be dropped before its score layer. The
            original has none here: its dropout follows fc6 and fc7, in the backbone.
        level_scales: Factors on the levels before their score layers, finest first; ``None`` is
            none. Caffe's FCN-8s trained "at once" has (1e-4, 1e-2, 1).
        image_padding: ``image_padding`` of a :class:`VGG16` with ``fc6_padding=0``: switches to the
            geometry of Caffe's nets, where it is 100, and makes fc7 the coarsest level. ``None`` is
            our own geometry.
        init_cfg: Initialisation as in mmengine; ``None`` leaves the scores drawn from a normal
            distribution of standard deviation 0.01 and the upsampling bilinear.
        **kwargs: Other arguments of :class:`BaseDecodeHead`: ``num_classes``, ``loss_decode``,
            ``ignore_index``, ``sampler``, ``align_corners``, ``out_channels``, ``threshold``.

    Raises:
        ValueError: If ``in_channels``, ``in_index`` and ``level_scales`` differ in length or are
            empty, if ``image_padding`` is too small for a crop in the middle, or if, at run time,
            two neighbouring levels do not differ by a factor of 2.

    Shape:
        Levels (N, C_i, H_i, W_i) to logits (N, num_classes, H_0, W_0) of the finest level. With
        ``image_padding`` to logits whose top left H x W are those of the image's pixels; what is
        below and to the right of them is cut off where the image's size is known:
        :meth:`to_image`.

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
        level_scales: Sequence[float] | None = None,
        image_padding: int | None = None,
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
        self.level_scales = None if level_scales is None else tuple(level_scales)
        padding = 1 if image_padding is None else 0  # with 1 the size doubles exactly
        self.upsamples = nn.ModuleList(_upsample(classes, 2, padding) for _ in in_channels[1:])
        self.final: nn.ConvTranspose2d | None = None
        if image_padding is not None:
            self._init_caffe(image_padding)

    def _init_caffe(self, image_padding: int) -> None:
        """Find the crops of Caffe's geometry and make its last upsampling.

        Where in the image lies the centre of a map's first pixel (Caffe's coord_map.py)? In pixels
        of the image, with p for image_padding:

        - pooled to stride s: (s - 1) / 2 - (p - 1);
        - fc7: the same with s = 32, and 3 * 32 further in for its unpadded 7x7 kernel;
        - upsampled from there to stride s: each unpadded 4x4 kernel puts it 1.5 of its own output's
          strides further out, all of them 1.5 * (32 - s): 63.5 + 1.5 s - (p - 1).

        The last is 64 + s further in than the first: 64 / s + 1 pixels of the skip. The last
        upsampling, by a 2s x 2s kernel, puts it s - 0.5 further out: at 65 + s / 2 - p.
        """
        levels = len(self.in_channels)
        if levels > COARSEST_STRIDE.bit_length() - 1:
            raise ValueError(f'image_padding goes with at most 5 levels, pool1..fc7, got {levels}')
        strides = [COARSEST_STRIDE >> i for i in reversed(range(levels))]
        stride = strides[0]
        smallest = 65 + stride // 2
        if image_padding < smallest:
            raise ValueError(
                f'image_padding must be at least {smallest} with {levels} levels, for the image to '
                f'lie within the logits, got {image_padding}'
            )
        self.skip_crops = [64 // s + 1 for s in strides[:-1]]  # FCN-8s: 9, 5
        self.image_crop = image_padding - smallest  # FCN-8s: 31, FCN-16s: 27, FCN-32s: 19
        self.final = _upsample(self.out_channels, stride, 0)
        self.final.requires_grad_(False)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Map the backbone's levels to logits, as the class's Shape says."""
        levels = self._transform_inputs(inputs)
        if self.level_scales is not None:
            levels = [x * scale for x, scale in zip(levels, self.level_scales, strict=True)]
        if self.dropout is not None:
            levels = [self.dropout(level) for level in levels]
        logits = self.scores[-1](levels[-1])
        for i in reversed(range(len(levels) - 1)):
            if self.final is None:
                height, width = levels[i].shape[2:]
                logits = _fit(self.upsamples[i](logits), height, width) + self.scores[i](levels[i])
            else:
                logits = self.upsamples[i](logits)
                height, width = logits.shape[2:]
                logits = logits + _crop(
                    self.scores[i](levels[i]), self.skip_crops[i], height, width
                )
        if self.final is not None:
            logits = self.final(logits)[:, :, self.image_crop :, self.image_crop :]
        return logits

    def to_image(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Bring :meth:`forward`'s logits to the image's pixels.

        They are resized bilinearly; with ``image_padding`` they are cropped.

        Args:
            logits: Of shape (N, num_classes, H', W').
            size: Height and width of the image that the backbone was given.

        Returns:
            Tensor of shape (N, num_classes, height, width).

        Raises:
            ValueError: If, with ``image_padding``, the logits are smaller than the image.
        """
        height, width = size
        if self.final is not None:
            return _crop(logits, 0, height, width)
        return resize(logits, (height, width), mode='bilinear', align_corners=self.align_corners)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict:
        """Compute the losses of logits from :meth:`forward`."""
        if self.final is not None:  # the base class resizes, which then changes nothing any more
            size = batch_data_samples[0].gt_sem_seg.shape
            seg_logits = self.to_image(seg_logits, size)
        return super().loss_by_feat(seg_logits, batch_data_samples)

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Bring logits from :meth:`forward` to the size of the batch's images."""
        meta = batch_img_metas[0]
        # As in the base class: while a window slides, its own size is there as a torch.Size.
        sliding = isinstance(meta['img_shape'], torch.Size)
        size = meta['img_shape'] if sliding or 'pad_shape' not in meta else meta['pad_shape']
        return self.to_image(seg_logits, size[:2])
