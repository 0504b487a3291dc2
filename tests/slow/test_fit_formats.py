"""One ``ssnet_mm fit`` for each format that ``prepare`` reads, from the command line to the report.

With a data set in VOC's layout, and longer, this is the exercise of a new user:

    FIT_DATA=data/camvid FIT_LENGTH="--minutes 4" FIT_OUT=work_dirs/formats \\
        make test-slow ARGS=tests/slow/test_fit_formats.py
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.annotated import FORMATS, Labelled
from helpers.chromium import Page, need_chromium
from helpers.export_formats import need
from PIL import Image

ROOT = Path(__file__).parents[2]
COUNT = 40
pytestmark = pytest.mark.slow


def drawn(folder):
    """Photos of 96x72 with two areas, and a void line around them."""
    rng = np.random.default_rng(0)
    photos, masks = [], []
    for i in range(COUNT):
        mask = np.zeros((72, 96), np.uint8)
        y, x = rng.integers(4, 20, 2)
        mask[y : y + 30, x : x + 40], mask[50:66, 50 + x : 90] = 1, 2
        photo = mask[..., None] * 70 + rng.integers(0, 60, (72, 96, 3))
        mask[0] = 255
        photos.append(folder / f'{i}.jpg')
        masks.append(folder / f'{i}.png')
        Image.fromarray(photo.astype(np.uint8)).save(photos[-1])
        Image.fromarray(mask).save(masks[-1])
    return Labelled(
        photos, masks, ['ground', 'box', 'bar'], [[60, 60, 60], [200, 0, 0], [0, 0, 200]]
    )


def taken(root):
    """Every n-th of the training images of CamVid."""
    from ssnet_mm.datasets.camvid import COLOURS

    names = (root / 'ImageSets/Segmentation/train.txt').read_text().split()
    names = names[:: len(names) // COUNT][:COUNT]
    return Labelled(
        [root / f'JPEGImages/{name}.jpg' for name in names],
        [root / f'SegmentationClass/{name}.png' for name in names],
        list(COLOURS),
        list(COLOURS.values()),
    )


@pytest.mark.parametrize('name', FORMATS)
def test_a_fit_from_a_format_ends_in_a_report(name, tmp_path):
    need('onnx')
    need_chromium()
    if name == 'coco':
        pytest.importorskip('pycocotools')
    given = os.environ.get('FIT_DATA')
    (tmp_path / 'drawn').mkdir()
    data = taken(Path(given).resolve()) if given else drawn(tmp_path / 'drawn')
    out = Path(os.environ.get('FIT_OUT', tmp_path)).resolve() / name
    source = tmp_path / 'source'
    source.mkdir()
    words = FORMATS[name](data, source)
    length = os.environ.get('FIT_LENGTH', '--iters 2 --net fastfcn8-slim').split()
    start = time.monotonic()
    environment = {
        **os.environ, 'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    }  # fmt: skip
    if given:  # as a user has it: these are for the tests' small networks and memory
        environment.pop('OMP_NUM_THREADS')
        environment.pop('MALLOC_MMAP_MAX_')
    done = subprocess.run(
        [sys.executable, '-m', 'ssnet_mm', 'fit', *words, '--out', str(out), *length],
        env=environment, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    minutes = (time.monotonic() - start) / 60
    out.mkdir(exist_ok=True)
    (out / 'console.txt').write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = json.loads((out / 'test' / 'report.json').read_text())
    made = json.loads((out / 'fit.json').read_text())
    plan = re.sub(r' at .*', '', made['config']['result']['plan'])
    print(f'{name:16} {minutes:5.2f} min, mIoU {scores["mIoU"]:5.2f}, {plan}')
    assert sum(made['prepare']['result']['counts'].values()) == COUNT
    assert not made['prepare']['result']['faults']
    page = Page(f'file://{out / "report.html"}')
    try:
        page.run(
            'new Promise(done => document.readyState == "complete" ? done() : (onload = done))'
        )
        shown = page.run('[...document.images].map(i => i.naturalWidth)')
        assert len(shown) == 5 and all(shown)
        assert page.run('document.documentElement.scrollWidth <= innerWidth')  # nothing cut off
        assert not page.said
    finally:
        page.close()
