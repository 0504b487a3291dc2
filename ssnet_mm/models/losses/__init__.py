"""Losses, registered in ``mmseg.registry.MODELS``."""

from .kl_distill_loss import KLDistillLoss

__all__ = ['KLDistillLoss']
