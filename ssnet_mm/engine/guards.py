"""A run watched: it ends where its numbers lose their meaning, and logs what is saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.dist import all_reduce_dict, all_reduce_params
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssnet_mm.engine.checkpoint import check_finite
from ssnet_mm.errors import UserError, few


@HOOKS.register_module()
class GuardHook(Hook):
    """Keep what a run logs true, and end it where a loss or a weight is NaN or infinite.

    Where several processes train, batch norm's running statistics are averaged over them after
    each iteration, so that those validated are those in the checkpoint, and so are the logged
    losses. ``acc_seg``, which mmseg takes for 100 % background where a network has one output
    channel, is not logged there.

    Raises:
        UserError: From ``Runner.train``: names the iteration, the loss, the learning rate and the
            images, or the weights. Or a batch's images differ in size.
    """

    priority = 'HIGHEST'  # before losses are logged, weights averaged (EMAHook) or saved

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Will the images of a batch be of one size?"""
        check_training_batch(_unwrapped(runner.model), data_batch)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Are the images of a batch of one size?"""
        check_scored_batch(data_batch)

    before_test_iter = before_val_iter

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Tensor] | None = None,
    ) -> None:
        """Look at the losses, and average over processes."""
        all_reduce_params(running_statistics(runner.model), op='mean')
        if not outputs:
            return
        if getattr(_unwrapped(runner.model), 'out_channels', None) == 1:
            for key in [key for key in outputs if key.endswith('acc_seg')]:
                del outputs[key]
        reduced = {key: value.detach() for key, value in outputs.items()}
        all_reduce_dict(reduced, op='mean')  # NaN in one process is NaN in all, and all stop
        outputs.update(reduced)
        losses = {key: value.item() for key, value in reduced.items() if 'loss' in key}
        bad = [f'{key} {value}' for key, value in losses.items() if not math.isfinite(value)]
        if bad:
            rates = {rate for group in runner.optim_wrapper.get_lr().values() for rate in group}
            raise UserError(
                f'training stopped at iteration {runner.iter + 1}: {", ".join(bad)} at learning '
                f'rate {few(f"{rate:g}" for rate in sorted(rates, reverse=True))}, on '
                f'{", ".join(_images(data_batch)) or "unnamed images"}; lower the learning rate, '
                'or look at these images; the checkpoints written before are sound'
            )
        if self.is_last_train_iter(runner) or any(
            isinstance(hook, CheckpointHook)
            and not hook.by_epoch
            and hook.every_n_train_iters(runner, hook.interval)
            for hook in runner.hooks
        ):
            _check_weights(runner, runner.iter + 1)  # before an older checkpoint is removed for it

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at the weights before they are saved, where checkpoints go by epochs."""
        _check_weights(runner, runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        """Look at the weights: predictions of NaN are scored as class 0, without a word."""
        _check_weights(runner, runner.iter)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Look at the scores of each class: where they are NaN, the label is 0."""
        check_predictions(outputs or ())

    after_test_iter = after_val_iter


def check_predictions(samples: Sequence[Any]) -> None:
    """UserError where the network gives NaN for an image."""
    for sample in samples:
        logits = getattr(sample, 'seg_logits', None)
        if logits is not None and bool(logits.data.isnan().any()):
            raise UserError(
                f'the network gives NaN for {getattr(sample, "img_path", "an image")}; the weights '
                'overflow or are damaged: go back to an earlier checkpoint'
            )


def _check_weights(runner: Runner, iteration: int) -> None:
    check_finite(_unwrapped(runner.model).state_dict(), f'the model at iteration {iteration}')


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Batch norm's running means and variances that each process updates by its own images."""
    return [
        statistic
        for module in model.modules()
        # SyncBN's and frozen ones are the same everywhere, and averaging would round them
        if isinstance(module, _BatchNorm)
        and not isinstance(module, nn.SyncBatchNorm)
        and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]


def check_training_batch(model: Any, data_batch: Any) -> None:
    """UserError where images will not be of one size when the data preprocessor has padded them."""
    size = getattr(getattr(model, 'data_preprocessor', None), 'size', None)
    if size is not None:  # else all are padded to the largest
        _check_sizes(data_batch, size, f'crop them to {size[1]}x{size[0]}, with RandomCrop')


def check_scored_batch(data_batch: Any) -> None:
    """UserError where images to validate or test differ in size: mmseg pads in training only."""
    _check_sizes(data_batch, (0, 0), 'validate and test with batch_size=1')


def _check_sizes(data_batch: Any, least: Sequence[int], mend: str) -> None:
    """UserError where images differ in size after those smaller than ``least`` were padded."""
    inputs = data_batch.get('inputs', ()) if isinstance(data_batch, dict) else ()
    sizes = [
        (max(i.shape[-2], least[0]), max(i.shape[-1], least[1]))
        for i in inputs
        if isinstance(i, Tensor)
    ]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is not None:
        names = _images(data_batch)
        raise UserError(
            f'a batch of images of different sizes: {names[0]} comes with '
            f'{sizes[0][1]}x{sizes[0][0]} pixels, {names[other]} with '
            f'{sizes[other][1]}x{sizes[other][0]}; {mend}'
        )


def _unwrapped(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def _images(data_batch: Any) -> list[str]:
    """The images of a batch as the data loader gave it."""
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
    return [str(getattr(sample, 'img_path', 'an image without a path')) for sample in samples]
