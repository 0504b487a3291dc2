"""What the documents tell the reader to type works."""

import re
import runpy
from pathlib import Path

import pytest
from mmengine.config import Config
from mmseg.registry import MODELS

ROOT = Path(__file__).parents[1]
DOCS = sorted(ROOT.glob('docs/*.md'))


def python_blocks(document: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (ROOT / document).read_text(), re.DOTALL)


def run(block: str) -> dict:
    namespace: dict = {}
    exec(block, namespace)
    return namespace


def test_the_ten_lines_without_a_config_train(tmp_path, capsys):
    (block,) = [b for b in python_blocks('README.md') if 'build_model' in b]
    narrow = "conv_type='ds', base_channels=4, fc_channels=8)"
    script = tmp_path / 'readme.py'
    script.write_text(block.replace("conv_type='ds')", narrow))
    after = runpy.run_path(str(script))
    assert narrow in script.read_text()
    assert tuple(after['loss'].shape) == () and after['loss'].item() > 0
    assert all(p.grad is not None for p in after['model'].parameters())
    assert 'SeparableConv2d' in capsys.readouterr().out


def test_the_mixing_example_builds():
    (block,) = [b for b in python_blocks('README.md') if 'depth=18' in b]
    model = run(block)['model']
    net = MODELS.build(dict(type='EncoderDecoder', **model))
    assert any(type(m).__name__ == 'SeparableConv2d' for m in net.backbone.modules())


def test_the_config_for_own_data_is_whole(tmp_path):
    (block,) = [b for b in python_blocks('docs/own_data.md') if '_base_' in b]
    config = tmp_path / 'mine.py'
    base = (ROOT / 'configs' / 'fastfcn8_voc.py').as_posix()
    config.write_text(block.replace('./fastfcn8_voc.py', base))
    cfg = Config.fromfile(config)
    assert cfg.model.decode_head.num_classes == 3
    assert cfg.train_dataloader.dataset.type == 'BaseSegDataset'
    assert cfg.train_dataloader.dataset.pipeline[-1].type == 'PackSegInputs'
    assert cfg.val_dataloader.dataset.ann_file == 'val.txt'


@pytest.mark.parametrize(
    'document', ['README.md', *(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))]
)
def test_files_that_a_document_names_are_there(document):
    text = (ROOT / document).read_text()
    links = re.findall(r'\]\((?!http)([^)#]+)\)', text)
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    named = re.findall(r'(?<![\w/$])(?:configs|tools)/[\w/.-]+\.(?:py|sh)\b', text)
    missing += [n for n in named if not (ROOT / n).exists() and 'mydata' not in n]
    assert not missing
