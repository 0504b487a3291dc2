"""The networks equal the same graph built from Keras' own layers, in values.

What Keras computes is stored by ``tests/reference/make_keras_reference.py``.
"""

import pytest
import torch
from reference.keras_layout import count_parameters, load_image, load_reference, to_torch

from ssnet_mm import build_model

CONV_TYPES = ('conv', 'ds')
TOLERANCE = 1e-4
COUNTS = {'conv': 134_278_854, 'ds': 20_607_073}  # full width, 2 classes, batch norm


@pytest.fixture(params=CONV_TYPES)
def conv_type(request):
    return request.param


@pytest.fixture
def reference(conv_type):
    return load_reference(conv_type)


def _build(conv_type, reference, **kwargs):
    return build_model(
        int(reference['num_classes']),
        conv_type,
        base_channels=int(reference['base_channels']),
        fc_channels=int(reference['fc_channels']),
        **kwargs,
    )


def _build_with_weights(conv_type, reference, use_bn=True, **kwargs):
    model = _build(conv_type, reference, use_bn=use_bn, **kwargs)
    weights = to_torch(reference, 'weights')
    if not use_bn:
        weights = {name: weight for name, weight in weights.items() if '.bn.' not in name}
    missing, left_over = model.load_state_dict(weights, strict=False)
    assert not left_over
    # Keras does not count batches.
    assert [name for name in missing if not name.endswith('.num_batches_tracked')] == []
    return model


@torch.no_grad()
def _logits(model, image):
    return model(image, mode='tensor')


def _stored_logits(reference, case):
    logits = torch.from_numpy(reference[f'{case}/logits']).permute(0, 3, 1, 2)
    assert logits.std() > 0.5  # or equality would say little
    return logits


def _max_difference(actual, expected):
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


@pytest.mark.parametrize('case', ['bn', 'plain'])
def test_logits_equal_keras(conv_type, reference, case):
    model = _build_with_weights(conv_type, reference, use_bn=case == 'bn').eval()
    difference = _max_difference(
        _logits(model, load_image(reference)), _stored_logits(reference, case)
    )
    print(f'{conv_type}, {case}: max difference {difference:.1e}')
    assert difference < TOLERANCE


def test_training_mode_logits_equal_keras(conv_type, reference):
    model = _build_with_weights(conv_type, reference, dropout_ratio=0.0).train()
    # Batch norm magnifies rounding errors. In float64 the stored ones are left: 3e-5.
    logits = _logits(model.double(), load_image(reference).double())
    difference = _max_difference(logits, _stored_logits(reference, 'train'))
    print(f'{conv_type}, train: max difference {difference:.1e}')
    assert difference < TOLERANCE


def test_equal_logits_leave_no_weight_laid_out_otherwise(conv_type, reference):
    """The logits change when any one weight is reversed along any of its axes."""
    model = _build_with_weights(conv_type, reference).eval()
    image, expected = load_image(reference)[:1], _stored_logits(reference, 'bn')[:1]
    unseen = []
    for name, tensor in model.state_dict().items():  # shares the model's memory
        weight = tensor.clone()
        # In space that is mirroring; of channels, it is another order.
        for axis in (i for i, length in enumerate(weight.shape) if length > 1):
            tensor.copy_(weight.flip(axis))
            if _max_difference(_logits(model, image), expected) < 10 * TOLERANCE:
                unseen.append(f'{name}, axis {axis}')
        tensor.copy_(weight)
    assert unseen == []


@pytest.mark.parametrize('rule', ['fused', 'unfused'])
def test_running_statistics_after_one_step(conv_type, reference, rule):
    """Mean and variance move as in Keras: in Keras 2 just so, in Keras 3 up to n / (n - 1).

    TensorFlow's fused batch norm, which Keras 2 takes for images, feeds the unbiased variance of
    the batch's n pixels into the moving variance, as torch does. Keras 2's unfused layer and Keras
    3 feed the biased one, smaller by (n - 1) / n: 3% less at this reference's last stage, where n
    is 2*3*5, and 0.01% less for 8 images of 512x512. The normalisation itself takes the biased
    variance everywhere.
    """
    stored = to_torch(reference, rule)
    if not stored:
        pytest.skip('this reference was made by Keras 3, which has no fused batch norm')
    before = to_torch(reference, 'weights')
    model = _build_with_weights(conv_type, reference).train()
    pixels = {}
    for name, module in model.named_modules():
        if name.endswith('.bn'):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: pixels.update(
                    {name: output.numel() // module.num_features}
                )
            )
    _logits(model.double(), load_image(reference).double())
    after = model.state_dict()

    tolerance = 5e-6
    assert len(stored) == 2 * 13
    for name, expected in stored.items():
        actual = after[name]
        if rule == 'unfused' and name.endswith('.running_var'):
            n = pixels[name.removesuffix('.running_var')]
            kept = 0.99 * before[name]
            actual = kept + (actual - kept) * (n - 1) / n
        assert _max_difference(expected, before[name]) > 200 * tolerance, name
        assert _max_difference(actual, expected) < tolerance, name
    if rule == 'unfused':  # and the other rule would not have passed
        name = 'backbone.stages.4.2.bn.running_var'
        assert _max_difference(after[name], stored[name]) > 10 * tolerance


def test_every_layer_has_as_many_parameters_as_in_keras(conv_type, reference):
    with torch.device('meta'):  # shapes without memory
        model = build_model(2, conv_type)
    stored = count_parameters(reference)
    for name, count in stored.items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == count, name
    # and none beside these
    assert sum(p.numel() for p in model.parameters()) == sum(stored.values()) == COUNTS[conv_type]
