"""What a net takes of weights that are not quite its own, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from helpers.foreign_nets import (
    BASE,
    CLASSES,
    FC,
    OUR_BN,
    SEPARABLE,
    bilinear,
    caffe_weights,
    check_account,
    draw,
    segmentor,
    shapes_of,
    torchvision_vgg,
)
from mmseg.registry import MODELS

from ssnet_mm import VGG16
from ssnet_mm.errors import UserError
from ssnet_mm.weights import SOURCES, load_into, match, with_num_classes


def _ours(**kwargs):
    state = segmentor(**kwargs).state_dict()
    return state, SOURCES['ssnet_mm'](state)


@pytest.mark.parametrize('conv_cfg', [None, SEPARABLE])
def test_a_finer_net_starts_with_the_coarser_ones_predictions(conv_cfg):
    nets = {levels: segmentor(levels, conv_cfg=conv_cfg, seed=levels) for levels in (1, 2, 3)}
    for net in nets.values():  # a coarser one's upsampling may have learned, a new one's has not
        net.decode_head.upsamples.requires_grad_(False)
    image = torch.randn(1, 3, 256, 320)
    for coarse, fine in ((1, 2), (2, 3)):
        state = nets[coarse].state_dict()
        conversion = SOURCES['ssnet_mm'](state)
        fitted = load_into(nets[fine], conversion)
        check_account(fitted, state, nets[fine].state_dict())
        assert not fitted.left
        zero = {key for key, what in fitted.new.items() if what.startswith('zero')}
        half = '' if conv_cfg is None else 'pointwise.'
        assert zero == {f'decode_head.scores.0.{half}{name}' for name in ('weight', 'bias')}
        assert fitted.new['decode_head.upsamples.0.weight'].startswith('bilinear')
        with torch.no_grad():
            coarser = nets[coarse](image, mode='tensor')
            finer = nets[fine](image, mode='tensor')
        resized = F.interpolate(coarser, scale_factor=2, mode='bilinear', align_corners=False)
        assert finer.shape == resized.shape and resized.std() > 0.1
        # the outermost pixels lie outside the coarse ones' centres: there weights sum up below 1
        inner = (..., slice(1, -1), slice(1, -1))
        difference = (finer - resized)[inner].abs().max().item()
        print(f'{coarse} to {fine} levels: max difference {difference:.1e}')
        assert difference < 1e-5
        assert (finer - resized).abs().max() > 1e-2


def test_caffes_fcn_32s_starts_a_fcn_16s():
    state, net = caffe_weights(1), segmentor(2)
    fitted = load_into(net, SOURCES['caffe'](state))
    check_account(fitted, state, net.state_dict())
    assert torch.equal(net.decode_head.scores[1].weight, state['score_fr.weight'])
    assert net.decode_head.scores[0].weight.abs().max() == 0
    torch.testing.assert_close(net.decode_head.upsamples[0].weight, bilinear(CLASSES, 4))
    assert list(fitted.left) == ['upscore.weight']


def test_the_last_upsampling_of_another_stride_stays_only_if_it_is_bilinear():
    state = caffe_weights(1)
    target = shapes_of(segmentor(2)) | {'decode_head.final.weight': (CLASSES, CLASSES, 32, 32)}
    fitted = match(SOURCES['caffe'](state), target)
    assert fitted.left == {'upscore.weight': 'fixed bilinear upsampling, of another stride'}
    assert 'decode_head.final.weight' in fitted.new
    state['upscore.weight'][0, 1] += 0.1
    with pytest.raises(UserError, match=r'1 misshapen: decode_head\.final\.weight \(\(5, 5, 64'):
        match(SOURCES['caffe'](state), target)


def test_a_coarser_net_leaves_the_finest_level():
    state, conversion = _ours(levels=3)
    net = segmentor(2, seed=1)
    fitted = load_into(net, conversion)
    check_account(fitted, state, net.state_dict())
    assert set(fitted.left.values()) == {'the net has no level this fine'}
    assert set(fitted.left) == {
        'decode_head.scores.0.weight', 'decode_head.scores.0.bias', 'decode_head.upsamples.0.weight'
    }  # fmt: skip
    kept = net.decode_head.upsamples[0].weight
    assert torch.equal(kept, state['decode_head.upsamples.1.weight'])


@pytest.mark.parametrize('conv_cfg', [None, SEPARABLE])
def test_another_class_count_keeps_the_backbone_and_says_so(conv_cfg):
    state, conversion = _ours(conv_cfg=conv_cfg)
    net = segmentor(num_classes=7, conv_cfg=conv_cfg, seed=1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fitted = load_into(net, conversion)
    check_account(fitted, state, net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(value, (before if 'decode_head' in key else state)[key]), key
    assert set(fitted.new.values()) == {'as the net was built: for 7 classes'}
    assert set(fitted.left.values()) == {'for 5 classes'}


def test_another_class_count_and_more_levels_leave_the_head_as_built():
    state, conversion = _ours(levels=2)
    net = segmentor(3, num_classes=7, seed=1)
    head = {key: value.clone() for key, value in net.decode_head.state_dict().items()}
    check_account(load_into(net, conversion), state, net.state_dict())
    assert all(torch.equal(v, head[k]) for k, v in net.decode_head.state_dict().items())


def test_parts_alone_take_their_part():
    state, conversion = _ours()
    backbone = draw(VGG16(base_channels=BASE, fc_channels=FC, norm_cfg=None), seed=4)
    fitted = load_into(backbone, conversion)
    check_account(fitted, state, backbone.state_dict())
    assert set(fitted.left.values()) == {'no part of this module'}
    assert torch.equal(backbone.fc6.conv.weight, state['backbone.fc6.conv.weight'])
    head = segmentor(seed=4).decode_head
    check_account(load_into(head, conversion), state, head.state_dict())
    assert torch.equal(head.scores[0].weight, state['decode_head.scores.0.weight'])


def test_a_head_gets_nothing_from_a_classifier_and_says_so():
    conversion = SOURCES['torchvision'](torchvision_vgg(bn=False).state_dict())
    with pytest.raises(UserError, match="torchvision's vgg16 has nothing for this module"):
        load_into(segmentor().decode_head, conversion)


def test_a_shorter_backbone_and_another_head_leave_the_rest():
    state, conversion = _ours()
    backbone = VGG16(base_channels=BASE, fc_channels=FC, norm_cfg=None, out_indices=(2, 3))
    fitted = load_into(backbone, conversion)
    check_account(fitted, state, backbone.state_dict())
    assert fitted.left['backbone.stages.4.2.conv.bias'] == 'the net has no stages.4'
    assert fitted.left['backbone.fc7.conv.bias'] == 'the net has no fc7'
    fcn = dict(
        type='mmseg.FCNHead', in_channels=16, channels=4, num_classes=5, num_convs=1, in_index=0
    )
    net = segmentor(decode_head=fcn, auxiliary_head=fcn)
    fitted = load_into(net, conversion)
    check_account(fitted, state, net.state_dict())
    assert fitted.left['decode_head.upsamples.0.weight'] == 'the net has another head'
    assert set(fitted.new.values()) == {'as the net was built: the source has none'}


def test_no_fc6_is_an_error_unless_it_is_skipped():
    state = torchvision_vgg(bn=False).state_dict()
    state = {key: value for key, value in state.items() if key.startswith('features')}
    net = segmentor()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    conversion = SOURCES['torchvision'](state)
    with pytest.raises(UserError) as error:
        load_into(net, conversion)
    assert str(error.value) == (
        "the weights: torchvision's vgg16 does not fit the net: 4 missing: "
        'backbone.fc6.conv.weight, backbone.fc6.conv.bias, backbone.fc7.conv.weight, ...; change '
        'the model to match, or name what may stay as it is built (skip)'
    )
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    fitted = load_into(net, conversion, skip=('backbone.fc',))
    check_account(fitted, state, net.state_dict())
    assert fitted.new['backbone.fc7.conv.bias'] == 'as the net was built: skipped, as asked'
    assert torch.equal(net.backbone.fc6.conv.weight, before['backbone.fc6.conv.weight'])
    assert torch.equal(net.backbone.stages[0][0].conv.bias, state['features.0.bias'])


def test_what_is_skipped_is_left_and_must_be_there():
    state, conversion = _ours()
    net = segmentor(seed=1)
    fitted = load_into(net, conversion, skip=('decode_head.upsamples',))
    check_account(fitted, state, net.state_dict())
    assert set(fitted.left.values()) == {'skipped, as asked'} and len(fitted.left) == 2
    with pytest.raises(UserError, match='skip: no parameter of the net begins with fc6'):
        load_into(net, conversion, skip=('fc6', 'backbone'))


@pytest.mark.parametrize(
    'theirs, ours, message',
    [
        (dict(), dict(norm_cfg=OUR_BN),
         'the net has batch norm, the weights were trained without; set '
         'model.backbone.norm_cfg=None, or fit them to images: tools/convert_weights.py '
         '--bn-batches'),
        (dict(norm_cfg=OUR_BN), dict(),
         'the weights have batch norm, the net has none; set model.backbone.norm_cfg'),
        (dict(), dict(conv_cfg=SEPARABLE),
         'the weights are of dense convolutions, the net has separable ones; ask for the closest '
         'separable ones (factorize), or set conv_cfg=None'),
        (dict(conv_cfg=SEPARABLE), dict(),
         'the weights are of a separable net (FastFCN8), this one is dense (FCN8); set '
         "conv_cfg=dict(type='SeparableConv2d')"),
    ],
)  # fmt: skip
def test_nets_of_another_kind_are_refused_in_words(theirs, ours, message):
    _, conversion = _ours(**theirs)
    with pytest.raises(UserError) as error:
        load_into(segmentor(**ours), conversion)
    assert str(error.value) == f'the weights: {message}'
    if 'conv_cfg' in theirs or 'conv_cfg' in ours:  # a head alone too
        with pytest.raises(UserError, match='separable'):
            load_into(segmentor(**ours).decode_head, conversion)


def test_other_widths_and_norms_are_named():
    _, conversion = _ours()
    wider = draw(VGG16(base_channels=2 * BASE, fc_channels=FC, norm_cfg=None))
    with pytest.raises(
        UserError, match=r'27 misshapen: stages\.0\.0\.conv\.weight \(\(4, 3, 3, 3\)'
    ):
        load_into(wider, conversion)
    group = draw(VGG16(base_channels=BASE, fc_channels=FC, norm_cfg=dict(type='GN', num_groups=2)))
    with pytest.raises(UserError, match=r'26 missing: stages\.0\.0\.gn\.weight, '):
        load_into(group, conversion)


def test_other_modules_are_refused():
    _, conversion = _ours()
    backbone = dict(type='mmseg.ResNetV1c', depth=18, base_channels=8, in_channels=3)
    for module in (MODELS.build(backbone), segmentor(backbone=backbone)):
        with pytest.raises(UserError, match='foreign weights are for a segmentor whose backbone'):
            load_into(module, conversion)


@pytest.mark.parametrize('conv_cfg', [None, SEPARABLE])
def test_score_layers_are_made_anew_for_other_classes(conv_cfg):
    state, conversion = _ours(conv_cfg=conv_cfg)
    assert with_num_classes(conversion, CLASSES) is conversion
    other = with_num_classes(conversion, 300)
    check_account(other, state)
    assert shapes_of(other.state_dict) == shapes_of(segmentor(num_classes=300, conv_cfg=conv_cfg))
    half = '' if conv_cfg is None else 'pointwise.'
    head = {k.removeprefix('decode_head.'): v for k, v in other.state_dict.items() if 'head' in k}
    assert head[f'scores.0.{half}weight'].std() == pytest.approx(0.01, rel=0.1)
    assert head[f'scores.0.{half}bias'].abs().max() == 0
    torch.testing.assert_close(head['upsamples.1.weight'], bilinear(300, 4))
    assert torch.equal(other.state_dict['backbone.fc7.conv.' + half + 'bias'],
                       state['backbone.fc7.conv.' + half + 'bias'])  # fmt: skip
    if conv_cfg:
        assert torch.equal(head['scores.0.depthwise.weight'], torch.ones(16, 1, 1, 1))
    with pytest.raises(UserError, match='0 classes: expected 1 or more'):
        with_num_classes(conversion, 0)


def test_a_classifier_has_no_score_layers_to_make_anew():
    with pytest.raises(UserError, match="Caffe's VGG16 has no score layers to give 4 classes"):
        with_num_classes(SOURCES['caffe'](caffe_weights(0)), 4)
