"""Lovasz-Softmax, against mmseg's, against its definition and where mmseg's ends in an error."""

import pytest
import torch
from mmseg.models.losses import LovaszLoss
from torch.nn import functional as F

from ssnet_mm import LovaszSoftmaxLoss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 4, (2, 9, 13), generator=generator)  # the fifth class is nowhere
    logits = torch.randn(2, 5, 9, 13, generator=generator) + 2 * F.one_hot(label, 5).movedim(3, 1)
    label[:, :2] = 255
    return logits, label


def value_and_gradient(loss, logits, label, ignore_index=255):
    logits = logits.clone().requires_grad_()
    value = loss(logits, label, ignore_index=ignore_index)
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize('void', [255, 3])
def test_value_and_gradient_are_mmsegs(batch, void):
    logits, label = batch
    label[label == 255] = void
    for found, expected in zip(
        value_and_gradient(LovaszSoftmaxLoss(loss_weight=0.5), logits, label, void),
        value_and_gradient(LovaszLoss(reduction='none', loss_weight=0.5), logits, label, void),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_labels_for_predictions_give_the_mean_jaccard_loss():
    label = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 1, 1]]])
    logits = 1000.0 * F.one_hot(predicted, 3).movedim(3, 1)
    jaccard = [2 / 3, 2 / 4, 0 / 1]
    assert LovaszSoftmaxLoss()(logits, label).item() == pytest.approx(1 - sum(jaccard) / 3)


def test_ignored_pixels_get_no_gradient_and_change_nothing(batch):
    logits, label = batch
    value, gradient = value_and_gradient(LovaszSoftmaxLoss(), logits, label)
    assert gradient[:, :, :2].abs().max() == 0 < gradient[:, :, 2:].abs().max()
    without = LovaszSoftmaxLoss()(logits[:, :, 2:], label[:, 2:])
    torch.testing.assert_close(value, without)


@pytest.mark.parametrize('counted', [0, 1])
def test_hardly_a_pixel_that_counts(batch, counted):
    logits, label = batch
    label[:] = 255
    label.view(-1)[:counted] = 3
    value, gradient = value_and_gradient(LovaszSoftmaxLoss(), logits, label)
    assert value.item() == pytest.approx(counted * (1 - logits.softmax(1)[0, 3, 0, 0].item()))
    assert gradient.isfinite().all()


def test_under_autocast_it_sorts_in_float32(batch):
    logits, label = batch
    logits = logits.bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        value = LovaszSoftmaxLoss()(logits, label)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, LovaszSoftmaxLoss()(logits.float(), label))


def test_each_of_a_million_pixels_gets_its_share():
    # one class right everywhere but in a ramp of errors: each pixel adds 1 / union
    size = 1000 * 1000
    error = torch.linspace(0.9, 0.1, size)
    logits = torch.stack([(1 / error - 1).log(), torch.zeros(size)]).view(1, 2, 1000, 1000)
    _, gradient = value_and_gradient(LovaszSoftmaxLoss(), logits, torch.zeros(1, 1000, 1000).long())
    expected = -(error * (1 - error) / size).view(1000, 1000)
    torch.testing.assert_close(gradient[0, 0], expected, rtol=1e-3, atol=0)


def test_a_single_channel_is_refused():
    with pytest.raises(ValueError, match='at least two classes, got 1'):
        LovaszSoftmaxLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4).long())
