"""What a student pays for disagreeing with its teacher at each pixel.

Source: Hinton, Vinyals and Dean, https://arxiv.org/abs/1503.02531. mmseg's ``KLDivLoss`` hands
probabilities to ``torch.nn.functional.kl_div``, which takes log-probabilities: it is not smallest
where the two agree.
"""

import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class KLDistillLoss(nn.Module):
    """Kullback-Leibler divergence of the student's class probabilities from the teacher's.

    Per pixel the sum over classes of ``p * (log p - log q)``, where p (the teacher's) and q (the
    student's) are softmaxes of logits divided by the temperature; the mean over all pixels, times
    ``temperature**2``, by which the gradient stays about as large at any temperature.

    Args:
        temperature: Above 1 the less likely classes count for more.
        loss_weight: Factor of the loss.
        loss_name: Its name in the log; without ``loss_`` in it, it has no part in training.

    Raises:
        ValueError: The temperature is not positive, or, at run time, the logits differ in shape or
            have a single channel, of which a softmax says nothing.

    Shape:
        Logits (N, C, H, W) of the student and of the teacher, which gets no gradient, to a scalar.

    Example:
        >>> import torch
        >>> from ssnet_mm import KLDistillLoss
        >>> logits = torch.rand(2, 21, 9, 13)
        >>> KLDistillLoss(temperature=2.0)(logits, 3 * logits).shape
        torch.Size([])
    """

    def __init__(
        self, temperature: float = 1.0, loss_weight: float = 1.0, loss_name: str = 'loss_kl'
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature must be positive, got {temperature}')
        self.temperature = temperature
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare two maps of logits (N, C, H, W)."""
        if student.shape != teacher.shape or student.shape[1] < 2:
            raise ValueError(
                'expected logits of one shape with at least two classes, got '
                f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher'
            )
        # in float32 even under autocast: half precision loses the small probabilities
        log_q = F.log_softmax(student.float() / self.temperature, dim=1)
        log_p = F.log_softmax(teacher.detach().float() / self.temperature, dim=1)
        divergence = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(dim=1)
        return self.loss_weight * self.temperature**2 * divergence.mean()
