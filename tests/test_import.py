"""Importing the package registers its parts and changes nothing else."""

import sys

from helpers.processes import run

SCRIPT = """
import torch
import mmcv.cnn, mmseg.apis, mmseg.datasets, mmseg.evaluation, mmseg.models  # built on
from mmengine import registry as root
from mmengine.fileio.backends import backends
from mmseg import registry

def state():
    seen = {f'{r.scope}.{r.name}.{key}': value
            for module in (root, registry) for r in vars(module).values()
            if isinstance(r, root.Registry) for key, value in r.module_dict.items()}
    return seen, set(backends), torch.serialization.get_safe_globals()

before, backends_before, safe_before = state()
import ssnet_mm
after, backends_after, safe_after = state()
assert all(after[key] is value for key, value in before.items()), 'something was replaced'
print(*sorted(set(after) - set(before)), sep=', ')
print(*sorted(backends_after - backends_before))
assert root.DefaultScope.get_current_instance() is None
assert safe_after == safe_before, 'something more may be unpickled'
"""


def test_an_import_adds_the_parts_and_nothing_else():
    *_, parts, backends = run(sys.executable, '-c', SCRIPT).splitlines()
    assert parts.split(', ') == [
        'mmengine.hook.GuardHook',
        'mmengine.hook.PlainCheckpointHook',
        'mmengine.hook.ValLossHook',
        'mmengine.model.SeparableConv2d',
        'mmengine.optim_wrapper.BFloat16OptimWrapper',
        'mmengine.weight initializer.ForeignPretrained',
        'mmseg.dataset.CamVidDataset',
        'mmseg.metric.ClassIoUMetric',
        'mmseg.metric.ReportMetric',
        'mmseg.model.CaffeFCN8Head',
        'mmseg.model.DistilledEncoderDecoder',
        'mmseg.model.FCN8Head',
        'mmseg.model.KLDistillLoss',
        'mmseg.model.LovaszSoftmaxLoss',
        'mmseg.model.MeanProbabilityTTAModel',
        'mmseg.model.VGG16',
    ]
    assert backends == 'atomic'
