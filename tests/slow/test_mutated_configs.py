"""A config with any one setting of the wrong kind is refused in one line, or trains and tests."""

import copy
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.engine.config.kinds import check_kinds
from ssnet_mm.errors import UserError

pytestmark = pytest.mark.slow
WRONG = ('text', 5, None, [], -1.5, {})


def places(node: Any, above: tuple = ()) -> Iterator[tuple]:
    """Where something stands in a config."""
    items: Any = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, (list, tuple)) else items:
        yield (*above, key)
        yield from places(value, (*above, key))


def replaced(node: Any, place: tuple, value: Any) -> Any:
    """A config in which another value stands at a place."""
    if not place:
        return value
    node = list(node) if isinstance(node, tuple) else copy.copy(node)
    node[place[0]] = replaced(node[place[0]], place[1:], value)
    return node


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_every_config_is_refused_in_a_line_or_runs(tmp_path, tiny_config, mode):
    cfg = launch.load_config(tiny_config())
    torch.save({'state_dict': build_segmentor(cfg).state_dict(), 'meta': {}}, tmp_path / 'a.pth')
    # variables, which nothing reads any more, are left out
    whole = {key: cfg[key] for key in cfg.to_dict() if key in inspect.signature(Runner).parameters}
    whole = Config(whole).to_dict()
    mutations = [(place, value) for place in places(whole) for value in WRONG]
    found, ran = [], 0
    for i, (place, value) in enumerate(random.Random(0).sample(mutations, 400)):
        path = tmp_path / f'{i}.py'
        Config(replaced(whole, place, value)).dump(path)
        try:
            cfg = launch.load_config(str(path))
            cfg.work_dir, cfg.launcher = str(tmp_path / f'{i}'), 'none'
            if mode == 'test':
                cfg.load_from = str(tmp_path / 'a.pth')
            launch.run(cfg, mode)
            ran += 1
        except UserError:
            pass
        except Exception as error:
            found.append(f'{".".join(map(str, place))}={value!r}: {error!r}')
    assert not found and ran > 50


def test_the_configs_of_mmseg_are_taken():
    files = sorted(Path(mmseg.__path__[0], '.mim', 'configs').rglob('*.py'))
    assert len(files) > 500
    for path in files:
        if '_base_' not in path.parts and 'mask2former' not in path.parts:  # needs mmdet
            check_kinds(Config.fromfile(path))
