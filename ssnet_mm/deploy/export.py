"""A trained segmentor as a file for ONNX Runtime, OpenVINO or torch.export.

The file is checked against the model it was made from before it gets its name.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ssnet_mm.deploy.check import Report, compare, flat_images, random_images, verify
from ssnet_mm.deploy.confidence import Calibrated
from ssnet_mm.deploy.fusion import fuse
from ssnet_mm.deploy.images import Pixels, read_image
from ssnet_mm.deploy.network import Network, make_processor
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes import FORMATS, PRECISIONS, Format, load, module_of
from ssnet_mm.engine.config import describe
from ssnet_mm.errors import UserError
from ssnet_mm.files import make_folder, temporary_folder, writing

_CHECKED = 4  # of the images for INT8, at most: not calibrated on, but compared
_FEW = 8  # images for INT8 below which all are calibrated on, and compared mirrored
_FLAT = 4.0  # grey levels: the least that calibration images vary by in themselves, on average


def export(
    model: Any,
    path: str | os.PathLike[str],
    format: str,
    *,
    precision: str = 'fp32',
    end_to_end: bool = False,
    scores: bool = False,
    size: tuple[int, int] = (512, 512),
    calibration: Sequence[str | os.PathLike[str] | Pixels] | None = None,
    calibrated: Calibrated | None = None,
    verify_on: str | None = None,
    tolerance: float | None = None,
) -> Report:
    """Write a segmentor to a file, fused, for any batch, height and width.

    Networks that fix these when they are exported, as some kinds of pooling and resizing do, get a
    file for one height and width: that of the test pipeline's Resize, where it does not keep the
    ratio, or ``size``, where there is no test pipeline.

    Args:
        model: A segmentor of mmseg with its weights. The test pipeline is taken from ``model.cfg``,
            classes and palette from ``model.dataset_meta``, where it has them.
        path: Ends in ``.onnx`` (weights of 2 GiB and more go beside it, into ``.onnx.data``),
            ``.xml`` (OpenVINO; the weights go beside it, into ``.bin``) or ``.pt2`` (torch-export).
            ``<path>.processor.json`` beside it tells other programs how to use it.
        format: 'onnx', 'openvino' or 'torch-export'.
        precision: 'fp16' keeps half precision where the runtime can compute so, 'bf16' computes in
            bfloat16, 'int8' quantises the network with the value ranges found on the calibration
            images; where that changes it too much, all but its layers at full image size.
        end_to_end: The file takes uint8 images, (N, H, W, 3) in RGB order, and gives uint8 labels,
            (N, H, W); otherwise normalised float images, (N, 3, H, W), to logits at the network's
            own resolution.
        scores: The end-to-end file gives after the labels their probabilities, float32 (N, H, W).
            A file of logits needs no such output.
        size: Height and width of the example image.
        calibration: Images for 'int8': paths or RGB arrays, the more like the data the better.
            Of eight or more up to four, a quarter at most, are kept for the comparison.
        calibrated: What :func:`ssnet_mm.deploy.confidence.calibrate` has found of the model; the
            file's probabilities are those of its temperature.
        verify_on: 'val' or 'test': the report has mIoU of model and file on the config's data.
        tolerance: Points of this mIoU that the file may lose at most.

    Returns:
        How the file differs from the model: on random images, for fp16 also on dark and bright
        ones, for INT8 on images that it was not calibrated on.

    Raises:
        UserError: The model or the combination can't be exported, a package is missing, or the file
            differs from the model by more than its precision explains. There is no file then.
    """
    path = Path(path)
    kind = FORMATS.get(format)
    if kind is None:
        raise UserError(f'format must be one of {", ".join(FORMATS)}, got {format}')
    if precision not in PRECISIONS:
        raise UserError(f'precision must be one of {", ".join(PRECISIONS)}, got {precision}')
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder; name a file, or another place')
    if min(size) < 1:
        raise UserError(f'size must be a height and a width of at least 1 pixel, got {size}')
    if path.suffix != kind.suffix:
        raise UserError(f'a file for {format} must end in {kind.suffix}, got {path}')
    _check_replaced(model, path, kind)
    if precision not in kind.precisions:
        others = ' and '.join(f for f in FORMATS if precision in FORMATS[f].precisions)
        raise UserError(f'{format} has no {precision} here; {others} have it')
    if (precision == 'int8') != bool(calibration):
        raise UserError('int8 takes calibration images, other precisions none')
    if tolerance is not None and not verify_on:
        raise UserError('a tolerance is that of a verification; verify on val or test data')
    if scores and not end_to_end:
        raise UserError('a file of logits has scores without more ado; leave scores out')
    if any(part.training for part in model.modules()):
        model = copy.deepcopy(model).eval()  # the given one's statistics are not to move
    processor = make_processor(model, end_to_end, precision, scores)
    if calibrated:
        if end_to_end and not scores:
            raise UserError('an end-to-end file has no use for a temperature without scores')
        processor = dataclasses.replace(
            processor,
            temperature=calibrated.temperature,
            calibration_error=(calibrated.before, calibrated.after),
        )
    images: list[Pixels] = []
    for image in calibration or ():
        if isinstance(image, (str, os.PathLike)):
            image = _read(image)
        images.append(processor.resized(image))
    held, remark = _held_out(images) if precision == 'int8' else ([], '')
    if (format, precision) == ('onnx', 'int8'):
        remark += '; INT8 took twice as long as float32 in ONNX Runtime where it was measured, and '
        remark += 'a sixth in OpenVINO (docs/performance.md)'

    def check(file: Path) -> dict[str, float]:
        return _verified(model, file, path, verify_on, tolerance) if verify_on else {}

    make_folder(path.parent)
    try:
        report = _write(model, path, format, processor, size, images, held, check)
    except _Drop:
        if precision != 'int8':
            raise
        report = _write(model, path, format, processor, size, images, held, check, True)
        remark += '; its layers at full image size stay in float: in INT8 it differed too much'
    except UserError as error:
        fixed = _fixed_size(model, processor, size)
        if fixed is None:
            raise UserError(
                f'{error}; a network of one size is exported where Resize in the test pipeline has '
                'keep_ratio=False'
                if isinstance(error, _OneSize)
                else str(error)
            ) from error
        processor = dataclasses.replace(processor, fixed_size=fixed)
        report = _write(model, path, format, processor, fixed, images, held, check)
        remark = f'the file takes {fixed[0]}x{fixed[1]} pixels alone' + (remark and f'; {remark}')
    return dataclasses.replace(report, remark=remark)


def _check_replaced(model: Any, path: Path, kind: Format) -> None:
    """UserError where the files would replace the checkpoint, or one that no export has written."""
    beside = path.with_suffix(kind.beside) if kind.beside else None
    checkpoint = getattr(model, 'checkpoint', None)  # of load_model
    for file in (path, path.with_name(f'{path.name}.processor.json'), beside):
        if file and checkpoint and os.path.realpath(file) == os.path.realpath(checkpoint):
            raise UserError(f'{file} is the checkpoint, and would be replaced; choose another name')
    if beside and os.path.exists(beside) and not os.path.exists(path):
        raise UserError(
            f'{beside} is there already and is not the weights of {path}; choose another name'
        )


def _read(image: str | os.PathLike[str]) -> Pixels:
    """Read an image to calibrate on; UserError, with its name, where that fails."""
    try:
        return read_image(image)
    except Exception as error:  # decoders raise all kinds
        reason = str(error) if isinstance(error, UserError) else describe(error)
        raise UserError(f'calibration image {image}: {reason.strip().splitlines()[0]}') from error


class _OneSize(UserError):
    """An export that failed at other sizes than the example's, or with sizes left free."""


class _Drop(UserError):
    """A score, or the likeness of INT8, that fell by more than is tolerated."""


def _verified(
    model: Any, file: Path, path: Path, loader: str, tolerance: float | None
) -> dict[str, float]:
    """mIoU of a model and of its ``file``, that is to be named ``path``."""
    found = {name: scores['mIoU'] for name, scores in verify(model, file, loader).items()}
    before, after = found['model'], found['exported']
    if tolerance is not None and not before - after <= tolerance:
        raise _Drop(
            f'{path} was not written: mIoU on {loader} falls from {before:.2f}% to {after:.2f}%, '
            f'more than the tolerance of {tolerance:g} points; take another precision, or more '
            'calibration images'
        )
    return found


def _write(
    model: Any,
    path: Path,
    format: str,
    processor: Processor,
    size: tuple[int, int],
    images: Sequence[Pixels],
    held: Sequence[Pixels],
    check: Callable[[Path], dict[str, float]],
    full_size_in_float: bool = False,
) -> Report:
    """Write a file for one size or any, compare it with the model, and give it its name."""
    network = Network(fuse(model, channels_last=False).cpu(), processor, full_size_in_float)
    precision, free = processor.precision, processor.fixed_size is None
    # a folder, since what is written may be several files that know their names
    with temporary_folder(path) as folder:
        file, beside = folder / path.name, folder / f'{path.name}.processor.json'
        with writing(path):  # what a name can't be is known before the work
            beside.touch()
        with _one_line(f'this model can not be exported to {format} ({precision})', _OneSize):
            module_of(FORMATS[format]).write(network, file, size, images)
        with _one_line(f'{path} was not written', _OneSize):
            run = load(file).run
        pictures = [*held] if held else random_images(size, other_sizes=free)
        if precision == 'fp16':
            pictures += flat_images(size)
        with _one_line(f'{path} was not written: it does not run at other sizes', _OneSize):
            report = compare(model, run, processor, pictures)
        if not report.passes(precision):
            differs = f'{path} was not written: it differs from the model: {report}'
            if precision == 'int8':  # for one size it would be no better
                raise _Drop(f'{differs}; take fp16, or more calibration images like the data')
            raise _OneSize(differs)
        report = dataclasses.replace(report, verified=check(file))
        described = processor.described(path.name).encode()
        with writing(path):
            beside.write_bytes(described)
            # the file itself gets its name last
            for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):
                os.replace(item, path.with_name(item.name))
    return report


def _fixed_size(model: Any, processor: Processor, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of all inputs, where they are known."""
    if not getattr(model, 'cfg', {}).get('test_pipeline'):
        return size
    resize = processor.resize or {}
    if resize.get('keep_ratio', True) or resize.get('scale') is None:
        return None
    return processor.input_size(1, 1)


def _held_out(images: list[Pixels]) -> tuple[list[Pixels], str]:
    """Take images for the comparison out of those for calibration; what both are, in words.

    UserError where they can not show a network's ranges: alike, or without any contrast.
    """
    distinct = len({(image.shape, image.tobytes()) for image in images})
    contrast = float(np.mean([image.std() for image in images]))
    if distinct < 2 or contrast < _FLAT:
        raise UserError(
            f'int8 can not be calibrated on {len(images)} images of which {distinct} differ, with '
            f'a contrast of {contrast:.1f} grey levels (standard deviation); give some hundred of '
            'the training data'
        )
    if len(images) < _FEW:
        # none can be spared
        held = [np.ascontiguousarray(image[:, ::-1]) for image in images[:_CHECKED]]
        words = (
            f'calibrated on {len(images)} images, {distinct} of them differ, with a contrast of '
            f'{contrast:.0f} grey levels; compared mirrored'
        )
        return held, words
    count = min(_CHECKED, len(images) // 4)
    places = sorted({len(images) * (2 * i + 1) // (2 * count) for i in range(count)}, reverse=True)
    held = [images.pop(place) for place in places]
    return held, (
        f'calibrated on {len(images)} others; {distinct} images in all differ, with a contrast of '
        f'{contrast:.0f} grey levels'
    )


@contextmanager
def _one_line(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turn whatever decoders and exporters raise into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = describe(error).strip().splitlines()
        raise kind(f'{what}: {lines[0]}') from error
