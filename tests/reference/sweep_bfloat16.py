"""Which layers' backward passes in bfloat16 write beyond their memory or go wrong on this CPU?

    python tests/reference/sweep_bfloat16.py

Trains each layer of FCN8 and FastFCN8, and score layers of many widths, under bfloat16 autocast in
a process of its own, where glibc aborts at a block that was written beyond (MALLOC_CHECK_=3), and
compares the gradients with float32's. It needs torch alone, and prints a Markdown table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

# maps of FCN8 at 240x180, odd ones, and some that end before a kernel does: batch, height, width
_FINE = [(8, 23, 30), (1, 31, 17)]
_COARSE = [(8, 6, 8), (1, 7, 5), (2, 16, 16), (2, 3, 3), (2, 2, 3), (2, 3, 2), (2, 1, 1)]
_CHILD = """
import torch
from torch import nn
torch.manual_seed(0)
layer = nn.{layer}
wrong = set()
for n, height, width in {maps} * 3:
    x = torch.randn(n, {channels}, height, width).to(memory_format=torch.{layout})
    results, gradient = [], None
    for lower in (False, True):
        layer.zero_grad()
        x = x.detach().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=lower):
            y = layer(x).float()
        gradient = torch.randn_like(y) if gradient is None else gradient
        y.backward(gradient)
        results.append((y, x.grad, layer.weight.grad))
    if not all((b - a).norm() <= 0.05 * a.norm() for a, b in zip(*results)):
        wrong.add((height, width))
print(f'wrong at {{sorted(wrong)}}' if wrong else 'whole')
"""


def layers() -> Iterator[tuple[str, int, list[tuple[int, int, int]]]]:
    """Each layer as nn writes it, its input's channels and maps."""
    for channels in (256, 512, 1024, 4096):
        for classes in (1, 2, 3, 5, 8, 11, 12, 15, 16, 17, 19, 21, 31, 33, 150):
            yield f'Conv2d({channels}, {classes}, 1)', channels, _COARSE
    stages = (
        (3, 64),
        (64, 64),
        (64, 128),
        (128, 128),
        (128, 256),
        (256, 256),
        (256, 512),
        (512, 512),
    )
    for wide, width in stages:
        yield f'Conv2d({wide}, {width}, 3, padding=1)', wide, _FINE
        yield f'Conv2d({wide}, {width}, 1)', wide, _FINE
        yield f'Conv2d({wide}, {wide}, 3, padding=1, groups={wide}, bias=False)', wide, _FINE
    yield 'Conv2d(512, 512, 7, padding=3, groups=512, bias=False)', 512, _COARSE
    yield 'Conv2d(512, 4096, 7, padding=3)', 512, _COARSE
    for width in (1024, 4096):
        yield f'Conv2d(512, {width}, 1)', 512, _COARSE
        yield f'Conv2d({width}, {width}, 1, groups={width}, bias=False)', width, _COARSE
        yield f'Conv2d({width}, {width}, 1)', width, _COARSE
    for classes in (2, 11, 12, 21):
        yield f'ConvTranspose2d({classes}, {classes}, 4, 2, 1, bias=False)', classes, _COARSE


def run(layer: str, channels: int, maps: list[tuple[int, int, int]], layout: str) -> str:
    """What a process that trains a layer says: 'whole', maps with wrong gradients, or its end."""
    env = dict(os.environ, MALLOC_CHECK_='3', LD_PRELOAD='libc_malloc_debug.so.0')
    env['OMP_NUM_THREADS'] = '2'
    code = _CHILD.format(layer=layer, channels=channels, maps=maps, layout=layout)
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip()
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return (done.stderr.strip().splitlines() or ['?'])[-1]


def main() -> None:
    found = [p for p in ('_is_amx_tile_supported', '_is_avx512_bf16_supported')
             if getattr(torch.cpu, p, bool)()]  # fmt: skip
    print(f'torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {found}\n')
    print('| layer | channels last | contiguous |\n|---|---|---|', flush=True)
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
        rows = [
            (layer, [pool.submit(run, layer, *rest, layout)
                     for layout in ('channels_last', 'contiguous_format')])
            for layer, *rest in layers()
        ]  # fmt: skip
        for layer, outcomes in rows:
            print(f'| `{layer}` | {" | ".join(o.result() for o in outcomes)} |', flush=True)


if __name__ == '__main__':
    main()
