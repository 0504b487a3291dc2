"""Names and shapes of our parameters, and how they follow from a few widths."""

from __future__ import annotations

from dataclasses import dataclass

DEPTHS = (2, 2, 3, 3, 3)  # 3x3 convolutions of VGG16's stages
WIDTHS = (1, 2, 4, 8, 8)  # in units of the first stage's
COARSEST_STRIDE = 32  # of pool5, fc6 and fc7

BACKBONE, HEAD = 'backbone.', 'decode_head.'
BN_PARAMETERS = ('weight', 'bias', 'running_mean', 'running_var')

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of a net's parameters depend on.

    Args:
        in_channels: Channels of the image.
        base_channels: Width of the first stage.
        fc_channels: Width of fc6 and fc7; ``None`` where they are left out.
        separable: Whether the convolutions are depthwise separable.
        bn: Whether a batch norm follows each 3x3 convolution.
        levels: Score layers, of fc7 and of so many pools below: three in FCN-8s, two in FCN-16s,
            one in FCN-32s; 0 where there is no head.
        num_classes: Classes of the score layers.
        final: Whether the head ends with a transposed convolution to the image's resolution.
    """

    in_channels: int = 3
    base_channels: int = 64
    fc_channels: int | None = 4096
    separable: bool = False
    bn: bool = False
    levels: int = 0
    num_classes: int = 0
    final: bool = False


def conv_layers() -> list[tuple[str, int, int]]:
    """VGG16's 3x3 convolutions: our module's name, stage and place in it, both from 0."""
    return [
        (f'{BACKBONE}stages.{stage}.{i}', stage, i)
        for stage, depth in enumerate(DEPTHS)
        for i in range(depth)
    ]


def layout(sizes: Sizes) -> dict[str, Shape]:
    """Every parameter and running statistic of a net: name and shape, in order of computation."""
    shapes: dict[str, Shape] = {}

    def conv(name: str, channels: int, width: int, kernel: int) -> None:
        if sizes.separable:
            shapes[f'{name}.depthwise.weight'] = (channels, 1, kernel, kernel)
            shapes[f'{name}.pointwise.weight'] = (width, channels, 1, 1)
            shapes[f'{name}.pointwise.bias'] = (width,)
        else:
            shapes[f'{name}.weight'] = (width, channels, kernel, kernel)
            shapes[f'{name}.bias'] = (width,)

    channels = sizes.in_channels
    for name, stage, _ in conv_layers():
        width = sizes.base_channels * WIDTHS[stage]
        conv(f'{name}.conv', channels, width, 3)
        channels = width
        if sizes.bn:
            shapes.update({f'{name}.bn.{parameter}': (width,) for parameter in BN_PARAMETERS})
    top = channels
    if sizes.fc_channels is not None:
        conv(f'{BACKBONE}fc6.conv', channels, sizes.fc_channels, 7)
        conv(f'{BACKBONE}fc7.conv', sizes.fc_channels, sizes.fc_channels, 1)
        top = sizes.fc_channels
    if sizes.levels:
        # finest first: pool1, pool2, pool3, pool4, and fc7 (or pool5)
        widths = [*(sizes.base_channels * width for width in WIDTHS[:-1]), top]
        for i, width in enumerate(widths[-sizes.levels :]):
            conv(f'{HEAD}scores.{i}', width, sizes.num_classes, 1)
        classes = (sizes.num_classes, sizes.num_classes)
        for i in range(sizes.levels - 1):
            shapes[f'{HEAD}upsamples.{i}.weight'] = (*classes, 4, 4)
        if sizes.final:
            kernel = 2 * COARSEST_STRIDE >> (sizes.levels - 1)  # twice the finest level's stride
            shapes[f'{HEAD}final.weight'] = (*classes, kernel, kernel)
    return shapes
