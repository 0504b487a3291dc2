"""What a Runner writes, on a disk that may be full: written whole, or one line says that it is not.

mmengine leaves half a checkpoint, prints a traceback at each line of the log, and drops pictures
without a word.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from ssnet_mm.errors import UserError
from ssnet_mm.files import atomic_write, printable


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or a quota, has no space left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk(work_dir: str, then: str) -> Iterator[None]:
    """Turn the error of a disk without space, or of a quota, into a UserError.

    Args:
        work_dir: Named where the error names no file.
        then: What to do when there is space again.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        what = f'writing {error.filename}' if error.filename else f'writing in {work_dir}'
        raise UserError(f'no space left on the disk, {what}; make some, and {then}') from error


def raise_unwritten(logger: logging.Logger) -> None:
    """Have a logger raise where it can't write its files, and not where a name is no text."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _reraise  # type: ignore[method-assign]
            handler.addFilter(_as_text)


def write_whole(runner: Runner) -> None:
    """Have a Runner write checkpoints and pictures whole, and raise where it can't write."""
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or '://' in str(hook.out_dir):
            continue
        if hook.backend_args is None and hook.file_client_args is None:
            hook.backend_args = dict(backend='atomic')
    for backend in runner.visualizer._vis_backends.values():
        if type(backend) is LocalVisBackend:
            backend.add_image = functools.partial(_write_image, backend)


def _as_text(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _reraise(record: logging.LogRecord) -> None:
    raise  # what is handled while logging calls this


def _write_image(backend: Any, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
    """Do what ``LocalVisBackend.add_image`` does."""
    _, data = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    atomic_write(
        os.path.join(backend.experiment._img_save_dir, f'{name}_{step}.png'), data.tobytes()
    )
