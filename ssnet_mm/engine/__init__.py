"""What joins mmengine's Runner: safe checkpoints, guards, metrics, launching."""

from ssnet_mm.files import atomic_write

from .backends import AtomicBackend
from .checkpoint import load_checkpoint, load_state_dict, read_checkpoint
from .guards import GuardHook
from .hooks import PlainCheckpointHook
from .metrics import ClassIoUMetric, ReportMetric
from .mixed_precision import BFloat16OptimWrapper
from .tta import MeanProbabilityTTAModel
from .val_loss import ValLossHook

__all__ = [
    'AtomicBackend', 'BFloat16OptimWrapper', 'ClassIoUMetric', 'GuardHook',
    'MeanProbabilityTTAModel', 'PlainCheckpointHook', 'ReportMetric', 'ValLossHook', 'atomic_write',
    'load_checkpoint', 'load_state_dict', 'read_checkpoint',
]  # fmt: skip
