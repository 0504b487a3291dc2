"""Segmentors, registered in ``mmseg.registry.MODELS``."""

from .distilled import DistilledEncoderDecoder

__all__ = ['DistilledEncoderDecoder']
