"""VGG16 with batch norm, dense or separable, made to give what a dense one gives, on images.

Layer by layer: a dense layer takes the kernel as it is, a separable one the halves that come
closest to what the dense layer gives, by least squares, from the inputs that the layers before it
leave; then batch norm gets the statistics of what comes out, and the scale and shift that undo it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.device import get_device
from torch import Tensor

from ssnet_mm.constants import BN_EPS
from ssnet_mm.engine.input import Input, input_of
from ssnet_mm.errors import UserError
from ssnet_mm.layers import SeparableConv2d

from .conversion import BACKBONE, HEAD, Conversion
from .match import match
from .split_kernels import split_kernel, with_split_kernels

_STAGES = f'{BACKBONE}stages.'
_PLACES = 40_000  # pixels that a separable layer is fitted to, drawn from all images
_ROUNDS = 10  # of fitting one half and then the other
_RIDGE = 1e-4  # of the mean variance: keeps dead channels from making it singular


def takes_fitting(net: Any, conversion: Conversion, factorize: bool) -> bool:
    """Whether weights are dense and of another kind than a VGG16, which has batch norm."""
    kernel, norm = f'{_STAGES}0.0.conv.weight', f'{_STAGES}0.0.bn.weight'
    without = norm not in conversion.state_dict
    has_norm = norm.removeprefix(BACKBONE) in net.state_dict()
    return has_norm and kernel in conversion.state_dict and (without or factorize)


def fitted(
    model: Any,
    conversion: Conversion,
    loader: Iterable[Any],
    num_batches: int,
    factorize: bool = False,
    skip: Sequence[str] = (),
) -> Conversion:
    """Dense weights made into those of a segmentor with batch norm, dense or separable.

    Each 3x3 layer is made to give on images what the dense one gives, see :func:`fit_to_dense`; a
    separable fc6 too. All else is taken, or split, as it is.

    Args:
        model: A segmentor whose backbone is a VGG16 with batch norm; its stages are changed.
        conversion: Dense weights, with or without batch norm.
        loader: Batches of images, as the model's ``data_preprocessor`` takes them.
        num_batches: How many to take; all of them are held in memory.
        factorize: Whether the segmentor's convolutions are separable.
        skip: Beginnings of parameter names that stay as they are, none of the stages'.

    Returns:
        The segmentor's weights, with ``errors`` the share of each dense layer's variance that is
        lost.

    Raises:
        UserError: The weights do not fit the segmentor, there is no image, or its batch norm has
            no weights or statistics to set.
    """
    net: Any = model.backbone
    norms = [module.norm for stage in net.stages for module in stage]
    if not all(getattr(n, 'affine', False) and n.track_running_stats for n in norms):
        raise UserError('fitting needs batch norm with weights and running statistics')
    if any(start.startswith(_STAGES) or _STAGES.startswith(start) for start in skip):
        raise UserError('layers that are fitted to images can not be skipped; leave bn_batches out')
    dense = with_batch_norm_folded(conversion)
    result = with_split_kernels(dense) if factorize else dense
    before = model.state_dict()
    target = {key: tuple(value.shape) for key, value in before.items()}
    norm_keys = [key for key in target if key.startswith(_STAGES) and '.bn.' in key]
    complete = {**result.state_dict, **{key: before[key] for key in norm_keys}}
    match(replace(result, state_dict=complete), target, skip)  # first what does not fit is named

    device, home = torch.device(get_device()), next(net.parameters()).device
    images = [
        model.data_preprocessor(data, training=True)['inputs'].to(device)
        for data in islice(loader, num_batches)
    ]
    if not images:
        raise UserError('no batch of images to fit the layers to')
    weights = {
        k: v.to(device) for k, v in dense.state_dict.items() if not k.startswith(tuple(skip))
    }
    given = input_of(model) or Input(
        'RGB', (0.0,) * images[0].shape[1], (1.0,) * images[0].shape[1]
    )
    # layers of the source behind the stages take the channels as they are
    unit_scale = not any(key.startswith((HEAD, f'{BACKBONE}fc6')) for key in weights)
    net.to(device)
    lost = fit_to_dense(net, weights, images, given, dense.input or given, unit_scale)
    net.to(home)

    ours = {f'{BACKBONE}{key}': value for key, value in net.state_dict().items()}
    fitted_keys = [
        k for k in ours if k.startswith(_STAGES) or (k in result.state_dict and '.fc6.' in k)
    ]
    state = {**result.state_dict, **{key: ours[key] for key in fitted_keys}}
    used = {**dict.fromkeys(norm_keys, 'the images'), **result.used}
    note = f'shares of the variance lost from {min(lost.values()):.3f} to {max(lost.values()):.3f}'
    return replace(
        result,
        source=f'{dense.source}, fitted to images',
        state_dict=state,
        used=used,
        notes=(*dense.notes, note),
        errors=lost,
        input=None,  # the first layer has taken up the difference
    )


def with_batch_norm_folded(conversion: Conversion) -> Conversion:
    """Dense weights without batch norm that give what these give in evaluation."""
    state = {k: v for k, v in conversion.state_dict.items() if '.bn.' not in k}
    eps = BN_EPS if conversion.bn_eps is None else conversion.bn_eps
    for key, var in conversion.state_dict.items():
        if key.endswith('.bn.running_var'):
            layer = key.removesuffix('.bn.running_var')
            gamma, beta, mean = (
                conversion.state_dict[f'{layer}.bn.{part}']
                for part in ('weight', 'bias', 'running_mean')
            )
            factor = gamma / (var + eps).sqrt()
            weight, bias = f'{layer}.conv.weight', f'{layer}.conv.bias'
            state[weight] = state[weight] * factor.view(-1, 1, 1, 1)
            state[bias] = (state[bias] - mean) * factor + beta
    return replace(conversion, state_dict=state, bn_eps=None)


@torch.no_grad()
def fit_to_dense(
    net: Any,
    dense: Mapping[str, Tensor],
    images: Sequence[Tensor],
    given: Input,
    expected: Input,
    unit_scale: bool = True,
) -> dict[str, float]:
    """Give a VGG16 with batch norm the function of a dense one without, in place.

    Args:
        net: A VGG16 on the device of the images. fc6 is fitted too where it is separable and
            ``dense`` has one; else fc6 and fc7 stay as they are.
        dense: Kernels and biases, under our names of a segmentor.
        images: Batches (N, C, H, W), as the model's ``data_preprocessor`` gives them.
        given: What that is.
        expected: What the dense weights were trained on; the first layer takes up the difference.
        unit_scale: Divide every channel by its deviation on the images, which the next layer's
            kernel is multiplied by: the net gives the same up to a positive factor a channel, and
            batch norm starts at scale 1, as new layers behind it and one learning rate for all
            expect. VGG16's own activations go into the hundreds.

    Returns:
        By layer, the share of the dense layer's variance that is lost, 0 to 1.
    """
    lost = {}
    ours, theirs = list(images), [_as_expected(x, given, expected) for x in images]
    # what our channels have to be multiplied by to be theirs, and which of theirs they are
    scale, flipped = _scale(ours[0], given, expected)
    layers: list[tuple[int, int, Any]] = [
        (s, i, module) for s, stage in enumerate(net.stages) for i, module in enumerate(stage)
    ]
    for s, i, module in layers:
        name = f'{_STAGES}{s}.{i}'
        conv: Any = module.conv
        kernel, bias = (dense[f'{name}.conv.{part}'].to(scale) for part in ('weight', 'bias'))
        theirs = [_convolve(conv, x, kernel, bias) for x in theirs]
        deviation, mean = torch.std_mean(_by_channel(theirs), 1)
        deviation = deviation.clamp_min(1e-6) if unit_scale else torch.ones_like(mean)
        wanted = [t / deviation.view(-1, 1, 1) for t in theirs]
        if flipped:
            kernel, flipped = kernel.flip(1), False
        kernel = kernel * scale.view(-1, 1, 1) / deviation.view(-1, 1, 1, 1)
        if isinstance(conv, SeparableConv2d):
            _fit_separable(conv, kernel, ours, wanted)
        else:
            conv.weight.copy_(kernel)
        last: Any = conv.pointwise if isinstance(conv, SeparableConv2d) else conv
        last.bias.zero_()
        ours = [conv(x) for x in ours]
        _undo(module.norm, ours, mean / deviation)
        ours = [module.norm(x) for x in ours]
        total = _by_channel(wanted).var(1).sum()
        lost[name] = (
            (_by_channel(wanted) - _by_channel(ours)).square().mean(1).sum() / total
        ).item()
        ours, theirs, scale = [x.relu() for x in ours], [x.relu() for x in theirs], deviation
        if i == len(net.stages[s]) - 1:
            ours, theirs = [net.pools[s](x) for x in ours], [net.pools[s](x) for x in theirs]
    fc6 = f'{BACKBONE}fc6.conv.'
    if net.fc6 is not None and f'{fc6}weight' in dense:
        conv = net.fc6.conv
        kernel, bias = (dense[f'{fc6}{part}'].to(scale) for part in ('weight', 'bias'))
        if isinstance(conv, SeparableConv2d):
            wanted = [_convolve(conv, x, kernel, bias) for x in theirs]
            _fit_separable(conv, kernel * scale.view(-1, 1, 1), ours, wanted, rounds=0)
            last = conv.pointwise
            last.bias.zero_()
            shift = _by_channel(wanted).mean(1) - _by_channel([conv(x) for x in ours]).mean(1)
            last.bias.copy_(shift)
    return lost


def _by_channel(maps: Sequence[Tensor]) -> Tensor:
    """(C, pixels of all images)."""
    return torch.cat([x.transpose(0, 1).flatten(1) for x in maps], 1)


def _convolve(conv: Any, x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """What a dense layer in the place of a layer of ours gives."""
    return F.conv2d(x, kernel, bias, padding=conv.padding, dilation=conv.dilation)


def _scale(image: Tensor, given: Input, expected: Input) -> tuple[Tensor, bool]:
    flipped = given.channels != expected.channels
    ours, theirs = image.new_tensor(given.std), image.new_tensor(expected.std)
    return ours / (theirs.flip(0) if flipped else theirs), flipped


def _as_expected(images: Tensor, given: Input, expected: Input) -> Tensor:
    """Images as one preprocessing gives them, as another would."""
    mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (given.mean, given.std))
    images = images * std + mean
    if given.channels != expected.channels:
        images = images.flip(1)
    mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (expected.mean, expected.std))
    return (images - mean) / std


def _undo(bn: Any, outputs: Sequence[Tensor], mean: Tensor) -> None:
    """Give a batch norm the statistics of a layer's outputs, and have it shift them to a mean."""
    var, theirs = torch.var_mean(_by_channel(outputs), 1)
    bn.eval()
    bn.running_mean.copy_(theirs)
    bn.running_var.copy_(var)
    bn.weight.copy_((var + bn.eps).sqrt())
    bn.bias.copy_(mean)


def _fit_separable(
    conv: Any,
    kernel: Tensor,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    rounds: int = _ROUNDS,
) -> None:
    """Choose both halves by least squares on what the dense layer gives, one after the other.

    The depthwise half starts as the closest kernel's. Its equations are as many as there are taps
    over all channels; without rounds it stays so.
    """
    d = split_kernel(kernel.cpu())[0].flatten(1).to(kernel.device, torch.float64)  # (C, taps)
    c, taps = d.shape
    if rounds:
        x, t = _columns(conv, inputs, targets)
        xx = (x @ x.T).double().view(c, taps, c, taps) / x.shape[1]
        xt = (x @ t.T).double().view(c, taps, -1) / x.shape[1]
        for _ in range(rounds):
            p = _solve(torch.einsum('ck,ckej,ej->ce', d, xx, d), torch.einsum('ck,cko->co', d, xt))
            normal = (xx * (p @ p.T)[:, None, :, None]).view(c * taps, -1)
            d = _solve(normal, torch.einsum('cko,co->ck', xt, p).view(-1, 1)).view(c, taps)
            d = d / d.norm(dim=1, keepdim=True).clamp_min(1e-12)
    conv.depthwise.weight.copy_(d.view_as(conv.depthwise.weight))
    x, t = (_by_channel(maps) for maps in ([conv.depthwise(x) for x in inputs], targets))
    x, t = x - x.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    p = _solve((x @ x.T).double() / x.shape[1], (x @ t.T).double() / x.shape[1])
    conv.pointwise.weight.copy_(p.T.reshape(conv.pointwise.weight.shape))


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    matrix.diagonal().add_(_RIDGE * matrix.diagonal().mean())
    return torch.linalg.solve(matrix, right)


def _columns(
    conv: Any, inputs: Sequence[Tensor], targets: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The inputs under the kernel's taps, (C * taps, places), and the targets there, less means."""
    each = max(1, _PLACES // sum(len(x) for x in inputs))
    generator = torch.Generator().manual_seed(0)
    window: Any = dict(kernel_size=conv.kernel_size, padding=conv.padding, dilation=conv.dilation)
    xs, ts = [], []
    for batch, wanted in zip(inputs, targets):
        for x, t in zip(batch, wanted):
            places = torch.randperm(t[0].numel(), generator=generator)[:each].to(x.device)
            xs.append(F.unfold(x[None], **window)[0, :, places])
            ts.append(t.flatten(1)[:, places])
    x, t = torch.cat(xs, 1), torch.cat(ts, 1)
    return x - x.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
