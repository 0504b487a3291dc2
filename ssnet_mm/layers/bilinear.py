"""Transposed convolutions that upsample bilinearly.

Source: Caffe's ``BilinearFiller``,
https://github.com/BVLC/caffe/blob/master/include/caffe/filler.hpp.
"""

from math import ceil

import torch
from torch import Tensor, nn


def bilinear_kernel(channels: int, kernel_size: int = 4) -> Tensor:
    """Weights of a transposed convolution that upsamples each channel bilinearly.

    With kernel size 2s, stride s and padding s / 2 it equals, away from the border,
    ``F.interpolate(scale_factor=s, mode='bilinear', align_corners=False)``.

    Args:
        channels: Channels in and out; each is upsampled by itself.
        kernel_size: Height and width of the kernel. Odd sizes follow Caffe's formula too.

    Returns:
        Tensor of shape (channels, channels, kernel_size, kernel_size), zero off the diagonal.

    Example:
        >>> bilinear_kernel(1)[0, 0, 0]
        tensor([0.0625, 0.1875, 0.1875, 0.0625])
    """
    centre = (kernel_size - 1) / 2
    line = 1 - (torch.arange(kernel_size) - centre).abs() / ceil(kernel_size / 2)
    weight = torch.zeros(channels, channels, kernel_size, kernel_size)
    weight[range(channels), range(channels)] = torch.outer(line, line)
    return weight


def bilinear_upsampling(channels: int, stride: int, padding: int) -> nn.ConvTranspose2d:
    """A transposed convolution without bias that upsamples bilinearly until it is trained.

    Args:
        channels: Channels in and out.
        stride: Factor of the upsampling; the kernel is twice as large.
        padding: Rows and columns taken off the output at each side; ``stride / 2`` makes it exactly
            ``stride`` times as large as the input.
    """
    layer = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, padding, bias=False)
    with torch.no_grad():
        layer.weight.copy_(bilinear_kernel(channels, 2 * stride))
    return layer
