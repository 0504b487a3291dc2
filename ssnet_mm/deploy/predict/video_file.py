"""A video that is either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssnet_mm.deploy.predict.progress import say
from ssnet_mm.errors import UserError
from ssnet_mm.files import make_folder, temporary_name

_CODEC = 'mp4v'  # the one that OpenCV's own wheels write everywhere


class VideoFile:
    """A video that takes its name when it is whole.

    OpenCV says nothing of frames that it does not write: the disk is full, the size is another.
    """

    def __init__(self, cv2: Any, target: Path, rate: float) -> None:
        self.cv2 = cv2
        self.target = target
        self.rate = rate
        self.temporary = temporary_name(target)
        self.writer: Any = None
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def write(self, frame: Any) -> None:
        """Add a frame, BGR."""
        if self.writer is None:
            self._open(frame.shape)
        if frame.shape != self.shape:
            raise UserError(
                f'the frames change from {_width_by_height(self.shape)} to '
                f'{_width_by_height(frame.shape)} after {self.count}; bring the video to one size'
            )
        height, width = frame.shape[:2]
        # MPEG-4 has even sizes
        self.writer.write(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge'))
        self.count += 1

    def _open(self, shape: tuple[int, ...]) -> None:
        make_folder(self.target.parent)
        self.shape = shape
        height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        if (height, width) != shape[:2]:
            say(
                f'{self.target} has {width}x{height} pixels, an even size: the last row or column '
                f'of {_width_by_height(shape)} is repeated'
            )
        code = self.cv2.VideoWriter.fourcc(*_CODEC)
        file = os.fspath(self.temporary)
        self.writer = self.cv2.VideoWriter(file, code, self.rate, (width, height))
        if not self.writer.isOpened():
            raise UserError(f"can't write {self.target}; choose another folder")

    def finish(self) -> None:
        """Give the file its name; UserError where it does not hold all frames."""
        self.writer.release()
        written = frames_of_mp4(self.temporary)
        if written != self.count:
            raise UserError(
                f'{self.target} was not written: {written} of {self.count} frames could be; is the '
                'disk full?'
            )
        os.replace(self.temporary, self.target)

    def discard(self) -> None:
        """Remove what has not taken its name."""
        if self.writer is not None:
            self.writer.release()
            self.temporary.unlink(missing_ok=True)


def _width_by_height(shape: Sequence[int]) -> str:
    return f'{shape[1]}x{shape[0]}'


def frames_of_mp4(path: Path) -> int:
    """How many frames an MP4's index lists; 0 where the file is not whole."""
    index, end = b'', 0
    with open(path, 'rb') as file:
        while header := file.read(8):
            size, kind = int.from_bytes(header[:4], 'big'), header[4:]
            taken = 8
            if size == 1:  # a long size follows
                size, taken = int.from_bytes(file.read(8), 'big'), 16
            if size < taken:
                return 0
            if kind == b'moov':
                index = file.read(size - taken)
            end += size
            file.seek(end)
    start = index.find(b'stsz')  # then version, flags and one size for all, 4 bytes each
    if start < 0 or end != os.path.getsize(path):
        return 0
    return int.from_bytes(index[start + 12 : start + 16], 'big')
