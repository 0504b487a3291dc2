import copy

import pytest
import torch
import torch.distributed as dist
from helpers.nets import data_sample
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper

from ssnet_mm.engine import launch, mixed_precision
from ssnet_mm.engine.config import build_segmentor
from ssnet_mm.errors import UserError

_ALL_AT_ONCE = """
model['backbone']['with_cp'] = True
optim_wrapper['accumulative_counts'] = 2
custom_hooks += [dict(type='EMAHook')]
"""
ON_CPU = pytest.mark.skipif(get_device() != 'cpu', reason='needs a machine without an accelerator')


def _batch():
    images = [torch.randint(256, (3, 32, 32)).byte() for _ in range(2)]
    samples = [data_sample((32, 32), torch.randint(3, (1, 32, 32))) for _ in images]
    return dict(inputs=images, data_samples=samples)


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be on a device, with a CPU that is fast in bfloat16 or not."""

    def pretend(device, fast=False):
        monkeypatch.setattr(mixed_precision, 'get_device', lambda: device)
        monkeypatch.setattr(mixed_precision, 'cpu_is_fast_in_bfloat16', lambda: fast)

    return pretend


@pytest.mark.parametrize(
    ('device', 'fast', 'dtype', 'wrapper'),
    [
        ('cuda', False, None, 'AmpOptimWrapper'),
        ('cuda', False, 'float16', 'AmpOptimWrapper'),
        ('cuda', False, 'bfloat16', 'BFloat16OptimWrapper'),
        ('npu', False, None, 'AmpOptimWrapper'),
        ('cpu', True, None, 'BFloat16OptimWrapper'),
        ('cpu', False, 'bfloat16', 'BFloat16OptimWrapper'),
        ('cpu', False, None, 'OptimWrapper'),
    ],
)
@pytest.mark.parametrize('given', ['OptimWrapper', 'AmpOptimWrapper'])
def test_the_device_decides_on_the_wrapper(
    tiny_config, machine, device, fast, dtype, wrapper, given
):
    machine(device, fast)
    cfg = launch.load_config(tiny_config("optim_wrapper['accumulative_counts'] = 2"))
    cfg.optim_wrapper.type = given
    if given == 'AmpOptimWrapper':
        cfg.optim_wrapper.loss_scale = 512.0
    notes = launch.use_amp(cfg, dtype)
    assert cfg.optim_wrapper.type == wrapper
    assert cfg.optim_wrapper.accumulative_counts == 2
    scale = 512.0 if given == 'AmpOptimWrapper' else 'dynamic'
    assert cfg.optim_wrapper.get('loss_scale') == (scale if 'Amp' in wrapper else None)
    assert cfg.optim_wrapper.get('dtype') == (dtype if 'Amp' in wrapper else None)
    assert len(notes) == (wrapper == 'OptimWrapper')
    assert all('--amp-dtype bfloat16 forces it' in note for note in notes)


def test_what_can_not_be_is_said(tiny_config, machine):
    machine('cpu', fast=True)
    cfg = launch.load_config(tiny_config())
    with pytest.raises(UserError, match='float16 needs CUDA.*on a CPU take bfloat16'):
        launch.use_amp(cfg, 'float16')
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(UserError, match='of type OptimWrapper, the config has ApexOptimWrapper'):
        launch.use_amp(cfg)


def test_a_cpu_is_fast_where_torch_finds_one_of_the_two(monkeypatch):
    for names, expected in (
        ([], False),
        (['_is_avx512_bf16_supported'], True),
        (['_is_amx_tile_supported'], True),
    ):
        for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported'):
            found = name in names
            monkeypatch.setattr(torch.cpu, name, lambda found=found: found, raising=False)
        assert mixed_precision.cpu_is_fast_in_bfloat16() is expected
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')  # as in an older torch
    monkeypatch.delattr(torch.cpu, '_is_avx512_bf16_supported')
    assert not mixed_precision.cpu_is_fast_in_bfloat16()


@ON_CPU
def test_a_slow_cpu_trains_in_float32_and_says_so(tool, tiny_config, machine, tmp_path, capsys):
    machine('cpu', fast=False)
    tool('train').main([tiny_config(), '--work-dir', str(tmp_path / 'w'), '--amp'])
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count('--amp-dtype bfloat16 forces it') == 1


@ON_CPU
def test_training_resumes_and_keeps_float32(tool, tiny_config, tmp_path, monkeypatch):
    """Layers compute in bfloat16, the loss in float32, and what is saved is float32."""
    seen = set()
    loss, convolve = torch.nn.functional.cross_entropy, torch.nn.Conv2d.forward

    def watched_loss(logits, *args, **kwargs):
        seen.add(('logits', logits.dtype))
        return loss(logits, *args, **kwargs)

    def watched(module, x):
        y = convolve(module, x)
        if module.training and module.in_channels == 3:
            seen.add(('features', y.dtype))
        return y

    monkeypatch.setattr(torch.nn.functional, 'cross_entropy', watched_loss)
    monkeypatch.setattr(torch.nn.Conv2d, 'forward', watched)
    config, work = tiny_config(_ALL_AT_ONCE), tmp_path / 'w'
    run = [config, '--work-dir', str(work)]
    tool('train').main([*run, '--amp-dtype', 'bfloat16'])
    assert seen == {('features', torch.bfloat16), ('logits', torch.float32)}
    tool('train').main([*run, '--resume', '--cfg-options', 'train_cfg.max_iters=4'])
    assert seen > {('features', torch.float32)}  # resumed without, as it might be with it
    for name in ('iter_2.pth', 'iter_4.pth'):
        saved = torch.load(work / name, weights_only=True)
        states = [saved['state_dict'], saved['ema_state_dict']]
        states += saved['optimizer']['state'].values()
        tensors = [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
        assert len(tensors) > 100
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


def test_a_teacher_is_asked_under_it(tiny_config, tmp_path):
    plain = launch.load_config(tiny_config())
    torch.save(build_segmentor(plain).state_dict(), tmp_path / 'teacher.pth')
    cfg = launch.load_config(tiny_config())
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    cfg.model = dict(
        plain.model,
        type='DistilledEncoderDecoder',
        teacher=plain.model,
        distill_loss=dict(type='KLDistillLoss'),
        teacher_checkpoint=str(tmp_path / 'teacher.pth'),
    )
    model = build_segmentor(cfg).train()
    logged = model.train_step(_batch(), build_optim_wrapper(model, cfg.optim_wrapper))
    assert logged['distill.loss_kl'].item() > 0
    assert logged['distill.loss_kl'].dtype == torch.float32


def test_gradients_come_close_to_those_of_float32(tiny_config):
    cfg = launch.load_config(tiny_config())
    gradients = []
    for kind in ('OptimWrapper', 'BFloat16OptimWrapper'):
        torch.manual_seed(0)
        model = build_segmentor(cfg).train()
        wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type=kind))
        with wrapper.optim_context(model):
            assert torch.is_autocast_enabled('cpu') == (kind != 'OptimWrapper')
            logits = model(torch.randn(2, 3, 64, 64), mode='tensor')
        assert logits.dtype == torch.float32 and not torch.is_autocast_enabled('cpu')
        logits.square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert not torch.equal(*gradients)


@ON_CPU
def test_distributed_training_accumulates(tiny_config, tmp_path):
    cfg = launch.load_config(tiny_config("optim_wrapper['accumulative_counts'] = 2"))
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    batch, trained = _batch(), []
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1
    )
    try:
        for distributed in (False, True):
            torch.manual_seed(0)
            model = build_segmentor(cfg).train()
            net = MMDistributedDataParallel(model) if distributed else model
            wrapper = build_optim_wrapper(net, copy.deepcopy(cfg.optim_wrapper))
            wrapper.initialize_count_status(net, 0, 2)
            before = model.decode_head.scores[0].weight.detach().clone()
            for step in range(2):
                net.train_step(batch, wrapper)
                moved = not torch.equal(before, model.decode_head.scores[0].weight)
                assert moved == (step == 1)
            trained.append(model.state_dict())
    finally:
        dist.destroy_process_group()
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], msg=name)
        assert value.dtype in (torch.float32, torch.int64)
