import importlib
import os
import signal
import stat

import pytest
from mmengine import fileio
from mmengine.hooks import CheckpointHook

from ssnet_mm.engine import AtomicBackend, atomic_write, backends

ARGS = dict(backend='atomic')


def test_a_write_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / 'a' / 'b' / 'file'
    fileio.put(b'one', path, backend_args=ARGS)
    fileio.put_text('zwei ü', path, backend_args=ARGS)
    assert path.read_text(encoding='utf-8') == 'zwei ü'
    assert os.listdir(path.parent) == ['file']


def test_a_file_is_as_readable_as_any_other(tmp_path):
    atomic_write(tmp_path / 'atomic', b'')
    (tmp_path / 'plain').touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ('atomic', 'plain')]
    assert modes[0] == modes[1]


def test_what_a_link_names_is_written_and_the_link_stays(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there' / 'file').write_bytes(b'old')
    (tmp_path / 'link').symlink_to('there/file')
    (tmp_path / 'new').symlink_to('there/more/file')
    for name in ('link', 'new'):
        atomic_write(tmp_path / name, b'new')
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / 'there' / 'file').read_bytes() == b'new'
    assert (tmp_path / 'there' / 'more' / 'file').read_bytes() == b'new'


def test_a_pipe_and_a_device_are_written_into(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / 'nowhere').symlink_to(os.devnull)
    atomic_write(tmp_path / 'pipe', b'data')
    atomic_write(tmp_path / 'nowhere', b'data')
    assert os.read(reader, 9) == b'data'
    os.close(reader)
    assert stat.S_ISFIFO(os.stat(tmp_path / 'pipe').st_mode)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and (tmp_path / 'nowhere').is_symlink()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path, b'data')


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    atomic_write(path, b'old')

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        atomic_write(path, b'new')
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file'
    atomic_write(path, b'old')
    child = os.fork()
    if child == 0:
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        atomic_write(path, b'new')
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert path.read_bytes() == b'old'


def test_a_removal_waits_until_the_next_file_is_written(tmp_path):
    old, new = tmp_path / 'old', tmp_path / 'new'
    fileio.put(b'old', old, backend_args=ARGS)
    AtomicBackend().remove(old)
    assert old.exists()
    fileio.put(b'new', new, backend_args=ARGS)
    assert not old.exists() and new.exists()


def test_a_file_written_again_is_not_removed(tmp_path):
    path = tmp_path / 'file'
    atomic_write(path, b'old')
    AtomicBackend().remove(path)
    AtomicBackend().put(b'new', path)
    AtomicBackend().put(b'other', tmp_path / 'other')
    assert path.read_bytes() == b'new'


def test_removing_nothing_fails(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file to remove: .*nothing'):
        AtomicBackend().remove(tmp_path / 'nothing')


def test_checkpoint_hook_uses_it(tmp_path):
    class Runner:
        work_dir = str(tmp_path)

        class logger:
            info = print

    hook = CheckpointHook(backend_args=ARGS)
    hook.before_train(Runner)
    assert isinstance(hook.file_backend, AtomicBackend)


def test_importing_twice_is_harmless():
    importlib.reload(backends)
    fileio.get_file_backend(backend_args=ARGS)
