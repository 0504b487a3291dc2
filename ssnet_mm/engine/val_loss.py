"""The loss on validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmseg.models.decode_heads.decode_head import BaseDecodeHead


@HOOKS.register_module()
class ValLossHook(Hook):
    """Log the loss of validation beside mIoU, so that it can be seen when a network overfits.

    It is that of the (last) decode head, mean over the images, computed from the scores that the
    prediction is made from: no image is run twice. Heads that compute their loss from something
    else than one map of scores have none. Its name is ``loss``: ``save_best='loss'`` with
    ``rule='less'`` and ``monitor='loss'`` work.
    """

    priority = 'HIGHEST'  # before metrics are logged

    def before_val_epoch(self, runner: Runner | None = None) -> None:
        """Begin to count."""
        self._sum, self._count = 0.0, 0

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Add a batch's images."""
        self.add(runner.model, outputs or ())

    def add(self, model: Any, outputs: Sequence[Any]) -> None:
        """Add images that a model has predicted."""
        head = getattr(getattr(model, 'module', model), 'decode_head', None)
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
        if not has_plain_loss(head):
            return
        for sample in outputs:
            if 'gt_sem_seg' not in sample or 'seg_logits' not in sample:
                continue
            if (sample.gt_sem_seg.data == getattr(head, 'ignore_index', None)).all():
                continue  # mmseg's loss is 0 there, and fails for one channel
            logits = sample.seg_logits.data[None].float()
            if logits.shape[1] == 1:
                logits = torch.logit(logits, eps=1e-6)  # mmseg stores probabilities there
            with torch.no_grad():
                losses = BaseDecodeHead.loss_by_feat(head, logits, [sample])
            value = sum(float(part.mean()) for name, part in losses.items() if 'loss' in name)
            if math.isfinite(value):
                self._sum, self._count = self._sum + value, self._count + 1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the mean beside the metrics."""
        total = torch.tensor([self._sum, self._count], dtype=torch.float64)
        all_reduce(total)
        if metrics is not None and total[1] > 0:
            metrics['loss'] = float(total[0] / total[1])


def has_plain_loss(head: Any) -> bool:
    """Whether a head computes its loss as mmseg's base class does, or is ours."""
    if not isinstance(head, BaseDecodeHead):
        return False
    ours = type(head).__module__.startswith('ssnet_mm.')
    return ours or type(head).loss_by_feat is BaseDecodeHead.loss_by_feat
