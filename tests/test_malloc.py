"""In processes of their own: what malloc keeps is a matter of the whole process."""

import os
import platform
import sys
from pathlib import Path

import pytest
from helpers.processes import run

CODE = """
import resource
import torch
from ssnet_mm.malloc import keep_freed_memory

print(keep_freed_memory())
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    torch.full((12, 1024, 1024), 1.0)  # 48 MiB: above 32 glibc never comes to keep by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
GLIBC = platform.libc_ver()[0] == 'glibc'
HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def faults(**environment):
    """Whether memory is kept, and the page faults of twelve tensors, one after the other."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith('MALLOC_')}
    printed = run(sys.executable, '-W', 'ignore', '-c', CODE, env=clean | environment)
    kept, count = printed.split()[-2:]
    return kept == 'True', int(count)


@pytest.mark.skipif(not GLIBC, reason='another C library')
def test_freed_memory_is_used_again_unless_the_environment_forbids():
    left, usual = faults(MALLOC_MMAP_MAX_='65536')
    kept, count = faults()
    assert kept and not left
    if HUGE_PAGES.exists() and '[always]' in HUGE_PAGES.read_text():
        return  # a fault for 2 MiB: few either way
    assert usual >= 12 * 12288  # pages of 4 KiB
    assert count <= usual / 2  # aligned tensors need two or three blocks before one always fits


@pytest.mark.skipif(not GLIBC, reason='another C library')
def test_tunables_of_the_environment_decide_too():
    assert not faults(GLIBC_TUNABLES='glibc.malloc.mmap_threshold=131072')[0]


def test_another_c_library_is_left_alone(monkeypatch):
    from ssnet_mm import malloc

    for name in malloc._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    monkeypatch.setattr(malloc.ctypes, 'CDLL', None)  # would fail
    assert malloc.keep_freed_memory() is False
