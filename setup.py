"""What pyproject.toml cannot say of the packaging: the wheel carries configs and tools too."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
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


setup(cmdclass={'build_py': BuildWithMim})
