import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from helpers.mutated import mutated_images
from mmseg.apis import init_model
from mmseg.utils import get_palette
from PIL import Image
from torch import nn

from ssnet_mm.deploy import model as model_module
from ssnet_mm.deploy import predict
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.images import full_palette
from ssnet_mm.deploy.predict import outputs, pipeline
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.engine import launch
from ssnet_mm.errors import UserError


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
    assert re.search(r'\[4/4\] elapsed: 0:00:\d\d *\n$', capsys.readouterr().err)


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


def test_what_links_name_is_not_overwritten(red, pictures, tmp_path):
    pictures.rename(tmp_path / 'index')
    links = tmp_path / 'links'
    links.mkdir()
    (links / 'a.png').symlink_to(tmp_path / 'index' / 'a.png')
    (links / 'round.png').symlink_to('round.png')  # names nothing
    before = (links / 'a.png').read_bytes()
    with pytest.raises(UserError, match='would overwrite the images; choose another'):
        predict.predict_images(red, predict.find_images(links), tmp_path)
    assert (links / 'a.png').read_bytes() == before and not (tmp_path / 'overlay').exists()


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


def test_one_channel_and_one_name_have_the_background_before_it(tiny_config, tmp_path):
    need('onnx')
    changes = dict(num_classes=1, out_channels=1, threshold=0.5)
    config = tiny_config(
        f"model['decode_head'].update({changes}, "
        "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))"
    )
    model = init_model(config, None, 'cpu')
    generator = torch.Generator().manual_seed(4)  # both labels are there
    for weight in model.parameters():
        if weight.ndim == 4:
            nn.init.kaiming_normal_(weight, generator=generator)
    meta = dict(dataset_meta=dict(classes=('crack',), palette=[[255, 0, 0]]))
    checkpoint, file = tmp_path / 'one.pth', tmp_path / 'one.onnx'
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    loaded = model_module.load_model(launch.load_config(config), str(checkpoint), 'cpu')
    export(loaded, file, 'onnx', size=(40, 48))
    shares = []
    for place, given in enumerate(((config, checkpoint), (file,))):
        segment = Segmenter(*given, device='cpu')
        assert segment.classes == ('background', 'crack') and segment.session.num_classes == 2
        assert segment.palette == ((0, 0, 0), (255, 0, 0))
        out = tmp_path / str(place)
        assert not predict.predict_images(segment, [tmp_path / 'a.png'], out)
        ((head, row),) = [list(csv.reader((out / 'areas.csv').open()))]
        assert head[1:3] == ['background', 'crack']
        assert float(row[2]) == pytest.approx((segment(image) == 1).mean(), abs=1e-6)
        shares.append(float(row[2]))
    assert shares[0] == pytest.approx(shares[1], abs=1e-3) and 0 < shares[0] < 1
