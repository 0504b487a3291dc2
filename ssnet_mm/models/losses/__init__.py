"""Losses, registered in ``mmseg.registry.MODELS``."""

from .kl_distill_loss import KLDistillLoss
from .lovasz_softmax_loss import LovaszSoftmaxLoss

__all__ = ['KLDistillLoss', 'LovaszSoftmaxLoss']
