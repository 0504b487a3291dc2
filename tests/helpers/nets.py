"""What the tests of several networks share."""

from __future__ import annotations

import pytest
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn

SEPARABLE = dict(type='SeparableConv2d')
CONV_CFGS = pytest.mark.parametrize('conv_cfg', [None, SEPARABLE], ids=['conv', 'separable'])
SIZES = pytest.mark.parametrize('size', [(1, 1), (31, 33), (97, 131), (375, 500)])


def data_sample(
    size: tuple[int, int], labels: Tensor | None = None, **meta: object
) -> SegDataSample:
    """What a data loader gives a segmentor beside an image of a size (height, width).

    The labels are of shape (1, height, width).
    """
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size, **meta))
    if labels is not None:
        sample.gt_sem_seg = PixelData(data=labels)
    return sample


def draw_statistics(net: nn.Module) -> nn.Module:
    """Give the batch norms running statistics that change something, as training does."""
    for module in net.modules():
        if getattr(module, 'running_mean', None) is not None:
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def count_trainable(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad)
