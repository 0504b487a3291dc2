"""Bytes counted at the allocator, against bytes counted by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssnet_mm.benchmark.memory import held_bytes

MIB = 2**20


def saved_bytes(net: nn.Module, x: Tensor) -> int:
    """Distinct storages that autograd saves, besides the parameters, and the output's."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        pack(net(x))
    for t in (x, *net.parameters(), *net.buffers()):
        storages.pop(t.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_a_plain_network_holds_what_autograd_saves() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    )
    x = torch.rand(2, 3, 64, 64)
    map_bytes = 2 * 8 * 64 * 64 * 4
    # Conv's and ReLU's outputs, the pooled map and its 8-byte indices; batch norm's two statistics
    expected = map_bytes * 2 + map_bytes // 4 * 3 + 8 * 4 * 2
    assert saved_bytes(net, x) == expected
    assert held_bytes(lambda: net(x)) == expected


def test_what_a_closure_holds_counts_and_what_is_freed_does_not() -> None:
    kept = []

    def forward() -> Tensor:
        kept.append(torch.zeros(MIB, dtype=torch.uint8))
        (torch.zeros(4 * MIB, dtype=torch.uint8) + 1).sum()
        return torch.zeros(8, dtype=torch.uint8)

    assert held_bytes(forward) == MIB + 8


def test_without_gradients_only_the_outcome_is_held() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.rand(1, 3, 18, 18)
    with torch.no_grad():
        assert held_bytes(lambda: net(x)) == 8 * 16 * 16 * 4


def test_recomputation_shows_in_what_is_held() -> None:
    net = nn.Sequential(*(nn.Tanh() for _ in range(8)))
    x = torch.rand(MIB // 4, requires_grad=True)  # 1 MiB
    assert held_bytes(lambda: net(x)) == 8 * MIB

    def lean() -> Tensor:
        y = checkpoint(net[:4], x, use_reentrant=False)
        return checkpoint(net[4:], y, use_reentrant=False)

    # the two outputs, and the random states
    assert held_bytes(lean) == pytest.approx(2 * MIB, abs=20_000)
