import pytest
import torch
from helpers.foreign_nets import (
    OUR_BN,
    SEPARABLE,
    TOLERANCE,
    caffe_weights,
    check_account,
    segmentor,
    shapes_of,
)

from ssnet_mm.errors import UserError
from ssnet_mm.weights import SOURCES, with_split_kernels
from ssnet_mm.weights.split_kernels import split_kernel


def _dense(state):
    """The dense kernels that separable ones amount to."""
    dense = {}
    for key, value in state.items():
        if key.endswith('depthwise.weight'):
            pointwise = state[key.replace('depthwise', 'pointwise')]
            dense[key.replace('depthwise.', '')] = pointwise * value.transpose(0, 1)
        elif not key.endswith('pointwise.weight'):
            dense[key.replace('pointwise.', '')] = value
    return dense


def test_a_separable_net_made_dense_is_split_into_the_same_function():
    separable = segmentor(conv_cfg=SEPARABLE, norm_cfg=OUR_BN)
    dense = segmentor(norm_cfg=OUR_BN, seed=1)
    dense.load_state_dict(_dense(separable.state_dict()))
    again = segmentor(conv_cfg=SEPARABLE, norm_cfg=OUR_BN, seed=2)
    split = with_split_kernels(SOURCES['ssnet_mm'](dense.state_dict()))
    again.load_state_dict(split.state_dict)
    errors = split.errors
    assert len(errors) == 13 + 2 + 3 and max(errors.values()) < 1e-6
    image = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        logits = [net(image, mode='tensor') for net in (separable, dense, again)]
    assert logits[0].std() > 0.1
    differences = [(logits[0] - other).abs().max().item() for other in logits[1:]]
    print(f'dense, and split again: max differences {differences}')
    assert max(differences) < TOLERANCE


@pytest.mark.parametrize('shape', [(6, 3, 3, 3), (5, 4, 7, 7), (2, 3, 3, 3)])
def test_the_split_is_the_best_of_rank_one(shape):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    depthwise, pointwise, error = split_kernel(kernel)
    ours = pointwise * depthwise.transpose(0, 1)
    best = torch.empty_like(kernel)
    for c in range(shape[1]):
        u, s, v = torch.linalg.svd(kernel[:, c].flatten(1), full_matrices=False)
        best[:, c] = (s[0] * torch.outer(u[:, 0], v[0])).reshape(shape[0], *shape[2:])
    torch.testing.assert_close(ours, best, rtol=0, atol=1e-5)
    assert error == pytest.approx(((kernel - best).norm() / kernel.norm()).item(), abs=1e-5)
    assert error > 0.3
    torch.testing.assert_close(depthwise.flatten(1).norm(dim=1), torch.ones(shape[1]))


def test_a_1x1_layer_keeps_the_identity_as_its_depthwise_half():
    kernel = torch.randn(5, 4, 1, 1)
    depthwise, pointwise, error = split_kernel(kernel)
    assert torch.equal(depthwise, torch.ones(4, 1, 1, 1)) and torch.equal(pointwise, kernel)
    assert error == 0


def test_a_kernel_of_zeros_has_no_error():
    depthwise, pointwise, error = split_kernel(torch.zeros(5, 4, 3, 3))
    assert error == 0 and pointwise.abs().max() == 0 and depthwise.isfinite().all()


def test_a_split_conversion_names_the_dense_tensors():
    dense = caffe_weights(3)
    conversion = with_split_kernels(SOURCES['caffe'](dense))
    net = segmentor(conv_cfg=SEPARABLE)
    state = {k: v for k, v in shapes_of(conversion.state_dict).items() if 'final' not in k}
    assert state == shapes_of(net)
    assert conversion.used['backbone.stages.0.0.conv.depthwise.weight'] == 'conv1_1.weight'
    assert conversion.used['backbone.stages.0.0.conv.pointwise.weight'] == 'conv1_1.weight'
    assert conversion.used['decode_head.scores.2.pointwise.bias'] == 'score_fr.bias'
    assert set(conversion.used.values()) | set(conversion.left) == set(dense)
    assert conversion.source == "Caffe's FCN-8s, factorised"
    assert any(note.startswith('relative errors of the kernels from 0.000 to 0.') for note in
               conversion.notes)  # fmt: skip
    with pytest.raises(AssertionError):  # one foreign tensor makes two of ours
        check_account(conversion, dense)


def test_separable_weights_are_not_split_again():
    conversion = SOURCES['ssnet_mm'](segmentor(conv_cfg=SEPARABLE).state_dict())
    with pytest.raises(UserError, match=r'nothing to factorize: backbone\.stages\.0\.0\.conv\.dep'):
        with_split_kernels(conversion)
