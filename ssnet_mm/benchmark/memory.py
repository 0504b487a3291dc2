"""How much memory a training step takes, counted at the allocator.

Counting what autograd saves misses what a process holds besides: inputs of segments that are
computed again, closures, buffers. Here everything counts that was allocated and not freed.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile


def _cpu_changes(step: Callable[[], Any]) -> tuple[list[int], Any]:
    """Run a step; what each allocation added and each release took, in order, and its outcome."""
    with profile(use_kineto=True, profile_memory=True) as prof:
        result = step()
    assert prof.kineto_results is not None
    events = [e for e in prof.kineto_results.events() if e.name() == '[memory]']
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())], result


def _total(result: Any) -> Tensor:
    """One number to start the backward pass from."""
    if isinstance(result, Tensor):
        return result.float().sum()
    values = result.values() if isinstance(result, dict) else result
    return sum((_total(v) for v in values), start=torch.zeros(()))


def held_bytes(forward: Callable[[], Any], device: torch.device | str = 'cpu') -> int:
    """Bytes that are held between the forward and the backward pass.

    That is all memory of the device which ``forward`` takes and does not give back while its
    outcome lives: activations, the outcome itself, whatever waits for the backward pass. What was
    there before, as parameters and the images, does not count, unless ``forward`` makes it.

    Args:
        forward: Runs the forward pass with gradients on and returns its outcome.
        device: Where it runs, a CPU or a CUDA device. On CUDA it runs twice, as the first run
            loads libraries which keep memory of their own.

    Returns:
        The number of bytes.

    Example:
        >>> import torch
        >>> from ssnet_mm.benchmark.memory import held_bytes
        >>> x = torch.rand(1000, requires_grad=True)
        >>> held_bytes(lambda: x.exp())  # 1000 values of 4 bytes, which its gradient needs too
        4000
    """
    device = torch.device(device)
    if device.type == 'cpu':
        gc.collect()  # what is freed in the meantime must not count as freed by this
        return sum(_cpu_changes(forward)[0])
    forward()
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    result = forward()
    held = torch.cuda.memory_allocated(device) - before
    del result
    return held


def peak_bytes(forward: Callable[[], Any], device: torch.device | str = 'cpu') -> int:
    """The most bytes that are held at any time of a forward and a backward pass.

    Args:
        forward: Runs the forward pass and returns a tensor, or a dict or sequence of tensors, the
            sum of which is what the backward pass starts from. It is run twice: the gradients of
            the first run are there before and do not count.
        device: Where it runs, a CPU or a CUDA device.

    Returns:
        The number of bytes above what was held before.
    """
    device = torch.device(device)

    def step() -> None:
        _total(forward()).backward()

    step()
    gc.collect()
    if device.type == 'cpu':
        level = peak = 0
        for change in _cpu_changes(step)[0]:
            level += change
            peak = max(peak, level)
        return peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
