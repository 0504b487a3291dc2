"""The networks: backbone, decode head, and both joined."""

from .backbones import VGG16
from .build import build_model
from .decode_heads import FCN8Head

__all__ = ['VGG16', 'FCN8Head', 'build_model']
