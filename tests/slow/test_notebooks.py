"""Each notebook of demo/ from its first cell to its last, in a short form."""

import os
import sys
from pathlib import Path

import pytest
from helpers.notebooks import NOTEBOOKS, commands

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient')
    nbformat = pytest.importorskip('nbformat')
    pytest.importorskip('ipykernel')
    for package in ('onnx', 'onnxruntime'):
        pytest.importorskip(package)
    command = tmp_path / 'bin' / 'ssnet_mm'
    command.parent.mkdir()
    command.write_text(f'#!{sys.executable}\nfrom ssnet_mm.commands import main\nmain()\n')
    command.chmod(0o755)
    short = dict(
        MINUTES='0.02', ITERS='4', CHANNELS='4', PYTHONPATH=str(ROOT), MPLBACKEND='agg',
        PATH=f'{command.parent}{os.pathsep}{os.environ["PATH"]}', XDG_CACHE_HOME=str(tmp_path),
    )  # fmt: skip
    for name, value in short.items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == 'code' and any(commands(cell)):
            # of the last command; the shell of a notebook goes on after one that failed
            cell.source = cell.source.replace('\n!', '\nassert not _exit_code\n!')
            cell.source += '\nassert not _exit_code'
    # the kernel of this environment, whichever is installed for the user
    (tmp_path / 'work').mkdir()
    client = nbclient.NotebookClient(
        book, timeout=900, resources=dict(metadata=dict(path=str(tmp_path / 'work')))
    )
    client.execute()
    assert list((tmp_path / 'work' / 'work_dirs').rglob('*.onnx'))
