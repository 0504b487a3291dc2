"""Foreign weights written as checkpoints that the rest of the package loads."""

import pytest
import torch
from helpers.foreign_nets import (
    OUR_BN,
    SEPARABLE,
    caffe_weights,
    saved_vgg,
    segmentor,
    torchvision_vgg,
)
from PIL import Image

from ssnet_mm.engine.checkpoint import load_checkpoint
from ssnet_mm.engine.launch import load_config
from ssnet_mm.errors import UserError
from ssnet_mm.weights.convert import convert_weights


@pytest.fixture
def vgg(tmp_path):
    return saved_vgg(tmp_path)


def test_weights_alone_are_written_under_our_names(vgg, tmp_path):
    path, state = vgg
    dest = tmp_path / 'new' / 'ours.pth'
    conversion = convert_weights(path, dest)
    written = torch.load(dest, weights_only=True)
    assert written['meta']['source'] == "torchvision's vgg16_bn"
    assert set(written['state_dict']) == set(conversion.used)
    assert torch.equal(written['state_dict']['backbone.fc7.conv.bias'], state['classifier.3.bias'])
    factor = (state['features.1.running_var'] + 1e-3) / (state['features.1.running_var'] + 1e-5)
    torch.testing.assert_close(
        written['state_dict']['backbone.stages.0.0.bn.weight'],
        state['features.1.weight'] * factor.sqrt(),
    )
    convert_weights(path, dest, bn_eps=1e-5, overwrite=True)
    written = torch.load(dest, weights_only=True)['state_dict']
    assert torch.equal(written['backbone.stages.0.0.bn.weight'], state['features.1.weight'])


def test_factorized_weights_of_other_classes_load_in_such_a_net(tmp_path):
    path, dest = tmp_path / 'fcn8s.pth', tmp_path / 'fast.pth'
    torch.save(caffe_weights(3), path)
    conversion = convert_weights(path, dest, num_classes=7, factorize=True)
    assert conversion.source == "Caffe's FCN-8s, factorised"
    written = torch.load(dest, weights_only=True)['state_dict']
    net = segmentor(num_classes=7, conv_cfg=SEPARABLE)
    assert set(net.state_dict()) ^ set(written) == {'decode_head.final.weight'}


def test_with_a_config_the_whole_net_is_written(vgg, tmp_path, tiny_config):
    path, state = vgg
    dest = tmp_path / 'whole.pth'
    # what the config itself would start from is not read
    cfg = load_config(tiny_config(
        'model["backbone"]["init_cfg"] = dict(type="ForeignPretrained", checkpoint="none.pth")\n'
        'model["decode_head"]["init_cfg"] = dict(type="Pretrained", checkpoint="none.pth")'
    ))  # fmt: skip
    convert_weights(path, tmp_path / 'again.pth', cfg=cfg)
    conversion = convert_weights(path, dest, cfg=cfg)
    assert dest.read_bytes() == (tmp_path / 'again.pth').read_bytes()  # the new layers too
    net = segmentor(num_classes=3, norm_cfg=OUR_BN)
    checkpoint = load_checkpoint(net, str(dest))  # every key
    assert checkpoint['meta']['dataset_meta']['classes'] == ('ground', 'left', 'right')
    assert torch.equal(net.backbone.fc6.conv.weight.flatten(1), state['classifier.0.weight'])
    assert set(conversion.new) == {key for key in net.state_dict() if 'decode_head' in key}
    # the tiny config's batch norm has torch's epsilon
    assert torch.equal(net.backbone.stages[0][0].bn.weight, state['features.1.weight'])


def test_batch_norm_is_estimated_on_the_configs_images(vgg, tmp_path, tiny_config):
    path, state = vgg
    dest = tmp_path / 'whole.pth'
    convert_weights(path, dest, cfg=load_config(tiny_config()), bn_batches=2)
    written = torch.load(dest, weights_only=True)['state_dict']
    assert torch.equal(written['backbone.stages.0.0.conv.weight'], state['features.0.weight'])
    mean = written['backbone.stages.0.0.bn.running_mean']
    assert not torch.equal(mean, state['features.1.running_mean'])
    assert written['backbone.stages.0.0.bn.num_batches_tracked'] == 2


SCOPED = """
train_pipeline[1] = dict(type='mmseg.LoadAnnotations')
train_pipeline[2].update(type='mmseg.RandomCrop', cat_max_ratio=0.75)
"""


@pytest.mark.parametrize('bn', [True, False])  # measured, and fitted
def test_images_that_batch_norm_can_not_be_measured_on_are_one_line(tmp_path, tiny_config, bn):
    dest, path = tmp_path / 'dest.pth', tmp_path / 'vgg.pth'
    torch.save(torchvision_vgg(bn=bn).state_dict(), path)

    def convert(lines=''):
        convert_weights(path, dest, cfg=load_config(tiny_config(lines)), bn_batches=2)

    convert(SCOPED)
    dest.unlink()
    for lines, message in (
        ("model['backbone']['fc6_padding'] = 0", 'on images of its train_dataloader: ValueError: '),
        ("model['decode_head']['in_index'] = [0, 1, 4]", 'train_dataloader: IndexError'),
    ):
        if bn:
            with pytest.raises(UserError, match=message):
                convert(lines)
    images = tmp_path / 'data' / 'JPEGImages'
    Image.new('RGB', (60, 50)).save(images / '3.jpg')
    with pytest.raises(UserError, match='^a batch of images of different sizes: '):
        convert('del train_pipeline[2]')
    (images / '2.jpg').write_text('no image')
    with pytest.raises(UserError, match=rf'^{images}/2.jpg: LoadImageFromFile fails with'):
        convert()
    assert not dest.exists()


def test_what_does_not_fit_or_go_together_writes_nothing(vgg, tmp_path, tiny_config):
    path, _ = vgg
    dest = tmp_path / 'dest.pth'
    cfg = load_config(tiny_config('conv_cfg["type"] = "SeparableConv2d"'))
    for kwargs, message in (
        (dict(cfg=cfg), rf'^{path}: the weights are of dense convolutions'),
        (dict(source='caffe'), rf"^{path}: these are not the weights of Caffe's VGG16: conv1_1"),
        (dict(bn_batches=2), 'need a net: give a config'),
        (dict(bn_eps=-1e-3), '-0.001 for batch norm: expected 0 or more'),
        (dict(cfg=cfg, bn_batches=-1), '-1 batches for batch norm: expected 0 or more'),
        (dict(skip=['backbone.fc6']), 'need a net: give a config'),
        (dict(cfg=cfg, num_classes=3), "num_classes and bn_eps are the config's"),
        (dict(cfg=cfg, bn_eps=1e-3), "num_classes and bn_eps are the config's"),
        (dict(num_classes=3), 'no score layers to give 3 classes'),
    ):
        with pytest.raises(UserError, match=message):
            convert_weights(path, dest, **kwargs)
    with pytest.raises(UserError, match=r'dest\.npz: a checkpoint ends in \.pth or \.safetensors'):
        convert_weights(path, tmp_path / 'dest.npz')
    assert not dest.exists()
    dest.write_text('mine')
    with pytest.raises(UserError, match=r'dest\.pth is there already; .* overwrite'):
        convert_weights(path, dest)
    assert dest.read_text() == 'mine'
    with pytest.raises(UserError, match="can't write .*; choose another place"):
        convert_weights(path, dest / 'below.pth')
