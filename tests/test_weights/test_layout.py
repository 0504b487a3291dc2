import pytest
import torch
from helpers.foreign_nets import BASE, CLASSES, FC, OUR_BN, SEPARABLE, segmentor, shapes_of
from mmseg.registry import MODELS

from ssnet_mm import VGG16, build_model
from ssnet_mm.weights.layout import Sizes, layout


def _without_counters(net):
    shapes = shapes_of(net).items()
    return [(key, shape) for key, shape in shapes if not key.endswith('num_batches_tracked')]


@pytest.mark.parametrize('levels', [1, 2, 3, 5])
@pytest.mark.parametrize('bn', [False, True])
@pytest.mark.parametrize('separable', [False, True])
def test_layout_is_the_state_dict_of_a_segmentor(levels, bn, separable):
    net = segmentor(levels, CLASSES, SEPARABLE if separable else None, OUR_BN if bn else None)
    sizes = Sizes(3, BASE, FC, separable, bn, levels, CLASSES)
    assert list(layout(sizes).items()) == _without_counters(net)


def test_layout_is_the_state_dict_of_a_backbone_without_fc6():
    net = VGG16(in_channels=1, base_channels=BASE, fc_channels=None, out_indices=(4,))
    shapes = layout(Sizes(in_channels=1, base_channels=BASE, fc_channels=None, bn=True))
    assert [(f'backbone.{key}', shape) for key, shape in _without_counters(net)] == list(
        shapes.items()
    )


def test_layout_is_the_state_dict_of_a_head_on_pool5():
    net = MODELS.build(
        dict(type='mmseg.FCN8Head', in_channels=[8 * BASE, 8 * BASE], num_classes=CLASSES)
    )
    sizes = Sizes(base_channels=BASE, fc_channels=None, levels=2, num_classes=CLASSES)
    head = {k: shape for k, shape in layout(sizes).items() if k.startswith('decode_head.')}
    assert head == {f'decode_head.{key}': shape for key, shape in shapes_of(net).items()}


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_the_defaults_are_vgg16s_full_width(conv_type):
    with torch.device('meta'):
        net = build_model(21, conv_type)
    sizes = Sizes(separable=conv_type == 'ds', bn=True, levels=3, num_classes=21)
    assert list(layout(sizes).items()) == _without_counters(net)


@pytest.mark.parametrize('levels, kernel', [(1, 64), (2, 32), (3, 16)])
def test_the_last_upsampling_covers_twice_its_stride(levels, kernel):
    shapes = layout(Sizes(levels=levels, num_classes=21, final=True))
    assert list(shapes.items())[-1] == ('decode_head.final.weight', (21, 21, kernel, kernel))
