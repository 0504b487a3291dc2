"""Depthwise separable convolution as a conv layer type.

The layer is Keras' ``SeparableConv2D``: a depthwise convolution without bias, then a 1x1 pointwise
one with bias, nothing between them. (mmcv's ``DepthwiseSeparableConvModule`` is two ConvModules,
each with normalisation and activation.) Source: Chollet, https://arxiv.org/abs/1610.02357.
"""

from typing import Literal

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t


# The root registry: `build_conv_layer` looks up from the current scope towards the root, so that a
# layer registered there is found under every default scope, and under none.
@MODELS.register_module()
class SeparableConv2d(nn.Module):
    """Drop-in for :class:`torch.nn.Conv2d` that factors it into depthwise and pointwise.

    A k x k layer from C to D channels has ``C*k*k + C*D (+ D)`` parameters instead of
    ``C*D*k*k (+ D)``. A 1x1 layer keeps its 1x1 depthwise convolution, as Keras does. The
    attributes of ``nn.Conv2d`` which mmcv's ``ConvModule`` reads are there, but ``weight`` and
    ``bias``: they belong to :attr:`depthwise` and :attr:`pointwise`.

    Args:
        in_channels, out_channels: Channels of the input and of the output.
        kernel_size, stride, padding, dilation, padding_mode: As in ``nn.Conv2d``, in pixels, of the
            depthwise half.
        groups: Must be 1: the depthwise half is grouped already.
        bias: Adds a learned bias after the pointwise half.
        device, dtype: Where the parameters are made, and their type.

    Raises:
        ValueError: ``groups`` is not 1.

    Shape:
        (N, in_channels, H, W) to (N, out_channels, H', W'), H' and W' as for ``nn.Conv2d``.

    Example:
        >>> import torch
        >>> from ssnet_mm.layers import SeparableConv2d
        >>> conv = SeparableConv2d(64, 128, 3, padding=1)
        >>> conv(torch.rand(1, 64, 31, 33)).shape
        torch.Size([1, 128, 31, 33])
        >>> sum(p.numel() for p in conv.parameters())  # 64*3*3 + 64*128 + 128
        8896
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal['zeros', 'reflect', 'replicate', 'circular'] = 'zeros',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError(
                f'SeparableConv2d is grouped by channel already: groups must be 1, got {groups}'
            )
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=False,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        self.pointwise = nn.Conv2d(
            in_channels, out_channels, 1, bias=bias, device=device, dtype=dtype
        )

        # what ConvModule and others read off a conv layer, seen from outside the pair
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = self.depthwise.kernel_size
        self.stride = self.depthwise.stride
        self.padding = self.depthwise.padding
        self.dilation = self.depthwise.dilation
        self.padding_mode = padding_mode
        self.transposed = False
        self.output_padding = (0, 0)
        self.groups = 1
        self.init_weights()

    def init_weights(self, gain: float = 2**0.5) -> None:
        """Draw weights whose product is spread like one dense kernel's.

        A dense Kaiming kernel (``fan_out``, mmcv's default) has the variance
        ``gain**2 / (out_channels * k * k)``. Here the depthwise taps get 1 / (k * k) and the
        pointwise weights gain**2 / out_channels; a 1x1 depthwise starts as the identity.
        ``ConvModule`` leaves a layer with this method alone, and ``BaseModule`` calls it.

        Args:
            gain: Correction for the nonlinearity before the layer, sqrt(2) for ReLU.
        """
        taps = self.kernel_size[0] * self.kernel_size[1]
        if taps == 1:
            nn.init.ones_(self.depthwise.weight)
        else:
            nn.init.normal_(self.depthwise.weight, std=taps**-0.5)
        nn.init.normal_(self.pointwise.weight, std=gain * self.out_channels**-0.5)
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        return self.pointwise(self.depthwise(x))
