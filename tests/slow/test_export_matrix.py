"""Networks by formats: what can be exported, as docs/deployment.md says in its table.

A test and no option of the tool: it is the exporters, not a user's checkpoint, that it asks.
"""

import re
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from helpers.export_formats import need

from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import ready
from ssnet_mm.deploy.runtimes import FORMATS
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine.config import build_segmentor, load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NETS = {
    'FastFCN8': 'fastfcn8_camvid.py',
    'FCN-R18': 'fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'PSPNet-R18': 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'UNet': 'unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py',
    'SegFormer-B0': 'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'Fast-SCNN': 'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
    'DDRNet-23-slim': 'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
}
WIDTH, HEIGHT = 256, 128
TABLE = re.findall(
    r'^\| ([\w-]+) \|((?: [^|]+ \|){3})$', (ROOT / 'docs/deployment.md').read_text(), re.MULTILINE
)
CELLS = [
    (net, format, cell.strip())
    for net, cells in TABLE
    if net in NETS
    for format, cell in zip(FORMATS, cells.split('|'))
]


def test_the_table_has_every_network_and_format():
    assert [cell[:2] for cell in CELLS] == [(net, format) for net in NETS for format in FORMATS]


@pytest.fixture(scope='module')
def built():
    """A network with random weights whose test pipeline resizes to one size."""
    made = {}

    def build(net):
        if net not in made:
            made.clear()
            ours = ROOT / 'configs' / NETS[net]
            theirs = Path(mmseg.__path__[0], '.mim', 'configs', NETS[net])
            cfg = load_config(str(ours if ours.is_file() else theirs))
            cfg.test_pipeline = [
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=False),
                dict(type='PackSegInputs'),
            ]
            cfg.model.test_cfg = dict(mode='whole')
            for part in (cfg.model, cfg.model.backbone):
                part.pop('pretrained', None)
                part.pop('init_cfg', None)
            cfg.merge_from_dict(without_sync(cfg.model, 'model'))
            torch.manual_seed(0)
            made[net] = ready(build_segmentor(cfg), cfg).eval()
        return made[net]

    return build


def without_sync(part, path):
    """Plain batch norm, which runs on a CPU, in the place of the synchronised one."""
    found = {}
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        if key == 'type' and value == 'SyncBN':
            found[f'{path}.type'] = 'BN'
        elif isinstance(value, (dict, list)):
            found.update(without_sync(value, f'{path}.{key}'))
    return found


@pytest.mark.parametrize(('net', 'format', 'cell'), CELLS)
def test_exports_are_as_the_table_says(net, format, cell, built, tmp_path):
    need(format)
    file = tmp_path / f'a{FORMATS[format].suffix}'
    export(built(net), file, format, size=(HEIGHT, WIDTH))
    session = Segmenter(file, threads=1).session
    blocks = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
    (labels,) = session([blocks.repeat(16, 0).repeat(16, 1)])
    assert labels.shape == (96, 160)
    found = 'one size' if session.processor.fixed_size else 'any size'
    print(f'| {net} | {format} | {found}')
    assert found == cell
