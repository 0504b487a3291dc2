"""FCN8 and FastFCN8 for MMSegmentation.

Importing the package registers its parts in the toolbox's registries and changes nothing else. Its
own command does that when it has read its arguments (:func:`register`). Without the toolbox the
import succeeds all the same, for what runs exported models (:class:`ssnet_mm.deploy.Segmenter`);
the parts then raise ImportError.
"""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from . import engine, weights
    from .datasets import CamVidDataset
    from .layers import SeparableConv2d
    from .models import (
        VGG16,
        CaffeFCN8Head,
        DistilledEncoderDecoder,
        FCN8Head,
        KLDistillLoss,
        LovaszSoftmaxLoss,
        build_model,
    )

__all__ = [
    'CaffeFCN8Head',
    'CamVidDataset',
    'DistilledEncoderDecoder',
    'FCN8Head',
    'KLDistillLoss',
    'LovaszSoftmaxLoss',
    'SeparableConv2d',
    'VGG16',
    'build_model',
    'engine',
    'weights',
    '__version__',
]

# The subpackages that hold what is public here, in the order of their dependencies.
_HOMES = ('engine', 'weights', 'datasets', 'layers', 'models')


class ToolboxMissing(ImportError):
    """A module that the parts plug into is not installed."""


def register() -> None:
    """Import all parts, which registers them; done already wherever the package is imported.

    Raises:
        ToolboxMissing: There is no toolbox.
    """
    missing = next(filter(_is_missing, ('torch', 'mmengine', 'mmcv', 'mmseg')), None)
    if missing is not None:
        raise ToolboxMissing(
            f'ssnet_mm plugs into MMSegmentation, but there is no module {missing!r} here. Install '
            'one of the two stacks: pip install "ssnet_mm[onedl]" (maintained, nothing to compile) '
            'or pip install "ssnet_mm[openmmlab]" (the original packages).'
        )
    for name in _HOMES:
        home = import_module(f'.{name}', __name__)
        globals().update({key: getattr(home, key) for key in __all__ if hasattr(home, key)})


def _is_missing(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ImportError:  # an import hook may forbid a module, too
        return True


def _in_own_command() -> bool:
    """Whether this process was started as ``ssnet_mm``, ``python -m ssnet_mm`` or one of our tools.

    Help and usage errors then need no toolbox, and neither do exported models.
    """
    if 'mmengine' in sys.modules or not sys.argv:
        return False
    script, here = Path(sys.argv[0]), Path(__file__).parent
    if sys.argv[0] == '-m':  # https://docs.python.org/3/library/sys.html#sys.argv
        words = sys.orig_argv
        return '-m' in words and words[words.index('-m') + 1 :][:1] == [__name__]
    if script.name in ('ssnet_mm', 'ssnet_mm.exe', 'ssnet_mm-script.py'):
        return True
    return script.resolve().parent in (here.parent / 'tools', here / '.mim' / 'tools')


def __getattr__(name: str) -> Any:
    if name in __all__:
        register()
        return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


if not _in_own_command():
    with suppress(ToolboxMissing):
        register()
