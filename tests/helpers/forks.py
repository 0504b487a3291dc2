"""Trainings in forked processes, which may be killed: nothing is imported anew for each."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.training import train
from mmengine.hooks import Hook

from ssnet_mm import files
from ssnet_mm.engine.stopping import SIGNALS
from ssnet_mm.errors import Stopped, UserError


class Progress(Hook):
    """Note the loss of each iteration at once, and whether it was the first of its process."""

    priority = 'LOW'  # after losses are averaged over processes, before a checkpoint is saved

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(self.path, 'a') as file:
            file.write(json.dumps([os.getpid(), runner.iter + 1, outputs['loss'].item()]) + '\n')


class Run:
    """A training in a process of its own.

    Args:
        config: Its file.
        work: Its work directory.
        progress: A file for its losses, shared by all runs of one training.
        first: To do in the process before it trains.
        hooks: To add.
        options: As ``--cfg-options``, with ``__`` for the dots.
    """

    def __init__(
        self,
        config: str,
        work: Path,
        progress: Path,
        first: Callable[[], Any] = lambda: None,
        hooks: tuple = (),
        **options: Any,
    ) -> None:
        self.progress, self.printed = progress, progress.with_suffix('.txt')
        sys.stdout.flush()
        self.process = os.fork()
        if self.process:
            return
        code = 1
        try:
            output = os.open(self.printed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115
            sys.stderr = open(2, 'w', closefd=False)  # noqa: SIM115
            for number in SIGNALS:  # the tests may have been started with nohup, or with &
                signal.signal(number, signal.SIG_DFL)
            first()
            train(config, work, (Progress(progress), *hooks), resume=True, **options)
            code = 0
        except Stopped as stop:
            print(stop, file=sys.stderr)
            code = stop.code
        except UserError as error:
            print(error, file=sys.stderr)
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def wait(self) -> int:
        """Its exit code, or minus the signal that it died of."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def wait_for_iteration(self) -> None:
        """Until it has trained one."""
        for _ in range(1200):
            if self.losses():
                break
            time.sleep(0.1)

    def losses(self) -> dict[int, float]:
        """Those of this process, by iteration."""
        if not self.progress.exists():
            return {}
        rows = [json.loads(line) for line in self.progress.read_text().splitlines()]
        return {iteration: loss for process, iteration, loss in rows if process == self.process}


def leftovers(work: Path) -> list[str]:
    """Files that should not be in a work directory."""
    return sorted(path.name for path in work.rglob('*tmp*'))


class Broken(io.FileIO):
    """A file whose writing fails, or kills, after a share of what it should hold."""

    def __init__(self, path: Any, mode: str, share: float, then: Callable[[], None]) -> None:
        super().__init__(path, mode)
        self.share, self.then = share, then

    def write(self, data: Any) -> int:
        super().write(data[: int(len(data) * self.share)])
        self.then()
        return len(data)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def break_save(number: int, share: float, then: Callable[[], None]) -> None:
    """Break the saving of a checkpoint in this process, for the rest of its life.

    Args:
        number: Which save, from 0.
        share: Up to 1: of its bytes that are written before. Above 1: it is whole; up to 2: but
            not renamed yet.
        then: What happens there.
    """
    saves = iter(range(10**6))
    rename, now = os.replace, [False]

    def opened(path: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
        now[0] = str(path).endswith('.pth') and 'w' in mode and next(saves) == number
        if now[0] and share <= 1:
            return Broken(path, mode, share, then)
        return builtins.open(path, mode, *args, **kwargs)

    def replaced(source: Any, target: Any) -> None:
        if now[0] and share <= 2:
            then()
        rename(source, target)
        if now[0]:
            then()

    files.open = opened  # type: ignore[attr-defined]
    os.replace = replaced
