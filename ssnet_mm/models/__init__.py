"""The networks: backbone, decode head, both joined, and how one learns from another."""

from .backbones import VGG16
from .build import build_model
from .decode_heads import CaffeFCN8Head, FCN8Head
from .losses import KLDistillLoss, LovaszSoftmaxLoss
from .segmentors import DistilledEncoderDecoder

__all__ = [
    'VGG16',
    'CaffeFCN8Head',
    'DistilledEncoderDecoder',
    'FCN8Head',
    'KLDistillLoss',
    'LovaszSoftmaxLoss',
    'build_model',
]
