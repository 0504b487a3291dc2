"""A segmenter that sees colours, and pictures for it."""

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter

PALETTE = ((0, 0, 0), (200, 100, 0), (0, 0, 9))


@pytest.fixture
def red():
    """Segments by the red channel: class 1 where it is bright, else class 0."""
    processor = Processor(num_classes=3, end_to_end=True, palette=PALETTE)
    session = Session(lambda x: (x[..., 0] > 100).astype(np.uint8), processor)
    return Segmenter(session)


@pytest.fixture
def pictures(tmp_path):
    """Left half dark, right half bright red, 6 wide and 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:, 0] = 240
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in ('a.png', 'b.PNG'):
        Image.fromarray(pixels).save(folder / name)
    return folder
