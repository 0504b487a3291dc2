import math

import pytest
import torch
from helpers.nets import SIZES, count_trainable, data_sample
from mmengine.optim import OptimWrapper
from mmseg.models import EncoderDecoder
from torch import Tensor, nn

from ssnet_mm import build_model
from ssnet_mm.layers import SeparableConv2d

CONV_TYPES = pytest.mark.parametrize('conv_type', ['conv', 'ds'])
BATCH_NORM = pytest.mark.parametrize('use_bn', [True, False], ids=['bn', 'plain'])


def tiny(num_classes: int = 5, conv_type: str = 'conv', **kwargs) -> EncoderDecoder:
    return build_model(
        num_classes, conv_type, **{**dict(base_channels=4, fc_channels=16), **kwargs}
    )


def natural_images(count: int, height: int, width: int) -> Tensor:
    """Images in 0..255 with a natural image's spectrum (amplitude 1/f), contrast and mean."""
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequency = (rows**2 + columns**2).sqrt().clamp(min=1 / max(height, width))

    def noise(channels: int) -> Tensor:
        white = torch.randn(count, channels, height, width)
        pink = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
        return pink / pink.std()

    image = noise(1) + 0.3 * noise(3)  # mostly grey
    return (image / image.std() * 57 + 116).clamp(0, 255).to(torch.uint8)


def make_batch(height: int, width: int, num_classes: int, in_channels: int = 3) -> dict:
    images = natural_images(2, height, width)[:, :in_channels]
    labels = torch.randint(num_classes, (2, 1, height, width))
    labels[:, :, 0] = 255
    samples = [data_sample((height, width), label) for label in labels]
    return dict(inputs=list(images), data_samples=samples)


@pytest.mark.parametrize(
    ('conv_type', 'num_classes', 'use_bn', 'expected'),
    [
        ('conv', 2, True, 134_278_854),
        ('ds', 2, True, 20_607_073),
        ('conv', 21, True, 134_385_311),
        ('ds', 21, True, 20_713_530),
        ('conv', 21, False, 134_376_863),
        ('ds', 21, False, 20_705_082),
    ],
)
def test_has_as_many_trainable_parameters_as_the_original(conv_type, num_classes, use_bn, expected):
    with torch.device('meta'):
        model = build_model(num_classes, conv_type, use_bn=use_bn)

    assert count_trainable(model) == expected
    assert all(p.requires_grad for p in model.parameters())


@BATCH_NORM
def test_the_conv_type_changes_the_conv_layers_and_nothing_else(use_bn):
    def layers(conv_type: str) -> dict[str, str]:
        """Every layer by name, a separable one written as the dense one it stands for."""
        found, inside = {}, ()
        for name, module in tiny(conv_type=conv_type, use_bn=use_bn).named_modules():
            if isinstance(module, SeparableConv2d):
                module, inside = (
                    nn.Conv2d(
                        module.in_channels,
                        module.out_channels,
                        module.kernel_size,
                        module.stride,
                        module.padding,
                        module.dilation,
                        bias=module.pointwise.bias is not None,
                    ),
                    (*inside, f'{name}.'),
                )
            if not name.startswith(inside or '-') and not list(module.children()):
                found[name] = repr(module)
        return found

    dense, separable = layers('conv'), layers('ds')

    assert separable == dense
    # 13 + 2 convolutions and 3 scores, each of them of the other type
    models = {name: tiny(conv_type=name, use_bn=use_bn) for name in ('conv', 'ds')}
    assert {
        name: sum(isinstance(m, SeparableConv2d) for m in model.modules())
        for name, model in models.items()
    } == {'conv': 0, 'ds': 18}


def test_the_default_is_fcn8_with_batch_norm():
    model = build_model(5, base_channels=4, fc_channels=16)

    assert not any(isinstance(m, SeparableConv2d) for m in model.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 13
    assert model.backbone.dropout.p == 0.5


def test_switches_reach_the_parts():
    model = tiny(use_bn=False, dropout_ratio=0.25, base_channels=6, fc_channels=10)

    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert model.backbone.dropout.p == 0.25
    assert list(model.decode_head.in_channels) == [24, 48, 10]
    assert {m.momentum for m in tiny().modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    other = tiny(norm_cfg=dict(type='BN', momentum=0.1))
    assert {m.momentum for m in other.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@CONV_TYPES
@SIZES
def test_a_prediction_has_the_images_size(size, conv_type):
    model = tiny(conv_type=conv_type).eval()
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    (sample,) = model.test_step(dict(inputs=[image], data_samples=[data_sample(size)]))

    assert sample.seg_logits.data.shape == (5, *size)
    assert sample.pred_sem_seg.data.shape == (1, *size)
    assert sample.seg_logits.data.isfinite().all()
    assert torch.equal(sample.pred_sem_seg.data[0], sample.seg_logits.data.argmax(0))


@SIZES
def test_tensor_mode_gives_the_logits_at_an_eighth(size):
    with torch.inference_mode():
        logits = tiny().eval()(torch.rand(2, 3, *size), mode='tensor')

    assert logits.shape == (2, 5, math.ceil(size[0] / 8), math.ceil(size[1] / 8))


def test_images_are_taken_as_bgr_and_normalised():
    image = torch.tensor([103.53, 116.28 + 57.12, 123.675 - 58.395])[:, None, None].expand(3, 2, 2)
    inputs = tiny().data_preprocessor(dict(inputs=[image]))['inputs']

    expected = torch.tensor([-1.0, 1.0, 0.0])[:, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(inputs, expected)


@pytest.mark.parametrize('in_channels', [1, 2])
def test_images_of_another_depth_are_fed_as_they_are(in_channels):
    model = tiny(in_channels=in_channels).eval()
    image = torch.randint(256, (in_channels, 31, 33), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image]))

    torch.testing.assert_close(data['inputs'][0], image.float())
    assert model.predict(data['inputs'])[0].pred_sem_seg.data.shape == (1, 31, 33)


@CONV_TYPES
@BATCH_NORM
def test_a_train_step_without_any_config_changes_every_weight(conv_type, use_bn):
    model = tiny(conv_type=conv_type, use_bn=use_bn, dropout_ratio=0).train()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    logs = model.train_step(make_batch(65, 97, 5), optimizer)

    assert logs['loss'].isfinite() and logs['decode.loss_ce'] == logs['loss']
    # (A bias before batch norm has no effect and may stay.)
    same = [
        n for n, p in model.named_parameters() if n.endswith('weight') and torch.equal(p, before[n])
    ]
    assert same == []
    assert all(p.isfinite().all() for p in model.parameters())


@CONV_TYPES
def test_one_batch_can_be_learned(conv_type):
    model = tiny(3, conv_type, dropout_ratio=0, base_channels=8, norm_cfg=dict(type='BN')).train()
    optimizer = OptimWrapper(torch.optim.Adam(model.parameters(), lr=5e-3))
    batch = make_batch(48, 48, 3)
    for i, sample in enumerate(batch['data_samples']):  # patches of 16x16: dark, medium, bright
        labels = torch.randint(3, (1, 3, 3)).repeat_interleave(16, 1).repeat_interleave(16, 2)
        sample.gt_sem_seg.data = labels
        batch['inputs'][i] = (labels * 100).expand(3, 48, 48).to(torch.uint8)
    losses = [model.train_step(batch, optimizer)['loss'].item() for _ in range(30)]

    assert losses[-1] < 0.5 * losses[0]


def first_loss(model: EncoderDecoder, size: int) -> float:
    batch = make_batch(size, size, 21)
    for sample in batch['data_samples']:
        sample.gt_sem_seg.data[:] = torch.randint(21, (1, size, size))  # no void pixels
    with torch.inference_mode():
        data = model.train().data_preprocessor(batch, training=True)
        return model(**data, mode='loss')['decode.loss_ce'].item()


@CONV_TYPES
@BATCH_NORM
@pytest.mark.parametrize('widths', [(8, 512), (32, 64)])
def test_the_first_loss_is_that_of_a_guess(conv_type, use_bn, widths):
    shape = dict(base_channels=widths[0], fc_channels=widths[1])
    losses = [first_loss(tiny(21, conv_type, use_bn=use_bn, **shape), 96) for _ in range(3)]

    assert all(0.9 * math.log(21) < loss < 1.3 * math.log(21) for loss in losses), losses


@CONV_TYPES
def test_the_first_loss_is_that_of_a_guess_at_full_width(conv_type):
    model = build_model(21, conv_type, use_bn=False)

    assert 0.9 * math.log(21) < first_loss(model, 64) < 1.3 * math.log(21)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        (dict(conv_type='separable'), "conv_type must be 'conv' or 'ds', got 'separable'"),
        (dict(num_classes=1), 'num_classes must be at least 2, background included, got 1'),
        (dict(base_channels=0), 'base_channels must be at least 1, got 0'),
        (dict(fc_channels=-1), 'fc_channels must be at least 1, got -1'),
        (dict(fc_channels=0), 'fc_channels must be at least 1, got 0'),
        (dict(in_channels=0), 'in_channels must be at least 1, got 0'),
        (dict(dropout_ratio=1.0), r'dropout_ratio must lie in \[0, 1\), got 1.0'),
    ],
)
def test_refuses_what_makes_no_sense(kwargs, match):
    with pytest.raises(ValueError, match=match):
        tiny(**kwargs)


def test_can_be_printed():
    assert 'SeparableConv2d' in repr(tiny(conv_type='ds'))
