"""A training that is told to stop: it saves a checkpoint at the end of the iteration.

``docs/training.md`` lists the signals and exit codes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ssnet_mm.errors import Stopped

# Ctrl-C; `kill`, slurm and docker; a terminal that closes; what slurm is often told to send first
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopSignals:
    """While entered, notes signals that ask to stop, instead of dying of them.

    Until ``noting`` is set there is nothing to save, and they raise ``Stopped`` at once. A second
    Ctrl-C ends the process at once. Signals that the process ignores (`nohup`) stay ignored.
    """

    def __init__(self) -> None:
        self.noting = False
        self.received = 0
        self._process = os.getpid()
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not of Python
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # forked, and not yet in `start_worker`
        if number == signal.SIGINT and self._interrupted:
            _die(number)
        self._interrupted |= number == signal.SIGINT
        self.received = self.received or number
        if not self.noting:
            raise Stopped(
                f'stopped by {signal.Signals(number).name} before the first iteration', 128 + number
            )


def _die(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def start_worker(init: Callable[[int], Any] | None, worker_id: int) -> None:
    """Have a worker of a data loader go on where a whole process group is told to stop.

    The iteration that is going on needs it. It ends when the training process itself ends it, as
    that does when it exits, or at a second signal.

    Args:
        init: The data loader's own ``worker_init_fn``.
        worker_id: Its argument.
    """
    # A handler is not told who sends a signal, so a thread waits for them. (macOS has no such call;
    # a signal to the group ends workers there.)
    if hasattr(signal, 'sigwaitinfo'):
        numbers = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        threading.Thread(target=_outlive, args=(numbers, os.getppid()), daemon=True).start()
    if init is not None:
        init(worker_id)


def _outlive(numbers: Sequence[int], parent: int) -> None:
    """Wait for signals until the parent sends one, or somebody the same one twice."""
    seen = set()
    while True:
        found = signal.sigwaitinfo(numbers)
        if found.si_pid == parent:  # the data loader's or multiprocessing's end of a worker
            os._exit(0)
        if found.si_signo in seen:
            os._exit(128 + found.si_signo)
        seen.add(found.si_signo)


class StopHook(Hook):
    """End a training, with a checkpoint, after the iteration in which a signal was noted.

    Where several processes train, all end after the same iteration. Checkpoints are saved before
    the validation that follows, so a resumed training begins with it, unless it was stopped, and so
    saved again, after. What early stopping has counted is kept in checkpoints; where it ends a
    training, the last state is saved.

    Args:
        signals: Entered.

    Raises:
        Stopped: From ``Runner.train``.
    """

    priority = 'LOWEST'  # after the iteration is logged, the schedule advanced, checkpoints saved

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._passing: str | None = None

    def before_train(self, runner: Runner) -> None:
        """Go on where the checkpoint was saved: early stopping's counts, a validation."""
        self.signals.noting = True
        info = runner.message_hub.runtime_info
        # of a run that counts epochs, amid one: outdated when the next is saved
        passing, source = info.pop('passing_checkpoint', None), str(runner._load_from)
        if (runner.work_dir, passing) == os.path.split(os.path.abspath(source)):
            self._passing = source
        validated, counts = info.pop('iter_validated', None), info.pop('early_stopping', [])
        if not runner.iter:
            return
        hooks = _early_stopping_hooks(runner)
        for hook, (monitor, count, best) in zip(hooks, counts, strict=False):
            if hook.monitor == monitor:
                hook.wait_count, hook.best_score = count, best
        self._note(runner, validated)
        if validated != runner.iter and _validates(runner):
            runner.val_loop.run()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop, unless the end of an epoch follows."""
        number, done, epoch = self._agreed(runner), runner.iter + 1, runner.epoch
        if not _by_epoch(runner):
            self._stop(runner, number, done, epoch)
        elif done < (epoch + 1) * len(runner.train_dataloader):
            self._stop(runner, number, done, epoch, amid_epoch=True)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop between two epochs."""
        if not _by_epoch(runner):
            return  # it is the whole training
        self._remove_passing(runner)
        self._stop(runner, self._agreed(runner), runner.iter, runner.epoch + 1)

    def after_train(self, runner: Runner) -> None:
        """Save what is trained where a hook, as early stopping, ends it between checkpoints."""
        hook = _checkpoint_hook(runner)
        if not _ended_early(runner) or hook is None or not hook.save_last:
            return
        if hook.by_epoch and not _by_epoch(runner):
            return  # the end of the training is the end of its only epoch, and was saved
        save_now(runner, runner.iter, runner.epoch, amid_epoch=False, validated=False)
        self._remove_passing(runner)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Stop a validation, which may be long; of several processes one may be further."""
        number = 0 if is_distributed() else self._agreed(runner)
        for hook in runner.hooks:
            if number and isinstance(hook, EMAHook):  # what is validated is the average
                hook._swap_ema_parameters()
        self._stop(runner, number, runner.iter, runner.epoch)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Stop between validation and training."""
        number = self._agreed(runner)
        if _ended_early(runner):
            return  # nothing noted: resumed, the run begins with this validation, and ends by it
        self._note(runner, runner.iter)
        if runner.iter < runner.max_iters:
            self._stop(runner, number, runner.iter, runner.epoch, validated=True)

    def _note(self, runner: Runner, validated: int | None) -> None:
        """Have the next checkpoints hold what a validation leaves."""
        counts = [[h.monitor, h.wait_count, h.best_score] for h in _early_stopping_hooks(runner)]
        runner.message_hub.update_info('iter_validated', validated)
        runner.message_hub.update_info('early_stopping', counts)

    def _remove_passing(self, runner: Runner) -> None:
        hook = _checkpoint_hook(runner)
        if self._passing and hook and hook.last_ckpt and is_main_process():
            os.unlink(self._passing)
            self._passing = None

    def _agreed(self, runner: Runner) -> int:
        """The signal that any of the processes has noted; 0 if none, or while gradients gather."""
        number = self.signals.received
        if is_distributed():
            noted = torch.tensor(number)
            all_reduce(noted, op='max')
            number = int(noted)
        gathers = hasattr(runner.optim_wrapper, 'should_update') and (
            not runner.optim_wrapper.should_update()
        )
        return 0 if gathers else number

    def _stop(
        self,
        runner: Runner,
        number: int,
        iteration: int,
        epoch: int,
        *,
        amid_epoch: bool = False,
        validated: bool = False,
    ) -> None:
        if not number:
            return
        path = save_now(runner, iteration, epoch, amid_epoch, validated)
        barrier()  # or the first to leave would have the others ended while they save
        name = signal.Signals(number).name
        left_out = _left_out(runner, _saving_hook(runner, amid_epoch))
        how = f'--resume goes on from {path}'
        if left_out:
            how = (
                f'--resume can not go on from {path} (default_hooks.checkpoint.{left_out}=False); '
                f'start from its weights with --cfg-options load_from={path} and another --work-dir'
            )
        message = f'stopped by {name} after iteration {iteration}; {how}'
        raise Stopped(message if is_main_process() else '', 128 + number)


def _by_epoch(runner: Runner) -> bool:
    return hasattr(runner.train_loop, 'run_epoch')


def _ended_early(runner: Runner) -> bool:
    """Whether a hook has told the loop to end."""
    return bool(getattr(runner.train_loop, 'stop_training', False))


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _saving_hook(runner: Runner, amid_epoch: bool) -> CheckpointHook | None:
    """The hook by whose settings a checkpoint is saved now; None where it saves ends of epochs."""
    hook = _checkpoint_hook(runner)
    return None if hook is None or (hook.by_epoch and amid_epoch) else hook


def _left_out(runner: Runner, hook: CheckpointHook | None) -> str:
    """By which setting a checkpoint is without something that resuming needs; empty if by none."""
    if hook is not None and not hook.save_optimizer:
        return 'save_optimizer'
    scheduled = hook is not None and not hook.save_param_scheduler and runner.param_schedulers
    return 'save_param_scheduler' if scheduled else ''


def _early_stopping_hooks(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _validates(runner: Runner) -> bool:
    """Whether the loop has validated after what is trained."""
    loop: Any = runner.train_loop
    if runner.val_loop is None or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    loop._decide_current_val_interval()
    done, total = loop.iter, loop.max_iters
    if _by_epoch(runner):
        if loop.iter != loop.epoch * len(loop.dataloader):
            return False  # amid an epoch
        done, total = loop.epoch, loop.max_epochs
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == total)


def save_now(runner: Runner, iteration: int, epoch: int, amid_epoch: bool, validated: bool) -> str:
    """Save a checkpoint that a run goes on from, unless it has just been saved.

    Args:
        runner: In training.
        iteration: How many are done.
        epoch: How many are done.
        amid_epoch: Where the loop counts epochs: whether the current one is not done.
        validated: Whether a validation ended since it may have been saved.

    Returns:
        Its path.
    """
    info = runner.message_hub
    meta = dict(epoch=epoch, iter=iteration)
    hook = _saving_hook(runner, amid_epoch)
    if hook is not None:
        step = epoch if hook.by_epoch else iteration
        path = os.path.join(str(hook.out_dir), hook.filename_tmpl.format(step))
        if validated or hook.last_ckpt != path:
            hook._save_checkpoint_with_step(runner, step, meta)
        return path
    name = f'iter_{iteration}.pth'
    if amid_epoch:
        info.update_info('passing_checkpoint', name)
    hook = _checkpoint_hook(runner)
    backend = hook.backend_args if hook else dict(backend='atomic')
    runner.save_checkpoint(runner.work_dir, name, meta=meta, by_epoch=False, backend_args=backend)
    return os.path.join(runner.work_dir, name)
