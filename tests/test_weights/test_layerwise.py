"""Nets with batch norm, dense and separable, that give on images what a dense one gives."""

import pytest
import torch
import torch.nn.functional as F
from helpers.foreign_nets import BASE, FC, OUR_BN, SEPARABLE, draw, segmentor, torchvision_vgg

from ssnet_mm import VGG16
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError
from ssnet_mm.weights import from_ours, with_split_kernels
from ssnet_mm.weights.conversion import CAFFE_BGR, IMAGENET_RGB, Input
from ssnet_mm.weights.convert import convert_weights
from ssnet_mm.weights.layerwise import fit_to_dense, with_batch_norm_folded

LEVELS = (0, 1, 2, 3, 4, 5)


def net(**kwargs):
    return draw(VGG16(base_channels=BASE, fc_channels=FC, out_indices=LEVELS, **kwargs))


def images(count=2, seed=0):
    """Smooth ones, as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 9, generator=generator)
    return F.interpolate(coarse, (48, 54), mode='bicubic')


def state_of(net):
    return {f'backbone.{key}': value.clone() for key, value in net.state_dict().items()}


@pytest.fixture(scope='module')
def dense():
    torch.manual_seed(0)
    return net(norm_cfg=None)


@torch.no_grad()
@pytest.mark.parametrize('unit_scale', [False, True])
def test_a_dense_net_with_batch_norm_gives_just_what_the_one_without_gave(dense, unit_scale):
    given = Input('RGB', (1.0, 2.0, 3.0), (2.0, 3.0, 4.0))
    ours, batch = net(norm_cfg=OUR_BN), images()
    lost = fit_to_dense(ours, state_of(dense), [batch], given, given, unit_scale)
    assert len(lost) == 13 and max(lost.values()) < 1e-9
    for theirs, level in list(zip(dense(batch), ours(batch), strict=True))[:5]:
        factor = (theirs * level).sum((0, 2, 3)) / level.square().sum((0, 2, 3)).clamp_min(1e-9)
        torch.testing.assert_close(level * factor[:, None, None], theirs, rtol=0, atol=2e-4)
        if not unit_scale:
            torch.testing.assert_close(level, theirs, rtol=0, atol=2e-4)
    weights = torch.cat([m.norm.weight for stage in ours.stages for m in stage])
    assert (weights.max() < 1.01) == unit_scale  # a channel that is always the same has less


@torch.no_grad()
def test_the_first_layer_takes_up_what_the_images_are(dense):
    """Caffe's kernels on ImageNet's images: all but the border's padding is the same."""
    ours, batch = net(norm_cfg=OUR_BN), images()
    fit_to_dense(ours, state_of(dense), [batch], IMAGENET_RGB, CAFFE_BGR, unit_scale=False)
    pixels = batch * torch.tensor(IMAGENET_RGB.std).view(3, 1, 1)
    pixels = (pixels + torch.tensor(IMAGENET_RGB.mean).view(3, 1, 1)).flip(1)
    pixels = pixels - torch.tensor(CAFFE_BGR.mean).view(3, 1, 1)
    theirs, level = dense(pixels)[0], ours(batch)[0]
    error = (theirs - level)[..., 2:-2, 2:-2].abs().max() / theirs.abs().max()
    assert error < 1e-3  # the border is in the means


@torch.no_grad()
def test_separable_layers_fitted_to_images_lose_less_than_split_kernels(dense):
    given = IMAGENET_RGB
    batch, unseen = images(8), images(4, seed=1)
    fitted, split = (net(norm_cfg=cfg, conv_cfg=SEPARABLE) for cfg in (OUR_BN, None))
    lost = fit_to_dense(fitted, state_of(dense), [batch[:4], batch[4:]], given, given)
    assert all(0 < share < 1 for share in lost.values())
    halves = with_split_kernels(from_ours(state_of(dense))).state_dict
    split.load_state_dict({key.removeprefix('backbone.'): value for key, value in halves.items()})

    def correlation(level, other):
        theirs = dense(unseen)[level].flatten()
        return torch.corrcoef(torch.stack([theirs, other(unseen)[level].flatten()]))[0, 1]

    ours = net(norm_cfg=OUR_BN, conv_cfg=SEPARABLE)
    fit_to_dense(ours, state_of(dense), [batch], given, given, unit_scale=False)
    for level in range(5):
        assert correlation(level, ours) > correlation(level, split) + 0.05
    assert correlation(2, ours) > 0.8


@torch.no_grad()
def test_batch_norm_is_folded_into_the_layer_before_it():
    trained = net(norm_cfg=OUR_BN)
    folded = with_batch_norm_folded(from_ours(state_of(trained)))
    plain = net(norm_cfg=None)
    plain.load_state_dict({k.removeprefix('backbone.'): v for k, v in folded.state_dict.items()})
    for ours, theirs in zip(plain(images()), trained(images()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_convert_fits_weights_without_batch_norm_to_a_net_with(tmp_path, tiny_config):
    path, dest = tmp_path / 'vgg16.pth', tmp_path / 'start.pth'
    torch.save(torchvision_vgg(bn=False).state_dict(), path)
    cfg = load_config(tiny_config())
    with pytest.raises(UserError, match='norm_cfg=None'):
        convert_weights(path, dest, cfg=cfg)
    account = convert_weights(path, dest, cfg=cfg, bn_batches=2)
    assert account.used['backbone.stages.0.0.bn.weight'] == 'the images'
    assert max(account.errors.values()) < 0.01  # of the border, padded with another mean
    model = segmentor(num_classes=3, norm_cfg=OUR_BN)
    state = torch.load(dest, weights_only=True)['state_dict']
    model.load_state_dict(state)
    assert state['backbone.stages.4.2.bn.running_var'].max() < 1.01
    with pytest.raises(UserError, match='can not be skipped'):
        convert_weights(path, tmp_path / 'b.pth', cfg=cfg, bn_batches=1, skip=['backbone.stages.0'])


def test_convert_fits_a_separable_net_to_a_trained_dense_one(tmp_path, tiny_config):
    path = tmp_path / 'fcn8.pth'
    trained = draw(segmentor(num_classes=3, norm_cfg=OUR_BN))
    torch.save(trained.state_dict(), path)
    change = 'model["{}"]["conv_cfg"] = dict(type="SeparableConv2d")\n'
    cfg = load_config(tiny_config(change.format('backbone') + change.format('decode_head')))
    account = convert_weights(path, tmp_path / 'a.pth', cfg=cfg, factorize=True, bn_batches=2)
    assert 'fitted to images' in account.source and not account.left and not account.new
    state = torch.load(tmp_path / 'a.pth', weights_only=True)['state_dict']
    score = state['decode_head.scores.0.pointwise.weight']
    torch.testing.assert_close(score, trained.decode_head.scores[0].weight)
