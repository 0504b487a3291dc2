import os

import pytest

from ssnet_mm import files

GONE = 2**22  # above the largest number that Linux gives a process


@pytest.fixture(autouse=True)
def listed_anew():
    files._left_in.cache_clear()


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    half = tmp_path / f'.a.{GONE}.tmp.png'
    others = [
        tmp_path / f'.b.{GONE}.tmp.png',  # of another file
        tmp_path / f'.a.{GONE}.tmp.jpg',
        tmp_path / f'.a.{os.getppid()}.tmp.png',  # of a process that may go on
        tmp_path / '.a.tmp.png',
        tmp_path / f'a.{GONE}.tmp.png',
    ]
    for path in (half, *others):
        path.write_bytes(b'half')
    files.atomic_write(tmp_path / 'a.png', b'whole')
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / 'a.png', *others])


def test_a_long_name_is_found_again(tmp_path, monkeypatch):
    path = tmp_path / ('a' * 250 + '.png')
    with monkeypatch.context() as patch:
        patch.setattr(os, 'getpid', lambda: GONE)
        files.temporary_name(path).write_bytes(b'half')
    files._left_in.cache_clear()
    files.atomic_write(path, b'whole')
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_folder_takes_the_place_of_those_left(tmp_path):
    for process in (GONE, os.getpid()):  # the second of a killed process of our number
        (tmp_path / f'.net.{process}.tmp').mkdir()
        (tmp_path / f'.net.{process}.tmp' / 'net.onnx').write_bytes(b'half')
    with files.temporary_folder(tmp_path / 'net.onnx') as folder:
        assert list(tmp_path.iterdir()) == [folder]
        assert list(folder.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_listed_once(tmp_path, monkeypatch):
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: listed.append(path) or scan(path))
    for i in range(3):
        files.atomic_write(tmp_path / f'{i}.png', b'whole')
    assert listed == [str(tmp_path)]
