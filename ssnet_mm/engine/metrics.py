"""mmseg's IoU, for each class too, and over labels that are what they should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

from ssnet_mm.engine.samples import label_problem, strange_labels
from ssnet_mm.errors import UserError


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """IoUMetric whose results hold each class too: ``IoU.car`` beside ``mIoU``.

    Training can keep the checkpoint that is best for one class:
    ``default_hooks.checkpoint.save_best=IoU.car``. A class that neither a label map nor a
    prediction holds has NaN.

    Args:
        kwargs: As for ``IoUMetric``.

    Raises:
        UserError: A label is neither a class nor ``ignore_index``: mmseg's would leave it out of
            the union, and score the higher for it. Names the image.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch's images."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in [] if self.format_only else data_samples:
            labels = sample['gt_sem_seg']['data']
            found = strange_labels(labels, num_classes, self.ignore_index)
            if found:
                where = f'the label map of {sample.get("img_path")}'
                raise UserError(f'{where} {label_problem(found, num_classes)}')
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metrics, in percent, from what ``process`` has counted."""
        metrics = super().compute_metrics(results)
        if not self.format_only:
            intersections, unions, *_ = (torch.stack(areas).sum(0) for areas in zip(*results))
            ious = (100 * intersections / unions).tolist()
            for name, iou in zip(self.dataset_meta['classes'], ious, strict=True):
                metrics[f'IoU.{name}'] = round(iou, 2)
        return metrics


def check_outputs(evaluator: Any, datasets: Iterable[Any]) -> None:
    """Would each image's result be written to a file of its own, and over none of the data?

    mmseg's metrics name them by the image's name alone, without its folder and suffix.

    Args:
        evaluator: The config's metrics.
        datasets: Those tested.

    Raises:
        UserError: One would overwrite another's, or a label map or an image.
    """
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    folders = {
        Path(metric['output_dir']).resolve()
        for metric in metrics
        if isinstance(metric, Mapping) and metric.get('output_dir')
    }
    if not folders:
        return
    seen: dict[str, str] = {}
    for dataset in datasets:
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            image = info['img_path']
            for path in filter(None, (image, info.get('seg_map_path'))):
                if Path(path).resolve().parent in folders:
                    raise UserError(f'results would be written over {path}; name another folder')
            other = seen.setdefault(Path(image).stem, image)
            if other != image:
                raise UserError(
                    f'the results of {other} and {image} would be written to one file; test them '
                    'one after the other, into different folders'
                )
