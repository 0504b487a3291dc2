"""A picture to look at: image, truth and prediction side by side."""

import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from PIL import Image

from ssnet_mm.deploy.images import full_palette
from ssnet_mm.deploy.model import check_device, check_trained_classes, load_model
from ssnet_mm.deploy.network import count_classes, names_of
from ssnet_mm.engine.config import config_errors, load_config
from ssnet_mm.engine.data import check_data
from ssnet_mm.engine.painting import read_as_loaded
from ssnet_mm.engine.samples import check_truth
from ssnet_mm.errors import UserError
from ssnet_mm.files import printable, write_result

COLUMNS = ('image', 'truth', 'prediction')
VOID = (224, 224, 192)  # VOC's own colour for what is not scored
PALE = '#707070'
DPI = 72  # at which a pixel is a point, the unit of font sizes
PANEL = 256  # the longest side of a panel
GAP, MARGIN, HEADING = 6, 24, 94  # between panels, around all, above the panels
STYLE: dict[Any, Any] = {
    'font.size': 14,
    'legend.borderaxespad': MARGIN / 14,
    'legend.borderpad': 0,
    'legend.frameon': False,
    'legend.handleheight': 1,
    'legend.handlelength': 1.3,
    'text.color': '#202020',
    'text.parse_math': False,  # names may hold a dollar sign
}


@dataclass(frozen=True)
class Sample:
    """One image with its labels; the three may differ in size, labels of no class are void."""

    image: np.ndarray  # (H, W, 3), RGB
    truth: np.ndarray  # (H, W), class indices
    prediction: np.ndarray  # (H, W), class indices


def pick_evenly(total: int, num: int) -> list[int]:
    """The indices of ``num`` items spread over ``total``; all of them if there are no more."""
    num = min(num, total)
    return [i * total // num for i in range(num)]


def predict_samples(model: Any, dataset: Any, indices: Iterable[int]) -> Iterator[Sample]:
    """Run a segmentor on some images of an mmseg data set.

    Raises:
        UserError: An image or its label map can't be read, or the pipeline loads no label maps.
    """
    for index in indices:
        path = dataset.get_data_info(index)['img_path']
        with config_errors(f'cannot read {path} or its label map'):
            # not from the pipeline, which may have scaled it
            image = read_as_loaded(path, dataset)
            if image is None:
                raise UserError(f'cannot read {path}: damaged, or not an image')
            inputs = dataset[index]
        check_truth(inputs)
        truth = inputs['data_samples'].gt_sem_seg.data
        with torch.no_grad():
            (result,) = model.test_step(pseudo_collate([inputs]))
        prediction = result.pred_sem_seg.data.cpu().long()  # floats, of a single channel
        yield Sample(image, truth.squeeze(0).numpy(), prediction.squeeze(0).numpy())


@rc_context(STYLE)
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
        classes, palette: Names and RGB colours, by index.
        title, note: Headline, and a smaller line below it.

    Raises:
        ValueError: There are no samples.
    """
    if not samples:
        raise ValueError('expected at least one sample to draw, got none')
    colours = np.array([*palette, VOID], np.uint8)
    labels = {i for s in samples for m in (s.truth, s.prediction) for i in np.unique(m).tolist()}
    shown = sorted({min(label, len(classes)) for label in labels})
    names = [*classes, 'void']
    patches = [Patch(facecolor=colours[i] / 255, edgecolor=PALE, label=names[i]) for i in shown]
    groups = 2 if len(samples) > 3 else 1
    sizes = [_panel_size(sample.image) for sample in samples]
    cell_width = max(w for w, _ in sizes) + GAP
    heights = [max(h for _, h in sizes[i : i + groups]) + GAP for i in range(0, len(sizes), groups)]
    group_width = len(COLUMNS) * cell_width + MARGIN - GAP
    width = MARGIN + groups * group_width
    figure = Figure((width / DPI, 1), DPI, facecolor='white')
    canvas = FigureCanvasAgg(figure)
    for columns in range(len(patches), 0, -1):  # as many as fit
        legend = figure.legend(handles=patches, ncols=columns, loc='lower left')
        box = legend.get_window_extent()
        if columns == 1 or box.width <= width - 2 * MARGIN:
            break
        legend.remove()
    height = HEADING + sum(heights) + 14 + math.ceil(box.height) + MARGIN
    figure.set_figheight(height / DPI)

    ax = figure.add_axes((0, 0, 1, 1))  # its coordinates are pixels from the upper left corner
    ax.text(MARGIN, 34, printable(title), size=21)
    ax.text(MARGIN, 56, printable(note), color=PALE)
    for i, (sample, (w, h)) in enumerate(zip(samples, sizes)):
        row, group = divmod(i, groups)
        y = HEADING + sum(heights[:row])
        maps = (np.minimum(m, np.int64(len(classes))) for m in (sample.truth, sample.prediction))
        panels = sample.image, *(colours[m] for m in maps)
        for column, panel in enumerate(panels):
            x = MARGIN + group * group_width + column * cell_width + (cell_width - GAP - w) // 2
            resampling = 'nearest' if column else 'antialiased'  # labels must not be averaged
            ax.imshow(panel, extent=(x, x + w, y + h, y), interpolation=resampling)
            if row == 0:
                ax.text(x + w / 2, y - 8, COLUMNS[column], ha='center')
    ax.set(xlim=(0, width), ylim=(height, 0), aspect='auto')
    ax.axis('off')
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height of an image's panels; small images grow by whole factors, to stay crisp."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


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
        How many images it shows: fewer than ``num`` if the data set has no more.

    Raises:
        UserError: Bad arguments, or something is missing or can't be read.
    """
    out = Path(out)
    if num < 1:
        raise UserError(f'the number of images must be at least 1, got {num}')
    if out.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise UserError(f'cannot write {out}: the name must end in .png or .jpg')
    device = check_device(device)
    cfg = load_config(os.fspath(config), cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    check_data(cfg, 'val_dataloader', num_classes=None)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    if not cfg.get('test_dataloader'):
        cfg.test_dataloader = cfg.val_dataloader  # whose images are shown
    model = load_model(cfg, os.fspath(checkpoint), device)
    check_trained_classes(model, dataset)
    num_classes = count_classes(model)
    names, palette = names_of(model, dataset.metainfo)
    if len(names) != num_classes:
        raise UserError(
            f'val_dataloader of {cfg.filename} has {len(names)} classes, the model {num_classes}; '
            'give the metainfo of the data set a name for each'
        )
    samples = list(predict_samples(model, dataset, pick_evenly(len(dataset), num)))
    figure = draw_figure(
        samples,
        names,
        full_palette(palette, num_classes)[:num_classes].tolist(),
        title=Path(config).stem,
        note=f'{len(samples)} of {len(dataset)} validation images, {Path(checkpoint).name}',
    )
    encoded = io.BytesIO()
    figure.save(encoded, format='PNG' if out.suffix.lower() == '.png' else 'JPEG', quality=92)
    write_result(out, encoded.getvalue())
    return len(samples)
