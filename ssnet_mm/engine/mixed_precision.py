"""Training in mixed precision: float16 on CUDA, bfloat16 there and on CPUs.

bfloat16 has float32's range, so that its losses need no scaling. mmengine's AmpOptimWrapper is for
accelerators alone, and scales them in any type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ssnet_mm.errors import UserError

AMP_DTYPES = ('float16', 'bfloat16')


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Losses under bfloat16 autocast, on the device of the model.

    Weights, gradients, the optimizer's state and with them checkpoints stay float32. A run goes on
    from a checkpoint of any other wrapper, and the other way round.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Around the forward pass."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether torch finds AVX512-BF16 or AMX; any other CPU takes longer than in float32."""
    queries = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return any(getattr(torch.cpu, query, bool)() for query in queries)


def in_mixed_precision(cfg: Config) -> bool:
    """Whether a config trains under autocast."""
    kind = (cfg.get('optim_wrapper') or {}).get('type')
    return kind in ('AmpOptimWrapper', BFloat16OptimWrapper.__name__)


def use_amp(cfg: Config, dtype: str | None = None) -> list[str]:
    """Train in mixed precision: change the type of the config's optim_wrapper.

    Args:
        cfg: A config for training.
        dtype: Of :data:`AMP_DTYPES`. None is float16 on accelerators, with mmengine's
            AmpOptimWrapper, and bfloat16 on CPUs that are faster in it; other CPUs take float32.

    Returns:
        What the user should know.

    Raises:
        UserError: The config has a wrapper of another kind, or a CPU shall train in float16.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        return []  # preflight says what the training lacks
    kind = wrapper.get('type', 'OptimWrapper')
    kinds = ('OptimWrapper', 'AmpOptimWrapper', BFloat16OptimWrapper.__name__)
    if kind not in kinds:
        raise UserError(f'--amp takes an optim_wrapper of type OptimWrapper, the config has {kind}')
    notes = []
    on_cpu = get_device() == 'cpu'
    if on_cpu and dtype == 'float16':
        raise UserError(
            '--amp-dtype float16 needs CUDA, and torch finds none here; on a CPU take bfloat16'
        )
    if on_cpu and dtype is None and not cpu_is_fast_in_bfloat16():
        wrapper.type = 'OptimWrapper'
        notes.append(
            '--amp: training in float32, as bfloat16 would be slower on this CPU, which has '
            'neither AVX512-BF16 nor AMX; --amp-dtype bfloat16 forces it'
        )
    elif on_cpu or dtype == 'bfloat16':
        wrapper.type = BFloat16OptimWrapper.__name__
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        if dtype is not None:
            wrapper.dtype = dtype
    if wrapper.type != 'AmpOptimWrapper':
        for setting in ('loss_scale', 'dtype', 'use_fsdp'):  # AmpOptimWrapper's own
            wrapper.pop(setting, None)
    return notes
