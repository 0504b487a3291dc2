"""Test-time augmentation that is right for one output channel as well."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.registry import MODELS


@MODELS.register_module()
class MeanProbabilityTTAModel(SegTTAModel):
    """SegTTAModel that takes the sigmoid of a network with one output channel once.

    Of such a network mmseg's ``seg_logits`` are probabilities already; SegTTAModel takes their
    sigmoid again, which is 0.5 or more everywhere.
    """

    def merge_preds(self, data_samples_list: list[list[Any]]) -> list[Any]:
        """Label maps from the mean of the probabilities over each image's augmentations.

        Args:
            data_samples_list: For each image the results of its augmentations, turned back.

        Returns:
            For each image one result.
        """
        if self.module.out_channels > 1:
            return super().merge_preds(data_samples_list)
        merged = []
        for first, *others in data_samples_list:
            same_image = [first, *others]
            mean = torch.stack([sample.seg_logits.data for sample in same_image]).mean(0)
            labels = (mean > self.module.decode_head.threshold).to(mean)
            first.set_data({'pred_sem_seg': PixelData(data=labels)})
            merged.append(first)
        return merged
