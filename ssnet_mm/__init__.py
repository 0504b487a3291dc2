"""FCN8 and FastFCN8 for MMSegmentation.

Importing the package registers its parts in the toolbox's registries and changes nothing else.
Without the toolbox the import succeeds all the same, for what runs exported models
(:class:`ssnet_mm.deploy.Segmenter`); the parts then raise ImportError.
"""

from importlib.util import find_spec
from typing import Any

from .version import __version__

__all__ = [
    'CaffeFCN8Head',
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


def _is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ImportError:  # an import hook may forbid a module, too
        return True


_missing = next(filter(_is_missing, ('torch', 'mmengine', 'mmcv', 'mmseg')), None)

if _missing is None:
    from . import engine, weights
    from .datasets import CamVidDataset
    from .layers import SeparableConv2d
    from .models import (
        VGG16,
        CaffeFCN8Head,
        DistilledEncoderDecoder,
        FCN8Head,
        KLDistillLoss,
        build_model,
    )
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            raise ImportError(
                f'{name} of ssnet_mm plugs into MMSegmentation, but there is no module '
                f'{_missing!r} here. Install one of the two stacks: pip install "ssnet_mm[onedl]" '
                '(maintained, nothing to compile) or pip install "ssnet_mm[openmmlab]" (the '
                'original packages).'
            )
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
