"""What the documents tell the reader to type works as it stands there."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from PIL import Image

from ssnet_mm import build_model
from ssnet_mm.commands import parser_of
from ssnet_mm.deploy.export import export
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.engine.config.options import parse_options
from ssnet_mm.own_configs import config_names

ROOT = Path(__file__).parents[1]
DOCUMENTS = ['README.md', 'CONTRIBUTING.md', *(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))]
BLOCKS = [
    pytest.param(language, block, id=f'{document}-{number}-{language}')
    for document in DOCUMENTS
    for number, (language, block) in enumerate(
        re.findall(r'```(\w+)\n(.*?)```', (ROOT / document).read_text(), re.DOTALL)
    )
]
CONFIGS = [b for b in BLOCKS if b.values[0] == 'python' and '_base_ = ' in b.values[1]]
SCRIPTS = [b for b in BLOCKS if b.values[0] == 'python' and b not in CONFIGS]
SHELL = [b for b in BLOCKS if b.values[0] == 'bash']

# Notes what it is called with; `python -c` is run, as blocks ask it for paths.
STUB = """#!{python}
import json, os, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == 'python' and args[:1] == ['-c']:
    os.execv({python!r}, [{python!r}, *args])
with open({log!r}, 'a') as file:
    file.write(json.dumps([name, *args]) + '\\n')
"""


def test_every_block_is_tried():
    assert len(CONFIGS) >= 5 and len(SCRIPTS) >= 6 and len(SHELL) >= 20
    others = [b.id for b in BLOCKS if b not in (*CONFIGS, *SCRIPTS, *SHELL)]
    assert not others


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder as the reader has it: configs, tools, and the files that the blocks name."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
    for name in ('tools', 'Makefile', 'requirements'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(('language', 'block'), CONFIGS)
def test_a_config_builds(language, block, checkout):
    (checkout / 'configs' / 'pasted.py').write_text(block)
    cfg = load_config('configs/pasted.py')
    with torch.device('meta'):
        model = build_segmentor(cfg)
    assert model.num_classes == len(cfg.get('metainfo', {}).get('classes', range(21)))
    assert cfg.train_dataloader.dataset.pipeline[-1].type == 'PackSegInputs'


@pytest.mark.parametrize(('language', 'block'), SCRIPTS)
def test_a_script_runs(language, block, checkout, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    for name in ('street.jpg', 'photo.jpg'):
        Image.fromarray(noise).save(name)
    Path('data/mydata/masks').mkdir(parents=True)
    Image.fromarray(noise[..., 0] % 3).save('data/mydata/masks/a.png')
    if 'weights.npy' in block:
        weight = np.ones((2, 3), np.float32)
        nested = {'conv1': [weight, weight[0]], 'conv2': {'kernel': weight}, 'last': weight}
        np.save('weights.npy', np.array(nested, object), allow_pickle=True)
    if 'fastfcn8.onnx' in block:
        need('onnx')
        model = build_model(3, 'ds', base_channels=4, fc_channels=8).eval()
        export(model, 'fastfcn8.onnx', 'onnx', size=(60, 80))
    if 'work_dirs/demo/iter_N.pth' in block:
        model = build_segmentor(load_config('configs/fastfcn8_miniature.py'))
        Path('work_dirs/demo').mkdir(parents=True)
        meta = dict(dataset_meta=dict(classes=('a',) * 21, palette=[[i] * 3 for i in range(21)]))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), 'work_dirs/demo/iter_N.pth')
    Path('pasted.py').write_text(block)
    after = runpy.run_path('pasted.py')
    if 'build_model' in block:
        assert tuple(after['loss'].shape) == () and after['loss'].item() > 0
        assert all(p.grad is not None for p in after['model'].parameters())
        assert 'SeparableConv2d' in capsys.readouterr().out
    if 'weights.npy' in block:
        flat = np.load('weights.npz')
        assert sorted(flat) == ['conv1/0', 'conv1/1', 'conv2/kernel', 'last']
        assert all(part.dtype == np.float32 for part in flat.values())
    if 'labels' in after and 'Segmenter' in block:
        assert after['labels'].shape == (60, 80)
    if "device('meta')" in block:
        assert '20713530' in capsys.readouterr().out


@pytest.mark.parametrize(('language', 'block'), SHELL)
def test_a_command_is_one_that_the_tools_take(language, block, checkout, tool):
    """The shell reads the block; what it would start is noted, then asked whether it takes that."""
    log, stubs = checkout / 'log', checkout / 'stubs'
    stubs.mkdir()
    log.touch()
    keras = checkout / 'keras-env' / 'bin'  # an environment of TensorFlow, as the text says
    keras.mkdir(parents=True)
    for path in (
        *(stubs / name for name in ('python', 'pip', 'make', 'srun', 'ssnet_mm')),
        keras / 'python',
    ):
        path.write_text(STUB.format(python=sys.executable, log=str(log)))
        path.chmod(0o755)
    env = {**os.environ, 'PATH': f'{stubs}:{os.environ["PATH"]}'}
    done = subprocess.run(
        ['bash', '-eu', '-c', block], env=env, capture_output=True, text=True, cwd=checkout
    )
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert calls
    for name, *args in calls:
        if name == 'make':
            targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
            assert set(args) <= set(targets)
        elif name == 'pip':
            assert args[0] == 'install'
            for i, arg in enumerate(args):
                assert arg != '-r' or (ROOT / args[i + 1]).is_file()
        elif name == 'ssnet_mm':
            _check_parsed(parser_of(args[0], name).parse_args(args[1:]))
        else:
            _check_python(args, tool)


def _check_python(args, tool):
    """A script of ours takes its arguments and its config the options; others are there."""
    if args[:2] == ['-m', 'torch.distributed.run']:
        args = args[next(i for i, arg in enumerate(args) if arg.endswith('.py')) :]
    script = Path(next(arg for arg in args if arg.endswith('.py')))
    if script.parent.name != 'tools' or '.mim' in str(script):
        assert script.is_file() or (ROOT / script).is_file(), script
        return
    _check_parsed(tool(script.stem).parse_args(args[args.index(str(script)) + 1 :]))


def _check_parsed(parsed):
    config = getattr(parsed, 'config', None) or getattr(parsed, 'model', None)
    if config and (config in config_names() or (config.endswith('.py') and Path(config).is_file())):
        load_config(config, parse_options(getattr(parsed, 'cfg_options', None)))


@pytest.mark.parametrize('document', DOCUMENTS)
def test_files_that_a_document_names_are_there(document):
    text = (ROOT / document).read_text()
    links = re.findall(r'\]\((?!http)([^)#]+)\)', text)
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    named = re.findall(r'(?<![\w/$])(?:configs|tools)/[\w/.-]+\.(?:py|sh)\b', text)
    missing += [n for n in named if not (ROOT / n).exists() and 'mydata' not in n]
    assert not missing
