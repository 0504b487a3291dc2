"""A loss made for the mean IoU, where cross entropy is for the share of right pixels.

Source: Berman, Triki and Blaschko, https://arxiv.org/abs/1705.08790 (algorithm 1).
"""

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class LovaszSoftmaxLoss(nn.Module):
    """Lovasz-Softmax over all pixels of a batch, the mean over the classes that it shows.

    What mmseg's ``LovaszLoss(reduction='none')`` computes, rounded later, and far faster on a CPU
    (docs/performance.md). A batch of which all pixels are to be ignored gives 0.

    Args:
        loss_weight: Factor of the loss.
        loss_name: Its name in the log; without ``loss_`` in it, it has no part in training.

    Raises:
        ValueError: At run time, the logits are of a single channel, of which a softmax says
            nothing.

    Shape:
        Logits (N, C, H, W) and labels (N, H, W), 0 to C - 1 or ``ignore_index``, to a scalar.

    Example:
        >>> import torch
        >>> from ssnet_mm import LovaszSoftmaxLoss
        >>> LovaszSoftmaxLoss()(torch.rand(2, 21, 9, 13), torch.zeros(2, 9, 13).long()).shape
        torch.Size([])
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_lovasz') -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Compare logits with labels; ``weight`` is a sampler's and, as in mmseg, not used."""
        classes = cls_score.shape[1]
        if classes < 2:
            raise ValueError(f'expected logits of at least two classes, got {classes}')
        # in float32 even under autocast: half precision has too few different errors to sort
        probabilities = cls_score.float().softmax(dim=1).movedim(1, 0).flatten(1)
        label = label.flatten()
        ignored = label == ignore_index
        foreground = (label == torch.arange(classes, device=label.device)[:, None]) & ~ignored
        errors = (foreground.float() - probabilities).abs()
        ranks = torch.arange(1, len(label) - int(ignored.sum()) + 1, device=label.device)
        present = foreground.any(dim=1).nonzero().flatten().tolist()
        growth = torch.zeros_like(errors)  # of the Jaccard loss, by each pixel
        for index in present:
            # bits of floats sort as they do where none is negative, far faster on a CPU; -1 is last
            bits = errors[index].detach().masked_fill(ignored, -1).view(torch.int32)
            order = (-bits).argsort()[: len(ranks)]
            hits = foreground[index][order].cumsum(0)
            missed = hits[-1] - hits
            # in float64: of a million pixels each adds what float32 can hardly tell from nothing
            jaccard_loss = 1 - missed.double() / (missed + ranks)
            growth[index][order] = jaccard_loss.diff(prepend=jaccard_loss.new_zeros(1)).float()
        return self.loss_weight * (errors * growth).sum() / max(len(present), 1)
