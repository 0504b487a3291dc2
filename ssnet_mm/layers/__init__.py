"""Conv layers. They need torch and mmengine only, no segmentation toolbox."""

from .separable_conv import SeparableConv2d

__all__ = ['SeparableConv2d']
