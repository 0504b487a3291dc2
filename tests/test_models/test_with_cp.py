"""with_cp: the same numbers from less memory."""

import copy
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssnet_mm import VGG16
from ssnet_mm.benchmark.memory import held_bytes

SEPARABLE = dict(type='SeparableConv2d')
CONVS = pytest.mark.parametrize('conv_cfg', [None, SEPARABLE], ids=['conv', 'ds'])


def pair(**kwargs: object) -> tuple[VGG16, VGG16]:
    """A plain network and its twin with with_cp, with the same weights."""
    torch.manual_seed(0)
    kwargs = dict(base_channels=4, fc_channels=8) | kwargs
    dtype = kwargs.pop('dtype', torch.float64)
    plain, lean = VGG16(**kwargs), VGG16(**kwargs, with_cp=True)
    lean.load_state_dict(plain.state_dict())
    return plain.to(dtype).train(), lean.to(dtype).train()


def image(size: tuple[int, int] = (37, 45), dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(net: Callable[..., tuple[Tensor, ...]], x: Tensor, times: int = 1) -> Tensor:
    """Forward passes, then their backward passes; what the levels sum up to."""
    torch.manual_seed(2)  # of the dropout
    total = sum(level.square().mean() for _ in range(times) for level in net(x))
    total.backward()
    return total.detach()


def assert_same_step(plain: nn.Module, lean: nn.Module) -> None:
    """The very same gradients and buffers."""
    others = dict(lean.named_parameters())
    for name, p in plain.named_parameters():
        assert (p.grad is None) == (others[name].grad is None), name
    grads = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert any(g.any() for g in grads.values())
    for name, grad in grads.items():
        assert torch.equal(grad, others[name].grad), name
    buffers = dict(lean.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@CONVS
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(norm_cfg=None),
        dict(norm_cfg=dict(type='BN', momentum=None)),  # the plain mean over all batches
        dict(norm_cfg=dict(type='BN', affine=False)),
        dict(norm_cfg=dict(type='BN', track_running_stats=False)),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
        dict(norm_eval=True),
        dict(frozen_stages=1),
        dict(frozen_stages=5),
        dict(strides=(2, 2, 2, 1, 1), dilations=(1, 1, 1, 1, 2)),
        dict(in_channels=5, base_channels=20),  # over and under CHEAP_PRODUCTS
        dict(out_indices=(0, 1, 3), fc_channels=None),
        dict(dropout_ratio=0.0),
    ],
    ids=lambda kwargs: ','.join(kwargs) or 'default',
)
def test_gradients_and_statistics_equal_the_plain_ones(
    conv_cfg: dict | None, kwargs: dict[str, object]
) -> None:
    plain, lean = pair(conv_cfg=conv_cfg, **kwargs)
    x = image()
    if 'in_channels' in kwargs:
        x = torch.cat([x, x[:, :2] ** 2], dim=1)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    # Twice, so that the second step starts from moved statistics.
    for _ in range(2):
        totals = [step(net, x) for net, x in zip((plain, lean), inputs)]
        assert torch.equal(*totals)
    assert_same_step(plain, lean)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@CONVS
def test_in_single_precision(conv_cfg: dict | None) -> None:
    plain, lean = pair(conv_cfg=conv_cfg, dtype=torch.float32)
    x = image(dtype=torch.float32)
    assert torch.equal(step(plain, x), step(lean, x))
    assert_same_step(plain, lean)


def test_channels_last() -> None:
    plain, lean = pair(conv_cfg=SEPARABLE)
    x = image().to(memory_format=torch.channels_last)
    assert torch.equal(*(step(n.to(memory_format=torch.channels_last), x) for n in (plain, lean)))
    assert_same_step(plain, lean)


@CONVS
def test_two_forward_passes_before_one_backward(conv_cfg: dict | None) -> None:
    plain, lean = pair(conv_cfg=conv_cfg)
    assert torch.equal(step(plain, image(), times=2), step(lean, image(), times=2))
    assert_same_step(plain, lean)
    assert lean.stages[0][0].norm.num_batches_tracked == 2


def test_a_switch_to_eval_before_the_backward_pass_changes_nothing() -> None:
    plain, lean = pair()
    for net in (plain, lean):
        torch.manual_seed(2)
        total = sum(level.square().mean() for level in net(image()))
        net.eval()
        total.backward()
    assert_same_step(plain, lean)


@pytest.mark.parametrize('kwargs', [dict(), dict(norm_cfg=None)], ids=['bn', 'plain'])
def test_a_second_backward_pass_over_the_same_graph(kwargs: dict) -> None:
    plain, lean = pair(**kwargs)
    for net in (plain, lean):
        torch.manual_seed(2)
        total = sum(level.square().mean() for level in net(image()))
        total.backward(retain_graph=True)
        total.backward()
    assert_same_step(plain, lean)


@CONVS
def test_eval_and_no_grad_run_the_plain_layers(conv_cfg: dict | None) -> None:
    plain, lean = pair(conv_cfg=conv_cfg)
    with torch.no_grad():  # batch norm still counts in training mode
        step = [torch.manual_seed(0) and net(image()) for net in (plain, lean)]
    assert all(torch.equal(a, b) for a, b in zip(*step))
    assert_equal_buffers(plain, lean)
    for a, b in zip(plain.eval()(image()), lean.eval()(image())):  # with gradients
        assert torch.equal(a, b)
    assert_equal_buffers(plain, lean)


def assert_equal_buffers(plain: nn.Module, lean: nn.Module) -> None:
    for (name, a), b in zip(plain.named_buffers(), lean.buffers()):
        assert torch.equal(a, b), name


@CONVS
def test_less_than_half_of_the_memory_is_held(conv_cfg: dict | None) -> None:
    plain, lean = pair(conv_cfg=conv_cfg, dtype=torch.float32, base_channels=8)
    x = image((96, 96), torch.float32)
    held = [held_bytes(lambda net=net: net(x)) for net in (plain, lean)]
    assert held[1] < 0.5 * held[0]


def test_frozen_stages_hold_nothing() -> None:
    _, lean = pair(frozen_stages=5, fc_channels=None, out_indices=(4,))
    level = lean(image())[0]
    assert not level.requires_grad
    assert held_bytes(lambda: lean(image())) - image().nbytes <= level.nbytes + 4096


@pytest.mark.parametrize('change', ['SyncBN', 'hook'])
def test_what_must_not_run_twice_runs_plainly_and_says_so(change: str) -> None:
    plain, lean = pair()
    called = []
    if change == 'SyncBN':

        class SyncBatchNorm(nn.BatchNorm2d):
            """Stands for another norm layer with a state: the real one needs a GPU."""

        for net in (plain, lean):
            net.stages[1][0].norm.__class__ = SyncBatchNorm
    else:
        lean.stages[1][0].norm.register_forward_hook(lambda *_: called.append(1))
    step(plain, image())
    with pytest.warns(UserWarning, match='with_cp saves no memory in a layer: .*(Sync|hooks)'):
        step(lean, image())
    assert_same_step(plain, lean)
    assert called == ([1] if change == 'hook' else [])


def test_layers_of_ours_cause_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(pair(conv_cfg=SEPARABLE)[1], image())


def test_state_dicts_copies_and_pickles() -> None:
    plain, lean = pair()
    assert list(plain.state_dict()) == list(lean.state_dict())
    step(lean, image())
    file = io.BytesIO()
    torch.save(copy.deepcopy(lean), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(step(lean, image()), step(again, image()))


def test_compiled() -> None:
    plain, lean = pair(conv_cfg=SEPARABLE, out_indices=(1,), fc_channels=None)
    torch._dynamo.reset()
    compiled = torch.compile(lean, backend='aot_eager', fullgraph=True)
    step(plain, image())
    step(compiled, image())
    assert_same_step(plain, lean)


def test_under_ddp(tmp_path: object) -> None:
    plain, lean = pair(conv_cfg=SEPARABLE)
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        for find_unused in (False, True):
            for net in (plain, lean):
                step(DistributedDataParallel(net, find_unused_parameters=find_unused), image())
            assert_same_step(plain, lean)
    finally:
        dist.destroy_process_group()


_AUTOCAST = """
import sys
import torch
from ssnet_mm import VGG16
nets = [VGG16(base_channels=8, fc_channels=8, conv_cfg=dict(type='SeparableConv2d'), with_cp=cp)
        for cp in (False, True)]
nets[1].load_state_dict(nets[0].state_dict())
x = torch.rand(2, 3, 33, 41)
for net in nets:
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        total = sum(
            level.float().square().mean()
            for _ in range(int(sys.argv[1])) for level in net.train()(x)
        )
    total.backward()
    print(total.item())
flat = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in nets]
print(torch.nn.functional.cosine_similarity(*flat, dim=0).item())
print(all(torch.equal(a, b) for a, b in zip(*(net.buffers() for net in nets))))
"""


@pytest.mark.parametrize('times', ['1', '2'])  # the second time autocast has the weights' casts
def test_under_autocast(times: str) -> None:
    # In a process of its own, without the AMX kernels of bfloat16, which crash some CPUs.
    env = os.environ | dict(ONEDNN_MAX_CPU_ISA='AVX512_CORE_BF16', OMP_NUM_THREADS='1')
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _AUTOCAST, times],
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    *totals, cosine, same = run.stdout.split()[-4:]
    assert totals[0] == totals[1]
    assert float(cosine) > 0.999
    assert same == 'True'
