import pytest

from ssnet_mm.engine.checkpoint.training_config import changed, trained_input, training_config
from ssnet_mm.engine.input import Input

CONFIG = """
crop_size = (
    288,
    384,
)
model = dict(
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[
            123.675,
            116.28,
            103.53,
        ], std=[
            58.395,
            57.12,
            57.375,
        ], type='SegDataPreProcessor'),
    train_cfg=dict(),
    type='EncoderDecoder')
optim_wrapper = dict(clip_grad=None, paramwise_cfg={
    'custom_keys': {
        'norm.a': dict(decay_mult=-0.5)
    }
})
last = float('inf')
"""


def test_a_config_is_read_as_its_settings():
    cfg = training_config({'cfg': CONFIG})
    assert cfg['crop_size'] == [288, 384]
    assert cfg['model']['data_preprocessor']['bgr_to_rgb'] is True
    assert cfg['model']['train_cfg'] == {}
    assert cfg['optim_wrapper']['clip_grad'] is None
    keys = cfg['optim_wrapper']['paramwise_cfg']['custom_keys']
    assert keys == {'norm.a': {'decay_mult': '-0.5'}}
    assert cfg['last'] == "float('inf')"  # not called


def test_the_input_is_that_of_the_preprocessor():
    usual = Input('RGB', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert trained_input(training_config({'cfg': CONFIG})) == usual
    apart = (
        CONFIG.replace('model = dict(\n    data_pre', 'data_pre')
        .replace("    train_cfg=dict(),\n    type='EncoderDecoder')", '')
        .replace("'SegDataPreProcessor'),", "'SegDataPreProcessor')")
    )
    assert trained_input(training_config({'cfg': apart})) == usual
    as_they_are = "model = dict(data_preprocessor=dict(type='SegDataPreProcessor'))"
    assert trained_input(training_config({'cfg': as_they_are})) == Input(
        'BGR', (0.0,) * 3, (1.0,) * 3
    )


@pytest.mark.parametrize(
    'text',
    [
        None, 3, '', '(' * 300, 'a = ' + '-' * 100_000 + '1', 'import os', 'model = f(1)', '\0',
        'model = 1', 'model = dict(data_preprocessor=1)', 'model = dict(**a)', '{**a}',
        'model = dict(data_preprocessor=dict(mean=1))', '#' * (1 << 21),
        "model = dict(data_preprocessor=dict(mean=['a']))",
        'model = dict(data_preprocessor=dict(mean=[1' + 400 * '0' + ']))',
        'a = 1\na.b = 2', 'model = {[]: 1}',
    ],
)  # fmt: skip
def test_what_is_no_config_tells_nothing(text):
    assert trained_input(training_config({'cfg': text})) is None
    assert training_config(text) == {}


def test_what_differs_is_one_line_of_text():
    before = {'model': {'\x1b[31mdepth': 'a\nb', 'same': 1}}
    line = changed(before, {'model': {'same': 1, 'long': 'c' * 1000}}, ['model'], [])
    assert line.isprintable() and len(line) < 300
    assert r"'a\nb' (config: unset)" in line
