"""The configs' weight decay is Keras' L2 penalty: ``l2 * ||w||**2`` on conv kernels, nothing else.

Weights and gradients from Keras itself are stored by ``tests/reference/make_keras_reference.py``.
All in float64: in one step the penalty moves a weight by a few millionths of itself.
"""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmseg.registry import MODELS
from reference.keras_layout import load_reference, to_torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

CONFIGS = Path(__file__).parents[2] / 'configs'
NUM_CLASSES = 5
# Conv kernels: 13 + 2 + 3 score layers, two each if separable, and 2 transposed ones.
KERNELS = {'fcn8': 18 + 2, 'fastfcn8': 2 * 18 + 2}


def _load(name):
    """Build a config's model, narrow, and the config's optimizer for it."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.merge_from_dict(
        {
            'model.data_preprocessor': None,
            'model.backbone.base_channels': 4,
            'model.backbone.fc_channels': 8,
            'model.backbone.dropout_ratio': 0.0,  # the same loss, however often it is computed
            'model.decode_head.in_channels': [16, 32, 8],
            'model.decode_head.num_classes': NUM_CLASSES,
        }
    )
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).double().train()
    with torch.no_grad():  # no bias stays zero, where decay would not show
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return cfg, model, build_optim_wrapper(model, cfg.optim_wrapper)


def _kernels(model):
    """Find the conv kernels that learn by their layers, depthwise and transposed ones too."""
    return {
        f'{name}.weight': module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight.requires_grad
    }


def _penalty(model, l2):
    return l2 * sum(kernel.square().sum() for kernel in _kernels(model).values())


def _loss(model):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 45, 67, dtype=torch.float64, generator=generator)
    target = torch.randint(NUM_CLASSES, (2, 6, 9), generator=generator)
    return F.cross_entropy(model(image, mode='tensor'), target)


def _copy_parameters(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _max_difference(actual, expected):
    assert actual.keys() == expected.keys()
    return max((actual[name] - expected[name]).abs().max().item() for name in expected)


@pytest.mark.parametrize('name', sorted(path.stem for path in CONFIGS.glob('*fcn8_*.py')))
def test_decay_is_twice_l2_for_conv_kernels_and_nothing_for_the_rest(name):
    cfg, model, optim_wrapper = _load(name)
    kernels = _kernels(model)
    assert len(kernels) == KERNELS[name.split('_')[0]]
    # docs/results.md's recipe is not the original's: AdamW's decay is no L2
    decay = 2 * cfg.l2 if 'l2' in cfg else 0.01
    assert decay > 0
    decays = {
        id(parameter): group['weight_decay']
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
        if parameter.requires_grad
    }
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    actual = {name: decays.pop(id(parameter)) for name, parameter in learned}
    assert actual == {name: decay if name in kernels else 0.0 for name in actual}
    assert not decays


def test_biases_have_the_rate_of_kernels():
    _, _, optim_wrapper = _load('fcn8_voc')
    assert {group['lr'] for group in optim_wrapper.optimizer.param_groups} == {0.01}


def test_the_paper_doubles_the_rate_of_biases_in_a_net_without_batch_norm():
    _, model, optim_wrapper = _load('fcn8_voc_paper')
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    rates = {
        id(parameter): group['lr']
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    actual = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert sum(name.endswith('.bias') for name in actual) == 18
    assert actual == {name: 2e-4 if name.endswith('.bias') else 1e-4 for name in actual}


def test_caffes_steps_double_the_rate_of_biases_and_leave_the_upsampling_alone():
    """Against Caffe's update rule by hand: the rate goes into the momentum, not on it."""
    _, model, optim_wrapper = _load('fcn8_voc_caffe')
    lr, momentum, decay = 1e-14, 0.99, 5e-4  # of voc-fcn8s/solver.prototxt
    before = _copy_parameters(model)
    expected, speed = dict(before), dict.fromkeys(before, 0.0)
    image = torch.randn(1, 3, 20, 30, dtype=torch.float64)
    for _ in range(3):
        optim_wrapper.zero_grad()
        loss = 1e12 * model(image, mode='tensor').square().mean()  # so that a step shows
        loss.backward()
        for name, parameter in model.named_parameters():
            if 'scores' in name or 'backbone' in name:
                bias = name.endswith('.bias')
                grad = parameter.grad + (0 if bias else decay) * expected[name]
                speed[name] = momentum * speed[name] + (2 * lr if bias else lr) * grad
                expected[name] = expected[name] - speed[name]
        optim_wrapper.step()
    actual = _copy_parameters(model)
    assert _max_difference(actual, expected) < 1e-12
    same = {name for name, value in actual.items() if torch.equal(value, before[name])}
    assert same == {
        f'decode_head.{name}.weight' for name in ('upsamples.0', 'upsamples.1', 'final')
    }
    moved = [(actual[name] - before[name]).abs().max() for name in before if name not in same]
    assert min(moved) > 1e-9


@pytest.mark.parametrize('name', ['fcn8_voc', 'fastfcn8_voc', 'fcn8_voc_paper'])
def test_sgd_step_follows_the_gradient_of_the_penalised_loss(name):
    cfg, model, optim_wrapper = _load(name)
    before = _copy_parameters(model)
    loss = _loss(model)
    penalised = loss + _penalty(model, cfg.l2)
    grads = dict(
        zip(
            before,
            torch.autograd.grad(penalised, list(model.parameters()), retain_graph=True),
            strict=True,
        )
    )
    optim_wrapper.update_params(loss)

    rate = cfg.optim_wrapper.optimizer.lr
    bias_rate = 2 * rate if name == 'fcn8_voc_paper' else rate
    expected = {
        name: before[name] - (bias_rate if name.endswith('.bias') else rate) * grad
        for name, grad in grads.items()
    }
    assert _max_difference(_copy_parameters(model), expected) < 1e-14
    # The penalty moves every kernel by a thousand times as much or more.
    assert all(rate * 2 * cfg.l2 * before[name].abs().max() > 1e-11 for name in _kernels(model))


@pytest.mark.parametrize('name', ['fcn8_camvid_240x180', 'fastfcn8_camvid_240x180'])
def test_adam_steps_follow_the_gradient_of_the_penalised_loss(name):
    """Coupled: the penalty goes through Adam's moments, which AdamW's weight decay does not."""
    cfg, model, optim_wrapper = _load(name)
    lr, decay = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay

    def train(optimizer_class, l2=0.0, **kwargs):
        other = copy.deepcopy(model)
        optimizer = optimizer_class(other.parameters(), lr=lr, **kwargs)
        for _ in range(3):  # Adam's first step is the gradient's sign
            optimizer.zero_grad()
            (_loss(other) + _penalty(other, l2)).backward()
            optimizer.step()
        return _copy_parameters(other)

    penalised = train(torch.optim.Adam, l2=cfg.l2)
    without = train(torch.optim.Adam)
    decoupled = train(torch.optim.AdamW, weight_decay=decay)
    for _ in range(3):
        optim_wrapper.update_params(_loss(model))
    actual = _copy_parameters(model)
    assert _max_difference(actual, penalised) < 1e-9
    assert _max_difference(actual, without) > 1e-6
    assert _max_difference(actual, decoupled) > 1e-6


@pytest.mark.parametrize(('name', 'conv_type'), [('fcn8_voc', 'conv'), ('fastfcn8_voc', 'ds')])
def test_penalty_and_its_step_equal_keras(name, conv_type):
    cfg, model, optim_wrapper = _load(name)
    reference = load_reference(conv_type)
    assert cfg.l2 == reference['l2']
    model.load_state_dict(to_torch(reference, 'weights'), strict=False)
    before = _copy_parameters(model)

    penalty = _penalty(model, cfg.l2).item()
    assert penalty == pytest.approx(float(reference['penalty']), rel=1e-5)

    for parameter in model.parameters():  # nothing but the penalty
        parameter.grad = torch.zeros_like(parameter)
    optim_wrapper.step()
    after = _copy_parameters(model)
    rate = cfg.optim_wrapper.optimizer.lr
    grads = {name: (before[name] - after[name]) / rate for name in before}

    stored = to_torch(reference, 'penalty_grad')
    assert stored.keys() == _kernels(model).keys()
    for name, grad in grads.items():
        if name in stored:
            torch.testing.assert_close(grad, stored[name].double(), rtol=1e-6, atol=1e-12)
        else:
            assert not grad.any(), name
