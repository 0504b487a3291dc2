"""Segment images from files: a colour overlay and an index map for each."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.utils import ProgressBar
from mmseg.apis import inference_model, init_model
from mmseg.registry import DATASETS
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from ssnet_mm.engine.backends import atomic_write
from ssnet_mm.engine.checkpoint import load_checkpoint
from ssnet_mm.engine.preflight import config_errors, describe, single_datasets
from ssnet_mm.errors import UserError
from ssnet_mm.palette import voc_palette

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
Palette = Sequence[Sequence[int]]


def find_images(path: str | Path) -> list[Path]:
    """The image at a path, or the images in the folder at it (not in folders below), sorted.

    Raises:
        UserError: There is nothing, or a folder without images.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'no image or folder {path}; check the path')
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not images:
        raise UserError(f'no image in {path}; looked for {" ".join(SUFFIXES)}')
    return images


def check_device(device: str | None) -> str:
    """A device that torch can use; None takes CUDA where there is some.

    Raises:
        UserError: It is none of torch's, or not on this machine.
    """
    count = torch.cuda.device_count()
    if device is None:
        return 'cuda:0' if count else 'cpu'
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'--device {device} is none; take cpu or cuda:0') from error
    if parsed.type == 'cuda' and (parsed.index or 0) >= count:
        raise UserError(f'--device {device}: torch finds {count} CUDA devices here; take cpu')
    return device


def load_model(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    """Build the config's segmentor with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: The model can't be built, or the weights are not its own.
    """
    if 'test_pipeline' not in cfg:
        with config_errors(f'{cfg.filename} has neither test_pipeline nor test_dataloader'):
            _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
            cfg.test_pipeline = dataset.pipeline
    with config_errors(f'the model of {cfg.filename}'):
        model = revert_sync_batchnorm(init_model(cfg, checkpoint=None, device='cpu'))
    meta = load_checkpoint(model, checkpoint).get('meta', {})
    model.dataset_meta = meta.get('dataset_meta') or config_meta(cfg)
    return model.to(device)


def config_meta(cfg: Config) -> dict[str, Any]:
    """Classes and palette of the config's data set; it need not be on this machine."""
    if not cfg.get('test_dataloader'):
        return {}
    _, dataset = next(single_datasets(cfg.test_dataloader.dataset, 'test_dataloader'))
    known = DATASETS.get(dataset['type'])
    return {**getattr(known, 'METAINFO', {}), **dataset.get('metainfo', {})}


def full_palette(palette: Palette | None, num_classes: int) -> NDArray[np.uint8]:
    """RGB colours for at least all classes: the given ones, then VOC's colour map.

    Returns:
        Of shape (256, 3).
    """
    voc = voc_palette()
    given = np.array(palette if palette is not None else [], np.uint8).reshape(-1, 3)[:256]
    if len(given) >= num_classes:
        voc[: len(given)] = given
    return voc


def output_names(images: Sequence[Path]) -> list[str]:
    """PNG names for the results: the images' stems, or their full names where stems repeat."""
    stems = [image.stem for image in images]
    repeat = len({stem.lower() for stem in stems}) < len(stems)  # some file systems ignore case
    return [f'{image.name if repeat else image.stem}.png' for image in images]


def predict_images(
    model: Any, images: Sequence[Path], out_dir: str | Path, opacity: float = 0.5
) -> list[str]:
    """Write ``overlay/<name>.png`` and ``index/<name>.png`` for each image, with a progress bar.

    The index map is a palette PNG: its pixel values are class indices, and it shows their colours.

    Args:
        model: From ``load_model``.
        opacity: Of the colours over the image, 0 to 1.

    Returns:
        What went wrong with the images that were skipped, each named.

    Raises:
        UserError: A result can't be written, or would overwrite an input.
    """
    out_dir = Path(out_dir)
    folders = {(out_dir / kind).resolve() for kind in ('overlay', 'index')}
    if any(image.parent.resolve() in folders for image in images):
        raise UserError(f'--out-dir {out_dir} would overwrite the images; choose another')
    palette = full_palette(model.dataset_meta.get('palette'), model.num_classes)
    failures = []
    progress = ProgressBar(len(images), file=sys.stderr)
    for image_path, name in zip(images, output_names(images), strict=True):
        try:
            image = _read_image(image_path)
            index = _segment(model, image)
        except Exception as error:  # decoders raise all kinds; the other images still count
            failures.append(f'{image_path} ({describe(error)})')
        else:
            colours = palette[index][..., ::-1].astype(np.float32)  # BGR, as images are in mmcv
            overlay = (image * (1 - opacity) + colours * opacity).round().astype(np.uint8)
            indexed = Image.fromarray(index)
            indexed.putpalette(palette.tobytes())  # mode L becomes P
            _write(out_dir / 'overlay' / name, Image.fromarray(overlay[..., ::-1].copy()))
            _write(out_dir / 'index' / name, indexed)
        progress.update()
    progress.file.write('\n')
    return failures


def _read_image(path: Path) -> NDArray[np.uint8]:
    """BGR, shape (height, width, 3)."""
    with Image.open(path) as image:
        image.load()  # raises where the file is cut short; OpenCV 4 fills in grey and goes on
    pixels = mmcv.imread(str(path))
    if pixels is None:
        raise ValueError('not an image that OpenCV reads')
    return pixels


def _segment(model: Any, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Class indices, shape (height, width)."""
    result = inference_model(model, image)
    return result.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)


def _write(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, format='PNG')
    try:
        atomic_write(path, data.getvalue())
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror}; choose another --out-dir"
        ) from error


def predict(
    cfg: Config,
    checkpoint: str,
    source: str | Path,
    out_dir: str | Path,
    device: str | None = None,
    opacity: float = 0.5,
) -> int:
    """Segment an image or a folder of them; nothing is written before the inputs are vetted.

    Returns:
        How many images were segmented.

    Raises:
        UserError: Bad input; or, after all others are done, images that could not be segmented.
    """
    if not 0 <= opacity <= 1:
        raise UserError(f'--opacity must be from 0 to 1, got {opacity}')
    if os.path.exists(out_dir) and not os.path.isdir(out_dir):
        raise UserError(f'--out-dir {out_dir} is a file; choose another')
    images = find_images(source)
    model = load_model(cfg, checkpoint, check_device(device))
    failures = predict_images(model, images, out_dir, opacity)
    if failures:
        raise UserError(
            f'{len(failures)} of {len(images)} images could not be segmented: {"; ".join(failures)}'
        )
    return len(images)
