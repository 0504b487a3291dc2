"""Other people's VGG16 and FCN weights, and our own, turned into what a net of ours takes.

Pure functions from state dicts to state dicts, each with an account of every tensor: what was used,
what was left, and why. A tensor that is missing or misshapen is an error that names it.
"""

from ssnet_mm.engine.input import Input

from .conversion import INPUTS, Conversion, with_bn_eps
from .dialects import (
    SOURCES,
    detect,
    from_caffe,
    from_hed,
    from_keras,
    from_keras_applications,
    from_mmpretrain,
    from_ours,
    from_timm,
    from_torchvision,
)
from .formats import read_weights
from .initializer import ForeignPretrained, load_foreign, load_into
from .match import match, with_num_classes
from .split_kernels import with_split_kernels

__all__ = [
    'INPUTS',
    'SOURCES',
    'Conversion',
    'ForeignPretrained',
    'Input',
    'detect',
    'from_caffe',
    'from_hed',
    'from_keras',
    'from_keras_applications',
    'from_mmpretrain',
    'from_ours',
    'from_timm',
    'from_torchvision',
    'load_foreign',
    'load_into',
    'match',
    'read_weights',
    'with_bn_eps',
    'with_num_classes',
    'with_split_kernels',
]
