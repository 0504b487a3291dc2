"""Conv layers. They need torch and mmengine only, no segmentation toolbox."""

from .bilinear import bilinear_kernel, bilinear_upsampling
from .separable_conv import SeparableConv2d

__all__ = ['SeparableConv2d', 'bilinear_kernel', 'bilinear_upsampling']
