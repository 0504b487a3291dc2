"""mmseg's IoU, for each class too, and reports, over labels that are what they should be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from numpy.typing import NDArray
from torch import Tensor

from ssnet_mm.engine.console import tell
from ssnet_mm.engine.samples import label_problem, strange_labels
from ssnet_mm.errors import UserError
from ssnet_mm.files import make_folder
from ssnet_mm.results.scores import BOUNDARY_RATIO, Scores, count


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """IoUMetric whose results hold each class too: ``IoU.car`` beside ``mIoU``.

    Training can keep the checkpoint that is best for one class:
    ``default_hooks.checkpoint.save_best=IoU.car``. A class that neither a label map nor a
    prediction holds has NaN, and is left out of the means. One that label maps hold and no
    prediction does has a precision and an F-score of 0; mmseg leaves it out of both.

    Args:
        kwargs: As for ``IoUMetric``.

    Raises:
        UserError: A label is neither a class nor ``ignore_index``: mmseg's would leave it out of
            the union, and score the higher for it. Names the image.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch's images."""
        for sample in [] if self.format_only else data_samples:
            _check_labels(sample, len(self.dataset_meta['classes']), self.ignore_index)
        super().process(data_batch, data_samples)

    @staticmethod
    def intersect_and_union(
        pred_label: Tensor, label: Tensor, num_classes: int, ignore_index: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As mmseg's, in whole numbers: its float32 stops at 2^24 pixels of a class an image."""
        counted = label != ignore_index
        pred_label, label = pred_label[counted].long(), label[counted].long()
        intersection, predicted, labelled = (
            torch.bincount(found[found < num_classes], minlength=num_classes).cpu().double()
            for found in (pred_label[pred_label == label], pred_label, label)
        )
        return intersection, predicted + labelled - intersection, predicted, labelled

    @staticmethod
    def total_area_to_metrics(
        intersections: Tensor,
        unions: Tensor,
        predicted: Tensor,
        labelled: Tensor,
        metrics: Sequence[str] = ('mIoU',),
        nan_to_num: int | None = None,
        beta: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """As mmseg's, of pixels by class; but precision and F-score of a missed class are 0."""
        areas = intersections, unions, predicted, labelled
        found = IoUMetric.total_area_to_metrics(*areas, metrics, None, beta)
        if 'Fscore' in found:
            # from the areas: of a precision and a recall of 0 there is no harmonic mean
            share = (1 + beta**2) * intersections / (beta**2 * labelled + predicted)
            found['Fscore'] = share.numpy()
            missed = ((labelled > 0) & (predicted == 0)).numpy()
            found['Precision'] = np.where(missed, 0, found['Precision'])
        if nan_to_num is None:
            return found
        return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in found.items()}

    def compute_metrics(self, results: list) -> dict[str, float]:
        """The metrics, in percent, from what ``process`` has counted."""
        metrics = super().compute_metrics(results)
        if not self.format_only:
            intersections, unions, *_ = (torch.stack(areas).sum(0) for areas in zip(*results))
            ious = (100 * intersections / unions).tolist()
            for name, iou in zip(self.dataset_meta['classes'], ious, strict=True):
                metrics[f'IoU.{name}'] = round(iou, 2)
        return metrics


def _check_labels(sample: dict, num_classes: int, ignore_index: int) -> None:
    found = strange_labels(sample['gt_sem_seg']['data'], num_classes, ignore_index)
    if found:
        where = f'the label map of {sample.get("img_path")}'
        raise UserError(f'{where} {label_problem(found, num_classes)}')


def check_scored_classes(metrics: Iterable[Any], meta: Mapping[str, Any], where: str) -> None:
    """UserError where mmseg would give as the IoU of the only name that of all pixels."""
    (name, *others) = meta.get('classes') or ('', '')
    if not others and any(isinstance(metric, IoUMetric) for metric in metrics):
        raise UserError(
            f'{where} would score all pixels alike under the only name, {name}; give the '
            f"background a name as well: classes=('background', {name!r}), a colour for each"
        )


@METRICS.register_module()
class ReportMetric(BaseMetric):
    """Scores of each class, boundaries included, and the confusion matrix, as files.

    To stand beside a metric of mmseg, with whose values its own agree. It gives ``mBoundaryIoU``.

    Args:
        report_dir: Folder for the files of :func:`ssnet_mm.results.report.write_report`; None
            writes none.
        ignore_index: The label of void pixels.
        boundary_ratio: Width of the band along boundaries, as a share of an image's diagonal; see
            :class:`ssnet_mm.results.scores.Scores`.
        about: What else the report should hold.
        kwargs: As for mmengine's ``BaseMetric``.

    Raises:
        UserError: The folder can't be written to, or a label is neither a class nor
            ``ignore_index``.
    """

    def __init__(
        self,
        report_dir: str | None = None,
        ignore_index: int = 255,
        boundary_ratio: float = BOUNDARY_RATIO,
        about: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.report_dir = report_dir
        self.ignore_index = ignore_index
        self.boundary_ratio = boundary_ratio
        self.about = dict(about or {})
        if report_dir and is_main_process():
            make_folder(report_dir)  # now, and not when all is tested

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch's images."""
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            _check_labels(sample, num_classes, self.ignore_index)
            prediction, truth = (
                sample[key]['data'][0].cpu().numpy().astype(np.int64)
                for key in ('pred_sem_seg', 'gt_sem_seg')
            )
            counts = count(
                prediction, truth, num_classes, self.ignore_index, self.boundary_ratio
            ).ravel()
            (places,) = counts.nonzero()  # an image shows few of many classes
            self.results.append((places, counts[places]))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Write the files, and give what no metric of mmseg gives."""
        classes = self.dataset_meta['classes']
        counts = np.zeros((len(classes), len(classes) + 4), np.int64)
        for places, values in results:
            counts.ravel()[places] += values
        scores = Scores(classes, counts, len(results))
        if self.report_dir:
            from ssnet_mm.results.report import write_report  # draws, which most tests do not

            about = dict(self.about, boundary_ratio=self.boundary_ratio)
            write_report(self.report_dir, scores, about)
            tell(MMLogger.get_current_instance(), f'scores of each class: {self.report_dir}')
        return {'mBoundaryIoU': round(scores.means()['mBoundaryIoU'], 2)}


def check_outputs(evaluator: Any, datasets: Iterable[Any], others: Iterable[Any] = ()) -> None:
    """Would each image's result be written to a file of its own, and over none of the data?

    mmseg's metrics name them by the image's name alone, without its folder and suffix.

    Args:
        evaluator: The config's metrics.
        datasets: Those tested.
        others: Those of training, of which nothing is written.

    Raises:
        UserError: One would overwrite another's, or a label map or an image; or there are too many
            classes for it; or they would go where no folder can be.
    """
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    folders = {
        Path(metric['output_dir']).resolve()
        for metric in metrics
        if isinstance(metric, Mapping) and metric.get('output_dir')
    }
    if not folders:
        return
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise UserError(
                f"results can't be written into {folder}: {there} is no folder that may be written "
                'to; name another folder'
            )
    seen: dict[str, str] = {}
    for dataset in others:
        for i in range(len(dataset)):
            _check_kept(dataset.get_data_info(i), folders)
    for dataset in datasets:
        meta = getattr(dataset, 'metainfo', {})
        if len(meta.get('classes') or ()) + bool(meta.get('reduce_zero_label')) > 256:
            raise UserError(
                'results are written as 8 bits a pixel, which do not tell more than 256 classes '
                'apart; ssnet_mm predict writes 16'
            )
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            image = info['img_path']
            _check_kept(info, folders)
            other = seen.setdefault(Path(image).stem, image)
            if other != image:
                raise UserError(
                    f'the results of {other} and {image} would be written to one file; test them '
                    'one after the other, into different folders'
                )


def _check_kept(info: Mapping[str, Any], folders: Set[Path]) -> None:
    """UserError where a sample's image or label map lies where results would be written."""
    for path in filter(None, (info['img_path'], info.get('seg_map_path'))):
        # a link is written through, from its own folder
        if {Path(path).parent.resolve(), Path(path).resolve().parent} & folders:
            raise UserError(f'results would be written over {path}; name another folder')
