"""Videos and cameras through the network."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ssnet_mm.deploy.images import Labels, Pixels
from ssnet_mm.deploy.predict.overlay import Overlay
from ssnet_mm.deploy.predict.progress import Progress, say
from ssnet_mm.deploy.predict.sources import is_camera
from ssnet_mm.deploy.predict.video_file import VideoFile
from ssnet_mm.deploy.predict.workers import workers
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError, require

_UNKNOWN_RATE = 25.0  # frames per second, for cameras that do not tell theirs
_HIGHEST_RATE = 1000.0
_NO_DISPLAY = 'showing frames needs a display, and an OpenCV built with windows'
_AHEAD = 8  # frames in work at once


def predict_video(
    segment: Segmenter,
    source: str | Path,
    out_dir: str | Path,
    opacity: float = 0.5,
    show: bool = False,
    limit: int | None = None,
    *,
    legend: bool = False,
    transparent: Collection[str] = (),
) -> tuple[int, Path]:
    """Write the overlay of each frame of a video or camera to ``<name>.mp4``.

    It is H.264 where PyAV is installed. It gets its name when it is whole and can be played; the
    ``limit`` of frames, Ctrl-C, or q in the window that ``show`` opens end it well. What differs
    from the source, lost frames for one, is said on standard error.

    ``opacity``, ``legend`` and ``transparent`` are as for images; the legend has all classes.

    Returns:
        How many frames were written, and the file.
    """
    cv2 = require('cv2', 'opencv-python', 'a video')
    overlay = Overlay(segment, opacity, legend, transparent)
    source = os.fspath(source)
    camera = is_camera(source)
    if limit is not None and limit < 1:
        raise UserError(f'limit must be at least 1, got {limit}')
    if show:
        _check_display()
    if not camera and not os.path.isfile(source):
        raise UserError(f'no video {source}; check the path')
    target = Path(out_dir) / (f'camera{source}.mp4' if camera else f'{Path(source).stem}.mp4')
    for path in (source, os.fspath(target)):
        if not _is_text(path):
            raise UserError(f'{path!r}: OpenCV opens no name that is not UTF-8; rename it')
    if os.path.isdir(target):
        raise UserError(f'{target} is a folder; move it, or choose another folder')
    if target.resolve() == Path(source).resolve():
        raise UserError(f'{out_dir} would overwrite the video; choose another folder')
    capture = cv2.VideoCapture(int(source) if camera else source)
    announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = capture.get(cv2.CAP_PROP_FPS)  # 0, -1, NaN or a clock's 180000 where it is not known
    out = VideoFile(target, rate if 0 < rate <= _HIGHEST_RATE else _UNKNOWN_RATE)
    clock = _Clock(out.rate)
    to_the_end = False

    def read() -> Pixels | None:
        """The next frame, RGB."""
        ok, frame = capture.read()
        if not ok:
            return None
        clock.tick(capture.get(cv2.CAP_PROP_POS_MSEC))
        return frame[..., ::-1]

    def paint(pixels: Pixels, labels: Labels) -> Any:
        painted = np.asarray(overlay(pixels, labels))[..., ::-1].copy()  # BGR
        out.write(painted)
        progress.step()
        return painted

    total = min((count for count in (announced, limit) if count and count > 0), default=0)
    # one thread each: frames come and go one after the other
    try:
        with (
            Progress(total) as progress,
            workers(1) as reader,
            workers(1) as writer,
        ):
            painting: deque[Future[Any]] = deque()
            with suppress(KeyboardInterrupt):
                begun, frame = 1, reader.submit(read)
                while True:
                    pixels = frame.result()
                    if pixels is None:
                        to_the_end = True
                        break
                    if begun != limit:
                        frame = reader.submit(read)
                    painting.append(writer.submit(paint, pixels, segment(pixels)))
                    while len(painting) > (0 if show else _AHEAD):
                        painted = painting.popleft().result()
                    if (show and _closed(cv2, painted)) or begun == limit:
                        break
                    begun += 1
            for job in painting:
                job.result()
        if not out.count:
            what = f'camera {source}' if camera else source
            raise UserError(f'no frame comes from {what}; is it a video, and not in use elsewhere?')
        out.finish()
    finally:
        capture.release()
        out.discard()
    if to_the_end and not camera and out.count < announced:
        say(
            f'{source} announces {announced} frames, {out.count} could be read: it is cut short or '
            'damaged, or its announcement is an estimate'
        )
    if not camera and clock.varies:
        say(
            f'{source} has frames at varying intervals; {target} shows them at a constant '
            f'{out.rate:g} a second'
        )
    return out.count, target


def _is_text(path: str) -> bool:
    """Whether a path has a name in UTF-8; other bytes come as surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Clock:
    """Whether frames come at a constant rate."""

    def __init__(self, rate: float) -> None:
        self.interval = 1000 / rate
        self.first = 0.0
        self.count = 0
        self.drift = 0.0

    def tick(self, milliseconds: float) -> None:
        """A frame comes, of this time in the video."""
        if not self.count:
            self.first = milliseconds
        expected = self.first + self.count * self.interval
        self.drift = max(self.drift, abs(milliseconds - expected))
        self.count += 1

    @property
    def varies(self) -> bool:
        """Whether a frame was ever more than two places off."""
        return self.drift > 2 * self.interval


def _closed(cv2: Any, painted: Any) -> bool:
    """Show a frame; whether q was pressed."""
    try:
        cv2.imshow('ssnet_mm', painted)
        return cv2.waitKey(1) & 0xFF == ord('q')
    except cv2.error as error:
        raise UserError(_NO_DISPLAY) from error


def _check_display() -> None:
    """UserError where there is no display, for want of which Qt, in OpenCV, ends the process."""
    # the last is how Qt is told to do without one
    names = ('DISPLAY', 'WAYLAND_DISPLAY', 'QT_QPA_PLATFORM')
    if sys.platform == 'linux' and not any(map(os.environ.get, names)):
        raise UserError(_NO_DISPLAY)
