"""Backbones, registered in ``mmseg.registry.MODELS``."""

from .vgg16 import VGG16

__all__ = ['VGG16']
