"""torch.export's files, run by torch without a toolbox."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, first_line, require

from .session import Session, check_precision


def load(path: Path, device: str | None, threads: int | None, precision: str | None) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    torch = require('torch', 'torch', 'this model')
    if threads:
        torch.set_num_threads(threads)
    device_module = importlib.import_module('ssnet_mm.deploy.device')  # needs torch
    device_module.check_device(device or 'cpu')
    files = {KEY: ''}
    try:
        program = torch.export.load(path, extra_files=files)
        if device not in (None, 'cpu'):
            passes = importlib.import_module('torch.export.passes')
            program = passes.move_to_device_pass(program, device)
    except Exception as error:
        raise UserError(
            f'{path} is not a model that torch can load: {first_line(error)}'
        ) from error
    processor = Processor.from_json(files[KEY], path)
    check_precision(path, processor, precision)
    module = program.module()

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(batch).to(device or 'cpu')).cpu().numpy()

    return Session(run, processor)


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    import torch

    symbolic = importlib.import_module('torch.fx.experimental._config')
    if network.processor.precision == 'fp16':
        network.model.half()
    axes: tuple[int, ...] = (0, 1, 2) if network.processor.end_to_end else (0, 2, 3)
    if network.processor.fixed_size:
        axes = (0,)
    # Without these two torch would specialise: sizes of one apart from others, and a cropped map
    # apart from a whole one.
    with symbolic.patch(backed_size_oblivious=True), torch.no_grad():
        program = torch.export.export(
            network,
            (network.example(size),),
            dynamic_shapes=(dict.fromkeys(axes, torch.export.Dim.DYNAMIC),),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    torch.export.save(program, path, extra_files={KEY: network.processor.to_json()})
