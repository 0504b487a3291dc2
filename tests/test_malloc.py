"""In processes of their own: what malloc keeps is a matter of the whole process."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from ssnet_mm.malloc import keep_freed_memory

print(keep_freed_memory())
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.full((12, 1024, 1024), 1.0)  # 48 MiB; up to 32 glibc comes to keep by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = platform.libc_ver()[0] == 'glibc'


def faults(**environment):
    """Whether memory is kept, and the page faults of a tensor for which there is a freed one."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith('MALLOC_')}
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', CODE],
        env=clean | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, count = run.stdout.split()[-2:]
    return kept == 'True', int(count)


@pytest.mark.skipif(not GLIBC, reason='another C library')
def test_freed_memory_is_used_again():
    kept, count = faults()
    assert kept and count < 100


@pytest.mark.skipif(not GLIBC, reason='another C library')
@pytest.mark.parametrize(
    'setting',
    [
        {'MALLOC_MMAP_THRESHOLD_': '131072'},
        {'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=131072'},
    ],
)
def test_the_environment_decides(setting):
    kept, count = faults(**setting)
    assert not kept and count > 1000  # of 12288 pages of 4 KiB; fewer where the kernel joins them


def test_another_c_library_is_left_alone(monkeypatch):
    from ssnet_mm import malloc

    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    monkeypatch.setattr(malloc.ctypes, 'CDLL', None)  # would fail
    assert malloc.keep_freed_memory() is False
