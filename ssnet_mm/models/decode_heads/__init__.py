"""Decode heads, registered in ``mmseg.registry.MODELS``."""

from .caffe_fcn8_head import CaffeFCN8Head
from .fcn8_head import FCN8Head

__all__ = ['CaffeFCN8Head', 'FCN8Head']
