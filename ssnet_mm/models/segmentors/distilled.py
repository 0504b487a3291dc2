"""A segmentor that learns from a trained one besides from the labels.

Source: Hinton, Vinyals and Dean, https://arxiv.org/abs/1503.02531, pixel by pixel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.utils import add_prefix
from torch import Tensor, nn

from ssnet_mm.engine.checkpoint import load_checkpoint, trained_otherwise
from ssnet_mm.engine.config import build_segmentor, load_config
from ssnet_mm.engine.input import input_of
from ssnet_mm.errors import UserError


@MODELS.register_module()
class DistilledEncoderDecoder(EncoderDecoder):
    """``EncoderDecoder`` whose logits are also drawn towards those of a trained teacher.

    The teacher sees the batch as the student does, augmented and normalised, in evaluation mode and
    without gradient. Its logits are the target of ``distill_loss`` at every pixel of the student's,
    those without label too. It is neither among the student's modules, parameters and buffers, nor
    in its checkpoints, which load in the plain ``EncoderDecoder``. It is built for the first loss:
    prediction and testing need neither its config nor its checkpoint.

    Args:
        teacher: Path of a config file whose ``model`` is the teacher, or the config of a model. It
            has as many classes as the student, normalises images alike, and gives logits in tensor
            mode, at any resolution.
        distill_loss: Config of a loss that takes the student's and the teacher's logits, both
            (N, num_classes, H, W), and has a ``loss_name``: ``KLDistillLoss``.
        teacher_checkpoint: Path of the teacher's weights, which training needs.
        **kwargs: Arguments of ``EncoderDecoder``. The loss of its ``decode_head`` must be a
            function of the logits alone (``loss_by_feat``), as in most of mmseg's heads.

    Raises:
        UserError: From the first loss: the teacher can't be built or loaded, or does not match.

    Example:
        >>> import torch
        >>> import ssnet_mm  # registers the parts
        >>> from mmseg.registry import MODELS
        >>> teacher = dict(
        ...     type='EncoderDecoder',
        ...     backbone=dict(type='VGG16', base_channels=4, fc_channels=8, out_indices=(2, 3, 5)),
        ...     decode_head=dict(type='FCN8Head', in_channels=[16, 32, 8], num_classes=21),
        ... )
        >>> student = dict(teacher, type='DistilledEncoderDecoder', teacher=teacher)
        >>> model = MODELS.build(dict(student, distill_loss=dict(type='KLDistillLoss')))
        >>> model(torch.rand(1, 3, 97, 131), mode='tensor').shape
        torch.Size([1, 21, 13, 17])
    """

    def __init__(
        self,
        *,
        teacher: str | dict,
        distill_loss: dict,
        teacher_checkpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.distill_loss = MODELS.build(distill_loss)
        self.teacher_cfg = teacher
        self.teacher_checkpoint = teacher_checkpoint
        self.teacher_meta: Any = None  # of its checkpoint, once that is loaded
        self._teacher: list[nn.Module] = []  # where torch does not see it

    def load_teacher(self) -> nn.Module:
        """Build the teacher with its weights, unless that is done already.

        Raises:
            UserError: It can't be built or loaded, or its classes or normalisation do not match.
        """
        if not self._teacher:
            if self.teacher_checkpoint is None:
                raise UserError(
                    'the model has no teacher_checkpoint; to train it, set it with --cfg-options '
                    'model.teacher_checkpoint=FILE'
                )
            # the student's dropout should not depend on the teacher's initial weights
            with torch.random.fork_rng(devices=[]):
                if isinstance(self.teacher_cfg, str):
                    cfg = load_config(self.teacher_cfg)
                else:  # in the scope of the student
                    cfg = Config(dict(model=self.teacher_cfg, default_scope=None))
                teacher = build_segmentor(cfg, 'model.teacher')
            self._check_match(teacher)
            try:
                self.teacher_meta = load_checkpoint(teacher, self.teacher_checkpoint).get('meta')
            except UserError as error:
                raise UserError(f'model.teacher_checkpoint: {error}') from error
            for note in trained_otherwise(self.teacher_checkpoint, self.teacher_meta, teacher, cfg):
                MMLogger.get_current_instance().warning(note)
            self._teacher.append(teacher.eval().requires_grad_(False))
        return self._teacher[0]

    def _check_match(self, teacher: nn.Module) -> None:
        if teacher.out_channels != self.out_channels:
            raise UserError(
                f'the teacher gives {teacher.out_channels} logits a pixel, the student '
                f'{self.out_channels}; both must be made for the same classes'
            )
        theirs, ours = input_of(teacher), input_of(self)
        if theirs != ours:
            raise UserError(
                "the teacher's data_preprocessor differs from the student's: it gives "
                f'{theirs} instead of {ours}; it would see other images than it was trained on'
            )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """The losses of ``EncoderDecoder``, and the teacher's as ``distill.loss_kl``.

        Args:
            inputs: Normalised images (N, C, H, W).
            data_samples: mmseg's ``SegDataSample`` of each, with its label map.
        """
        # the teacher first: what it needs does not add to what the student keeps for backward
        with torch.no_grad():
            target = self.load_teacher().to(inputs.device)(inputs, mode='tensor')
        features = self.extract_feat(inputs)
        logits = self.decode_head(features)
        losses = add_prefix(self.decode_head.loss_by_feat(logits, data_samples), 'decode')
        if self.with_auxiliary_head:
            losses.update(self._auxiliary_head_forward_train(features, data_samples))
        if target.shape[2:] != logits.shape[2:]:
            target = F.interpolate(
                target, logits.shape[2:], mode='bilinear', align_corners=self.align_corners
            )
        losses[f'distill.{self.distill_loss.loss_name}'] = self.distill_loss(logits, target)
        return losses
