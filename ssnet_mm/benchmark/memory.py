"""How much memory a pass takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.profiler import profile

MIB = 2**20


def held_bytes(forward: Callable[[], Any], device: torch.device | str = 'cpu') -> int:
    """Bytes that are held between the forward and the backward pass, counted at the allocator.

    That is what ``forward`` takes and does not give back while its outcome lives: activations, the
    outcome, whatever waits for the backward pass. (What autograd saves is less: inputs of segments
    that are computed again, closures and buffers are not in it.)
    """
    device = torch.device(device)
    if device.type == 'cpu':
        gc.collect()  # what is freed in the meantime must not count as freed by this
        with profile(use_kineto=True, profile_memory=True) as prof:
            result = forward()
        assert prof.kineto_results is not None
        held = sum(e.nbytes() for e in prof.kineto_results.events() if e.name() == '[memory]')
    else:
        forward()  # loads libraries, which keep memory of their own
        gc.collect()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        result = forward()
        held = torch.cuda.memory_allocated(device) - before
    del result
    return held


class Memory:
    """What a process needs at its peak beyond what it held when this was made, in MiB.

    On a CPU it is the resident set, as Linux counts it; on CUDA what torch allocates there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == 'cpu':
            F.conv2d(torch.ones(1, 16, 32, 32), torch.ones(16, 16, 3, 3))  # loads the kernels' code
            self.baseline = _status('VmRSS')

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.baseline is not None:
            try:
                with open('/proc/self/clear_refs', 'w') as file:
                    file.write('5')  # sets VmHWM to VmRSS: proc_pid_clear_refs(5)
            except OSError:  # the peak of building the network is not what was asked for
                self.baseline = None

    def peak_mib(self) -> float | None:
        """The peak since :meth:`restart`; None where the system does not tell."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated(self.device) / MIB
        peak = _status('VmHWM')
        return None if self.baseline is None or peak is None else (peak - self.baseline) / 1024


def _status(field: str) -> int | None:
    """A number of KiB from Linux' account of this process."""
    try:
        with open('/proc/self/status') as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field + ':'))
    except (OSError, StopIteration):
        return None
