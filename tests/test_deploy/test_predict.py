import io
import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.mutated import mutated_images
from mmseg.apis import init_model
from mmseg.utils import get_palette
from PIL import Image

from ssnet_mm.deploy import model as model_module
from ssnet_mm.deploy import predict
from ssnet_mm.deploy.images import full_palette
from ssnet_mm.deploy.predict import outputs, pipeline, video_file
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine import launch
from ssnet_mm.errors import UserError

PALETTE = ((0, 0, 0), (200, 100, 0), (0, 0, 9))


@pytest.fixture
def red():
    """Segments by the red channel: class 1 where it is bright, else class 0."""
    processor = Processor(num_classes=3, end_to_end=True, palette=PALETTE)
    session = Session(lambda x: (x[..., 0] > 100).astype(np.uint8), processor)
    return Segmenter(session)


@pytest.fixture
def pictures(tmp_path):
    """Left half dark, right half bright red, 6 wide and 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, 3:, 0] = 240
    folder = tmp_path / 'in'
    folder.mkdir()
    for name in ('a.png', 'b.PNG'):
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_index_holds_classes_and_overlay_mixes_colours(red, pictures, tmp_path):
    images = predict.find_images(pictures)
    assert predict.predict_images(red, images, tmp_path / 'out', opacity=0.25) == []
    expected = np.zeros((4, 6), np.uint8)
    expected[:, 3:] = 1
    for name in ('a.png', 'b.png'):
        index = Image.open(tmp_path / 'out' / 'index' / name)
        assert index.mode == 'P'
        np.testing.assert_array_equal(np.array(index), expected)
        colours = np.array(index.convert('RGB'))
        assert colours[0, 0].tolist() == [0, 0, 0] and colours[0, 5].tolist() == [200, 100, 0]
        overlay = np.array(Image.open(tmp_path / 'out' / 'overlay' / name))
        assert overlay[0, 0].tolist() == [0, 0, 0]
        assert overlay[0, 5].tolist() == [230, 25, 0]  # 0.75 * (240, 0, 0) + 0.25 * (200, 100, 0)


def test_images_of_one_stem_do_not_overwrite_each_other():
    names = predict.output_names([Path('in/a.jpg'), Path('in/A.png'), Path('in/b.jpg')])
    assert names == ['a.jpg.png', 'A.png.png', 'b.jpg.png']
    assert predict.output_names([Path('in/a.jpg'), Path('in/b.png')]) == ['a.png', 'b.png']
    names = predict.output_names([Path('in/a.jpg'), Path('on/a.jpg'), Path('on/a.jpg')])
    assert names == ['a.jpg.png', 'a.jpg_2.png', 'a.jpg_3.png']


def test_an_unreadable_image_is_named_and_the_others_are_done(red, pictures, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(pictures / 'cut.jpg')  # far longer than its header
    os.truncate(pictures / 'cut.jpg', os.path.getsize(pictures / 'cut.jpg') // 2)
    (pictures / 'text.jpg').write_text('no image')
    failures = predict.predict_images(red, predict.find_images(pictures), tmp_path / 'out')
    assert [re.match(r'\S+', failure)[0] for failure in failures] == [
        str(pictures / 'cut.jpg'),
        str(pictures / 'text.jpg'),
    ]
    for kind in ('overlay', 'index'):
        written = sorted(p.name for p in (tmp_path / 'out' / kind).iterdir())
        assert written == ['a.png', 'b.png']
    assert re.search(r'\[4/4\] elapsed: \d+s\r\n$', capsys.readouterr().err)


def test_damaged_images_are_named_and_the_others_are_done(red, tmp_path):
    images = mutated_images(tmp_path / 'in', 60)
    failures = predict.predict_images(red, images, tmp_path / 'out')
    done = {path.stem for path in (tmp_path / 'out' / 'index').iterdir()}
    assert {path.stem for path in images[::5]} <= done < {path.stem for path in images}
    for path in images:
        named = sum(f'{path} ' in failure for failure in failures)
        assert named == (path.stem not in done), path


def test_an_image_of_too_many_pixels_is_named_before_it_is_decoded(red, pictures, tmp_path):
    Image.new('1', (13_000, 13_000)).save(pictures / 'huge.png')
    (failure,) = predict.predict_images(red, predict.find_images(pictures), tmp_path / 'out')
    assert re.search('huge.png can not be read .*13000x13000 pixels, the limit is 89.5', failure)
    small = Segmenter(red.session, max_pixels=23)
    with pytest.raises(UserError, match='6x4 pixels, the limit is 23; set max_pixels'):
        small(Image.new('RGB', (6, 4)))
    assert Segmenter(red.session, max_pixels=24)(pictures / 'a.png').shape == (4, 6)
    assert small(np.zeros((4, 6, 3), np.uint8)).shape == (4, 6)  # in memory already


def test_torch_reads_as_the_pipeline_does_and_refuses_what_opencv_fills_in(
    pictures, tiny_config, monkeypatch
):
    import mmcv

    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.effect_noise((64, 48), 99).save(pictures / 'cut.jpg', exif=turned)
    for setting, shape in (('', (64, 48, 3)), ('color_ignore_orientation', (48, 64, 3))):
        reading = f'test_pipeline[0]["color_type"] = "{setting}"' if setting else ''
        model = init_model(tiny_config(reading), device='cpu')
        session = TorchSession(model_module.ready(model, model.cfg))
        pixels = session.read(pictures / 'cut.jpg')
        flag = setting or 'color'
        expected = mmcv.imread(str(pictures / 'cut.jpg'), flag=flag, channel_order='rgb')
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.shape == shape
    os.truncate(pictures / 'cut.jpg', os.path.getsize(pictures / 'cut.jpg') // 2)
    # as OpenCV 4 does, which fills in grey where a file is cut short
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda *_, **__: np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(OSError, match='truncated'):
        session.read(pictures / 'cut.jpg')


def test_inputs_are_not_overwritten(red, pictures, tmp_path):
    pictures.rename(tmp_path / 'index')
    images = predict.find_images(tmp_path / 'index')
    before = images[0].read_bytes()
    with pytest.raises(UserError, match='would overwrite the images; choose another'):
        predict.predict_images(red, images, tmp_path)
    assert images[0].read_bytes() == before and not (tmp_path / 'overlay').exists()


def test_images_are_sought_by_suffix_in_one_folder(pictures):
    (pictures / 'notes.txt').touch()
    (pictures / 'folder.jpg').mkdir()
    assert [p.name for p in predict.find_images(pictures)] == ['a.png', 'b.PNG']
    assert predict.find_images(pictures / 'a.png') == [pictures / 'a.png']
    with pytest.raises(UserError, match='no image in .*folder.jpg; looked for .bmp'):
        predict.find_images(pictures / 'folder.jpg')
    with pytest.raises(UserError, match='no image or folder .*none'):
        predict.find_images(pictures / 'none')


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert model_module.check_device(None) == 'cpu' and model_module.check_device('cpu') == 'cpu'
    with pytest.raises(UserError, match='device cuda: torch finds 0 CUDA devices here'):
        model_module.check_device('cuda')
    with pytest.raises(UserError, match='torch knows no device gpu; take cpu or cuda:0'):
        model_module.check_device('gpu')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert model_module.check_device(None) == 'cuda:0'
    with pytest.raises(UserError, match='device cuda:1: torch finds 1 CUDA'):
        model_module.check_device('cuda:1')


def test_palette_falls_back_to_vocs():
    voc = get_palette('voc')
    assert full_palette((), 21)[:21].tolist() == voc
    assert full_palette([[9, 9, 9]], 2)[:2].tolist() == voc[:2]
    assert full_palette([[9, 9, 9]], 1)[:2].tolist() == [[9, 9, 9], voc[1]]


def test_colours_come_from_the_checkpoint_or_else_from_the_config(tiny_config, tmp_path):
    cfg = launch.load_config(tiny_config())
    model = init_model(cfg, checkpoint=None, device='cpu')
    for meta, palette in (
        ({'dataset_meta': {'classes': ('a',), 'palette': [[1, 2, 3]]}}, [[1, 2, 3]]),
        ({}, cfg.palette),
    ):
        torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'a.pth')
        loaded = model_module.load_model(cfg, str(tmp_path / 'a.pth'), 'cpu')
        assert loaded.dataset_meta['palette'] == palette
        assert not loaded.training


def test_paths_come_from_a_list():
    listing = io.StringIO('in/b.png\n\n in/a.png \n')
    assert predict.find_images('-', listing) == [Path('in/b.png'), Path('in/a.png')]
    with pytest.raises(UserError, match='standard input names none'):
        predict.find_images('-', io.StringIO('\n'))


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
    monkeypatch.setattr(cv2, 'imshow', lambda _, frame: shown.append(frame), raising=False)
    monkeypatch.setattr(cv2, 'waitKey', lambda _: next(keys), raising=False)
    assert predict.predict_video(red, video, tmp_path / 'out', show=True)[0] == 2
    assert len(shown) == 2 and shown[0].shape == (48, 64, 3)


def test_sources_that_are_videos():
    assert all(map(predict.is_video, ('0', 'a.mp4', 'in/b.AVI', Path('c.mkv'))))
    assert not any(map(predict.is_video, ('-', 'a.jpg', 'folder', '-1')))


def test_what_a_folder_holds_beside_images_is_said(pictures, capsys):
    for name in ('b.jfif', 'c.gif', 'd.JPE', 'e.ppm'):
        (pictures / name).touch()
    (pictures / 'gone.jpg').symlink_to(pictures / 'nowhere.jpg')
    (pictures / 'notes.txt').touch()
    (pictures / 'below').mkdir()
    found = [p.name for p in predict.find_images(pictures)]
    assert found == ['a.png', 'b.PNG', 'b.jfif', 'c.gif', 'd.JPE', 'e.ppm', 'gone.jpg']
    said = capsys.readouterr().err
    assert said == f'2 in {pictures} left out, no images by their names: below/, notes.txt\n'


def test_a_broken_link_is_named_and_the_others_are_done(red, pictures, tmp_path):
    (pictures / 'gone.jpg').symlink_to(pictures / 'nowhere.jpg')
    (failure,) = predict.predict_images(red, predict.find_images(pictures), tmp_path / 'out')
    assert 'gone.jpg can not be read (FileNotFoundError' in failure
    assert len(list((tmp_path / 'out' / 'index').iterdir())) == 2


def test_names_too_long_or_not_text(red, tmp_path, capsys):
    folder = tmp_path / 'in'
    folder.mkdir()
    names = [b'b' * 248 + b'.png', b'b' * 248 + b'.bmp', b'caf\xe9.png']
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), 'wb') as file:
            Image.new('RGB', (6, 4)).save(file, 'PNG' if name.endswith(b'g') else 'BMP')
    images = predict.find_images(folder)
    assert predict.predict_images(red, images, tmp_path / 'out') == []
    written = os.listdir(os.fsencode(tmp_path / 'out' / 'index'))
    assert len(written) == 3 and max(map(len, written)) <= 255
    listing = tmp_path / 'list'
    listing.write_bytes(b'in/caf\xe9.png\n')
    with open(listing, encoding='utf-8') as file:
        assert predict.find_images('-', file) == [Path(os.fsdecode(b'in/caf\xe9.png'))]
    with pytest.raises(UserError, match='OpenCV opens no name that is not UTF-8'):
        predict.predict_video(red, folder / os.fsdecode(b'caf\xe9.png'), tmp_path / 'out')


def test_many_images_come_out_in_order_in_batches_and_few_at_a_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, '_HELD', 5 * 3 * 4 * 6)
    batches, held, most = [], set(), 0

    def run(images):
        batches.append(len(images))
        return (images[..., 0] > 100).astype(np.uint8)

    segment = Segmenter(Session(run, Processor(2, end_to_end=True)), batch_size=2)
    read = segment.pixels

    def counted(path):
        nonlocal most
        held.add(path.name)
        most = max(most, len(held))
        return read(path)

    monkeypatch.setattr(segment, 'pixels', lambda x: counted(x) if isinstance(x, Path) else read(x))
    write = outputs.write_result

    def written(path, data):
        write(path, data)
        if path.parent.name == 'index':
            held.discard(path.name)

    monkeypatch.setattr(outputs, 'write_result', written)
    for i in range(20):
        Image.new('RGB', (6, 4), (200 * (i % 2), 0, 0)).save(tmp_path / f'{i:02}.png')
    (tmp_path / '07.png').write_text('nothing')
    failures = predict.predict_images(segment, predict.find_images(tmp_path), tmp_path / 'out')
    assert len(failures) == 1 and '07.png' in failures[0]
    for i in set(range(20)) - {7}:
        found = np.array(Image.open(tmp_path / 'out' / 'index' / f'{i:02}.png'))
        assert (found == i % 2).all()
    assert sum(batches) == 19 and max(batches) == 2 and most <= 6
    assert '[20/20]' in capsys.readouterr().err


def test_one_bad_image_of_a_batch_costs_no_other(tmp_path):
    def run(images):
        if (images == 77).any():
            raise RuntimeError('no memory')
        return images[..., 0]

    segment = Segmenter(Session(run, Processor(256, end_to_end=True)), batch_size=3)
    for i in range(3):
        Image.new('RGB', (6, 4), (76 + i, 0, 0)).save(tmp_path / f'{i}.png')
    (failure,) = predict.predict_images(segment, predict.find_images(tmp_path), tmp_path / 'out')
    assert '1.png' in failure and 'no memory' in failure
    assert sorted(p.name for p in (tmp_path / 'out' / 'index').iterdir()) == ['0.png', '2.png']


def test_indices_beyond_a_palette_are_16_bit_grey(red, tmp_path):
    for classes, first in ((300, 0), (256, 1)):
        top = classes - 1

        def run(planes, top=top, classes=classes):
            logits = np.zeros((1, classes, *planes.shape[2:]), np.float32)
            logits[:, top] = 1
            return logits

        segment = Segmenter(Session(run, Processor(classes, first_index=first)))
        Image.new('RGB', (6, 4)).save(tmp_path / 'a.png')
        assert predict.predict_images(segment, [tmp_path / 'a.png'], tmp_path / 'out') == []
        assert (np.array(Image.open(tmp_path / 'out' / 'index' / 'a.png')) == top + first).all()


def test_output_below_a_file_is_refused(red, pictures, video, tmp_path):
    with pytest.raises(UserError, match='a.png is a file; choose another folder'):
        predict.check_output(pictures / 'a.png' / 'out', 0.5)
    with pytest.raises(UserError, match="can't make the folder .*a.png/out: Not a directory"):
        predict.predict_video(red, video, pictures / 'a.png' / 'out')


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
    assert capsys.readouterr().err == ''
    count, _ = predict.predict_video(red, tmp_path / 'cut.avi', tmp_path / 'out')
    assert 0 < count < 20
    assert f'announces 20 frames, {count} could be read' in capsys.readouterr().err
    assert predict.predict_video(red, whole, tmp_path / 'out', limit=3)[0] == 3
    assert capsys.readouterr().err == ''


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
    assert 'has 64x48 pixels, an even size: the last row or column of 63x47' in (
        capsys.readouterr().err
    )


def test_frames_of_varying_rate_or_size_are_said(frames, tmp_path, capsys):
    assert frames([(48, 64)] * 5, [0, 100, 200, 900, 1000])[0] == 5
    assert 'frames at varying intervals; ' in capsys.readouterr().err
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


def test_folders_are_neither_cameras_nor_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('2012', 'frames.mov'):
        assert predict.is_video(name)
        (tmp_path / name).mkdir()
        assert not predict.is_video(name)
    assert all(predict.is_video(f'a{suffix}') for suffix in ('.mpg', '.wmv', '.flv', '.TS'))


@pytest.mark.parametrize(
    ('model', 'source', 'option', 'message'),
    [
        ('a.onnx', 'in', ['--cfg-options', 'a=1'], '--cfg-options changes a config, and a.onnx is'),
        ('a.onnx', 'in', ['--no-fuse'], '--no-fuse runs a config, and a.onnx is none'),
        ('a.onnx', 'in', ['--show'], '--show shows frames of a video, and in is none'),
        ('a.onnx', 'in', ['--limit', '3'], '--limit counts frames of a video, and in is none'),
    ],
)
def test_options_that_would_do_nothing_are_refused(fails, tmp_path, model, source, option, message):
    assert message in fails('predict', model, source, '--out-dir', tmp_path / 'out', *option)
