"""torch.export's files, run by torch without a toolbox."""

from __future__ import annotations

import importlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.processor import KEY, Processor
from ssnet_mm.errors import UserError, first_line, require

from .session import Session, check_precision, check_process


def load(
    path: Path, device: str | None, threads: int | None, precision: str | None, trust: bool
) -> Session:
    """Load a file; see :func:`ssnet_mm.deploy.runtimes.load`."""
    torch = require('torch', 'torch', 'this model')
    if threads:
        torch.set_num_threads(threads)
    device = device or 'cpu'
    importlib.import_module('ssnet_mm.deploy.device').check_device(device)  # needs torch
    network, text = (_load_trusted if trust else _load)(path, device)
    processor = Processor.from_json(text, path)
    check_precision(path, processor, precision)
    process = os.getpid()

    def run(batch: Any) -> Any:
        check_process(process, torch.get_num_threads())
        with torch.no_grad():
            output = network(torch.from_numpy(batch).to(device))
        if processor.scores:
            return [one.cpu().numpy() for one in output]
        return output.cpu().numpy()

    return Session(run, processor)


def _load(path: Path, device: str) -> tuple[Any, str | None]:
    """A network and its processor's text; nothing in the file is run."""
    from .exported_graph import ExportedGraph

    network = ExportedGraph(path, device)
    return network, network.extra.get(KEY)


def _load_trusted(path: Path, device: str) -> tuple[Any, str | None]:
    """The same by torch's own loader, which runs code that a file may hold."""
    import torch

    files = {KEY: ''}
    try:
        program = torch.export.load(path, extra_files=files)
        if device != 'cpu':
            passes = importlib.import_module('torch.export.passes')
            program = passes.move_to_device_pass(program, device)
    except Exception as error:
        raise UserError(
            f'{path} is not a model that torch can load: {first_line(error)}'
        ) from error
    return program.module(), files[KEY]


def write(network: Any, path: Path, size: tuple[int, int], images: Sequence[Pixels]) -> None:
    """Write a file; see :mod:`ssnet_mm.deploy.runtimes`."""
    import torch

    symbolic = importlib.import_module('torch.fx.experimental._config')
    if network.processor.precision == 'fp16':
        network.model.half()
    elif network.processor.precision == 'bf16':
        precision = importlib.import_module('ssnet_mm.deploy.precision')  # needs the toolbox
        precision.compute_in_bfloat16(network.model)
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
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files={KEY: network.processor.to_json()})
    path.write_bytes(_without_traces(archive))


def _without_traces(archive: IO[bytes]) -> bytes:
    """An archive that does not tell where in which source files its operations were written."""
    result = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(result, 'w') as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith('models/model.json'):
                program = json.loads(data)
                for node in program['graph_module']['graph']['nodes']:
                    node['metadata'].pop('stack_trace', None)
                data = json.dumps(program).encode()
            # the same date in all, whenever it is written
            target.writestr(zipfile.ZipInfo(member.filename), data)
    return result.getvalue()
