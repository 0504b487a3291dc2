"""FCN8 and FastFCN8 for MMSegmentation.

Importing the package registers its parts in the toolbox's registries and changes nothing else:
``SeparableConv2d``, ``VGG16``, ``FCN8Head``, ``DistilledEncoderDecoder``, ``KLDistillLoss``,
``CamVidDataset`` and what :mod:`ssnet_mm.engine` adds to the Runner.
"""

from importlib.util import find_spec

from .version import __version__

for _module in ('mmengine', 'mmcv', 'mmseg'):
    if find_spec(_module) is None:
        raise ImportError(
            f'ssnet_mm plugs into MMSegmentation, but there is no module {_module!r} here. Install '
            'one of the two stacks: pip install "ssnet_mm[onedl]" (maintained, nothing to compile) '
            'or pip install "ssnet_mm[openmmlab]" (the original packages).'
        )

from . import engine, weights  # noqa: E402
from .datasets import CamVidDataset  # noqa: E402
from .layers import SeparableConv2d  # noqa: E402
from .models import (  # noqa: E402
    VGG16,
    DistilledEncoderDecoder,
    FCN8Head,
    KLDistillLoss,
    build_model,
)

__all__ = [
    'CamVidDataset',
    'DistilledEncoderDecoder',
    'FCN8Head',
    'KLDistillLoss',
    'SeparableConv2d',
    'VGG16',
    'build_model',
    'engine',
    'weights',
    '__version__',
]
