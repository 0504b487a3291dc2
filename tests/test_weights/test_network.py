"""Of some weights' names and widths the whole network follows."""

import pytest
import torch
from helpers.foreign_nets import (
    BASE,
    CLASSES,
    FC,
    OUR_BN,
    SEPARABLE,
    bilinear,
    caffe_weights,
    segmentor,
    shapes_of,
)
from mmseg.registry import MODELS

from ssnet_mm import VGG16, build_model
from ssnet_mm.errors import UserError
from ssnet_mm.weights import SOURCES
from ssnet_mm.weights.network import whole_network


def _network_of(state, levels):
    return whole_network(state.get, str, levels)


@pytest.mark.parametrize('levels', [1, 2, 3, 5])
@pytest.mark.parametrize('bn', [False, True])
@pytest.mark.parametrize('separable', [False, True])
def test_the_network_of_a_segmentors_weights_is_its_own(levels, bn, separable):
    net = segmentor(levels, CLASSES, SEPARABLE if separable else None, OUR_BN if bn else None)
    network = _network_of(net.state_dict(), levels)
    assert list(network.items()) == list(shapes_of(net).items())


def test_the_network_of_a_backbone_without_fc6_has_none():
    net = VGG16(in_channels=1, base_channels=BASE, fc_channels=None, out_indices=(4,))
    state = {f'backbone.{key}': value for key, value in net.state_dict().items()}
    assert list(_network_of(state, 0).items()) == list(shapes_of(state).items())


def test_the_network_of_a_head_on_pool5_has_no_fc6():
    backbone = VGG16(base_channels=BASE, fc_channels=None, out_indices=(4,))
    head = MODELS.build(
        dict(type='mmseg.FCN8Head', in_channels=[8 * BASE, 8 * BASE], num_classes=CLASSES)
    )
    state = torch.nn.ModuleDict(dict(backbone=backbone, decode_head=head)).state_dict()
    assert _network_of(state, 2) == shapes_of(state)


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_vgg16s_full_width_takes_no_memory(conv_type):
    with torch.device('meta'):
        net = build_model(21, conv_type)
    assert list(_network_of(net.state_dict(), 3).items()) == list(shapes_of(net).items())


@pytest.mark.parametrize('levels, kernel', [(1, 64), (2, 32), (3, 16)])
def test_the_last_upsampling_covers_twice_its_stride(levels, kernel):
    state = SOURCES['caffe'](caffe_weights(levels)).state_dict
    network = list(_network_of(state, levels).items())
    assert network[-1] == ('decode_head.final.weight', (CLASSES, CLASSES, kernel, kernel))


def test_a_few_weights_tell_the_widths_of_all():
    state = segmentor().state_dict()
    few = ('stages.0.0.conv.weight', 'fc7.conv.bias', 'scores.1.bias')
    part = {key: value for key, value in state.items() if key.endswith(few)}
    assert len(part) == 3
    part['decode_head.final.weight'] = bilinear(CLASSES, 16)
    assert _network_of(part, 3) == {
        **shapes_of(state),
        'decode_head.final.weight': (CLASSES, CLASSES, 16, 16),
    }
    assert part['backbone.fc7.conv.bias'].shape == (FC,)


def test_widths_of_no_network_are_an_error():
    for shape in ((0, 3, 3, 3), (4, 0, 3, 3)):
        with pytest.raises(UserError, match='^no network has such widths .*; check the file$'):
            _network_of({'backbone.stages.0.0.conv.weight': torch.ones(shape)}, 0)
