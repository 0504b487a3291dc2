"""``init_cfg=dict(type='ForeignPretrained')`` in mmengine's own order of initialisation."""

import logging

import pytest
import torch
from helpers.foreign_nets import (
    BASE,
    FC,
    OUR_BN,
    SEPARABLE,
    caffe_weights,
    segmentor,
    torchvision_vgg,
)
from mmengine.logging import MMLogger
from mmengine.registry import WEIGHT_INITIALIZERS
from mmseg.registry import MODELS

from ssnet_mm import VGG16
from ssnet_mm.engine.checkpoint import read_checkpoint, trained_otherwise
from ssnet_mm.engine.input import Input
from ssnet_mm.errors import UserError
from ssnet_mm.weights import load_foreign
from ssnet_mm.weights.convert import convert_weights


@pytest.fixture
def log(monkeypatch):
    """What is logged, by level."""
    records = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handle', records.append)
    return lambda level: [r.getMessage() for r in records if r.levelno == level]


@pytest.fixture
def vgg(tmp_path):
    """torchvision's vgg16_bn, in a file."""
    path = tmp_path / 'vgg16.pth'
    state = torchvision_vgg(bn=True).state_dict()
    torch.save(state, path)
    return str(path), state


def _cfg(path, **kwargs):
    return dict(type='ForeignPretrained', checkpoint=str(path), **kwargs)


def _backbone(init_cfg, **kwargs):
    """A VGG16 that starts as mmengine starts it."""
    settings = dict(
        type='mmseg.VGG16', base_channels=BASE, fc_channels=FC, norm_cfg=OUR_BN, init_cfg=init_cfg
    )
    net = MODELS.build(dict(settings, **kwargs))
    net.init_weights()
    return net


# fc6 and fc7 are the backbone's children that mmengine would initialise after it
@pytest.mark.parametrize('before', [[], [dict(type='Kaiming', layer='Conv2d')]])
def test_a_backbone_keeps_its_weights(vgg, before, log):
    path, state = vgg
    net = _backbone([*before, _cfg(path)])
    assert torch.equal(net.stages[0][0].conv.weight, state['features.0.weight'])
    assert torch.equal(net.stages[4][2].bn.running_mean, state['features.41.running_mean'])
    assert torch.equal(net.fc6.conv.weight.flatten(1), state['classifier.0.weight'])
    assert torch.equal(net.fc7.conv.bias, state['classifier.3.bias'])
    assert f"{path}: torchvision's vgg16_bn: 95 tensors used; 2 left: " in '\n'.join(
        log(logging.INFO)
    )


def test_a_segmentor_keeps_its_weights_and_initialises_what_is_left(vgg):
    path, state = vgg
    zero = dict(type='mmseg.FCN8Head', in_channels=[16, 32, 8], num_classes=5,
                init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))  # fmt: skip
    net = segmentor(norm_cfg=OUR_BN, decode_head=zero, init_cfg=_cfg(path))
    net.init_weights()
    assert torch.equal(net.backbone.fc6.conv.weight.flatten(1), state['classifier.0.weight'])
    assert all((score.weight == 0.5).all() for score in net.decode_head.scores)
    whole = f'{path}.ours.pth'
    torch.save(dict(state_dict=net.state_dict()), whole)
    again = segmentor(norm_cfg=OUR_BN, init_cfg=_cfg(whole), seed=5)
    again.init_weights()
    theirs = net.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in again.state_dict().items())


def test_an_initialisation_that_would_overwrite_the_weights_is_refused(vgg):
    with pytest.raises(UserError, match=r'ForeignPretrained must stand last in init_cfg: .*vgg16'):
        _backbone([_cfg(vgg[0]), dict(type='Kaiming', layer='Conv2d')])


def test_factorize_and_skip(vgg):
    path, state = vgg
    net = _backbone(_cfg(path, factorize=True, skip='fc7'), conv_cfg=SEPARABLE)
    dense = net.fc6.conv.pointwise.weight * net.fc6.conv.depthwise.weight.transpose(0, 1)
    theirs = state['classifier.0.weight'].reshape(dense.shape)
    assert 0.2 < ((dense - theirs).norm() / theirs.norm()).item() < 0.99
    assert not torch.equal(net.fc7.conv.pointwise.bias, state['classifier.3.bias'])
    assert torch.equal(net.fc6.conv.pointwise.bias, state['classifier.0.bias'])


def test_a_net_of_another_kind_keeps_nothing_silently(vgg, tmp_path):
    path, _ = vgg
    with pytest.raises(UserError, match=rf'^{path}: the weights are of dense convolutions'):
        _backbone(_cfg(path), conv_cfg=SEPARABLE)
    with pytest.raises(UserError, match=rf'^{path}: .* not the weights of mmpretrain.* is missing'):
        _backbone(_cfg(path, source='mmpretrain'))
    with pytest.raises(
        UserError, match="^source must be one of auto, timm, torchvision.* got 'fastai'"
    ):
        _backbone(_cfg(path, source='fastai'))
    with pytest.raises(UserError, match=r'none\.pth'):
        _backbone(_cfg(tmp_path / 'none.pth'))


def test_checking_raises_what_loading_would_and_loads_nothing(vgg):
    path, _ = vgg
    net = VGG16(base_channels=BASE, fc_channels=FC, norm_cfg=OUR_BN)
    before = net.fc6.conv.weight.clone()
    WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)
    assert torch.equal(net.fc6.conv.weight, before)
    for init_cfg, message in (
        (_cfg(path, skip=['fc8']), 'skip: no parameter of the net begins with fc8'),
        (_cfg(path, factorize=True), 'the weights are of a separable net'),
    ):
        with pytest.raises(UserError, match=f'^{path}: {message}'):
            WEIGHT_INITIALIZERS.build(init_cfg).check(net, net)
    net.init_cfg = [_cfg(path), dict(type='Kaiming', layer='Conv2d')]
    with pytest.raises(UserError, match='must stand last'):
        WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)


@pytest.mark.parametrize(
    'settings, same',
    [
        (dict(mean=[104.00699, 116.66877, 122.67892], std=[1.0] * 3), True),
        (dict(mean=[104.0, 117.0, 123.0], std=[1.0] * 3), False),
        (dict(mean=[110.0], std=[1.0]), True),  # of one band: the first layer is skipped or refused
        (dict(mean=[104.00699, 116.66877, 122.67892], std=[1.0] * 3, bgr_to_rgb=True), False),
        (dict(), False),
    ],
)
@pytest.mark.parametrize('where', ['segmentor', 'backbone'])
def test_images_prepared_otherwise_are_a_warning(tmp_path, log, settings, same, where):
    path = str(tmp_path / 'caffe.pth')
    torch.save(caffe_weights(0), path)
    net = segmentor(data_preprocessor=dict(type='mmseg.SegDataPreProcessor', **settings))
    part = net if where == 'segmentor' else net.backbone
    WEIGHT_INITIALIZERS.build(_cfg(path)).check(part, net)
    warnings = log(logging.WARNING)
    assert len(warnings) == (0 if same else 1)
    if not same:
        assert warnings[0].startswith(
            f'{path}: the weights expect BGR, mean [104.00699, 116.66877, 122.67892], std '
            '[1.0, 1.0, 1.0], the data_preprocessor gives '
            f'{"RGB" if "bgr_to_rgb" in settings else "BGR"}, mean ['
        )


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_converted_file_keeps_what_images_it_expects(tmp_path, log, suffix):
    torch.save(caffe_weights(0), tmp_path / 'caffe.pth')
    path = str(tmp_path / f'ours{suffix}')
    convert_weights(tmp_path / 'caffe.pth', path)
    net = segmentor(data_preprocessor=dict(type='mmseg.SegDataPreProcessor'))
    WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)
    (warning,) = log(logging.WARNING)
    assert warning.startswith(f'{path}: the weights expect BGR, mean [104.00699,')
    # and as load_from
    assert trained_otherwise(path, read_checkpoint(path)['meta'], net, None) == [warning]


def test_a_trained_file_keeps_its_images_and_epsilon(tmp_path):
    cfg = """
model = dict(
    backbone=dict(norm_cfg=dict(type='BN', eps=1e-05)),
    data_preprocessor=dict(bgr_to_rgb=False, mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0]))
"""
    path = tmp_path / 'ours.pth'
    net = segmentor(norm_cfg=OUR_BN)
    torch.save(dict(meta=dict(cfg=cfg), state_dict=net.state_dict()), path)
    conversion = load_foreign(path)
    assert conversion.input == Input('BGR', (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    assert conversion.bn_eps == 1e-5
    converted = tmp_path / 'converted.pth'
    convert_weights(path, converted)
    assert load_foreign(converted).bn_eps == 1e-3
    for norm, eps in (
        ("norm_cfg=dict(type='SyncBN', requires_grad=True)", 1e-5),  # mmcv's default
        ('norm_cfg=None', None),
        ('', 1e-3),  # VGG16's own
    ):
        cfg = f"model = dict(backbone=dict(type='VGG16', {norm}))"
        torch.save(dict(meta=dict(cfg=cfg), state_dict=net.state_dict()), path)
        assert load_foreign(path).bn_eps == eps


def test_a_backbone_is_taken_from_under_another_head(tmp_path):
    net = segmentor(norm_cfg=OUR_BN)
    state = {k: v for k, v in net.state_dict().items() if k.startswith('backbone.')}
    others = {'decode_head.conv_seg.weight': torch.ones(3, 8, 1, 1), 'head.fc.bias': torch.ones(3)}
    torch.save(dict(state_dict={**state, **others}), tmp_path / 'other.pth')
    conversion = load_foreign(tmp_path / 'other.pth')
    assert set(conversion.used) == set(state)
    assert conversion.left == dict.fromkeys(others, 'of another head than FCN8Head')
    upsampling = {'decode_head.upsamples.0.weight': torch.ones(3, 3, 4, 4)}  # its scores are lost
    torch.save(dict(state_dict={**state, **upsampling}), tmp_path / 'other.pth')
    with pytest.raises(UserError, match='1 unexpected: decode_head.upsamples.0.weight'):
        load_foreign(tmp_path / 'other.pth')


@pytest.mark.parametrize(
    'settings, told',
    [
        (dict(conv_cfg=dict(type='ConvWS')), 'is a ConvWS2d, which the weights were not trained'),
        (dict(norm_cfg=dict(type='IN')), 'normalises by InstanceNorm2d, and the weights were'),
    ],
)
def test_layers_that_compute_otherwise_are_refused(tmp_path, settings, told):
    path = tmp_path / 'vgg16.pth'
    torch.save(torchvision_vgg(bn=False).state_dict(), path)
    net = VGG16(base_channels=BASE, fc_channels=FC, **settings)
    with pytest.raises(UserError, match=f'{path}: stages.0.0 {told}'):
        WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)
    torch.save(dict(state_dict=net.state_dict()), path)  # its own
    WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)


@pytest.mark.parametrize('settings', [{}, dict(image_padding=100), dict(dilations=(1, 1, 1, 2, 2))])
@pytest.mark.parametrize('kind', ['Conv2d', 'Conv2dAdaptivePadding'])
def test_layers_that_differ_at_edges_alone_are_taken(tmp_path, kind, settings):
    path = tmp_path / 'vgg16.pth'
    torch.save(torchvision_vgg(bn=False).state_dict(), path)
    net = VGG16(
        base_channels=BASE, fc_channels=FC, norm_cfg=None, conv_cfg=dict(type=kind), **settings
    )
    WEIGHT_INITIALIZERS.build(_cfg(path)).check(net, net)


def test_a_file_can_be_read_without_a_net(vgg):
    path, state = vgg
    assert load_foreign(path).source == load_foreign(path, 'torchvision').source
    assert load_foreign(path, factorize=True).source.endswith(', factorised')
