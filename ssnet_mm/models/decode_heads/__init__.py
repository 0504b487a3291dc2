"""Decode heads, registered in ``mmseg.registry.MODELS``."""

from .fcn8_head import FCN8Head

__all__ = ['FCN8Head']
