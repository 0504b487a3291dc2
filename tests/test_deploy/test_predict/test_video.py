import os
import resource
import sys

import cv2
import numpy as np
import pytest

from ssnet_mm.deploy import predict
from ssnet_mm.deploy.predict import progress, video_file
from ssnet_mm.errors import UserError

from .conftest import PALETTE


@pytest.fixture(params=['h264', 'mp4v'], autouse=True)
def codec(request, monkeypatch):
    """Videos are written by PyAV, and as where it is not installed."""
    if request.param == 'mp4v':
        monkeypatch.setattr(video_file, 'h264_writer', lambda: None)
    else:
        pytest.importorskip('av', reason='PyAV, which requirements/ name, is not installed')
    return request.param


def said(capsys):
    """Lines on standard error, but for the progress and the codec."""
    lines = capsys.readouterr().err.splitlines()
    return [line for line in lines if 'elapsed' not in line and 'mp4v' not in line]


@pytest.fixture
def video(tmp_path):
    """Five frames of 64x48; a red square wanders to the right."""
    path = tmp_path / 'walk.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 10.0, (64, 48))
    for i in range(5):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[16:32, 8 * i : 8 * i + 16, 2] = 240
        writer.write(frame)
    writer.release()
    return path


def test_a_video_becomes_an_overlay_video(red, video, tmp_path):
    count, file = predict.predict_video(red, video, tmp_path / 'out', opacity=1)
    assert (count, file) == (5, tmp_path / 'out' / 'walk.mp4')
    capture = cv2.VideoCapture(str(file))
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    frames = [capture.read()[1][..., ::-1].astype(int) for _ in range(5)]
    assert not capture.read()[0] and frames[0].shape == (48, 64, 3)
    for i, frame in enumerate(frames):  # compression blurs colours
        assert np.abs(frame[24, 8 * i + 8] - PALETTE[1]).max() < 40
        assert frame[40, 8 * i + 8].max() < 40
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['walk.mp4']


def test_a_video_ends_at_the_limit_or_at_ctrl_c(red, video, tmp_path, monkeypatch):
    assert predict.predict_video(red, video, tmp_path / 'out', limit=2)[0] == 2

    class Interrupted:
        reads = 0

        def read(self):
            self.reads += 1
            if self.reads == 4:
                raise KeyboardInterrupt
            return True, np.zeros((48, 64, 3), np.uint8)

        def get(self, _):
            return 0.0  # as cameras without a rate do

        def release(self):
            pass

    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: Interrupted() if source == 0 else None)
    count, file = predict.predict_video(red, '0', tmp_path / 'out')
    assert (count, file.name) == (3, 'camera0.mp4') and file.stat().st_size > 0


@pytest.mark.parametrize('told', [float('nan'), float('inf'), -1.0, 180000.0])
def test_a_rate_that_is_none_is_unknown(red, video, tmp_path, monkeypatch, told):
    real = cv2.VideoCapture

    class Strange:
        def __init__(self, source):
            self.inner = real(source)

        def get(self, name):
            return told if name == cv2.CAP_PROP_FPS else self.inner.get(name)

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(cv2, 'VideoCapture', Strange)
    count, file = predict.predict_video(red, video, tmp_path / 'out')
    assert count == 5 and real(str(file)).get(cv2.CAP_PROP_FPS) == 25


def test_ctrl_c_while_a_frame_is_segmented_keeps_the_frames_before(red, video, tmp_path):
    run, frames = red.session.run, []

    def interrupted(images):
        frames.append(images)
        if len(frames) == 3:
            raise KeyboardInterrupt
        return run(images)

    red.session.run = interrupted
    count, file = predict.predict_video(red, video, tmp_path / 'out')
    assert count == 2 and [p.name for p in (tmp_path / 'out').iterdir()] == [file.name]


def test_what_is_no_video_is_told_and_leaves_no_file(red, video, tmp_path, monkeypatch):
    (tmp_path / 'text.mp4').write_text('no video')
    out = tmp_path / 'out'
    for source, options, message in (
        ('text.mp4', {}, 'no frame comes from .*text.mp4'),
        ('none.mp4', {}, 'no video .*none.mp4'),
        ('walk.mp4', {'limit': 0}, 'limit must be at least 1'),
        ('walk.mp4', {'out_dir': tmp_path}, 'would overwrite the video'),
    ):
        with pytest.raises(UserError, match=message):
            predict.predict_video(red, tmp_path / source, **{'out_dir': out, **options})
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(UserError, match='pip install opencv-python'):
        predict.predict_video(red, video, out)
    assert not out.exists()


def test_a_window_shows_the_frames_and_q_ends_it(red, video, tmp_path, monkeypatch):
    shown, keys = [], iter([-1, ord('q')])
    monkeypatch.setenv('DISPLAY', ':0')
    monkeypatch.setattr(cv2, 'imshow', lambda _, frame: shown.append(frame), raising=False)
    monkeypatch.setattr(cv2, 'waitKey', lambda _: next(keys), raising=False)
    assert predict.predict_video(red, video, tmp_path / 'out', show=True)[0] == 2
    assert len(shown) == 2 and shown[0].shape == (48, 64, 3)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere windows need no such settings')
def test_a_display_that_is_not_there_is_told_before_the_first_frame(
    red, video, tmp_path, monkeypatch
):
    for name in ('DISPLAY', 'WAYLAND_DISPLAY', 'QT_QPA_PLATFORM'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cv2, 'imshow', lambda *_: pytest.fail('a frame was shown'), raising=False)
    with pytest.raises(UserError, match='showing frames needs a display, and an OpenCV built wit'):
        predict.predict_video(red, video, tmp_path / 'out', show=True)
    assert not (tmp_path / 'out').exists()


def write_video(path, count, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10.0, size)
    rng = np.random.default_rng(0)
    for _ in range(count):
        writer.write(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    writer.release()
    return path


def test_a_video_cut_short_is_said(red, tmp_path, capsys):
    whole = write_video(tmp_path / 'whole.avi', 20)
    (tmp_path / 'cut.avi').write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert predict.predict_video(red, whole, tmp_path / 'out')[0] == 20
    assert said(capsys) == []
    count, _ = predict.predict_video(red, tmp_path / 'cut.avi', tmp_path / 'out')
    assert 0 < count < 20
    assert f'announces 20 frames, {count} could be read' in said(capsys)[0]
    assert predict.predict_video(red, whole, tmp_path / 'out', limit=3)[0] == 3
    assert said(capsys) == []


class Frames:
    """A video of frames of some sizes, at some times in milliseconds."""

    def __init__(self, sizes, times=()):
        self.sizes, self.times, self.place = sizes, times, -1

    def read(self):
        self.place += 1
        if self.place == len(self.sizes):
            return False, None
        return True, np.full((*self.sizes[self.place], 3), 99, np.uint8)

    def get(self, what):
        if what == cv2.CAP_PROP_POS_MSEC:
            return self.times[self.place] if self.times else 100.0 * self.place
        return {cv2.CAP_PROP_FPS: 10.0, cv2.CAP_PROP_FRAME_COUNT: len(self.sizes)}[what]

    def release(self):
        pass


@pytest.fixture
def frames(red, tmp_path, monkeypatch):
    (tmp_path / 'a.mp4').touch()

    def run(*args):
        with monkeypatch.context() as patch:
            patch.setattr(cv2, 'VideoCapture', lambda _: Frames(*args))
            return predict.predict_video(red, tmp_path / 'a.mp4', tmp_path / 'out')

    return run


def test_odd_sizes_lose_no_row_and_no_column(frames, capsys):
    count, file = frames([(47, 63)] * 3)
    assert count == 3 and cv2.VideoCapture(str(file)).read()[1].shape == (48, 64, 3)
    assert 'has 64x48 pixels, an even size: the last row or column of 63x47' in (said(capsys)[0])


def test_frames_of_varying_rate_or_size_are_said(frames, tmp_path, capsys):
    assert frames([(48, 64)] * 5, [0, 100, 200, 900, 1000])[0] == 5
    assert 'frames at varying intervals; ' in said(capsys)[0]
    with pytest.raises(UserError, match='change from 64x48 to 32x24 after 2; bring the video to'):
        frames([(48, 64), (48, 64), (24, 32)])
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['a.mp4']


def test_a_video_that_the_disk_has_no_room_for_keeps_the_old_one(red, tmp_path, monkeypatch):
    source = write_video(tmp_path / 'a.avi', 12)
    _, file = predict.predict_video(red, source, tmp_path / 'out', limit=2)
    before = file.read_bytes()
    count = video_file.frames_of_mp4

    def cut_short(path):
        os.truncate(path, path.stat().st_size - 100)
        return count(path)

    assert count(file) == 2
    monkeypatch.setattr(video_file, 'frames_of_mp4', cut_short)
    with pytest.raises(UserError, match='not written: 0 of 12 frames could be; is the disk full'):
        predict.predict_video(red, source, tmp_path / 'out')
    assert file.read_bytes() == before and len(list((tmp_path / 'out').iterdir())) == 1


def test_output_below_a_file_is_told(red, video, pictures):
    with pytest.raises(UserError, match="can't make the folder .*a.png/out: Not a directory"):
        predict.predict_video(red, video, pictures / 'a.png' / 'out')


def test_a_folder_of_the_videos_name_is_told_before_any_work(red, video, tmp_path, monkeypatch):
    (tmp_path / 'out' / 'walk.mp4').mkdir(parents=True)
    monkeypatch.setattr(cv2, 'VideoCapture', None)
    with pytest.raises(UserError, match='out/walk.mp4 is a folder; move it'):
        predict.predict_video(red, video, tmp_path / 'out')


def test_the_codec_is_h264_or_browsers_are_spoken_of(red, video, tmp_path, codec, capsys):
    _, file = predict.predict_video(red, video, tmp_path / 'out')
    code = int(cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FOURCC)).to_bytes(4, 'little')
    lines = [line for line in capsys.readouterr().err.splitlines() if 'browsers' in line]
    if codec == 'h264':
        assert code in (b'avc1', b'h264') and not lines
    else:
        assert code in (b'mp4v', b'FMP4')
        assert len(lines) == 1 and 'pip install av' in lines[0]


def test_a_file_of_limited_size_is_not_written(red, tmp_path):
    """As on a disk that is full, without injecting anything."""
    source = write_video(tmp_path / 'a.avi', 40, (128, 96))
    _, file = predict.predict_video(red, source, tmp_path / 'out', limit=2)
    before, limits = file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(UserError, match='a.mp4 was not written: .*; is the disk full'):
            predict.predict_video(red, source, tmp_path / 'out')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before and len(list((tmp_path / 'out').iterdir())) == 1


def test_the_rate_of_a_broadcast_stays(red, tmp_path):
    path = tmp_path / 'a.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 30000 / 1001, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    _, file = predict.predict_video(red, path, tmp_path / 'out')
    rate = cv2.VideoCapture(str(file)).get(cv2.CAP_PROP_FPS)
    assert rate == pytest.approx(30000 / 1001, abs=1e-4)


def test_a_video_has_the_legend_and_the_transparent_class(red, video, tmp_path):
    _, file = predict.predict_video(
        red, video, tmp_path / 'out', opacity=1, legend=True, transparent=['class 1']
    )
    frame = cv2.VideoCapture(str(file)).read()[1][..., ::-1].astype(int)
    assert frame.shape[0] > 48 and frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert np.abs(frame[24, 8] - (240, 0, 0)).max() < 40  # the video's own red
    assert frame[60:].max() > 200  # the strip


def test_the_progress_of_a_video_says_how_long_it_takes(red, video, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, '_INTERVAL', 0)
    predict.predict_video(red, video, tmp_path / 'out')
    lines = [line for line in capsys.readouterr().err.splitlines() if 'elapsed' in line]
    assert lines[0] == '[1/5] elapsed: 0:00:00, ETA: 0:00:00'
    assert lines[-1].rstrip() == '[5/5] elapsed: 0:00:00'
    predict.predict_video(red, video, tmp_path / 'out', limit=2)
    assert '[1/2]' in capsys.readouterr().err
