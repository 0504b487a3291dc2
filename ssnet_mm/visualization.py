"""A picture to look at: image, truth and prediction side by side.

Everything comes from the config: the images and label maps from its data set, through its own
pipeline, and the colours and names from the data set's metainfo.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.apis import init_model
from mmseg.registry import DATASETS
from PIL import Image, ImageDraw, ImageFont

from ssnet_mm.engine.checkpoint import load_checkpoint
from ssnet_mm.engine.config import config_errors, load_config
from ssnet_mm.engine.preflight import check_data
from ssnet_mm.errors import UserError
from ssnet_mm.files import atomic_write

COLUMNS = ('image', 'truth', 'prediction')
PANEL = 256  # longest side of a panel, in pixels
GAP, MARGIN = 6, 24  # between the panels of one image; around everything
VOID = (224, 224, 192)  # VOC's own colour for what is not scored
INK, PALE, PAPER = (32, 32, 32), (112, 112, 112), (255, 255, 255)


@dataclass(frozen=True)
class Sample:
    """One image with what it shows and what the model makes of it.

    The three may differ in size. Labels that name no class are drawn as void.
    """

    image: np.ndarray  # (H, W, 3), RGB
    truth: np.ndarray  # (H, W), class indices
    prediction: np.ndarray  # (H, W), class indices

    @property
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        return self.truth, self.prediction


def pick_evenly(total: int, num: int) -> list[int]:
    """The indices of ``num`` items spread over ``total``; all of them if there are no more."""
    num = min(num, total)
    return [i * total // num for i in range(num)]


def predict_samples(
    model: torch.nn.Module, dataset: Any, indices: Iterable[int]
) -> Iterator[Sample]:
    """Run a segmentor on some images of an mmseg data set.

    Raises:
        UserError: An image or its label map can't be read, or the pipeline loads no label maps.
    """
    for index in indices:
        path = dataset.get_data_info(index)['img_path']
        with config_errors(f'cannot read {path} or its label map'):
            # not from the pipeline, which may have scaled it; read as mmcv reads it there
            image = mmcv.imread(path, channel_order='rgb')
            if image is None:
                raise UserError(f'cannot read {path}: damaged, or not an image')
            inputs = dataset[index]
        if 'gt_sem_seg' not in inputs['data_samples']:
            raise UserError('the config loads no label maps, so there is no truth to show')
        truth = inputs['data_samples'].gt_sem_seg.data
        with torch.no_grad():
            (result,) = model.test_step(pseudo_collate([inputs]))  # type: ignore[operator]
        prediction = result.pred_sem_seg.data.cpu()
        yield Sample(image, truth.squeeze(0).numpy(), prediction.squeeze(0).numpy())


def draw_figure(
    samples: Sequence[Sample],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    title: str = '',
    note: str = '',
) -> Image.Image:
    """Draw samples as triples of panels, with column titles and a legend of the classes shown.

    Args:
        samples: At least one; four and more are set in two groups of columns.
        classes: Names, by index.
        palette: RGB colours, by index.
        title: Headline.
        note: Smaller, below the headline.
    """
    if not samples:
        raise ValueError('expected at least one sample to draw, got none')
    large, small = ImageFont.load_default(size=22), ImageFont.load_default(size=15)
    colours = np.full((256, 3), VOID, dtype=np.uint8)
    colours[: len(classes)] = palette
    legend = _legend(samples, classes, palette)

    groups = 2 if len(samples) > 3 else 1
    rows = -(-len(samples) // groups)
    sizes = [_panel_size(sample.image) for sample in samples]
    cell_width = max(width for width, _ in sizes)
    row_heights = [
        max(height for _, height in sizes[row * groups : (row + 1) * groups]) for row in range(rows)
    ]
    group_width = len(COLUMNS) * (cell_width + GAP) - GAP
    width = 2 * MARGIN + groups * group_width + (groups - 1) * MARGIN
    heading = 68
    panels_end = heading + 26 + sum(row_heights) + GAP * rows
    places, lines = _flow([name for name, _ in legend], small, width - 2 * MARGIN)

    canvas = Image.new('RGB', (width, panels_end + 14 + 26 * lines + MARGIN - 8), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 16), title, INK, large)
    draw.text((MARGIN, 44), note, PALE, small)
    for group in range(groups):
        for column, name in enumerate(COLUMNS):
            x = MARGIN + group * (group_width + MARGIN) + column * (cell_width + GAP)
            draw.text((x + cell_width // 2, heading + 20), name, INK, small, anchor='ms')
    for i, (sample, size) in enumerate(zip(samples, sizes)):
        row, group = divmod(i, groups)
        y = heading + 26 + sum(row_heights[:row]) + GAP * row
        panels = [_scaled(sample.image, size, Image.Resampling.BICUBIC)]
        panels += [_scaled(colours[m], size, Image.Resampling.NEAREST) for m in sample.maps]
        for column, panel in enumerate(panels):
            x = MARGIN + group * (group_width + MARGIN) + column * (cell_width + GAP)
            canvas.paste(panel, (x + (cell_width - size[0]) // 2, y))
    for (name, colour), (x, line) in zip(legend, places):
        x, y = x + MARGIN, panels_end + 14 + 26 * line
        draw.rectangle((x, y, x + 18, y + 14), tuple(colour), PALE)
        draw.text((x + 25, y + 13), name, INK, small, anchor='ls')
    return canvas


def _legend(
    samples: Sequence[Sample], classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> list[tuple[str, Sequence[int]]]:
    """Names and colours of what the label maps hold, void last."""
    shown = np.unique(np.concatenate([np.unique(m) for sample in samples for m in sample.maps]))
    legend = [(classes[i], palette[i]) for i in shown if i < len(classes)]
    return legend + [('void', VOID)] * bool((shown >= len(classes)).any())


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height of an image's panels; small images grow by whole factors, to stay crisp."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scaled(pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    return Image.fromarray(pixels).resize(size, resample)


def _flow(names: Sequence[str], font: Any, width: int) -> tuple[list[tuple[int, int]], int]:
    """Where each legend entry goes (x and line), and the number of lines."""
    places, x, line = [], 0, 0
    for name in names:
        advance = 25 + round(font.getlength(name)) + 22
        if x and x + advance > width:
            x, line = 0, line + 1
        places.append((x, line))
        x += advance
    return places, line + 1


def show_predictions(
    config: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    num: int = 6,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> int:
    """Write a picture of a config's validation images beside truth and prediction.

    Args:
        config: Config file.
        checkpoint: Weights; they must fit the config's model exactly.
        out: PNG or JPEG file to write; its folder is made where missing.
        num: How many images, spread evenly over the data set.
        device: As torch names it; the default is CUDA where there is one.
        cfg_options: Changes to the config, by dotted names.

    Returns:
        How many images the picture shows: fewer than ``num`` if the data set has no more.

    Raises:
        UserError: Bad arguments, or something is missing or can't be read.
    """
    out = Path(out)
    if num < 1:
        raise UserError(f'the number of images must be at least 1, got {num}')
    if out.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise UserError(f'cannot write {out}: the name must end in .png or .jpg')
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with config_errors(f'device {device} cannot be used'):
        torch.zeros(1, device=device)
    cfg = load_config(os.fspath(config), cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    check_data(cfg, 'val_dataloader', num_classes=None)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    with config_errors(f'the model of {config}'):
        model = init_model(cfg, device=device)
    load_checkpoint(model, checkpoint)  # not by init_model, which goes on with what does not fit
    indices = pick_evenly(len(dataset), num)
    samples = list(predict_samples(model, dataset, indices))
    figure = draw_figure(
        samples,
        dataset.metainfo['classes'],
        dataset.metainfo['palette'],
        title=Path(config).stem,
        note=f'{len(samples)} of {len(dataset)} validation images, {Path(checkpoint).name}',
    )
    encoded = io.BytesIO()
    figure.save(encoded, format='PNG' if out.suffix.lower() == '.png' else 'JPEG', quality=92)
    try:
        atomic_write(out, encoded.getvalue())
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error
    return len(samples)
