"""Foreign weights through the tools: converted by one, named in init_cfg for the other."""

import pytest
import torch
from helpers.foreign_nets import caffe_weights, saved_vgg


@pytest.fixture
def vgg(tmp_path):
    return saved_vgg(tmp_path)


def _init_cfg(path):
    prefix = 'model.backbone.init_cfg'
    return ['--cfg-options', f'{prefix}.type=ForeignPretrained', f'{prefix}.checkpoint={path}']


def test_the_tool_prints_an_account_and_writes_what_test_and_predict_take(
    tool, vgg, tiny_config, tmp_path, capsys
):
    path, dest, config = vgg[0], tmp_path / 'ours.pth', tiny_config()
    tool('convert_weights').main([str(path), str(dest), '--config', config, '--from', 'auto'])
    printed = capsys.readouterr().out.splitlines()
    if 'the data_preprocessor gives' in printed[0]:  # once a process, by whoever logs first
        del printed[0]
    (tmp_path / 'best').write_text(f'{path.name}\n')  # as a work directory names its best
    tool('convert_weights').main([str(tmp_path / 'best'), str(tmp_path / 'again.pth')])
    assert (tmp_path / 'again.pth').is_file()
    assert printed[0] == "torchvision's vgg16_bn" and printed[-1] == f'{dest}: written'
    assert sum(line.startswith('  used  ') for line in printed) == 95
    assert any(line.startswith('  left  classifier.6.bias: ') for line in printed)
    assert any(line.startswith('  new   decode_head.scores.2.weight: ') for line in printed)
    tool('test').main([config, str(dest), '--work-dir', str(tmp_path / 'tested')])


def test_the_tool_ends_with_one_line_where_the_file_is_at_fault(tmp_path, fails):
    state = caffe_weights(3)
    del state['conv3_2.bias']
    torch.save(state, tmp_path / 'fcn8s.pth')
    line = fails('convert_weights', tmp_path / 'fcn8s.pth', tmp_path / 'ours.pth')
    assert line == (
        f"convert_weights.py: error: {tmp_path}/fcn8s.pth: these are not the weights of Caffe's "
        'FCN-8s: 1 missing: conv3_2.bias; check the file, or name its source'
    )
    assert not (tmp_path / 'ours.pth').exists()


def test_training_starts_from_the_weights_that_init_cfg_names(tool, vgg, tiny_config, tmp_path):
    path, state = vgg
    # learns nothing, so that the checkpoint holds what training started from
    changes = 'optim_wrapper["optimizer"]["lr"] = 0.0'
    work = tmp_path / 'work'
    tool('train').main([tiny_config(changes), '--work-dir', str(work), *_init_cfg(path)])
    written = torch.load(work / 'iter_2.pth', weights_only=True)['state_dict']
    kernel = written['backbone.fc6.conv.weight']
    assert torch.equal(kernel.flatten(1), state['classifier.0.weight'])
    assert torch.equal(written['backbone.stages.2.1.conv.bias'], state['features.17.bias'])
    log = next(work.glob('*/*.log')).read_text()
    assert f"{path}: torchvision's vgg16_bn: 95 tensors used; 2 left: classifier.6.weight" in log


def test_training_writes_nothing_where_the_weights_do_not_fit(vgg, tiny_config, tmp_path, fails):
    path, work = vgg[0], tmp_path / 'work'
    for changes, cfg_options, message in (
        ('conv_cfg["type"] = "SeparableConv2d"', _init_cfg(path), 'weights are of dense convolut'),
        ('', _init_cfg(tmp_path / 'none.pth'), 'none.pth'),
        ('', [*_init_cfg(path), 'model.backbone.init_cfg.factorise=True'], "'factorise'"),
        ('', [*_init_cfg(path), 'model.backbone.fc_channels=9',
              'model.decode_head.in_channels=[16,32,9]'], 'misshapen: fc6.conv.weight'),
    ):  # fmt: skip
        assert message in fails('train', tiny_config(changes), '--work-dir', work, *cfg_options)
        assert not work.exists()
