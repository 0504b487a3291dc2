"""Every dialect, from the libraries' own modules, computes in our nets what it computes there."""

import pytest
import torch
from helpers.foreign_nets import (
    BASE,
    FC,
    OUR_BN,
    SEPARABLE,
    TOLERANCE,
    caffe_weights,
    check_account,
    draw,
    foreign_levels,
    mmpretrain_vgg,
    segmentor,
    shapes_of,
    torchvision_vgg,
)
from reference.keras_layout import load_image, load_reference

from ssnet_mm import VGG16, build_model
from ssnet_mm.errors import UserError
from ssnet_mm.weights import SOURCES, detect, load_foreign, load_into, with_bn_eps
from ssnet_mm.weights.conversion import CAFFE_BGR, IMAGENET_RGB


def _backbone(bn, fc):
    """Ours, with the epsilon of our configs, of which the foreign nets know nothing."""
    net = VGG16(
        base_channels=BASE,
        fc_channels=FC if fc else None,
        out_indices=(0, 1, 2, 3, 4, 5) if fc else (0, 1, 2, 3, 4),
        norm_cfg=OUR_BN if bn else None,
    )
    return draw(net, seed=9)


@torch.no_grad()
def _check_levels(name, foreign, ours):
    image = torch.randn(1, 3, 97, 131, generator=torch.Generator().manual_seed(2))
    theirs = foreign_levels(foreign, image)
    mine = ours(image)
    assert len(theirs) == len(mine)
    difference = max((a - b).abs().max().item() for a, b in zip(theirs, mine, strict=True))
    spread = min(level.std().item() for level in theirs)
    print(f'{name}: max difference {difference:.1e}, standard deviation at least {spread:.2f}')
    assert spread > 0.1
    assert difference < TOLERANCE
    return theirs


@pytest.mark.parametrize('bn', [False, True])
def test_torchvision(bn):
    foreign = torchvision_vgg(bn)
    state = foreign.state_dict()
    assert detect(state) == 'torchvision'
    conversion = SOURCES['torchvision'](state)
    assert conversion.source == ("torchvision's vgg16_bn" if bn else "torchvision's vgg16")
    assert conversion.input == IMAGENET_RGB
    assert set(conversion.left) == {'classifier.6.weight', 'classifier.6.bias'}
    check_account(conversion, state)
    ours = _backbone(bn, fc=True)
    fitted = load_into(ours, conversion)
    check_account(fitted, state, ours.state_dict())
    assert not fitted.new
    levels = _check_levels(conversion.source, foreign, ours)
    if bn:  # with no regard to eps it would have failed
        for module in ours.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-5
        with torch.no_grad():
            other = ours(torch.randn(1, 3, 97, 131, generator=torch.Generator().manual_seed(2)))
        assert (levels[-1] - other[-1]).abs().max() > 10 * TOLERANCE


@pytest.mark.parametrize('whole', [False, True])
@pytest.mark.parametrize('classes', [-1, 10])
@pytest.mark.parametrize('bn', [False, True])
def test_mmpretrain(bn, classes, whole):
    pytest.importorskip('mmpretrain')
    foreign = mmpretrain_vgg(bn, classes)
    prefix = 'backbone.' if whole else ''
    state = {prefix + key: value for key, value in foreign.state_dict().items()}
    assert detect(state) == 'mmpretrain'
    conversion = SOURCES['mmpretrain'](state)
    assert conversion.source == f"mmpretrain's VGG16{' with norm' * bn}"
    check_account(conversion, state)
    ours = _backbone(bn, fc=classes > 0)
    check_account(load_into(ours, conversion), state, ours.state_dict())
    _check_levels(f'{conversion.source}, {classes} classes', foreign, ours)


def test_an_epsilon_left_as_it_is_leaves_the_weights_as_they_are():
    state = torchvision_vgg(bn=True).state_dict()
    net = VGG16(base_channels=BASE, fc_channels=FC, norm_cfg=dict(type='BN', eps=1e-5))
    load_into(net, SOURCES['torchvision'](state))
    assert torch.equal(net.stages[0][0].bn.weight, state['features.1.weight'])
    assert torch.equal(net.stages[4][2].bn.running_var, state['features.41.running_var'])


def test_an_epsilon_is_compensated_in_the_weight_alone():
    conversion = SOURCES['torchvision'](torchvision_vgg(bn=True).state_dict())
    assert conversion.bn_eps == 1e-5
    changed = with_bn_eps(conversion, 1e-3)
    different = [k for k, v in changed.state_dict.items() if not v.equal(conversion.state_dict[k])]
    assert len(different) == 13 and all(key.endswith('.bn.weight') for key in different)
    assert changed.bn_eps == 1e-3
    assert changed.notes == ('batch norm weights adjusted from eps 1e-05 to 0.001',)
    plain = SOURCES['torchvision'](torchvision_vgg(bn=False).state_dict())
    assert with_bn_eps(plain, 1e-3) is plain


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
@pytest.mark.parametrize('eps', [1e-3, 1e-2])
def test_keras(conv_type, eps):
    reference = load_reference(conv_type)
    state = {
        key.removeprefix('weights/'): torch.from_numpy(value)
        for key, value in reference.items()
        if key.startswith('weights/')
    }
    assert detect(state) == 'keras'
    conversion = SOURCES['keras'](state)
    assert (
        conversion.source
        == {'conv': "SSNeT's Keras FCN8", 'ds': "SSNeT's Keras FastFCN8"}[conv_type]
    )
    check_account(conversion, state)
    assert not conversion.left
    net = build_model(
        int(reference['num_classes']),
        conv_type,
        base_channels=int(reference['base_channels']),
        fc_channels=int(reference['fc_channels']),
        norm_cfg=dict(type='BN', eps=eps),
    ).eval()
    check_account(load_into(net, conversion), state, net.state_dict())
    with torch.no_grad():
        logits = net(load_image(reference), mode='tensor')
    expected = torch.from_numpy(reference['bn/logits']).permute(0, 3, 1, 2)
    difference = (logits - expected).abs().max().item()
    print(f'{conversion.source}, eps {eps}: max difference {difference:.1e}')
    assert difference < TOLERANCE


@pytest.mark.parametrize(
    'levels, name', list(enumerate(['VGG16', 'FCN-32s', 'FCN-16s', 'FCN-8s']))
)  # fmt: skip
def test_caffe(levels, name):
    state = caffe_weights(levels)
    assert detect(state) == 'caffe'
    conversion = SOURCES['caffe'](state)
    assert conversion.source == f"Caffe's {name}"
    assert conversion.input == CAFFE_BGR
    check_account(conversion, state)
    assert list(conversion.left) == ([] if levels else ['fc8.weight', 'fc8.bias'])
    ours = conversion.state_dict
    assert torch.equal(ours['backbone.stages.3.1.conv.weight'], state['conv4_2.weight'])
    assert torch.equal(ours['backbone.fc6.conv.weight'].flatten(1), state['fc6.weight'].flatten(1))
    if levels:
        net = segmentor(levels)
        fitted = load_into(net, conversion)
        check_account(fitted, state, net.state_dict())
        last = {1: 'upscore.weight', 2: 'upscore16.weight', 3: 'upscore8.weight'}[levels]
        assert fitted.left == {last: 'fixed bilinear upsampling, which resizing the logits does'}
        assert torch.equal(net.decode_head.scores[-1].weight, state['score_fr.weight'])
        if levels == 3:
            assert torch.equal(net.decode_head.scores[0].bias, state['score_pool3.bias'])
            assert fitted.used['decode_head.upsamples.0.weight'] == 'upscore_pool4.weight'
            assert fitted.used['decode_head.upsamples.1.weight'] == 'upscore2.weight'


def test_fc6_as_a_fully_connected_layer_sees_channels_then_rows_then_columns():
    state = caffe_weights(0)
    ours = SOURCES['caffe'](state).state_dict['backbone.fc6.conv.weight']
    window = torch.randn(1, 8 * BASE, 7, 7)
    expected = torch.nn.functional.linear(window.flatten(1), state['fc6.weight'])
    actual = torch.nn.functional.conv2d(window, ours)
    torch.testing.assert_close(actual.flatten(1), expected)


def test_an_upsampling_that_learned_something_is_not_dropped():
    state = caffe_weights(3)
    state['upscore8.weight'][0, 0, 3, 4] += 1e-3
    with pytest.raises(UserError, match=r"Caffe's FCN-8s does not fit .* 1 unexpected: upscore8"):
        load_into(segmentor(3), SOURCES['caffe'](state))


def test_fcn_8s_at_once_tells_its_factors():
    state = caffe_weights(3)
    state['scale_pool3.weight'] = torch.full((4 * BASE,), 1e-4)
    state['scale_pool4.weight'] = torch.full((8 * BASE,), 1e-2)
    conversion = SOURCES['caffe'](state)
    check_account(conversion, state)
    assert conversion.source == "Caffe's FCN-8s-at-once"
    assert conversion.level_scales == (1e-4, 1e-2, 1.0)
    net = segmentor(3)
    with pytest.raises(UserError, match=r'FCN-8s-at-once scales the levels by \(0\.0001, 0\.01, 1'):
        load_into(net, conversion)
    net.decode_head.level_scales = (1e-4, 1e-2, 1.0)
    load_into(net, conversion)
    state['scale_pool3.weight'][0] = 1
    with pytest.raises(UserError, match='2 unexpected: scale_pool3.weight, scale_pool4.weight'):
        SOURCES['caffe'](state)


@pytest.mark.parametrize('separable', [False, True])
@pytest.mark.parametrize('bn', [False, True])
def test_ours(separable, bn):
    norm = dict(type='BN', eps=1e-5) if bn else None
    donor = segmentor(conv_cfg=SEPARABLE if separable else None, norm_cfg=norm)
    state = donor.state_dict()
    assert detect(state) == 'ssnet_mm'
    conversion = SOURCES['ssnet_mm'](state)
    assert conversion.bn_eps is None
    check_account(conversion, state, state)
    net = segmentor(conv_cfg=SEPARABLE if separable else None, norm_cfg=norm, seed=3)
    load_into(net, conversion)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_ours_of_a_backbone_alone_and_with_an_auxiliary_head():
    donor = segmentor()
    for state, left in (
        (donor.backbone.state_dict(), []),
        ({**donor.state_dict(), 'auxiliary_head.conv_seg.bias': torch.ones(5)},
         ['auxiliary_head.conv_seg.bias']),
    ):  # fmt: skip
        assert detect(state) == 'ssnet_mm'
        conversion = SOURCES['ssnet_mm'](state)
        check_account(conversion, state)
        assert list(conversion.left) == left
        net = segmentor(seed=3)
        load_into(net, conversion)
        assert torch.equal(net.backbone.fc7.conv.weight, donor.backbone.fc7.conv.weight)


@pytest.mark.parametrize('bn', [False, True])
def test_full_width_names_and_shapes_are_the_libraries_own(bn):
    from torchvision.models import vgg16, vgg16_bn

    pytest.importorskip('mmpretrain')
    from mmpretrain.models import VGG

    with torch.device('meta'):
        ours = VGG16(norm_cfg=OUR_BN if bn else None)
        foreign = {
            'torchvision': (vgg16_bn if bn else vgg16)(),
            'mmpretrain': VGG(16, 1000, norm_cfg=OUR_BN if bn else None),
            'caffe': None,
        }
    for source, net in foreign.items():
        if net is None and bn:
            continue
        state = net.state_dict() if net else caffe_weights(0, 64, 4096, 1000, 'meta')
        conversion = SOURCES[source](state)
        check_account(conversion, state)
        expected = {f'backbone.{key}': shape for key, shape in shapes_of(ours).items()}
        assert shapes_of(conversion.state_dict) == expected


def test_full_width_fcn_8s_has_the_names_and_shapes_of_ours():
    with torch.device('meta'):
        ours = build_model(21, use_bn=False)
    state = caffe_weights(3, 64, 4096, 21, 'meta')
    shapes = shapes_of(SOURCES['caffe'](state).state_dict)
    assert shapes.pop('decode_head.final.weight') == (21, 21, 16, 16)
    assert shapes == shapes_of(ours)


def _torchvision():
    return torchvision_vgg(bn=True).state_dict()


def _mmpretrain():
    pytest.importorskip('mmpretrain')
    return mmpretrain_vgg(bn=True, num_classes=10).state_dict()


def _keras():
    reference = load_reference('ds')
    return {
        key.removeprefix('weights/'): torch.from_numpy(value)
        for key, value in reference.items()
        if key.startswith('weights/')
    }


def _ours():
    return segmentor(conv_cfg=SEPARABLE, norm_cfg=OUR_BN).state_dict()


WHOLE = {
    'torchvision': _torchvision,
    'mmpretrain': _mmpretrain,
    'keras': _keras,
    'caffe': lambda: caffe_weights(3),
    'ssnet_mm': _ours,
}


@pytest.mark.parametrize('source', WHOLE)
def test_any_tensor_missing_or_misshapen_is_named(source):
    whole = WHOLE[source]()
    optional = (
        'num_batches_tracked',
        'classifier.6.weight',
        'classifier.6.bias',
        'upscore8.weight',
    )
    SOURCES[source](whole)
    for key, tensor in whole.items():
        if key.endswith(optional):
            continue
        rest = {k: v for k, v in whole.items() if k != key}
        with pytest.raises(UserError) as error:
            SOURCES[detect(rest)](rest)
        assert key in str(error.value) and '\n' not in str(error.value), key
        with pytest.raises(UserError) as error:
            SOURCES[source]({**whole, key: torch.cat([tensor, tensor[:1]])})
        assert 'misshapen' in str(error.value), key


BROKEN = {
    'torchvision': ('classifier.0.weight', None,
        "these are not the weights of torchvision's vgg16_bn: 1 missing: classifier.0.weight; "
        'check the file, or name its source'),
    'mmpretrain': ('features.4.bn.running_mean', torch.ones(3),
        "these are not the weights of mmpretrain's VGG16 with norm: 1 misshapen: "
        'features.4.bn.running_mean (3,), for backbone.stages.1.1.bn.running_mean (8,); check the '
        'file, or name its source'),
    'keras': ('score16/pointwise_kernel', torch.ones(1, 1, 5, 32),
        "these are not the weights of SSNeT's Keras FastFCN8: 1 misshapen: "
        'score16/pointwise_kernel (1, 1, 5, 32), for decode_head.scores.1.pointwise.weight '
        '(5, 32, 1, 1); check the file, or name its source'),
    'caffe': ('fc8.weight', torch.ones(1000, 8),
        "these are not the weights of Caffe's FCN-8s: 1 unexpected: fc8.weight; check the file, or "
        'name its source'),
    'ssnet_mm': ('backbone.fc7.conv.depthwise.weight', torch.ones(8, 1, 1, 1, dtype=torch.int8),
        "these are not the weights of ssnet_mm's FCN8: 1 misshapen: "
        'backbone.fc7.conv.depthwise.weight of torch.int8, not floating point; check the '
        'file, or name its source'),
}  # fmt: skip


@pytest.mark.parametrize('source', BROKEN)
def test_a_broken_file_is_refused_in_a_line(source):
    key, tensor, message = BROKEN[source]
    state = dict(WHOLE[source]())
    if tensor is None:
        del state[key]
    else:
        state[key] = tensor
    with pytest.raises(UserError) as error:
        SOURCES[source](state)
    print(f'{source}: {error.value}')
    assert str(error.value) == message


def test_the_first_convolution_is_named_where_it_is_missing_or_none():
    with pytest.raises(UserError, match=r'conv1_1\.weight is missing, the first convolution'):
        SOURCES['caffe']({'conv1_1.bias': torch.ones(4)})
    with pytest.raises(UserError, match=r'conv1_1\.weight, the first convolution, is misshapen'):
        SOURCES['caffe']({'conv1_1.weight': torch.ones(4)})


def test_vgg13_is_not_taken_for_vgg16():
    from torchvision.models import vgg13

    with torch.device('meta'):
        state = vgg13().state_dict()
    with pytest.raises(UserError, match=r"not the weights of torchvision's vgg16: 12 missing: f"):
        SOURCES['torchvision'](state)


def test_other_weights_are_not_recognised():
    with pytest.raises(
        UserError,
        match='are none of timm, torchvision, .*, caffe, ssnet_mm: .* begin with a.b$',
    ):
        detect({'a.b': torch.ones(1)})
    with pytest.raises(UserError, match='begin with nothing'):
        detect({})


def test_an_account_has_a_line_for_every_tensor():
    conversion = SOURCES['caffe'](caffe_weights(0))
    lines = conversion.account().splitlines()
    assert lines[0] == "Caffe's VGG16" and len(lines) == 1 + 30 + 2
    assert lines[1] == (
        '  used  backbone.stages.0.0.conv.weight  <-  conv1_1.weight  (4x3x3x3)'
    )  # fmt: skip
    assert lines[-1].startswith("  left  fc8.bias: the classifier of ILSVRC's 1000 classes")
    assert conversion.summary == (
        "Caffe's VGG16: 30 tensors used; 2 left: fc8.weight, fc8.bias (the classifier of ILSVRC's "
        '1000 classes, in whose place are score layers)'
    )


def _classifier_of(layers):
    """torchvision's tensors under other names of the classifier's layers, fc6 and fc7 as given."""
    state = torchvision_vgg(bn=False).state_dict()
    return {
        next((key.replace(a, b) for a, b in layers.items() if key.startswith(a)), key): value
        for key, value in state.items()
    }


def test_timm_names_the_classifier_in_its_own_way():
    layers = {'classifier.0': 'pre_logits.fc1', 'classifier.3': 'pre_logits.fc2'}
    state = _classifier_of({**layers, 'classifier.6': 'head.fc'})
    for name in ('fc1', 'fc2'):
        key = f'pre_logits.{name}.weight'
        kernel = 7 if name == 'fc1' else 1
        state[key] = state[key].reshape(FC, -1, kernel, kernel)
    assert detect(state) == 'timm'
    ours, theirs = SOURCES['timm'](state), SOURCES['torchvision'](_classifier_of({}))
    assert ours.input is None  # its files are of both kinds
    for key, tensor in theirs.state_dict.items():
        assert torch.equal(ours.state_dict[key], tensor), key


def _as_keras(names):
    """torchvision's tensors in Keras' layouts under names given in the order of the layers."""
    state = list(torchvision_vgg(bn=False).state_dict().values())
    found = {}
    for i, (kernel, bias) in enumerate(names):
        weight = state[2 * i]
        if weight.dim() == 2:  # of C x H x W inputs; Keras' are H x W x C
            side = 7 if i == 13 else 1
            weight = weight.reshape(len(weight), -1, side, side).permute(2, 3, 1, 0)
            found[kernel] = weight.reshape(-1, weight.shape[-1])
        else:
            found[kernel] = weight.permute(2, 3, 1, 0)
        found[bias] = state[2 * i + 1]
    return found


_BLOCKS = [(b, i) for b, depth in enumerate((2, 2, 3, 3, 3), 1) for i in range(depth)]


@pytest.mark.parametrize('published', [False, True])
@pytest.mark.parametrize('top', [False, True])
def test_keras_applications_vgg16_is_torchvisions_in_other_layouts(published, top):
    layers = [f'block{b}_conv{i + 1}' for b, i in _BLOCKS] + ['fc1', 'fc2', 'predictions'] * top
    ends = ('{0}/{0}_W_1', '{0}/{0}_b_1') if published else ('{0}/kernel', '{0}/bias')
    state = _as_keras([tuple(end.format(layer) for end in ends) for layer in layers])
    assert detect(state) == 'keras_applications'
    ours, theirs = SOURCES['keras_applications'](state), SOURCES['torchvision'](_classifier_of({}))
    assert ours.input == CAFFE_BGR and len(ours.left) == 2 * top
    for key, tensor in ours.state_dict.items():
        assert torch.equal(theirs.state_dict[key], tensor), key
    assert len(ours.state_dict) == (30 if top else 26)


def test_hed_is_read_from_a_file_of_a_model_within_models(tmp_path):
    h5py = pytest.importorskip('h5py')
    layer = 'block{}/layers/conv2d{}/vars/{{}}'
    layers = [layer.format(b, f'_{i}' if i else '') for b, i in _BLOCKS]
    state = _as_keras([(name.format(0), name.format(1)) for name in layers])
    path = tmp_path / 'hed.weights.h5'
    with h5py.File(path, 'w') as file:
        for key, value in state.items():
            file[key] = value.numpy()
        file['dsn1/vars/0'] = file['fuse/vars/0'] = [[1.0]]
    ours, theirs = load_foreign(path), SOURCES['torchvision'](_classifier_of({}))
    assert ours.source == "HED's VGG16" and ours.input == CAFFE_BGR and len(ours.left) == 2
    assert len(ours.state_dict) == 26
    for key, tensor in ours.state_dict.items():
        assert torch.equal(theirs.state_dict[key], tensor), key


@pytest.mark.parametrize('prefix', ['model.', 'module.encoder.'])
def test_what_a_wrapper_puts_before_all_names_is_dropped(prefix, tmp_path):
    state = torchvision_vgg(bn=False).state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / 'a.pth')
    assert load_foreign(tmp_path / 'a.pth').source == "torchvision's vgg16"
    torch.save({prefix + 'other': torch.ones(1), 'x.y': torch.ones(1)}, tmp_path / 'b.pth')
    with pytest.raises(UserError, match=rf'b.pth: .* begin with {prefix}other, x.y'):
        load_foreign(tmp_path / 'b.pth')


def test_weights_that_are_not_numbers_are_named_and_may_be_left(tmp_path):
    state = torchvision_vgg(bn=False).state_dict()
    state['classifier.0.weight'][0, 0] = float('nan')
    torch.save(state, tmp_path / 'a.pth')
    conversion, net = load_foreign(tmp_path / 'a.pth'), _backbone(False, True)
    with pytest.raises(UserError, match=r'NaN or infinity in classifier\.0\.weight; .*skip'):
        load_into(net, conversion)
    load_into(net, conversion, skip=['fc6'])


def test_numbers_of_8_bits_are_read(tmp_path):
    state = torchvision_vgg(bn=False).state_dict()
    torch.save({k: v.to(torch.float8_e4m3fn) for k, v in state.items()}, tmp_path / 'a.pth')
    net = _backbone(False, True)
    load_into(net, load_foreign(tmp_path / 'a.pth'))
    first = state['features.0.weight'].to(torch.float8_e4m3fn).float()
    assert torch.equal(net.stages[0][0].conv.weight, first)


def test_the_input_can_be_said_where_names_do_not_tell_it(tmp_path):
    torch.save(torchvision_vgg(bn=False).state_dict(), tmp_path / 'caffe.pth')
    assert load_foreign(tmp_path / 'caffe.pth').input == IMAGENET_RGB
    assert load_foreign(tmp_path / 'caffe.pth', input='caffe').input == CAFFE_BGR
    with pytest.raises(UserError, match='input must be one of imagenet, caffe'):
        load_foreign(tmp_path / 'caffe.pth', input='BGR')
