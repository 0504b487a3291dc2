from types import SimpleNamespace

import pytest

from ssnet_mm.deploy.model import ready
from ssnet_mm.engine.config import load_config

RESIZED = """
test_dataloader['dataset']['pipeline'] = [
    test_pipeline[0], dict(type='Resize', scale=(80, 50)), *test_pipeline[1:]]
"""


@pytest.mark.parametrize(('changes', 'told'), [('', False), (RESIZED, True)])
def test_a_test_that_reads_images_otherwise_is_told(tiny_config, capsys, changes, told):
    ready(SimpleNamespace(), load_config(tiny_config(changes)))
    assert ('by which the test reads them, differs' in capsys.readouterr().err) == told
