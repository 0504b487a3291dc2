"""An exported file against the model that it was made from: logit by logit, and by its score."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmengine.structures import PixelData
from numpy.typing import NDArray

from ssnet_mm.deploy import runtimes
from ssnet_mm.deploy.processor import Processor, resize_labels
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.engine.preflight import check_data
from ssnet_mm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Report:
    """How an exported model differs from the one it was made from.

    Args:
        difference: The largest difference of two logits; for a file that gives labels, how far the
            logit of a label lies below the largest one at most.
        deviation: The same as a root mean square.
        scale: The largest magnitude of a logit.
        spread: The logits' standard deviation.
        agreement: Share of pixels that get the same label.
        images: What was compared, in words.
    """

    difference: float
    deviation: float
    scale: float
    spread: float
    agreement: float
    images: str

    def __str__(self) -> str:
        return (
            f'max difference {self.difference:.2g} of logits up to {self.scale:.2g}, '
            f'{100 * self.agreement:.2f}% of labels agree ({self.images})'
        )

    def passes(self, precision: str) -> bool:
        """Whether it differs by rounding only; INT8: by a quarter of the logits' spread."""
        if precision == 'int8':
            return self.deviation <= 0.25 * self.spread
        return self.difference <= {'fp32': 1e-3, 'fp16': 5e-2}[precision] * self.scale


def random_images(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Noise of two sizes, the second odd, in batches of one and two."""
    rng = np.random.default_rng(0)
    odd = (size[0] * 3 // 4 | 1, size[1] * 5 // 8 | 1)
    coarse = [rng.integers(0, 256, (n, -(-h // 8), -(-w // 8), 3)) for n, (h, w) in
              ((1, size), (2, odd))]  # fmt: skip
    large = [c.repeat(8, 1).repeat(8, 2).astype(np.uint8) for c in coarse]
    return [large[0][:, : size[0], : size[1]], large[1][:, : odd[0], : odd[1]]]


def compare(
    model: Any,
    run: Callable[[Any], Any],
    processor: Processor,
    images: Sequence[NDArray[np.uint8]],
) -> Report:
    """Compare what runs an exported model with the model.

    Args:
        model: The segmentor, on any device.
        run: From a batch to a batch, as the processor says.
        processor: Of the exported model.
        images: RGB, (H, W, 3) or a batch of them; they are not resized.
    """
    differences, labels, logits = [], [], []
    device = next(model.parameters()).device
    for image in images:
        batch = image if image.ndim == 4 else image[None]
        planes = processor.normalised(batch)
        with torch.no_grad():
            expected = model(torch.from_numpy(planes).to(device), mode='tensor').float().cpu()
        if processor.end_to_end and processor.crops:
            expected = expected[:, :, : batch.shape[1], : batch.shape[2]]
        elif processor.end_to_end:
            expected = F.interpolate(
                expected,
                size=batch.shape[1:3],
                mode='bilinear',
                align_corners=processor.align_corners,
            )
        if processor.threshold is not None:  # a second logit makes it the same kind of choice
            border = float(np.log(processor.threshold / (1 - processor.threshold)))
            expected = torch.cat([torch.full_like(expected, border), expected], 1)
        output = torch.from_numpy(run(batch if processor.end_to_end else planes))
        if processor.end_to_end:
            found = output.long()
            chosen = expected.gather(1, found[:, None])
            differences.append((expected.amax(1, keepdim=True) - chosen).flatten())
        else:
            if processor.threshold is not None:
                output = torch.cat([torch.full_like(output, border), output], 1)
            if output.shape != expected.shape:
                raise UserError(
                    f'the exported model is wrong: {tuple(output.shape)} logits for an image of '
                    f'{batch.shape[1]}x{batch.shape[2]}, expected {tuple(expected.shape)}'
                )
            found = output.argmax(1)
            differences.append((output - expected).abs().flatten())
        labels.append((found == expected.argmax(1)).flatten())
        logits.append(expected.flatten())
    difference, logit = torch.cat(differences), torch.cat(logits)
    sizes = ', '.join('x'.join(map(str, image.shape[-3:-1])) for image in images)
    return Report(
        difference=difference.max().item(),
        deviation=difference.square().mean().sqrt().item(),
        scale=logit.abs().max().item(),
        spread=logit.std().item(),
        agreement=torch.cat(labels).float().mean().item(),
        images=f'images of {sizes}',
    )


def verify(model: Any, path: str | os.PathLike[str], loader: str = 'val') -> dict[str, dict]:
    """Score a segmentor and a file made from it with the config's data loader and its metric.

    Args:
        model: From ``load_model``; its ``cfg`` names data and metric.
        path: What ``export`` wrote.
        loader: 'val' or 'test': which ``*_dataloader`` and ``*_evaluator``.

    Returns:
        The metric's values, such as ``mIoU``, of the ``model`` and of the ``exported`` one.
    """
    cfg = model.cfg
    check_data(cfg, f'{loader}_dataloader', model.num_classes)
    session = runtimes.load(path)
    data_loader = Runner.build_dataloader(copy.deepcopy(cfg[f'{loader}_dataloader']))
    evaluators = {
        name: Evaluator(copy.deepcopy(cfg[f'{loader}_evaluator'])) for name in ('model', 'exported')
    }
    for evaluator in evaluators.values():
        evaluator.dataset_meta = data_loader.dataset.metainfo
    for data in data_loader:
        with torch.no_grad():
            evaluators['model'].process(model.test_step(copy.deepcopy(data)), data)
            evaluators['exported'].process(_test_step(model, session, data), data)
    return {name: e.evaluate(len(data_loader.dataset)) for name, e in evaluators.items()}


def _test_step(model: Any, session: Session, data: Any) -> list[Any]:
    """A segmentor's ``test_step``, with an exported network in the place of its own."""
    if session.processor.end_to_end:
        images = np.stack([x.permute(1, 2, 0).numpy()[..., ::-1] for x in data['inputs']])  # RGB
        samples = copy.deepcopy(data['data_samples'])
        for sample, labels in zip(samples, session.run(images), strict=True):
            labels = resize_labels(labels, sample.ori_shape)
            sample.pred_sem_seg = PixelData(data=torch.from_numpy(labels)[None].long())
        return samples
    prepared = model.data_preprocessor(copy.deepcopy(data), False)
    samples = prepared['data_samples']
    logits = torch.from_numpy(session.run(prepared['inputs'].cpu().numpy()))
    logits = model.decode_head.predict_by_feat(logits, [sample.metainfo for sample in samples])
    return model.postprocess_result(logits, samples)
