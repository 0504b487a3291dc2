"""One row of a benchmark, in a process of its own.

Memory and crashes then belong to the row alone. The parent process sends one request at a time, so
that nothing else of the benchmark runs while a row is timed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import mmseg.models
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ssnet_mm.benchmark.layers import run_network, synchronize
from ssnet_mm.engine.checkpoint import load_checkpoint
from ssnet_mm.engine.config import config_errors, describe, load_config
from ssnet_mm.engine.launch import tune_for_cpu, use_amp
from ssnet_mm.errors import UserError
from ssnet_mm.malloc import keep_freed_memory

PHOTO = (480, 640)  # height and width of the JPEG that end-to-end timing decodes
WARMUP = 3  # passes; the first compiles, or picks kernels
MIB = 2**20
_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """What is timed."""

    config: str
    backend: str  # one of `benchmark.BACKENDS`, or 'train'
    precision: str
    checkpoint: str | None = None

    @property
    def label(self) -> str:
        """Short, for tables and charts."""
        return f'{Path(self.config).stem}, {self.backend}, {self.precision}'


@dataclass(frozen=True)
class Settings:
    """How all rows are timed.

    Args:
        shape: Height and width of the network's input.
        batch: Images a pass.
        threads: CPU threads of every backend.
        device: As torch names it.
        rounds: Timed passes of each row.
        end_to_end: Time the way from JPEG to label map too.
        num_classes: Put into every head; None leaves the configs' own.
    """

    shape: tuple[int, int] = (512, 512)
    batch: int = 1
    threads: int = 1
    device: str = 'cpu'
    rounds: int = 20
    end_to_end: bool = False
    num_classes: int | None = None


def without_weights(part: Any) -> Any:
    """A copy of a model config that fetches no pretrained weights: timing needs none."""
    if isinstance(part, Mapping):
        return {
            key: without_weights(value)
            for key, value in part.items()
            if key != 'pretrained'
            and not (isinstance(value, Mapping) and value.get('type') == 'Pretrained')
        }
    if isinstance(part, (list, tuple)):
        return [without_weights(p) for p in part]
    return part


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


def build_segmentor(
    config: str, num_classes: int | None = None, checkpoint: str | None = None
) -> tuple[Any, Config]:
    """Build a config's model on the CPU, in eval mode, without touching the network.

    Synchronised batch norm, which runs on GPUs only, becomes plain batch norm.

    Args:
        config: Path, or ``mmseg::`` and the name of a config that mmseg brings along.
        num_classes: Put into every head; None leaves the config's.
        checkpoint: Weights, which must fit; None leaves them as drawn.

    Returns:
        The model and its config.

    Raises:
        UserError: The config does not build, or the checkpoint does not fit it.
    """
    cfg = load_config(find_config(config))
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    with config_errors(f'the model of {config}'):
        cfg.model = without_weights(cfg.model.to_dict())
        if num_classes is not None:
            cfg.model = with_classes(cfg.model.to_dict(), num_classes)
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.eval(), cfg


def export_row(row: Row, settings: Settings, path: str) -> None:
    """Write the file that an ONNX Runtime or OpenVINO row runs."""
    from ssnet_mm.deploy.export import export

    _set_threads(settings)
    model, _ = build_segmentor(row.config, settings.num_classes, row.checkpoint)
    model.test_cfg.mode = 'whole'  # what becomes of the logits is not the network's
    export(
        model,
        path,
        'onnx' if row.backend == 'onnxruntime' else 'openvino',
        # OpenVINO computes in bf16 whatever the file holds, if told to
        precision='fp32'
        if row.backend == 'openvino' and row.precision == 'bf16'
        else row.precision,
        size=settings.shape,
        # noise: good for timing, and for nothing else
        calibration=[_noise(settings.shape, i) for i in range(4)]
        if row.precision == 'int8'
        else None,
    )


def _noise(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture of soft coloured blots, (H, W, 3)."""
    coarse = (-(-size[0] // 8), -(-size[1] // 8), 3)
    return _resized(np.random.default_rng(seed).integers(0, 256, coarse, np.uint8), size)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(image, size[::-1])


def _set_threads(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)


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


def _timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second of two calls: the first wakes threads and caches."""
    for _ in range(2):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
    return time.perf_counter() - start


class Predictor:
    """A network that is ready to segment, warmed up.

    Args:
        row: What to time.
        settings: How.
        exported: File written by :func:`export_row`, for the backends that need one.

    Raises:
        UserError: The row can't run here.
    """

    def __init__(self, row: Row, settings: Settings, exported: str | None = None) -> None:
        _set_threads(settings)
        self.settings = settings
        self.device = torch.device(settings.device)
        in_torch = exported is None
        if not in_torch:  # before memory is looked at: libraries are not the network's
            _library(row.backend)
        self.memory = Memory(self.device)
        self.measures_memory = in_torch or self.device.type == 'cpu'
        make = {'onnxruntime': _onnxruntime, 'openvino': _openvino}.get(row.backend, _torch)
        self.run, self.prepare = make(row, settings, exported)
        image = torch.rand(settings.batch, 3, *settings.shape) * 4 - 2  # as normalised ones are
        self.image = self.prepare(image)
        if settings.end_to_end:
            self.normalise = _normaliser(row.config, self.device if in_torch else 'cpu')
            self.jpeg = cv2.imencode('.jpg', _noise(PHOTO, 0))[1]
        for _ in range(WARMUP):
            self.turn()
        if row.backend != 'torch' and self.device.type == 'cpu':  # as tools/predict.py does
            keep_freed_memory()
        self.memory.restart()

    @torch.no_grad()
    def turn(self) -> dict[str, float]:
        """Seconds of one pass of the network, and of one from JPEG to label map if asked for."""
        seconds = {'network': _timed(lambda: self.run(self.image), self.device)}
        if self.settings.end_to_end:
            seconds['end_to_end'] = _timed(self.segment, self.device)
        return seconds

    def segment(self) -> np.ndarray:
        """Decode JPEGs, resize, normalise, run; label maps (N, H, W) of the photos' size."""
        photos: Any = [
            cv2.imdecode(self.jpeg, cv2.IMREAD_COLOR) for _ in range(self.settings.batch)
        ]
        resized = np.stack([_resized(photo, self.settings.shape) for photo in photos])
        logits = torch.as_tensor(self.run(self.prepare(self.normalise(resized))))
        logits = F.interpolate(logits.float(), size=PHOTO, mode='bilinear', align_corners=False)
        return logits.argmax(1).to(torch.uint8).cpu().numpy()

    def facts(self) -> dict[str, float | None]:
        """Peak memory over the turns, in MiB."""
        return {'peak_mib': self.memory.peak_mib() if self.measures_memory else None}


def _normaliser(config: str, device: torch.device | str) -> Callable[[np.ndarray], Tensor]:
    """From BGR images (N, H, W, 3) to what the network takes, as the config's preprocessor does."""
    given = load_config(find_config(config)).model.get('data_preprocessor', {})
    mean = torch.tensor(given.get('mean') or [0.0] * 3, device=device).view(3, 1, 1)
    std = torch.tensor(given.get('std') or [1.0] * 3, device=device).view(3, 1, 1)
    rgb = given.get('bgr_to_rgb', False)

    def normalise(images: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
        return ((pixels.flip(1) if rgb else pixels) - mean) / std

    return normalise


# What runs a network, and what turns a float32 image batch into what that takes.
Network = tuple[Callable[[Any], Any], Callable[[Tensor], Any]]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{name} is not installed here; pip install {name}') from error


def optimise(model: nn.Module, backend: str) -> nn.Module:
    """A segmentor as the backend 'torch', 'fused' or 'compile' runs it."""
    if backend == 'torch':
        return model
    from ssnet_mm.deploy import fuse

    return fuse(model)


def _torch(row: Row, settings: Settings, exported: str | None) -> Network:
    if row.precision not in _DTYPES:
        raise UserError(f'{row.backend} runs no {row.precision}; onnxruntime and openvino do')
    dtype = _DTYPES[row.precision]
    device = torch.device(settings.device)
    torch.backends.cudnn.benchmark = True  # all passes have one shape
    built, _ = build_segmentor(row.config, settings.num_classes, row.checkpoint)
    model: Any = optimise(built, row.backend).to(device, dtype)
    layout = torch.contiguous_format if row.backend == 'torch' else torch.channels_last
    if row.backend == 'compile':
        from torch._inductor import config as inductor

        # Weights become constants, laid out for the kernels that take them; needs no_grad.
        inductor.freezing = True
        model = torch.compile(model, mode='max-autotune' if device.type == 'cuda' else 'default')
    return (
        functools.partial(run_network, model),
        lambda image: image.to(device, dtype, memory_format=layout),
    )


def _onnxruntime(row: Row, settings: Settings, exported: str | None) -> Network:
    onnxruntime = _library('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.log_severity_level = 3
    height, width = settings.shape
    for axis, size in {'batch': settings.batch, 'height': height, 'width': width}.items():
        options.add_free_dimension_override_by_name(axis, size)
    providers = ['CPUExecutionProvider']
    if torch.device(settings.device).type == 'cuda':
        providers = ['CUDAExecutionProvider']
        if providers[0] not in onnxruntime.get_available_providers():
            raise UserError('this onnxruntime knows no CUDA; pip install onnxruntime-gpu')
    session = onnxruntime.InferenceSession(exported, options, providers=providers)
    (entry,) = session.get_inputs()
    return lambda image: session.run(None, {entry.name: image})[0], lambda image: image.numpy()


def _openvino(row: Row, settings: Settings, exported: str | None) -> Network:
    openvino = _library('openvino')
    if torch.device(settings.device).type == 'cuda':
        raise UserError('OpenVINO does not run on CUDA; leave --device out')
    # Pinned: on a processor with AMX it would compute float32 models in bf16, and not say so.
    hint = {'fp16': 'f16', 'bf16': 'bf16'}.get(row.precision, 'f32')
    options = {
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': settings.threads,
        'INFERENCE_PRECISION_HINT': hint,
    }
    core = openvino.Core()
    model = core.read_model(exported)
    model.reshape([settings.batch, 3, *settings.shape])
    compiled = core.compile_model(model, 'CPU', options)
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> np.ndarray:
        request.infer({0: image}, share_inputs=True)
        return request.get_output_tensor(0).data

    return run, lambda image: image.numpy()


class Trainer:
    """A training step that is ready to be timed, warmed up: forward, loss, backward, optimizer.

    Args:
        row: What to time; the precision 'amp' is mixed precision, as ``tools/train.py --amp``.
        settings: How.
        exported: None.

    Raises:
        UserError: The row can't run here.
    """

    def __init__(self, row: Row, settings: Settings, exported: str | None = None) -> None:
        _set_threads(settings)
        self.device = torch.device(settings.device)
        torch.backends.cudnn.benchmark = True
        self.memory = Memory(self.device)
        model, cfg = build_segmentor(row.config, settings.num_classes, row.checkpoint)
        self.model = model.to(self.device).train()
        if row.precision == 'amp':
            if self.device.type == 'cpu':
                raise UserError('mixed precision needs CUDA; leave --amp out')
            use_amp(cfg)
        with config_errors(f'the optim_wrapper of {row.config}'):
            self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        image = torch.rand(settings.batch, 3, *settings.shape) * 4 - 2
        self.inputs = image.to(self.device)
        self.samples = _samples(settings, self.model.num_classes, self.device)
        if self.device.type == 'cpu':  # as tools/train.py does
            tune_for_cpu(self.model)
        self.held_mib = self._held_mib() / settings.batch
        for _ in range(WARMUP):
            self.turn()
        self.memory.restart()

    def _loss(self) -> Tensor:
        with self.optimizer.optim_context(self.model):
            losses = self.model(self.inputs, self.samples, mode='loss')
        return self.model.parse_losses(losses)[0]

    def _held_mib(self) -> float:
        from ssnet_mm.benchmark.memory import held_bytes

        return held_bytes(self._loss, self.device) / MIB

    def _step(self) -> None:
        self.optimizer.update_params(self._loss())

    def turn(self) -> dict[str, float]:
        """Seconds of one step."""
        return {'network': _timed(self._step, self.device)}

    def facts(self) -> dict[str, float | None]:
        """Peak memory over the turns, and what an image holds until the backward pass, in MiB."""
        return {'peak_mib': self.memory.peak_mib(), 'held_mib': self.held_mib}


def _samples(settings: Settings, num_classes: int, device: torch.device) -> list[SegDataSample]:
    """Random labels, and the edge maps that a few heads learn from."""
    labels = torch.randint(num_classes, (settings.batch, 1, *settings.shape), device=device)
    meta = dict(img_shape=settings.shape, ori_shape=settings.shape, pad_shape=settings.shape)
    return [
        SegDataSample(
            metainfo=meta,
            gt_sem_seg=PixelData(data=label),
            gt_edge_map=PixelData(data=(label == 0).long()),
        )
        for label in labels
    ]


def serve(connection: Connection, make: Callable[..., Any], *args: Any) -> None:
    """Make something in this process and call its methods by name, as the parent asks for them.

    Each answer is a pair: whether all went well, and the result or the reason in one line. What
    can't be made is answered in place of the first call.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    warnings.simplefilter('ignore')  # each row would repeat them
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the table's
            subject = make(*args)
            connection.send((True, None))
            while True:
                connection.send((True, getattr(subject, connection.recv())()))
    except EOFError:  # the parent is gone
        return
    except Exception as error:  # the row's failure is its result
        reason = str(error) if isinstance(error, UserError) else describe(error)
        connection.send((False, ' '.join(reason.split())))
