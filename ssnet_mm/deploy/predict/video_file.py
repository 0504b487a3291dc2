"""A video that is either whole or not there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ssnet_mm.deploy.predict.progress import say
from ssnet_mm.errors import UserError, first_line, require
from ssnet_mm.files import make_folder, temporary_name

Size = tuple[int, int]  # width, height


class Encoder(Protocol):
    """Writes frames, BGR, to a file; it may raise anything."""

    def write(self, frame: Any) -> None: ...

    def close(self) -> None: ...


class H264:
    """What browsers play, through PyAV."""

    def __init__(self, av: Any, file: Path, rate: float, size: Size) -> None:
        self.av = av
        self.container = av.open(os.fspath(file), 'w')
        # 29.97 is 30000 / 1001
        self.stream = self.container.add_stream('h264', Fraction(rate).limit_denominator(1001))
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = 'yuv420p'  # others are not played everywhere

    def write(self, frame: Any) -> None:
        self._mux(self.av.VideoFrame.from_ndarray(frame, 'bgr24'))

    def close(self) -> None:
        try:
            self._mux(None)  # the frames that are still being encoded
        finally:
            self.container.close()

    def _mux(self, frame: Any) -> None:
        self.container.mux(self.stream.encode(frame))


class Mpeg4:
    """What OpenCV's own wheels write everywhere.

    OpenCV says nothing of frames that it does not write: the disk is full, the size is another.
    """

    def __init__(self, file: Path, rate: float, size: Size) -> None:
        cv2 = require('cv2', 'opencv-python', 'a video')
        self.writer = cv2.VideoWriter(os.fspath(file), cv2.VideoWriter.fourcc(*'mp4v'), rate, size)
        if not self.writer.isOpened():
            raise OSError('OpenCV can not open the file')

    def write(self, frame: Any) -> None:
        self.writer.write(frame)

    def close(self) -> None:
        self.writer.release()


def h264_writer() -> Any:
    """PyAV, where it is installed and can write H.264; None elsewhere."""
    try:
        av = importlib.import_module('av')
        av.Codec('h264', 'w')
        return av
    except Exception:  # not there, broken, or its FFmpeg was built without
        return None


class VideoFile:
    """A video that takes its name when it is whole.

    Args:
        target: Its file.
        rate: Frames per second.
    """

    def __init__(self, target: Path, rate: float) -> None:
        self.target = target
        self.rate = rate
        self.temporary = temporary_name(target)
        self.encoder: Encoder | None = None
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def write(self, frame: Any) -> None:
        """Add a frame, BGR."""
        if self.encoder is None:
            self.encoder = self._open(frame.shape)
        if frame.shape != self.shape:
            raise UserError(
                f'the frames change from {_width_by_height(self.shape)} to '
                f'{_width_by_height(frame.shape)} after {self.count}; bring the video to one size'
            )
        height, width = frame.shape[:2]
        # both codecs want even sizes
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
        try:
            self.encoder.write(even)
        except Exception as error:
            raise self._failed(_reason(error)) from error
        self.count += 1

    def _open(self, shape: tuple[int, ...]) -> Encoder:
        make_folder(self.target.parent)
        self.shape = shape
        height, width = shape[0] + shape[0] % 2, shape[1] + shape[1] % 2
        if (height, width) != shape[:2]:
            say(
                f'{self.target} has {width}x{height} pixels, an even size: the last row or column '
                f'of {_width_by_height(shape)} is repeated'
            )
        av = h264_writer()
        if av is None:
            say(
                f'{self.target} is MPEG-4 (mp4v), which browsers do not play; where PyAV is '
                'installed (pip install av) it will be H.264'
            )
        try:
            if av is None:
                return Mpeg4(self.temporary, self.rate, (width, height))
            return H264(av, self.temporary, self.rate, (width, height))
        except Exception as error:
            raise UserError(
                f"can't write {self.target}: {_reason(error)}; choose another folder"
            ) from error

    def finish(self) -> None:
        """Give the file its name; UserError where it does not hold all frames."""
        encoder, self.encoder = self.encoder, None
        assert encoder is not None  # there is a frame
        try:
            encoder.close()
        except Exception as error:
            raise self._failed(_reason(error)) from error
        written = frames_of_mp4(self.temporary)
        if written != self.count:
            raise self._failed(f'{written} of {self.count} frames could be')
        os.replace(self.temporary, self.target)

    def _failed(self, reason: str) -> UserError:
        return UserError(f'{self.target} was not written: {reason}; is the disk full?')

    def discard(self) -> None:
        """Remove what has not taken its name."""
        if self.encoder is not None:
            with suppress(Exception):  # what is wrong has been said
                self.encoder.close()
        if self.shape:
            self.temporary.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What is wrong, without the temporary name that FFmpeg's errors hold."""
    return getattr(error, 'strerror', None) or first_line(error)


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
