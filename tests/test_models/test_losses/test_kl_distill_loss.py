import math

import pytest
import torch

from ssnet_mm import KLDistillLoss


def logits(*probabilities: float) -> torch.Tensor:
    """Logits of these probabilities at one pixel."""
    return torch.tensor(probabilities).log().reshape(1, -1, 1, 1)


def test_one_pixel_by_hand():
    teacher, student = logits(0.5, 0.25, 0.25), logits(0.25, 0.25, 0.5)
    # 0.5 * log(0.5 / 0.25) + 0 + 0.25 * log(0.25 / 0.5)
    assert KLDistillLoss()(student, teacher).item() == pytest.approx(0.25 * math.log(2))
    # other than the divergence of the teacher from the student
    teacher = logits(0.8, 0.1, 0.1)
    expected = 0.8 * math.log(0.8 / 0.25) + 0.1 * math.log(0.1 / 0.25) + 0.1 * math.log(0.1 / 0.5)
    assert KLDistillLoss()(student, teacher).item() == pytest.approx(expected)


def test_temperature_softens_both_and_its_square_is_a_factor():
    # at temperature 2 probabilities become their square roots, normalised: 2:1 and 1:1
    teacher, student = logits(0.8, 0.2), logits(0.5, 0.5)
    kl = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    loss = KLDistillLoss(temperature=2.0, loss_weight=0.25)(student, teacher)
    assert loss.item() == pytest.approx(0.25 * 4 * kl)


def test_the_mean_is_over_pixels_of_all_images_and_not_over_classes():
    student, teacher = torch.randn(2, 2, 5, 3, 4).unbind()
    # each pixel an image of its own
    pixels = [x.permute(0, 2, 3, 1).reshape(24, 1, 5, 1, 1) for x in (student, teacher)]
    single = [KLDistillLoss()(a, b) for a, b in zip(*pixels, strict=True)]
    torch.testing.assert_close(KLDistillLoss()(student, teacher), torch.stack(single).mean())


def test_the_minimum_is_agreement_and_the_teacher_gets_no_gradient():
    student, teacher = torch.randn(2, 1, 5, 3, 4).unbind()
    student.requires_grad_(), teacher.requires_grad_()
    loss = KLDistillLoss(temperature=3.0)
    loss(student, teacher).backward()
    assert teacher.grad is None
    # T * (q - p) a pixel
    q, p = (student / 3).softmax(1), (teacher / 3).softmax(1)
    torch.testing.assert_close(student.grad, 3 * (q - p) / 12)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_is_computed_in_single():
    teacher = torch.tensor([20.0, 0.0, -5.0]).reshape(1, 3, 1, 1)
    student = torch.tensor([0.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    loss = KLDistillLoss()
    with torch.autocast('cpu', torch.bfloat16):
        result = loss(student.bfloat16(), teacher.bfloat16())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(student, teacher))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match='temperature must be positive, got 0'):
        KLDistillLoss(temperature=0)
    for shapes in ([(1, 3, 2, 2), (1, 3, 2, 1)], [(1, 1, 2, 2)] * 2):
        with pytest.raises(ValueError, match='one shape with at least two classes, got'):
            KLDistillLoss()(*(torch.zeros(shape) for shape in shapes))
