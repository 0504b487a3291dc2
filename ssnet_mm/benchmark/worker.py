"""One row of a benchmark, in a process of its own.

Memory and crashes then belong to the row alone. The parent process sends one request at a time, so
that nothing else of the benchmark runs while a row is timed.
"""

from __future__ import annotations

import functools
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import mmseg.models
import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from ssnet_mm.deploy import Segmenter, fuse, runtimes
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import ready
from ssnet_mm.deploy.precision import compute_in_bfloat16, pack_weights
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.engine.checkpoint import load_checkpoint, weights_only
from ssnet_mm.engine.config import build_segmentor, config_errors, describe, load_config
from ssnet_mm.engine.launch import AMP_DTYPES, tune, use_amp
from ssnet_mm.errors import UserError, require
from ssnet_mm.malloc import keep_freed_memory

from .layers import WARMUP, run_network, seconds_of
from .memory import MIB, Memory, held_bytes
from .rows import Row, Settings

PHOTO = (480, 640)  # height and width of the JPEG file that end-to-end timing starts from
_AUTOCAST = dict(zip(('fp16', 'bf16'), AMP_DTYPES))


def with_classes(part: Any, num_classes: int) -> Any:
    """A copy of a model config for so many classes; weights of the old classes are dropped."""
    if isinstance(part, Mapping):
        part = {key: with_classes(value, num_classes) for key, value in part.items()}
        part.pop('class_weight', None)
        if 'num_classes' in part:
            part['num_classes'] = num_classes
        return part
    return [with_classes(p, num_classes) for p in part] if isinstance(part, list) else part


def find_config(path: str) -> str:
    """A config's file; ``mmseg::fastscnn/NAME.py`` is one of those that mmseg brings along."""
    if path.startswith('mmseg::'):
        return os.path.join(mmseg.__path__[0], '.mim', 'configs', path.removeprefix('mmseg::'))
    return path


def build_row(row: Row, settings: Settings) -> tuple[Any, Config]:
    """A row's model on the CPU, in eval mode, and its config; nothing is downloaded."""
    cfg = load_config(find_config(row.config))
    if settings.num_classes is not None:
        cfg.model = with_classes(cfg.model.to_dict(), settings.num_classes)
    model = build_segmentor(cfg, f'the model of {row.config}')
    if row.checkpoint is not None:
        load_checkpoint(model, row.checkpoint)
    return model.eval(), cfg


def export_row(row: Row, settings: Settings, path: str) -> None:
    """Write the file that a row of an exported model runs."""
    _set_threads(settings)
    model, cfg = build_row(row, settings)
    model.test_cfg.mode = 'whole'  # what becomes of the logits is not the network's
    if settings.end_to_end:
        ready(model, cfg)
    bf16 = row.precision == 'bf16'  # a way of computing, not of storing
    calibration = [_noise(settings.shape, i) for i in range(4)]  # good for timing, not for scores
    export(
        model,
        path,
        next(name for name, f in runtimes.FORMATS.items() if f.runtime == row.runtime),
        precision='fp32' if bf16 else row.precision,
        size=settings.shape,
        calibration=calibration if row.precision == 'int8' else None,
    )


def _noise(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture of soft coloured blots, (H, W, 3)."""
    coarse = (-(-size[0] // 8), -(-size[1] // 8), 3)
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, coarse, np.uint8), size[::-1])


def _set_threads(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)


def _timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second of two calls: the first wakes threads and caches."""
    function()
    return seconds_of(function, device)


class Predictor:
    """A network that is ready to segment, warmed up.

    ``exported`` is what :func:`export_row` wrote, for the runtimes that need it. UserError where
    the row can't run here.
    """

    segmenter: Segmenter | None = None  # the way from a JPEG file, where that is timed

    def __init__(self, row: Row, settings: Settings, exported: str | None = None) -> None:
        _set_threads(settings)
        self.settings = settings
        self.device = torch.device(settings.device)
        if exported and row.runtime in ('onnxruntime', 'openvino'):
            require(row.runtime, row.runtime, 'this row')  # libraries are not the network's memory
        self.memory = Memory(self.device)
        self.measures_memory = exported is None or self.device.type == 'cpu'
        self.run: Callable[[Any], Any]
        self.prepare: Callable[[Tensor], Any] = Tensor.numpy  # from a float32 image batch
        session: Any
        if exported is None:
            session = self._load_in_torch(row)
        else:
            session = runtimes.load(exported, settings.device, settings.threads, row.precision)
            self.run = session.run
        self.image = self.prepare(torch.rand(settings.batch, 3, *settings.shape) * 4 - 2)
        if settings.end_to_end and session is not None:
            self.segmenter = Segmenter(session, batch_size=settings.batch)
            self.folder = tempfile.TemporaryDirectory()
            self.photo = Path(self.folder.name, 'photo.jpg')
            Image.fromarray(_noise(PHOTO, 0)).save(self.photo)
        elif settings.end_to_end:
            self.measures_memory = False  # the network's alone, beside rows that take photos too
        for _ in range(WARMUP):
            self.turn()
        if row.runtime != 'torch' and self.device.type == 'cpu':  # as tools/predict.py does
            keep_freed_memory()
        self.memory.restart()

    def _load_in_torch(self, row: Row) -> TorchSession | None:
        """Set ``run`` and ``prepare``; return what predict.py runs, if that is the same network."""
        if row.precision == 'int8':
            others = [f.runtime for f in runtimes.FORMATS.values() if row.precision in f.precisions]
            raise UserError(f'{row.runtime} runs no {row.precision}; {" and ".join(others)} do')
        torch.backends.cudnn.benchmark = True  # all passes have one shape
        dtype = torch.float16 if row.precision == 'fp16' else torch.float32
        layout = torch.contiguous_format if row.runtime == 'torch' else torch.channels_last
        self.prepare = lambda image: image.to(self.device, dtype, memory_format=layout)
        model, cfg = build_row(row, self.settings)
        model = (model if row.runtime == 'torch' else fuse(model)).to(self.device, dtype)
        if row.precision == 'bf16':
            compute_in_bfloat16(model)
        if row.runtime == 'fused':
            pack_weights(model)
        session = None
        if self.settings.end_to_end and row.runtime != 'compile' and dtype == torch.float32:
            session = TorchSession(ready(model, cfg))
        if row.runtime == 'compile':
            from torch._inductor import config as inductor

            # Weights become constants, laid out for the kernels that take them; needs no_grad.
            inductor.freezing = True
            mode = 'max-autotune' if self.device.type == 'cuda' else 'default'
            model = torch.compile(model, mode=mode)
        self.run = functools.partial(run_network, model)
        return session

    @torch.no_grad()
    def turn(self) -> dict[str, float]:
        """Seconds of one pass of the network, and of one from JPEG to label map if asked for."""
        seconds = {'network': _timed(lambda: self.run(self.image), self.device)}
        if self.segmenter is not None:
            seconds['end_to_end'] = _timed(self.segment, self.device)
        return seconds

    def segment(self) -> list[np.ndarray]:
        """Label maps of a batch of photos, all the way that ``tools/predict.py`` goes."""
        assert self.segmenter is not None
        return self.segmenter([self.photo] * self.settings.batch)

    def facts(self) -> dict[str, float | None]:
        """Peak memory over the turns, in MiB."""
        return {'peak_mib': self.memory.peak_mib() if self.measures_memory else None}


class Trainer:
    """A training step that is ready to be timed, warmed up: forward, loss, backward, optimizer.

    The precisions 'fp16' and 'bf16' are mixed, as ``tools/train.py --amp-dtype``. UserError where
    the row can't run here.
    """

    def __init__(self, row: Row, settings: Settings) -> None:
        _set_threads(settings)
        self.device = torch.device(settings.device)
        torch.backends.cudnn.benchmark = True
        self.memory = Memory(self.device)
        model, cfg = build_row(row, settings)
        self.model = model.to(self.device).train()
        if row.precision == 'fp16' and self.device.type == 'cpu':
            raise UserError('training in float16 needs CUDA; take bf16')
        if row.precision != 'fp32':
            use_amp(cfg, _AUTOCAST[row.precision])
        with config_errors(f'the optim_wrapper of {row.config}'):
            self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        image = torch.rand(settings.batch, 3, *settings.shape) * 4 - 2
        self.inputs = image.to(self.device)
        size = settings.shape
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        classes = self.model.num_classes
        labels = torch.randint(classes, (settings.batch, 1, *size), device=self.device)
        self.samples = [
            SegDataSample(
                metainfo=meta,
                gt_sem_seg=PixelData(data=label),
                gt_edge_map=PixelData(data=(label == 0).long()),  # which a few heads learn from
            )
            for label in labels
        ]
        tune(self.model, row.precision != 'fp32')  # as tools/train.py does
        self.held_mib = held_bytes(self._loss, self.device) / MIB / settings.batch
        for _ in range(WARMUP):
            self.turn()
        self.memory.restart()

    def _loss(self) -> Tensor:
        with self.optimizer.optim_context(self.model):
            losses = self.model(self.inputs, self.samples, mode='loss')
        return self.model.parse_losses(losses)[0]

    def turn(self) -> dict[str, float]:
        """Seconds of one step."""
        return {'network': _timed(lambda: self.optimizer.update_params(self._loss()), self.device)}

    def facts(self) -> dict[str, float | None]:
        """Peak memory over the turns, and what an image holds until the backward pass, in MiB."""
        return {'peak_mib': self.memory.peak_mib(), 'held_mib': self.held_mib}


@weights_only()
def serve(connection: Connection, make: Callable[..., Any], *args: Any) -> None:
    """Make something in this process and call its methods by name, as the parent asks for them.

    Each answer is a pair: whether all went well, and the result or the reason in one line. The
    first one is that of making it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    warnings.simplefilter('ignore')  # each row would repeat them
    try:
        subject = make(*args)
        connection.send((True, None))
        while True:
            connection.send((True, getattr(subject, connection.recv())()))
    except EOFError:  # the parent is gone
        return
    except Exception as error:  # the row's failure is its result
        reason = str(error) if isinstance(error, UserError) else describe(error)
        connection.send((False, ' '.join(reason.split())))
