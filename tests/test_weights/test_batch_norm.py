"""Batch norm's statistics, counted by hand."""

import shutil

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from torch import nn

from ssnet_mm.engine import launch
from ssnet_mm.errors import UserError
from ssnet_mm.weights import batch_norm


class Net(BaseModel):
    """Conv, dropout, batch norm, twice."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), norm(4)
        self.dropout = nn.Dropout(0.5)
        self.conv2, self.norm2 = nn.Conv2d(4, 2, 1), norm(2, momentum=0.3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert not torch.is_grad_enabled()
        hidden = self.dropout(torch.relu(self.norm1(self.conv1(inputs))))
        return self.norm2(self.conv2(hidden))


def batches(count, size=2):
    generator = torch.Generator().manual_seed(0)
    return [
        dict(inputs=torch.rand(size, 3, 8, 9, generator=generator) + i, data_samples=None)
        for i in range(count)
    ]


def statistics(values):
    """Mean and unbiased variance of each channel over images and pixels."""
    flat = values.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def test_the_statistics_are_the_plain_average_over_batches():
    torch.manual_seed(0)
    net = Net()
    nn.init.uniform_(net.norm1.weight), nn.init.uniform_(net.norm1.bias)
    nn.init.constant_(net.norm1.running_mean, 100.0)  # to be forgotten
    nn.init.constant_(net.norm2.running_var, 100.0)
    assert batch_norm.estimate_bn(net, batches(3), 3) == 3

    first, second = [], []
    with torch.no_grad():
        for data in batches(3):
            hidden = net.conv1(data['inputs'])
            first.append(statistics(hidden))
            # normalised by the batch's own values, biased variance; no dropout
            scale = hidden.var((0, 2, 3), unbiased=False, keepdim=True) + net.norm1.eps
            hidden = (hidden - hidden.mean((0, 2, 3), keepdim=True)) / scale.sqrt()
            weight, bias = (p[:, None, None] for p in (net.norm1.weight, net.norm1.bias))
            second.append(statistics(net.conv2(torch.relu(hidden * weight + bias))))
    for norm, expected in ((net.norm1, first), (net.norm2, second)):
        means, variances = (torch.stack(values) for values in zip(*expected, strict=True))
        torch.testing.assert_close(norm.running_mean, means.mean(0))
        torch.testing.assert_close(norm.running_var, variances.mean(0))
    assert net.norm1.running_mean.abs().max() < 10


def test_of_batches_alike_the_mean_is_that_over_all_pixels():
    net = Net()
    batch_norm.estimate_bn(net, batches(4), 4)
    with torch.no_grad():
        mean, _ = statistics(net.conv1(torch.cat([data['inputs'] for data in batches(4)])))
    torch.testing.assert_close(net.norm1.running_mean, mean)


def test_as_many_batches_are_taken_as_asked_for_and_no_more():
    taken = []

    def loader():
        for i, data in enumerate(batches(5)):
            taken.append(i)
            yield data

    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    assert batch_norm.estimate_bn(net, loader(), 2) == 2
    assert taken == [0, 1]
    assert batch_norm.estimate_bn(other, batches(2), 9) == 2
    assert torch.equal(net.norm2.running_var, other.norm2.running_var)


@pytest.mark.parametrize('fails', [False, True])
def test_all_else_is_as_it_was(fails):
    net = Net().train()
    net.norm1.eval()  # a frozen one
    weights = {name: value.clone() for name, value in net.named_parameters()}
    modes = {name: module.training for name, module in net.named_modules()}
    data = batches(2)
    if fails:
        data[1]['inputs'] = data[1]['inputs'][:, :2]
        with pytest.raises(RuntimeError, match='channels'):
            batch_norm.estimate_bn(net, data, 2)
    else:
        batch_norm.estimate_bn(net, data, 2)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert (net.norm1.momentum, net.norm2.momentum) == (0.1, 0.3)
    for name, value in net.named_parameters():
        assert torch.equal(value, weights[name]) and value.grad is None and value.requires_grad


def test_a_model_without_statistics_and_a_loader_without_batches_are_refused():
    for norm in (nn.InstanceNorm2d, lambda n, **_: nn.BatchNorm2d(n, track_running_stats=False)):
        with pytest.raises(UserError, match='the model has no batch norm whose'):
            batch_norm.estimate_bn(Net(norm), batches(1), 1)
    net = Net()
    nn.init.constant_(net.norm1.running_mean, 5.0)
    with pytest.raises(UserError, match='no batch of images'):
        batch_norm.estimate_bn(net, [], 1)
    assert net.norm1.running_mean.tolist() == [5.0] * 4


CHANGES = """
train_pipeline[2:2] = [dict(type='RandomFlip', prob=0.5)]
train_pipeline[3] = dict(type='RandomCrop', crop_size=(24, 40), cat_max_ratio=0.75)
train_dataloader['dataset'] = dict(type='ConcatDataset', datasets=[train_dataloader['dataset']] * 2)
"""


def test_the_training_images_of_a_config_need_no_labels(tiny_config, tiny_data):
    shutil.rmtree(tiny_data / 'SegmentationClass')
    cfg = launch.load_config(tiny_config(CHANGES))
    init_default_scope('mmseg')
    before = cfg.pretty_text
    model = MODELS.build(cfg.model)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert batch_norm.estimate_bn(model, batch_norm.unlabelled_loader(cfg, model), 3) == 3

    # crops of 24x40, padded at the bottom to the preprocessor's 32 rows
    assert [tuple(image.shape) for image in seen] == [(2, 3, 32, 40)] * 3
    assert all((image[:, :, 24:] == 0).all() and image[:, :, :24].std() > 0.1 for image in seen)
    conv = model.backbone.stages[0][0].conv
    with torch.no_grad():
        expected = [statistics(conv(image)) for image in seen]
    means, variances = (torch.stack(values).mean(0) for values in zip(*expected, strict=True))
    norm = model.backbone.stages[0][0].bn
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert cfg.pretty_text == before


def test_images_that_are_not_there_are_named(tiny_config, tiny_data):
    cfg = launch.load_config(tiny_config(), {'train_dataloader.dataset.data_root': 'no/where'})
    with pytest.raises(UserError, match=r'no folder no/where \(train_dataloader.dataset, data_roo'):
        batch_norm.unlabelled_loader(cfg, Net())
    with pytest.raises(UserError, match='has no train_dataloader to estimate'):
        batch_norm.unlabelled_loader(
            launch.load_config(tiny_config('train_dataloader=None')), Net()
        )
