"""The notebooks of demo/ as stored: what they call exists, and nothing of a machine stays."""

import ast
import json
import re
import shlex

import pytest
from helpers.notebooks import NOTEBOOKS, commands, source

from ssnet_mm.commands import COMMANDS, parser_of


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return [c for c in json.loads(request.param.read_text())['cells'] if c['cell_type'] == 'code']


def test_there_are_the_two():
    assert [path.stem for path in NOTEBOOKS] == ['fcn8_and_fastfcn8', 'own_data']


def test_code_parses_and_commands_take_what_they_are_given(cells):
    called = []
    for cell in cells:
        ast.parse(re.sub(r'^!(?:.*\\\n)*.*', '', source(cell), flags=re.M))
        for line in commands(cell):
            # names in braces are variables of the notebook
            words = shlex.split(re.sub(r'\{\w+\}', '2', line.partition('>')[0].rstrip(' 2')))
            assert words[0] == 'ssnet_mm'
            parser_of(words[1], 'ssnet_mm').parse_args(words[2:])
            called.append(words[1])
    assert len(called) >= 8 and set(called) <= set(COMMANDS)


def test_outputs_are_there_and_tell_of_no_machine_or_failure(cells):
    outputs = [o for cell in cells for o in cell['outputs']]
    texts = [''.join(o.get('text', '')) for o in outputs]
    assert sum('image/jpeg' in o.get('data', {}) for o in outputs) >= 3
    assert sum(map(bool, texts)) >= 5
    for text in texts:
        path = re.search(r'(?<![\w.])/(root|home|tmp|work|usr|mnt|opt|var)/|[A-Z]:\\', text)
        assert not path, text
        assert 'Traceback' not in text and 'error:' not in text.lower(), text
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small(path):
    assert path.stat().st_size < 300_000
