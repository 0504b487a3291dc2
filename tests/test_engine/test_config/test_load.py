"""What is said of config files."""

import mmengine
import pytest
import torch

from ssnet_mm.engine.config import build_segmentor, describe, load_config
from ssnet_mm.errors import UserError


def test_a_bare_assertion_is_described_by_what_it_asserts():
    def check(hook):
        assert hook is not None

    with pytest.raises(AssertionError) as caught:
        check(None)
    caught.value.args = ()  # pytest writes the values into its own assertions
    line = describe(caught.value)
    assert line.startswith('AssertionError: assert hook is not None (') and ', line ' in line


_PURE_PYTHON = """
import torch
from mmcv.transforms import LoadAnnotations as PlainAnnotations
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.models import EncoderDecoder
from torch.nn import BatchNorm2d
from torch.optim import SGD

model = dict(type=EncoderDecoder, backbone=dict(norm_cfg=dict(type=BatchNorm2d)))
test_pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)
]
test_dataloader = dict(
    dataset=dict(type=BaseSegDataset, pipeline=test_pipeline),
    sampler=dict(type=DefaultSampler),
    collate_fn=dict(type=pseudo_collate),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type=SGD, lr=0.1))
custom_hooks = [dict(type=EMAHook, ema_type=ExponentialMovingAverage)]
other = dict(pipeline=[dict(type=PlainAnnotations)], dtype=torch.float16)
"""


def test_types_of_a_config_in_pure_python_become_names(tmp_path):
    (tmp_path / 'a.py').write_text(_PURE_PYTHON)
    base = 'from mmengine.config import read_base\nwith read_base():\n    from .a import *\n'
    (tmp_path / 'b.py').write_text(base)
    cfg = load_config(str(tmp_path / 'b.py'))
    cfg.dump(tmp_path / 'dumped.py')
    for found in (cfg, load_config(str(tmp_path / 'dumped.py'))):
        assert found.default_scope == 'mmseg'
        assert found.model.type == 'EncoderDecoder'
        assert found.model.backbone.norm_cfg.type == 'BN'
        names = ['LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs']
        assert [t['type'] for t in found.test_pipeline] == names
        data = found.test_dataloader
        assert [t['type'] for t in data.dataset.pipeline] == names
        assert (data.dataset.type, data.sampler.type) == ('BaseSegDataset', 'DefaultSampler')
        assert data.collate_fn.type == 'pseudo_collate'
        assert found.optim_wrapper.optimizer.type == 'SGD'
        assert found.custom_hooks[0].type == 'EMAHook'
        # another has that name in mmseg
        assert found.other.pipeline[0].type == 'mmcv.transforms.loading.LoadAnnotations'
    assert cfg.custom_hooks[0].ema_type is mmengine.model.ExponentialMovingAverage
    assert cfg.other.dtype is torch.float16


def test_a_config_that_inherits_from_itself_is_told(tmp_path):
    (tmp_path / 'a.py').write_text("_base_ = './b.py'\n")
    (tmp_path / 'b.py').write_text("_base_ = './a.py'\n")
    with pytest.raises(UserError, match=r'b\.py: its _base_ leads back to .*a\.py; name another'):
        load_config(str(tmp_path / 'a.py'))


@pytest.mark.parametrize(
    ('part', 'settings'),
    [('backbone', dict(conv_cfg='SeparableConv')), ('backbone', dict(norm_cfg='BatchNorm')),
     ('decode_head', dict(conv_cfg='SeparableConv'))],
)  # fmt: skip
def test_a_layer_that_nobody_has_registered_is_named(tiny_config, part, settings):
    ((key, kind),) = settings.items()
    cfg = load_config(tiny_config(f"model['{part}']['{key}'] = dict(type='{kind}')"))
    with pytest.raises(UserError, match=rf"^model.{part}.{key}.type='{kind}': no such layer is"):
        build_segmentor(cfg)
