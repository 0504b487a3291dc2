"""A trained segmentor as a file for ONNX Runtime, OpenVINO or torch.export.

The file is checked against the model it was made from before it gets its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.check import Report, compare, random_images
from ssnet_mm.deploy.fusion import fuse
from ssnet_mm.deploy.images import Pixels, read_image
from ssnet_mm.deploy.network import Network, make_processor
from ssnet_mm.deploy.runtimes import FORMATS, load, module_of
from ssnet_mm.engine.config import describe
from ssnet_mm.errors import UserError
from ssnet_mm.files import temporary_name

PRECISIONS = tuple(dict.fromkeys(p for f in FORMATS.values() for p in f.precisions))
_CHECKED = 4  # calibration images that an INT8 model is compared on


def export(
    model: Any,
    path: str | os.PathLike[str],
    format: str,
    *,
    precision: str = 'fp32',
    end_to_end: bool = False,
    size: tuple[int, int] = (512, 512),
    calibration: Sequence[str | os.PathLike[str] | Pixels] | None = None,
) -> Report:
    """Write a segmentor to a file, fused, for any batch, height and width.

    Args:
        model: A segmentor of mmseg with its weights. The test pipeline is taken from ``model.cfg``,
            classes and palette from ``model.dataset_meta``, where it has them.
        path: Ends in ``.onnx``, ``.xml`` (OpenVINO; the weights go beside it, into ``.bin``) or
            ``.pt2`` (torch-export).
        format: 'onnx', 'openvino' or 'torch-export'.
        precision: 'fp16' keeps half precision where the runtime can compute so, 'bf16' computes in
            bfloat16, 'int8' quantises the network with the value ranges found on the calibration
            images.
        end_to_end: The file takes uint8 images, (N, H, W, 3) in RGB order, and gives uint8 labels,
            (N, H, W); otherwise normalised float images, (N, 3, H, W), to logits at the network's
            own resolution.
        size: Height and width of the example image.
        calibration: Images for 'int8': paths or RGB arrays, the more like the data the better.

    Returns:
        How the file differs from the model on random images (on calibration images for INT8).

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
    if path.suffix != kind.suffix:
        raise UserError(f'a file for {format} must end in {kind.suffix}, got {path}')
    if precision not in kind.precisions:
        others = ' and '.join(f for f in FORMATS if precision in FORMATS[f].precisions)
        raise UserError(f'{format} has no {precision} here; {others} have it')
    if (precision == 'int8') != bool(calibration):
        raise UserError('int8 takes calibration images, other precisions none')
    processor = make_processor(model, end_to_end, precision)
    images = []
    for image in calibration or ():
        if isinstance(image, (str, os.PathLike)):
            with _one_line(f'calibration image {image}'):
                image = read_image(image)
        images.append(processor.resized(image))
    network = Network(fuse(model, channels_last=False).cpu(), processor)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    # the weights get their name first
    files = [temporary.with_suffix(suffix) for suffix in (kind.beside, kind.suffix) if suffix]
    try:
        with _one_line(f'this model can not be exported to {format} ({precision})'):
            module_of(kind).write(network, temporary, size, images)
        run = load(temporary).run
        with _one_line(f'{path} was not written: it does not run at other sizes'):
            report = compare(model, run, processor, images[:_CHECKED] or random_images(size))
        if not report.passes(precision):
            raise UserError(f'{path} was not written: it differs from the model: {report}')
        for file in files:
            os.replace(file, path.with_suffix(file.suffix))
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    return report


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever decoders and exporters raise into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = describe(error).strip().splitlines()
        raise UserError(f'{what}: {lines[0]}') from error
