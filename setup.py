"""Packaging of ssnet_mm; the tools' settings are in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What OpenMMLab's packages carry under `<package>/.mim`, where mmengine and mim look for it.
MIM_FILES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copies configs, tools and the model index into the wheel, under ``ssnet_mm/.mim``.

    Only what is built is written to, never the source tree: an editable install has no ``.mim``,
    its configs and tools are those of the checkout.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'ssnet_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)  # an earlier build may have left files since removed
        mim.mkdir(parents=True)
        for name in MIM_FILES:
            source = ROOT / name
            if source.is_dir():
                ignore = shutil.ignore_patterns('__pycache__', '*.py[cod]', '.*')
                shutil.copytree(source, mim / name, ignore=ignore)
            else:
                shutil.copy2(source, mim / name)


def read_version() -> str:
    """The version, without importing the package: it needs a stack that may not be there yet."""
    namespace: dict[str, str] = {}
    exec((ROOT / 'ssnet_mm' / 'version.py').read_text(encoding='utf-8'), namespace)
    return namespace['__version__']


weights = ['h5py', 'safetensors', 'protobuf']  # .h5 and .keras, .safetensors, .caffemodel
deploy = ['onnx', 'onnxruntime', 'openvino', 'nncf']
test = ['pytest>=7', 'seaborn']  # mmseg's analyze_logs.py needs seaborn

setup(
    name='ssnet_mm',
    version=read_version(),
    description='FCN8 and FastFCN8 (SSNeT) for MMSegmentation',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='computer vision, semantic segmentation, FCN, depthwise separable convolution',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['ssnet_mm', 'ssnet_mm.*']),
    package_data={'ssnet_mm': ['py.typed']},
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # Two stacks provide the module mmseg, so neither is a requirement: an extra names each.
    install_requires=['torch', 'numpy', 'pillow'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12',
            'onedl-mmcv>=2.3.6',
            'onedl-mmsegmentation>=1.4.2',
            'onedl-mmpretrain>=1.3.6',
        ],
        'openmmlab': [
            'mmengine>=0.10.7',
            'mmcv>=2.1.0,<2.2',  # mmsegmentation 1.2.2 refuses later ones when it is imported
            'mmsegmentation>=1.2.2',
            'mmpretrain>=1.2.0',
            # Needed by the four, though they do not say so, or not so narrowly:
            'numpy<2.3',
            'setuptools<81',  # the last with pkg_resources
            'ftfy',
            'regex',
        ],
        'weights': weights,
        'deploy': deploy,
        'test': test,
        'dev': ['ruff', 'mypy', *test, *weights, *deploy],
    },
)
