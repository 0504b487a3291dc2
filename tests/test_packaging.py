"""What pip builds, what make asks for, and what an import says where the toolbox is missing."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
import torch
import yaml
from helpers.nets import count_trainable
from helpers.processes import run
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from packaging.requirements import Requirement

import ssnet_mm

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))


def files_under(folder: Path) -> dict[str, bytes]:
    """Contents by relative path, less what Python leaves behind."""
    files = (
        path for path in folder.rglob('*') if path.is_file() and '__pycache__' not in path.parts
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what belongs to the project: to build in it leaves the real one alone."""
    return copy_checkout(tmp_path)


def copy_checkout(folder: Path) -> Path:
    strangers = shutil.ignore_patterns(
        '.*', '__pycache__', '*.egg-info', 'build', 'data', 'dist', 'wheels', 'work_dirs'
    )
    shutil.copytree(ROOT, folder / 'checkout', ignore=strangers)
    return folder / 'checkout'


def build(kind: str, checkout: Path, out: Path) -> Path:
    """Call the build backend as pip does, without isolation and so without a network."""
    out.mkdir(exist_ok=True)
    call = f'from setuptools import build_meta; build_meta.build_{kind}(r"{out}")'
    run(sys.executable, '-c', call, cwd=checkout)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist, so that what the sdist lacks is missed here."""
    folder = tmp_path_factory.mktemp('packaging')
    sdist = build('sdist', copy_checkout(folder), folder / 'sdist')
    out = folder / 'wheel'
    pip = [sys.executable, '-m', 'pip', 'wheel', '--no-index', '--no-deps', '--no-build-isolation']
    run(*pip, '--wheel-dir', out, sdist)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope='module')
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('installed')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope='module')
def metadata(installed: Path) -> Message:
    (file,) = installed.glob('*.dist-info/METADATA')
    return BytesParser().parsebytes(file.read_bytes())


def requirements(metadata: Message, extra: str = '') -> dict[str, Requirement]:
    """What an extra adds, or without one what is always required, by name."""
    found = {}
    for line in metadata.get_all('Requires-Dist'):
        requirement = Requirement(line)
        needed = requirement.marker is None or requirement.marker.evaluate({'extra': extra})
        if needed and bool(requirement.marker) == bool(extra):
            found[requirement.name] = requirement
    for other in found.pop('ssnet_mm', Requirement('ssnet_mm')).extras:  # an extra of extras
        found.update(requirements(metadata, other))
    return found


@pytest.mark.parametrize('folder', ['configs', 'tools'])
def test_the_wheel_carries_configs_and_tools(installed, folder):
    expected = files_under(ROOT / folder)
    assert expected
    assert files_under(installed / 'ssnet_mm' / '.mim' / folder) == expected


def test_the_wheel_carries_the_model_index(installed):
    assert sorted(p.name for p in (installed / 'ssnet_mm' / '.mim').iterdir()) == [
        'configs', 'model-index.yml', 'tools',
    ]  # fmt: skip
    index = installed / 'ssnet_mm' / '.mim' / 'model-index.yml'
    assert index.read_bytes() == (ROOT / 'model-index.yml').read_bytes()


def test_the_wheel_carries_the_whole_package_and_nothing_else(installed):
    in_wheel = files_under(installed / 'ssnet_mm')
    package = {name: text for name, text in in_wheel.items() if not name.startswith('.mim/')}
    assert package == files_under(ROOT / 'ssnet_mm')
    assert 'py.typed' in package
    assert sorted(p.name.split('.')[-1] for p in installed.iterdir()) == ['dist-info', 'ssnet_mm']


def test_configs_of_the_wheel_build_its_models_anywhere(installed, tmp_path):
    code = (
        'import ssnet_mm, torch; from mmengine.config import Config; '
        'from mmseg.apis import init_model; torch.set_default_device("meta"); '
        'config = ssnet_mm.__path__[0] + "/.mim/configs/fastfcn8_voc.py"; '
        'model = init_model(Config.fromfile(config), device="meta"); '
        'print(config, sum(p.numel() for p in model.parameters()))'
    )
    environment = {**os.environ, 'PYTHONPATH': str(installed)}
    output = run(sys.executable, '-c', code, cwd=tmp_path, env=environment)
    config = installed / 'ssnet_mm' / '.mim' / 'configs' / 'fastfcn8_voc.py'
    assert output.splitlines()[-1] == f'{config} 20713530'


def test_the_wheel_brings_the_command_and_finds_its_configs(installed, tmp_path):
    (entry_points,) = installed.glob('*.dist-info/entry_points.txt')
    assert 'ssnet_mm = ssnet_mm.commands:main' in entry_points.read_text()
    environment = {**os.environ, 'PYTHONPATH': str(installed)}
    code = (
        'import sys; sys.argv = ["/bin/ssnet_mm"]; from ssnet_mm.own_configs import find_config; '
        'print(find_config("fastfcn8_voc"))'
    )
    mim = installed / 'ssnet_mm' / '.mim'
    found = run(sys.executable, '-c', code, cwd=tmp_path, env=environment)
    assert found == f'{mim / "configs" / "fastfcn8_voc.py"}\n'
    helped = run(sys.executable, mim / 'tools' / 'train.py', '-h', cwd=tmp_path, env=environment)
    assert helped.startswith('usage: train.py ')


def test_the_version_is_the_packages(metadata):
    assert metadata['Version'] == ssnet_mm.__version__
    assert metadata['Requires-Python'] == '>=3.10'


def test_no_stack_is_required_and_each_has_its_extra(metadata):
    assert set(requirements(metadata)) == {'torch', 'numpy', 'pillow'}
    assert {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain'} == set(
        requirements(metadata, 'onedl')
    )
    assert {'mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain'} < set(
        requirements(metadata, 'openmmlab')
    )
    assert set(requirements(metadata, 'test')) < set(requirements(metadata, 'dev'))
    assert set(requirements(metadata, 'tensorboard')) == {'tensorboard'}


@pytest.mark.parametrize('extra', ['onedl', 'openmmlab'])
def test_the_tested_set_satisfies_its_extra(metadata, extra):
    lines = []
    for name in (f'{extra}.txt', f'{extra}-build.txt'):
        file = ROOT / 'requirements' / name
        lines += file.read_text().splitlines() if file.exists() else []
    pins = [Requirement(line.split(' #')[0]) for line in lines if re.match(r'\w', line)]
    assert all(str(pin.specifier).startswith('==') for pin in pins), pins
    for name, wanted in {**requirements(metadata), **requirements(metadata, extra)}.items():
        versions = [str(pin.specifier)[2:] for pin in pins if pin.name == name]
        assert versions, f'requirements/{extra}.txt does not pin {name}'
        assert all(wanted.specifier.contains(version) for version in versions), (name, versions)


def test_an_editable_install_leaves_no_copy_of_the_configs(checkout, tmp_path):
    before = {name for name in files_under(checkout) if '.egg-info' not in name}
    editable = build('editable', checkout, tmp_path / 'editable')
    with zipfile.ZipFile(editable) as archive:
        assert not [name for name in archive.namelist() if '.mim' in name]
    after = {name for name in files_under(checkout) if '.egg-info' not in name}
    assert after == before


def test_files_left_by_an_earlier_build_do_not_enter_the_wheel(checkout, tmp_path):
    left = checkout / 'build' / 'lib' / 'ssnet_mm' / '.mim' / 'configs' / 'removed.py'
    left.parent.mkdir(parents=True)
    left.write_text('')
    with zipfile.ZipFile(build('wheel', checkout, tmp_path / 'wheel')) as archive:
        names = archive.namelist()
    assert 'ssnet_mm/.mim/configs/fcn8_voc.py' in names
    assert 'ssnet_mm/.mim/configs/removed.py' not in names


@pytest.fixture(scope='module')
def models() -> list[dict]:
    """The entries of every metafile that the model index imports."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    metafiles = [yaml.safe_load((ROOT / name).read_text()) for name in index['Import']]
    collections = {c['Name'] for metafile in metafiles for c in metafile['Collections']}
    entries = [model for metafile in metafiles for model in metafile['Models']]
    assert {model['In Collection'] for model in entries} == collections
    return entries


def test_the_model_index_lists_every_config(models):
    assert sorted(model['Name'] for model in models) == CONFIGS
    assert all(model['Config'] == f'configs/{model["Name"]}.py' for model in models)


@pytest.mark.parametrize('name', CONFIGS)
def test_the_model_index_tells_what_the_config_says(models, name):
    (entry,) = (model for model in models if model['Name'] == name)
    cfg = Config.fromfile(ROOT / entry['Config'])
    init_default_scope('mmseg')
    with torch.device('meta'):  # no memory is needed to count
        model = MODELS.build(cfg.model)
    assert entry['Metadata']['Parameters'] == count_trainable(model)
    assert entry['Metadata']['Batch Size'] == cfg.train_dataloader.batch_size


@pytest.mark.parametrize('module', ['torch', 'mmengine', 'mmcv', 'mmseg'])
def test_without_the_toolbox_the_parts_name_both_stacks(module):
    code = f"""
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        return None if name.partition('.')[0] == {module!r} else found

sys.meta_path = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
import ssnet_mm
print(ssnet_mm.__version__, hasattr(ssnet_mm, 'nothing'))
for name in ('VGG16', 'FCN8Head', 'SeparableConv2d', 'CamVidDataset', 'build_model'):
    try:
        exec(f'from ssnet_mm import {{name}}')
    except ImportError as error:
        print(type(error).__name__, error)
"""
    version, *lines = run(sys.executable, '-c', code, cwd=ROOT).splitlines()
    assert version == f'{ssnet_mm.__version__} False'
    assert len(lines) == 5
    for line in lines:
        assert line.startswith('ToolboxMissing ')  # an ImportError
        assert all(word in line for word in (module, 'ssnet_mm[onedl]', 'ssnet_mm[openmmlab]'))


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
@pytest.mark.parametrize(
    ('fake', 'message'),
    [
        ('exit 1', 'error: {python} is not Python 3.10'),
        ('case "$2" in *ensurepip*) exit 1;; esac', 'error: {python} cannot make virtual environ'),
    ],
)
@pytest.mark.parametrize('target', ['demo', 'test', 'lint', 'test-openmmlab'])
def test_make_says_in_one_line_what_python_lacks(checkout, tmp_path, fake, message, target):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{fake}\n')
    python.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS'))}
    result = subprocess.run(
        ['make', target, f'PYTHON={python}'],
        cwd=checkout, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if not line.startswith('make')]
    assert result.returncode == 2
    assert len(lines) == 1 and lines[0].startswith(message.format(python=python)), result.stderr
    assert not list(checkout.glob('.venv*'))
