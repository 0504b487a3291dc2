"""The skip fusion of the published Caffe nets, crop by crop.

Source: https://github.com/shelhamer/fcn.berkeleyvision.org, voc-fcn8s, voc-fcn16s and voc-fcn32s.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor

from ssnet_mm.layers import bilinear_upsampling

from .fcn8_head import FCN8Head

STRIDES = (2, 4, 8, 16, 32)  # of VGG16's pool1..pool4 and fc7


def _crop(x: Tensor, offset: int, height: int, width: int) -> Tensor:
    """Cut out height x width from an offset at the top and left on, as Caffe's Crop layer does."""
    if x.shape[2] < offset + height or x.shape[3] < offset + width:
        raise ValueError(
            f'CaffeFCN8Head can not cut {height}x{width} out of a map of '
            f'{x.shape[2]}x{x.shape[3]} at {offset}: it needs a VGG16 with the same image_padding, '
            'fc6_padding=0 and its default strides and dilations'
        )
    return x[:, :, offset : offset + height, offset : offset + width]


@MODELS.register_module()
class CaffeFCN8Head(FCN8Head):
    """:class:`FCN8Head` in exactly the geometry of Caffe's published nets.

    The upsampling has no padding, the skips are cropped to it in the middle, and a last, fixed
    bilinear upsampling, ``final``, leads to the image's resolution: logits are never resized.

    Args:
        *args, **kwargs: Those of :class:`FCN8Head`. The coarsest level is fc7.
        image_padding: ``image_padding`` of the :class:`VGG16` before it, which has
            ``fc6_padding=0``; in Caffe's nets it is 100.

    Raises:
        ValueError: As from :class:`FCN8Head`, or there are more than five levels, or
            ``image_padding`` (at run time, a map) is too small for a crop.

    Shape:
        Levels (N, C_i, H_i, W_i) to logits whose top left H x W are those of the image's pixels;
        :meth:`to_image` cuts off the others.

    Example:
        >>> import torch
        >>> from ssnet_mm import VGG16, CaffeFCN8Head
        >>> net = VGG16(base_channels=8, fc_channels=32, image_padding=100, fc6_padding=0)
        >>> head = CaffeFCN8Head(in_channels=[32, 64, 32], num_classes=21, image_padding=100)
        >>> logits = head(net(torch.rand(1, 3, 97, 131)))
        >>> logits.shape, head.to_image(logits, (97, 131)).shape
        (torch.Size([1, 21, 153, 185]), torch.Size([1, 21, 97, 131]))
    """

    upsample_padding = 0

    def __init__(self, *args: Any, image_padding: int, **kwargs: Any) -> None:
        """Find the crops and make the last upsampling.

        Where in the image lies the centre of a map's first pixel (Caffe's coord_map.py)? In pixels
        of the image, with p for image_padding:

        - pooled to stride s: (s - 1) / 2 - (p - 1);
        - fc7: the same with s = 32, and 3 * 32 further in for its unpadded 7x7 kernel;
        - upsampled from there to stride s: each unpadded 4x4 kernel puts it 1.5 of its own output's
          strides further out, all of them 1.5 * (32 - s): 63.5 + 1.5 s - (p - 1).

        The last is 64 + s further in than the first: 64 / s + 1 pixels of the skip. The last
        upsampling, by a 2s x 2s kernel, puts it s - 0.5 further out: at 65 + s / 2 - p.
        """
        super().__init__(*args, **kwargs)
        levels = len(self.in_channels)
        if levels > len(STRIDES):
            raise ValueError(f'image_padding goes with at most 5 levels, pool1..fc7, got {levels}')
        strides = STRIDES[-levels:]
        smallest = 65 + strides[0] // 2
        if image_padding < smallest:
            raise ValueError(
                f'image_padding must be at least {smallest} with {levels} levels, for the image to '
                f'lie within the logits, got {image_padding}'
            )
        self.image_padding = image_padding
        self.skip_crops = [64 // s + 1 for s in strides[:-1]]  # FCN-8s: 9, 5
        self.image_crop = image_padding - smallest  # FCN-8s: 31, FCN-16s: 27, FCN-32s: 19
        self.final = bilinear_upsampling(self.out_channels, strides[0], 0).requires_grad_(False)

    def _logits(self, levels: Sequence[Tensor]) -> Tensor:
        return self.final(super()._logits(levels))[:, :, self.image_crop :, self.image_crop :]

    def _fuse(self, logits: Tensor, skip: Tensor, level: int) -> Tensor:
        return logits + _crop(skip, self.skip_crops[level], *logits.shape[2:])

    def to_image(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """Crop :meth:`forward`'s logits to (N, num_classes, height, width), the image's size.

        Raises:
            ValueError: The logits are smaller than the image.
        """
        return _crop(logits, 0, *size)

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict:
        """Compute the losses of logits from :meth:`forward`."""
        # the base class resizes to this size, which then changes nothing
        size = batch_data_samples[0].gt_sem_seg.shape
        return super().loss_by_feat(self.to_image(seg_logits, size), batch_data_samples)

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Bring logits from :meth:`forward` to the size of the batch's images."""
        meta = batch_img_metas[0]
        # as in the base class: while a window slides, its own size is there as a torch.Size
        sliding = isinstance(meta['img_shape'], torch.Size)
        size = meta['img_shape'] if sliding or 'pad_shape' not in meta else meta['pad_shape']
        return self.to_image(seg_logits, size[:2])
