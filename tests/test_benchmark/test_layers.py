from pathlib import Path

import pytest
import torch
from torch import nn

from ssnet_mm import build_model
from ssnet_mm.benchmark import layers
from ssnet_mm.benchmark.layers import REST, Arithmetic, LayerCost, Machine, count_macs, time_layers
from ssnet_mm.benchmark.rows import Row, Settings
from ssnet_mm.benchmark.worker import build_row

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


@pytest.mark.parametrize(
    'layer, macs',
    [
        # out channels * in channels * taps * pixels out
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), 8 * 4 * 9 * (5 * 6)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 4 * 1 * 9 * (10 * 12)),
        (nn.Conv2d(4, 8, 1, groups=2), 8 * 2 * 1 * (10 * 12)),
        # every pixel in meets every tap
        (nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1), 4 * 2 * 16 * (10 * 12)),
        (nn.Linear(12, 5), 5 * 12 * (3 * 4 * 10)),
        (nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.ReLU()), 2 * 4 * 120),
    ],
    ids=['strided', 'depthwise', 'grouped', 'transposed', 'linear', 'norm and relu are free'],
)
def test_multiply_adds_by_hand(layer, macs):
    batch = 3 if isinstance(layer, nn.Linear) else 1
    assert count_macs(layer.to('meta').eval(), (batch, 4, 10, 12))[''] == macs
    assert count_macs(layer.to('meta').eval(), (2 * batch, 4, 10, 12))[''] == 2 * macs


@pytest.mark.parametrize('name, giga', [('fcn8', 110.8), ('fastfcn8', 14.2)])
def test_multiply_adds_of_the_networks(name, giga):
    with torch.device('meta'):
        model, _ = build_row(Row(str(CONFIGS / f'{name}_voc.py')), Settings())
    macs = count_macs(model, (1, 3, 512, 512))
    assert round(macs[''] / 1e9, 1) == giga
    if name == 'fcn8':  # three 1x1 score layers on 64x64, 32x32 and 16x16, two x2 upsamplings
        scores = 21 * (256 * 64**2 + 512 * 32**2 + 4096 * 16**2)
        assert macs[''] - macs['backbone'] == scores + 21 * 21 * 16 * (16**2 + 32**2)
    first = 'backbone.stages.0.0.conv'
    dense, separable = 64 * 3 * 9 * 512**2, (3 * 9 + 64 * 3) * 512**2
    assert macs[first] == {'fcn8': dense, 'fastfcn8': separable}[name]


def test_layers_add_up_to_the_network():
    model = build_model(3, 'ds', base_channels=4, fc_channels=8).eval()
    image = torch.rand(1, 3, 33, 40)
    costs = time_layers(model, image, rounds=2, macs=count_macs(model, image.shape))
    names = [cost.name for cost in costs]
    assert names[0] == 'backbone.stages.0.0.conv.depthwise' and names[-1] == REST
    assert 'decode_head.upsamples.1' in names and 'backbone.fc7' not in names
    assert len(set(names)) == len(names)
    assert sum(cost.macs for cost in costs) == count_macs(model, (1, 3, 33, 40))['']
    assert costs[-1].macs == 0  # nothing is computed outside of the layers
    assert all(cost.seconds > 0 for cost in costs[:-1])
    pixels = 33 * 40
    # image in, three channels out, 3 x 9 weights; then four channels out, 4 x 3 weights, 4 biases
    assert costs[0].moved == 4 * (3 * pixels + 3 * pixels + 27)
    assert costs[1].moved == 4 * (3 * pixels + 4 * pixels + 12 + 4)
    assert costs[1].macs == 12 * pixels
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_limit_is_the_slower_of_arithmetic_and_memory():
    machine = Machine(flops=1000.0, bandwidth=10.0)
    busy = LayerCost('busy', 9.0, macs=2000, moved=20)
    idle = LayerCost('idle', 9.0, macs=500, moved=20)
    assert (busy.limit(machine), busy.bound(machine)) == (4.0, 'arithmetic')
    assert (idle.limit(machine), idle.bound(machine)) == (2.0, 'memory')


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'int8'])
def test_the_rate_is_that_of_the_faster_work_and_works_grow_while_they_are_quick(
    monkeypatch, precision
):
    took = iter([0.001, 0.5, 0.25, 0.03125])
    monkeypatch.setattr(layers, 'seconds_of', lambda *_: next(took))
    arithmetic = Arithmetic('cpu', precision)
    convolution = 2 * 128 * 128 * 9 * 16 * 16 / 0.03125
    assert arithmetic.turn() == (2 * 512**3 / 0.25 if precision == 'int8' else convolution)
    dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16}.get(precision, torch.int32)
    assert {work().dtype for _, work in arithmetic.works} == {dtype}
