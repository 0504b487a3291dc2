import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from helpers.export_formats import need
from PIL import Image

from ssnet_mm import build_model, weights
from ssnet_mm.commands import COMMANDS, convert, main, parser_of
from ssnet_mm.deploy.export import export
from ssnet_mm.engine.config.options import parse_options
from ssnet_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {
    'benchmark': 'benchmark', 'check': 'check_data', 'convert': 'convert_weights',
    'export': 'export', 'miniature': 'make_miniature', 'predict': 'predict',
    'show': 'show_predictions', 'test': 'test', 'train': 'train',
}  # fmt: skip
# Says what was imported, after the code that stands before it.
HEAVY = "import sys; print(sorted({'torch', 'mmengine', 'mmseg', 'mmcv'} & set(sys.modules)))"


def in_process(code, *argv, **environment):
    """Run code in a process whose command line is the given one."""
    code = f'import sys; sys.argv = {list(argv)!r}\n{code}\n{HEAVY}'
    return subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


ASK_ALL = """
from ssnet_mm.commands import COMMANDS, main
for words in (['--help'], ['--version'], [], ['trian'], *([name, '--help'] for name in COMMANDS),
              *([name, '--no-such', 'a', 'b', 'c'] for name in COMMANDS)):
    try:
        main(words)
    except SystemExit as done:
        assert done.code == (0 if '--help' in words or '--version' in words else 2), words
    else:
        raise AssertionError(words)
"""


def test_help_and_wrong_usage_import_no_torch():
    done = in_process(ASK_ALL, '/bin/ssnet_mm')
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr
    assert 'ssnet_mm 0.' in done.stdout and 'Traceback' not in done.stderr
    assert 'ssnet_mm: error: no command trian; did you mean train?' in done.stderr
    assert 'error: unrecognized arguments: --no-such' in done.stderr


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit, match='0'):
        main(['--help'])
    printed = capsys.readouterr().out
    assert all(f'\n  {name} ' in printed and row.help in printed for name, row in COMMANDS.items())


@pytest.mark.parametrize(
    ('argv', 'heavy'),
    [(['/bin/ssnet_mm'], False), (['tools/train.py'], False), (['mine.py'], True)],
)
def test_only_our_own_commands_import_the_parts_late(argv, heavy):
    done = in_process(f'import os; os.chdir({str(ROOT)!r}); import ssnet_mm', *argv)
    assert done.stdout.splitlines()[-1] == (
        "['mmcv', 'mmengine', 'mmseg', 'torch']" if heavy else '[]'
    )


def test_parts_that_a_command_has_not_imported_yet_are_there_when_they_are_asked_for():
    code = (
        'import ssnet_mm; assert "torch" not in sys.modules; ssnet_mm.VGG16; '
        'from mmseg.registry import MODELS; assert MODELS.get("FCN8Head") is ssnet_mm.FCN8Head'
    )
    assert in_process(code, '/bin/ssnet_mm').returncode == 0


def test_known_noise_of_the_stacks_is_not_printed_and_other_lines_are():
    code = (
        'import mmengine, ssnet_mm; from ssnet_mm import commands; register = ssnet_mm.register\n'
        'ssnet_mm.register = lambda: (print("Could not import OneDL"), print("kept"), register())\n'
        'commands.load_toolbox()'
    )
    done = in_process(code, 'mine.py')
    assert done.stdout.splitlines()[-2] == 'kept', done.stderr
    silent = in_process('from ssnet_mm.commands import load_toolbox; load_toolbox()', '/ssnet_mm')
    assert len(silent.stdout.splitlines()) == 1 and 'Deformable' not in silent.stderr


UNREAD = """
import os, sys, logging, types
sys.argv[0] = '/bin/ssnet_mm'
from ssnet_mm import commands
from ssnet_mm.errors import UserError
def work(args):
    logging.basicConfig(stream=sys.stdout)
    for i in range(5000):
        logging.warning(i)
        print(i, flush=True)
    with open(sys.argv[1], 'w') as file:
        file.write('done')
module = types.SimpleNamespace(add_arguments=lambda parser: None, main=work)
commands.import_module = lambda name: module
commands.load_toolbox = lambda: None
commands.main([sys.argv[2]])
"""


@pytest.mark.parametrize(('command', 'code', 'done'), [('train', 0, True), ('test', 141, False)])
def test_a_training_goes_on_unread_and_other_commands_end(tmp_path, command, code, done):
    argv = [sys.executable, '-c', UNREAD, str(tmp_path / 'done'), command]
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(argv, env={**os.environ, 'PYTHONPATH': str(ROOT)}, **pipe) as process:
        assert process.stdout.readline() == b'WARNING:root:0\n'
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait() == code
    assert (tmp_path / 'done').exists() == done


FULL = """
import sys, types
sys.argv[0] = '/bin/ssnet_mm'
from ssnet_mm import commands
def work(args):
    print('a')
    sys.exit(1)
commands.import_module = lambda name: types.SimpleNamespace(
    add_arguments=lambda parser: None, main=work)
commands.load_toolbox = lambda: None
commands.main([sys.argv[1]])
"""


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
@pytest.mark.parametrize(
    ('command', 'code', 'told'),
    [
        ('train', 1, 'WARNING: {}; this goes on without it'),
        ('check', 2, 'ssnet_mm: error: {}; print it elsewhere'),
    ],
)
def test_a_full_disk_below_what_is_printed_is_told(command, code, told):
    argv = [sys.executable, '-c', FULL, command]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    with open('/dev/full', 'w') as full:
        done = subprocess.run(argv, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    message = "what is printed can't be written: No space left on device"
    assert (done.returncode, done.stderr.splitlines()) == (code, [told.format(message)])


CLOSED = """
import os, sys, types
sys.argv = ['/bin/ssnet_mm']
from ssnet_mm import commands
def work(args):
    print('a')
    sys.stdout.write('b')
    assert not list(sys.stdin) and os.open(sys.executable, os.O_RDONLY) > 2
commands.import_module = lambda name: types.SimpleNamespace(
    add_arguments=lambda parser: None, main=work)
commands.main(['plot'])
"""


def test_streams_that_are_closed_from_the_start_are_there():
    shell = f'exec {shlex.join([sys.executable, "-c", CLOSED])} <&- >&-'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(['sh', '-c', shell], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


def test_help_that_nobody_reads_is_no_error():
    code = 'import sys; sys.argv = ["ssnet_mm"]; from ssnet_mm.commands import main'
    argv = [sys.executable, '-c', f'{code}; main(["--help"])']
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(argv, env=environment, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b''


def test_names_that_are_no_text_are_printed():
    code = (
        'import types; from ssnet_mm import commands\n'
        'commands._run = lambda *args: print("caf\\udce9")\n'
        'commands.main(["plot"])'
    )
    done = in_process(code, '/bin/ssnet_mm', PYTHONUTF8='1')
    assert done.stdout.splitlines()[0] == 'caf\\udce9', done.stderr


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (PermissionError(13, 'Permission denied', 'run/a.json'), 'run/a.json: Permission denied; '),
        (OSError(28, 'No space left on device'), 'ssnet_mm: error: No space left on device; see '),
        (FileNotFoundError(2, 'No usable temporary directory found'), 'No usable temporary'),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, told):
    monkeypatch.setattr(sys, 'argv', ['ssnet_mm'])
    monkeypatch.setattr('ssnet_mm.commands._run', mock.Mock(side_effect=error))
    with pytest.raises(SystemExit, match='^2$'):
        main(['plot'])
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and line.endswith('see that it is there, may be used, and has space')


@pytest.mark.parametrize(
    'error', [OSError('libcudnn.so is not there'), BrokenPipeError(32, 'pipe')]
)
def test_what_is_no_place_that_the_system_refuses_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr('ssnet_mm.commands._run', mock.Mock(side_effect=error))
    with pytest.raises(type(error), match='libcudnn|pipe'):
        main(['plot'])


def test_the_home_folder_is_meant_behind_an_option_too(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sys, 'argv', ['ssnet_mm'])
    draw = mock.Mock()
    monkeypatch.setattr('ssnet_mm.commands.plot.main', draw)
    main(['plot', 'run=~', '--out=~/a=~.png'])
    (args,) = draw.call_args.args
    assert (args.runs, args.out) == (['run=~'], f'{tmp_path}/a=~.png')


def test_a_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'ssnet_mm', 'train', 'a', '--cfg-options', 'b'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and '| torch\n' not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == (
        'ssnet_mm train: error: argument --cfg-options: expected key=value pairs, got b'
    )


@pytest.mark.parametrize(('format', 'suffix'), [('onnx', 'onnx'), ('openvino', 'xml')])
def test_an_exported_model_is_run_without_torch(tmp_path, format, suffix):
    need(format)
    model = build_model(3, 'ds', base_channels=4, fc_channels=8).eval()
    path = tmp_path / f'tiny.{suffix}'
    export(model, path, format, size=(40, 40))
    Image.new('RGB', (40, 40)).save(tmp_path / 'photo.png')
    words = ['predict', str(path), str(tmp_path / 'photo.png'), '--out-dir', str(tmp_path / 'out')]
    done = in_process(f'from ssnet_mm.commands import main; main({words!r})', '/bin/ssnet_mm')
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr
    assert Image.open(tmp_path / 'out' / 'index' / 'photo.png').size == (40, 40)


def test_the_toolbox_that_is_not_there_is_told_in_one_line(tmp_path):
    hidden = (
        'import importlib.util as u; find = u.find_spec\n'
        'u.find_spec = lambda name, *a: None if name == "mmseg" else find(name, *a)\n'
        'from ssnet_mm.commands import main; main(["train", "fcn8_voc"])'
    )
    done = in_process(hidden, '/bin/ssnet_mm')
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith('ssnet_mm: error: ') and "no module 'mmseg' here. Install one" in line


@pytest.mark.parametrize('name', TOOLS)
def test_a_tool_takes_what_its_command_takes(name, tool):
    script, parser = tool(TOOLS[name]), parser_of(name, 'x')
    needed = [a for a in parser._actions if a.required]
    words = [
        w for a in needed for w in [*a.option_strings[:1], *(list(a.choices or ())[:1] or ['1'])]
    ]
    assert vars(script.parse_args(words)) == vars(parser.parse_args(words))
    assert set(TOOLS) <= set(COMMANDS)
    assert script.__doc__.startswith(parser.description.split('\n')[0])


def test_names_that_are_written_twice_are_the_same():
    assert set(convert.SOURCES) == set(weights.SOURCES)
    assert set(convert.INPUTS) == set(weights.INPUTS)


def test_options_mean_what_they_mean_to_mmengine(capsys):
    words = ['c.py', '--cfg-options', 'a.b=1', 'c=[(1,2)]']
    given = parser_of('check', 'x').parse_args(words).cfg_options
    assert parse_options(given) == {'a.b': 1, 'c': [(1, 2)]}
    assert parse_options(None) == {}
    with pytest.raises(UserError, match='argument --cfg-options: expected key=value pairs'):
        parse_options(["a=[dict(type='B',c=[1])]"])  # mmengine's own parser goes round without end
