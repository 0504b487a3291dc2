"""Memory that the C library keeps between two tensors.

glibc hands every large block back to the kernel as soon as it is freed, which then clears new pages
for the next tensor: at 512x512 pixels two fifths of FastFCN8's time (docs/performance.md).
"""

import ctypes
import os
import platform

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# Who has set one of these has decided: https://man7.org/linux/man-pages/man3/mallopt.3.html
_SETTINGS = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_')
_TUNABLES = ('glibc.malloc.trim_threshold', 'glibc.malloc.mmap_threshold', 'glibc.malloc.mmap_max')


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees, for what it allocates next.

    Call it where the whole process is yours and makes large tensors on the CPU again and again: it
    stays about as large as it was at its largest. It does nothing where the C library is not glibc,
    or where the environment already tells glibc what to keep (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_`` or their ``GLIBC_TUNABLES``).

    Returns:
        Whether it took effect.
    """
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    if any(name in os.environ for name in _SETTINGS) or any(name in tunables for name in _TUNABLES):
        return False
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
