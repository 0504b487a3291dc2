"""An exported file against the model that it was made from: logit by logit, and by its score."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from torch import Tensor

from ssnet_mm.deploy import runtimes
from ssnet_mm.deploy.images import Pixels
from ssnet_mm.deploy.model import scored_data
from ssnet_mm.deploy.network import last_head
from ssnet_mm.deploy.processor import Processor, resize_labels
from ssnet_mm.deploy.runtimes.session import Session, not_finite
from ssnet_mm.engine.metrics import check_scored_classes
from ssnet_mm.engine.preflight.dry_run import build_evaluator
from ssnet_mm.errors import UserError, few

# The share of labels that must agree, on noise. Of random weights, whose labels change with little,
# sound files kept 97% in half precision and 77% in INT8; a third or more lost was a wrong network.
_AGREEMENT = {'fp32': 0.99, 'fp16': 0.95, 'bf16': 0.95, 'int8': 0.7}


@dataclass(frozen=True)
class Report:
    """How an exported model differs from the one it was made from.

    Logits are counted from the largest one of their pixel, and those of classes that are first or
    second somewhere: what is added to all of them, or makes a class lose everywhere, decides
    nothing and must hide nothing. For a file that gives labels, a difference is how far the logit
    of its label lies below the largest one.
    """

    difference: float  # the largest of two logits
    deviation: float  # the same as a root mean square
    scale: float  # the largest magnitude of a logit
    spread: float  # the logits' standard deviation
    agreement: float  # share of pixels that get the same label
    images: str  # what was compared, in words
    shift: float = 0.0  # of the labels' probabilities: root mean square of the worst batch
    temperature: float = 1.0  # with which these were computed
    verified: dict[str, float] = field(default_factory=dict)  # mIoU of 'model' and 'exported'
    remark: str = ''  # what else should be known of the file

    def __str__(self) -> str:
        return (
            f'max difference {self.difference:.2g} of logits up to {self.scale:.2g}, '
            f'{100 * self.agreement:.2f}% of labels agree ({self.images})'
            + (f'; {self.remark}' if self.remark else '')
        )

    def passes(self, precision: str) -> bool:
        """Whether it differs by rounding only; INT8: by a third of the logits' spread."""
        if precision == 'int8':
            found, allowed = self.deviation, self.spread / 3
        else:
            share = {'fp32': 1e-3, 'fp16': 5e-2, 'bf16': 5e-2}[precision]
            found, allowed = self.difference, share * self.scale
        return (
            found <= allowed
            and self.agreement >= _AGREEMENT[precision]
            # a probability changes by half as much as logits do at most
            and self.shift <= 0.5 * allowed / self.temperature
        )


def random_images(size: tuple[int, int], other_sizes: bool = True) -> list[Pixels]:
    """Noise in blocks of 8x8: an image of a size, and two of a smaller, odd one."""
    rng = np.random.default_rng(0)
    batches = []
    other = (size[0] * 3 // 4 | 1, size[1] * 5 // 8 | 1) if other_sizes else size
    for n, height, width in ((1, *size), (2, *other)):
        coarse = rng.integers(0, 256, (n, -(-height // 8), -(-width // 8), 3)).astype(np.uint8)
        batches.append(coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width])
    return batches


def flat_images(size: tuple[int, int]) -> list[Pixels]:
    """Black, white, and both as sky and ground, in which a network's largest values lie."""
    images = np.zeros((4, *size, 3), np.uint8)
    images[1], images[2, : size[0] // 3], images[3, size[0] // 3 :] = 255, 250, 250
    return [images]


def compare(
    model: Any, run: Callable[[Any], Any], processor: Processor, images: Sequence[Pixels]
) -> Report:
    """Compare what runs an exported model with the segmentor, on any device, that it was made from.

    The images are RGB, (H, W, 3) or batches of them, and not resized.
    """

    def classes(logits: Tensor) -> Tensor:
        """A single logit with the threshold beside it: the larger one is the class."""
        if processor.threshold is None:
            return logits
        border = float(np.log(processor.threshold / (1 - processor.threshold)))
        return F.pad(logits, (0, 0, 0, 0, 1, 0), value=border)

    def behind(logits: Tensor) -> Tensor:
        return logits - logits.amax(1, keepdim=True)

    def by_class(logits: Tensor) -> Tensor:
        return logits.transpose(0, 1).flatten(1)

    differences, found, logits, shifts = [], [], [], []
    device = next(model.parameters()).device
    for image in images:
        batch = image if image.ndim == 4 else image[None]
        size = batch.shape[1:3]
        planes = torch.from_numpy(processor.normalised(batch)).to(device)
        outputs = run(processor.batch(batch))
        output = torch.from_numpy(outputs[0] if processor.scores else outputs)
        with torch.no_grad():
            expected = model(planes, mode='tensor').float().cpu()
        if not torch.isfinite(expected).all():
            raise not_finite()
        if processor.end_to_end:
            meta = dict(img_shape=size, pad_shape=size)
            expected = last_head(model).predict_by_feat(expected, [meta])
            if processor.scores:
                scores = [processor.decided(one.numpy(), True)[1] for one in expected]
                shifts.append(np.square(outputs[1] - np.stack(scores)).mean())
            expected = behind(classes(expected))
            labels = output.long()
            if labels.max() >= expected.shape[1]:
                raise not_finite()
            difference = -expected.gather(1, labels[:, None])
        elif output.shape == expected.shape:
            expected, output = classes(expected), classes(output)
            labels = output.argmax(1)
            plain = (output - expected).abs()  # what all logits have in common is wrong as well
            expected = behind(expected)
            difference = (behind(output) - expected).abs().maximum(plain)
        else:
            raise UserError(
                f'the exported model is wrong: {tuple(output.shape)} logits for an image of '
                f'{size[0]}x{size[1]}, expected {tuple(expected.shape)}'
            )
        differences.append(by_class(difference))
        found.append(labels.flatten())
        logits.append(by_class(expected))
    difference, logit, label = torch.cat(differences, 1), torch.cat(logits, 1), torch.cat(found)
    first, second = logit.topk(2, 0).indices
    rivals = torch.cat([first, second]).unique()
    if not processor.end_to_end:
        difference = difference[torch.cat([rivals, label]).unique()]
    agreement = (label == first).float().mean().item()
    logit = logit[rivals]
    sizes = ', '.join(dict.fromkeys('x'.join(map(str, i.shape[-3:-1])) for i in images))
    return Report(
        difference=difference.max().item(),
        deviation=difference.square().mean().sqrt().item(),
        scale=logit.abs().max().item(),
        spread=logit.std().item(),
        agreement=agreement,
        images=f'images of {sizes}',
        shift=max(shifts, default=0.0) ** 0.5,
        temperature=processor.temperature,
    )


def verify(model: Any, path: str | os.PathLike[str], loader: str = 'val') -> dict[str, dict]:
    """Score a segmentor of ``load_model``, and what ``export`` made of it, on its config's data.

    ``loader`` is 'val' or 'test': which ``*_dataloader`` and ``*_evaluator``.

    Returns:
        The metric's values, such as ``mIoU``, of the ``model`` and of the ``exported`` one.

    Raises:
        UserError: A file can't be loaded, an image or its label map is not sound, or no metric
            gives mIoU.
    """
    cfg = model.cfg
    data_loader = scored_data(model, loader)
    session = runtimes.load(path)
    evaluators = {name: _evaluator(cfg, loader) for name in ('model', 'exported')}
    for evaluator in evaluators.values():
        where = f'{loader}_evaluator of {cfg.filename}'
        check_scored_classes(evaluator.metrics, data_loader.dataset.metainfo, where)
        evaluator.dataset_meta = data_loader.dataset.metainfo
    for data in data_loader:
        with torch.no_grad():
            evaluators['model'].process(model.test_step(copy.deepcopy(data)), data)
            results = _test_step(model, session, copy.deepcopy(data))
            evaluators['exported'].process(results, data)
    found = {name: e.evaluate(len(data_loader.dataset)) for name, e in evaluators.items()}
    if 'mIoU' not in found['model']:
        raise _without_score(cfg, loader, found['model'])
    return found


def _evaluator(cfg: Any, loader: str) -> Evaluator:
    """The metrics of a config's 'val' or 'test' data, which write nothing."""
    found = build_evaluator(cfg, 'train' if loader == 'val' else loader)
    if found is None or not found.metrics:
        raise _without_score(cfg, loader, ())
    return found


def _without_score(cfg: Any, loader: str, names: Iterable[str]) -> UserError:
    """The error for metrics that do not give what files are verified by."""
    return UserError(
        f'{loader}_evaluator of {cfg.filename} gives {few(names) or "nothing"}, and no mIoU to '
        f"compare; set {loader}_evaluator to dict(type='IoUMetric', iou_metrics=['mIoU'])"
    )


def _test_step(model: Any, session: Session, data: Any) -> list[Any]:
    """A segmentor's ``test_step``, with an exported network in the place of its own."""
    if session.processor.end_to_end:
        images = np.stack([x.permute(1, 2, 0).numpy()[..., ::-1] for x in data['inputs']])  # RGB
        output = session.run(images)
        output = output[0] if session.processor.scores else output
        for sample, labels in zip(data['data_samples'], output, strict=True):
            labels = resize_labels(labels, sample.ori_shape)
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None].long())
        return data['data_samples']
    data = model.data_preprocessor(data, False)
    samples = data['data_samples']
    logits = torch.from_numpy(session.run(data['inputs'].cpu().numpy()))
    logits = last_head(model).predict_by_feat(logits, [sample.metainfo for sample in samples])
    return model.postprocess_result(logits, samples)
