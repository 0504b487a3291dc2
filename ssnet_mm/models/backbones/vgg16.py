"""VGG16 as a fully convolutional backbone.

Sources: Simonyan and Zisserman, https://arxiv.org/abs/1409.1556 (configuration D); Shelhamer, Long
and Darrell, https://arxiv.org/abs/1605.06211 (fc6 and fc7 as convolutions).
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm.constants import BN_EPS, VGG16_STAGES

from ..recompute import recompute_stage

FC_INDEX = len(VGG16_STAGES)  # fc7's place in out_indices, after pool1..pool5

# The original's BatchNormalization in torch's terms: momentum 0.99 in Keras is 0.01 here.
KERAS_BN = dict(type='BN', eps=BN_EPS, momentum=0.01)


class SamePool2x2(nn.MaxPool2d):
    """2x2 max-pooling whose output is ceil(H / stride) x ceil(W / stride), Keras' 'same'.

    With stride 1 its windows lie on the grid of the dilated convolutions around it: at every 2nd
    (4th, ...) pixel a dilated VGG16 computes just what the strided one does there.
    """

    def __init__(self, stride: int, dilation: int) -> None:
        # where the grids are the same, torch's rounding up does without a padded copy
        self.pad = 0 if (stride, dilation) == (2, 1) else dilation
        super().__init__(2, stride, dilation=dilation, ceil_mode=not self.pad)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        if self.pad:
            x = F.pad(x, (0, self.pad, 0, self.pad), value=float('-inf'))
        return super().forward(x)


def _conv_module(*args: Any, **kwargs: Any) -> ConvModule:
    """Build a ConvModule that keeps its bias beside batch norm, as the original does."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Unnecessary conv bias')
        return ConvModule(*args, bias=True, **kwargs)


def _per_stage(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if len(values) != len(VGG16_STAGES) or any(v < 1 for v in values):
        raise ValueError(f'{name} must be {len(VGG16_STAGES)} positive integers, got {values}')
    return tuple(values)


@MODELS.register_module()
class VGG16(BaseModule):
    """VGG16's thirteen 3x3 convolutions, then, if asked for, fc6 and fc7 as convolutions.

    With ``conv_cfg=dict(type='SeparableConv2d')`` this is FastFCN8's encoder.

    Args:
        in_channels: Channels of the image.
        base_channels: Width of the first stage; the stages have 1, 2, 4, 8 and 8 times as much.
        fc_channels: Width of fc6 (7x7) and fc7 (1x1); ``None`` leaves both out.
        out_indices: Which maps to return: 0..4 are pool1..pool5, 5 is fc7.
        conv_cfg: Conv layer type; ``None`` is ``nn.Conv2d``.
        norm_cfg: Norm layer between each 3x3 convolution, whose bias stays, and its ReLU; ``None``
            is none. fc6 and fc7 never have one. The default is the original's.
        dropout_ratio: Chance of an activation of fc6 and fc7 to be dropped in training.
        strides: Stride of the max-pooling that ends each stage, 1 or 2.
        dilations: Dilation of each stage's convolutions and pooling.
        fc_dilation: Dilation of fc6.
        image_padding: Padding of the first convolution, in pixels; ``None`` keeps the image's size.
            Caffe's FCN has 100.
        fc6_padding: Padding of fc6; ``None`` keeps the size of pool5's map. Caffe's FCN has 0.
        frozen_stages: Freeze so many stages, from the first, their norm layers in eval mode; 6
            freezes fc6 and fc7 too; -1 or 0 freezes nothing.
        norm_eval: Keep all norm layers in eval mode in training.
        with_cp: Keep less of the five stages for the backward pass, with the same numbers, see
            :mod:`ssnet_mm.models.recompute`.
        init_cfg: Initialisation as in mmengine; ``None`` is ConvModule's (Kaiming's, ``fan_out``).

    Raises:
        ValueError: An argument makes no sense, or, at run time, an image is too small for an fc6
            with less padding.

    Shape:
        (N, in_channels, H, W) to a tuple of (N, C, ceil(H / s), ceil(W / s)), s = 2, 4, 8, 16, 32
        for pool1..pool5 and 32 for fc7; any H, W >= 1. With ``image_padding=p`` read H + 2p - 2
        and W + 2p - 2 for H and W; with ``fc6_padding=0`` fc7 is 6 rows and columns smaller.

    Example:
        >>> import torch
        >>> from ssnet_mm import VGG16
        >>> net = VGG16(base_channels=8, fc_channels=32).eval()
        >>> for level in net(torch.rand(1, 3, 97, 131)):
        ...     print(tuple(level.shape))
        (1, 32, 13, 17)
        (1, 64, 7, 9)
        (1, 32, 4, 5)
    """

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 64,
        fc_channels: int | None = 4096,
        out_indices: Sequence[int] = (2, 3, FC_INDEX),
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = KERAS_BN,
        dropout_ratio: float = 0.5,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1, 1),
        fc_dilation: int = 1,
        image_padding: int | None = None,
        fc6_padding: int | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        counts = dict(in_channels=in_channels, base_channels=base_channels, fc_dilation=fc_dilation)
        if fc_channels is not None:
            counts['fc_channels'] = fc_channels
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f'{name} must be at least 1, got {count}')
        if not 0 <= dropout_ratio < 1:
            raise ValueError(f'dropout_ratio must lie in [0, 1), got {dropout_ratio}')
        last = FC_INDEX if fc_channels is not None else FC_INDEX - 1
        out_indices = tuple(out_indices)
        if not out_indices or any(not 0 <= i <= last for i in out_indices):
            raise ValueError(
                f'out_indices must lie in 0..{last} (0..4 are pool1..pool5, 5 is fc7, which needs '
                f'fc_channels), got {out_indices}'
            )
        if not -1 <= frozen_stages <= last + 1:
            raise ValueError(f'frozen_stages must lie in -1..{last + 1}, got {frozen_stages}')
        strides, dilations = _per_stage('strides', strides), _per_stage('dilations', dilations)
        if max(strides) > 2:
            raise ValueError(f'strides must be 1 or 2, got {strides}')
        if image_padding is None:
            image_padding = dilations[0]
        elif image_padding < dilations[0]:  # less would shrink the smallest images to nothing
            raise ValueError(f'image_padding must be at least {dilations[0]}, got {image_padding}')
        if fc6_padding is None:
            fc6_padding = 3 * fc_dilation
        elif fc6_padding < 0:
            raise ValueError(f'fc6_padding must be at least 0, got {fc6_padding}')

        # what a head has to cut off again; None where maps are those of the image itself
        self.image_padding = None if image_padding == dilations[0] else image_padding
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        # Stages run only as far as a level is asked for: parameters nobody uses get no gradient,
        # on which distributed training stalls.
        self.stages = nn.ModuleList()
        self.pools = nn.ModuleList()
        channels = in_channels
        used = VGG16_STAGES[: max(out_indices) + 1]
        for (depth, factor), stride, dilation in zip(used, strides, dilations):
            width = base_channels * factor
            layers = dict(dilation=dilation, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            stage = nn.Sequential()
            for _ in range(depth):
                padding = dilation if self.stages or stage else image_padding
                stage.append(_conv_module(channels, width, 3, padding=padding, **layers))
                channels = width
            self.stages.append(stage)
            self.pools.append(SamePool2x2(stride, dilation))

        self.fc6: ConvModule | None = None
        self.fc7: ConvModule | None = None
        if FC_INDEX in out_indices and fc_channels is not None:
            fc6_shape = dict(kernel_size=7, padding=fc6_padding, dilation=fc_dilation)
            self.fc6 = _conv_module(channels, fc_channels, conv_cfg=conv_cfg, **fc6_shape)
            self.fc7 = _conv_module(fc_channels, fc_channels, 1, conv_cfg=conv_cfg)
            self.fc6_padding = fc6_padding
            self.dropout = nn.Dropout(dropout_ratio)
            # how large pool5's map must be for fc6; 'same' padding takes any
            self.fc6_needs = max(6 * fc_dilation + 1 - 2 * fc6_padding, 1)
        self._freeze()

    def _freeze(self) -> None:
        frozen: list[nn.Module] = list(self.stages[: max(self.frozen_stages, 0)])
        if self.frozen_stages > FC_INDEX and self.fc6 is not None and self.fc7 is not None:
            frozen += [self.fc6, self.fc7]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'VGG16':
        """Set training mode, except for what is frozen."""
        super().train(mode)
        if mode:
            self._freeze()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map an image batch to the levels in ``out_indices``, in that order."""
        size = x.shape[2:]
        levels: list[Tensor] = []  # strides 1/2, 1/4, 1/8, 1/16, 1/32, and 1/32 for fc7
        for stage, pool in zip(self.stages, self.pools, strict=True):
            x = recompute_stage([*stage.children(), pool], x) if self.with_cp else pool(stage(x))
            levels.append(x)
        if self.fc6 is not None and self.fc7 is not None:
            if self.fc6_needs > 1 and min(x.shape[2:]) < self.fc6_needs:
                raise ValueError(
                    f'an image of {size[0]}x{size[1]} is too small: it reaches fc6 as '
                    f'{x.shape[2]}x{x.shape[3]}, which must be {self.fc6_needs} or more each way: '
                    'raise image_padding or fc6_padding'
                )
            # On maps lower than the padding, oneDNN's bfloat16 leaves gradients of fc6 unset
            # (docs/performance.md).
            low = torch.is_autocast_enabled('cpu') and x.shape[2] < self.fc6_padding
            with torch.autocast('cpu', enabled=False) if low else nullcontext():
                x = self.fc6(x.float() if low else x)
            x = self.dropout(x)
            levels.append(self.dropout(self.fc7(x)))
        return tuple(levels[i] for i in self.out_indices)
