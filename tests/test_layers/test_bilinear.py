import pytest
import torch
import torch.nn.functional as F

from ssnet_mm.layers import bilinear_kernel


@pytest.mark.parametrize(
    ('size', 'line'),
    [
        (1, [1.0]),
        (2, [0.5, 0.5]),
        (3, [0.5, 1.0, 0.5]),
        (4, [0.25, 0.75, 0.75, 0.25]),
        (5, [1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3]),
        (8, [0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]),
    ],
)
def test_is_a_pyramid_on_the_diagonal(size, line):
    weight = bilinear_kernel(3, size)
    line = torch.tensor(line)

    assert weight.shape == (3, 3, size, size) and weight.dtype == torch.float32
    for i in range(3):
        for j in range(3):
            expected = torch.outer(line, line) if i == j else torch.zeros(size, size)
            torch.testing.assert_close(weight[i, j], expected, rtol=0, atol=1e-7)


def test_the_kernel_of_a_doubling_is_the_default():
    assert torch.equal(bilinear_kernel(2), bilinear_kernel(2, 4))


@pytest.mark.parametrize('stride', [2, 4, 8, 16, 32])
def test_upsamples_bilinearly_away_from_the_border(stride):
    x = torch.randn(1, 2, 4, 5)
    weight = bilinear_kernel(2, 2 * stride)
    upsampled = F.conv_transpose2d(x, weight, stride=stride, padding=stride // 2)
    expected = F.interpolate(x, scale_factor=stride, mode='bilinear', align_corners=False)

    assert upsampled.shape == expected.shape
    inside = (..., slice(stride // 2, -stride // 2), slice(stride // 2, -stride // 2))
    torch.testing.assert_close(upsampled[inside], expected[inside])
