import numpy as np
import pytest
import torch
from mmseg.apis import inference_model, init_model
from PIL import Image

from ssnet_mm.deploy import model as model_module
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.deploy.runtimes.session import Session
from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError


def blocks(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (-(-height // 9), -(-width // 9), 3))
    return coarse.repeat(9, 0).repeat(9, 1)[:height, :width].astype(np.uint8)


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(blocks(101, 150)).save(tmp_path / 'photo.png')
    return str(tmp_path / 'photo.png')


RESIZE = 'test_pipeline[1:1] = [dict(type="Resize", scale=(120, 90), keep_ratio=True)]'


@pytest.mark.parametrize('resize', ['', RESIZE])
@pytest.mark.parametrize(('tile', 'overlap'), [(48, 12), (48, 0), (48, 40), (64, None), (128, 8)])
def test_labels_are_those_of_mmsegs_sliding_window(tiny_config, photo, resize, tile, overlap):
    if resize and tile == 128:
        pytest.skip('a tile of 128 changes nothing')
    model = init_model(tiny_config(resize), device='cpu')
    for name, weight in model.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data)
    planes = torch.from_numpy(blocks(101, 150)).permute(2, 0, 1)[None].float() / 64 - 2
    with torch.no_grad():  # so that no class is the largest everywhere
        model.decode_head.scores[0].bias -= model(planes, mode='tensor').mean((0, 2, 3))
    session = TorchSession(model_module.ready(model, model.cfg))
    found = Segmenter(session, tile=tile, overlap=overlap, batch_size=3)(photo)
    stride = tile - (tile // 8 if overlap is None else overlap)
    model.test_cfg.update(mode='slide', crop_size=(tile, tile), stride=(stride, stride))
    expected = inference_model(model, photo).pred_sem_seg.data[0].numpy()
    assert found.dtype == np.uint8 and len(np.unique(expected)) > 1
    assert (found == expected).mean() > 0.9995  # but for ties


@pytest.fixture
def shades():
    """Logits that each pixel has by itself, so that tiles change nothing; notes the batches."""
    batches = []

    def run(planes):
        batches.append(planes.shape)
        return np.concatenate([planes[:, :1], planes[:, 1:2], 60 + 0 * planes[:, :1]], 1)

    made = Session(run, Processor(3))
    made.batches = batches
    return made


@pytest.mark.parametrize('size', [(31, 33), (16, 16), (5, 70), (70, 5), (1, 1), (47, 97)])
@pytest.mark.parametrize(('tile', 'overlap'), [(16, 4), (16, 15), (7, 0)])
@pytest.mark.parametrize('scale', [1, 1.6, 0.5, (40, 60)])
def test_tiles_give_what_the_whole_image_gives(shades, size, tile, overlap, scale):
    image = blocks(*size)
    whole = Segmenter(shades, scale=scale)(image)
    tiled = Segmenter(shades, tile=tile, overlap=overlap, scale=scale)(image)
    assert (tiled == whole).mean() >= (1 if scale == 1 else 0.999)


def test_no_batch_is_larger_than_asked_for(shades):
    Segmenter(shades, tile=16, overlap=0, batch_size=3)(blocks(16, 80))
    assert shades.batches == [(3, 3, 16, 16), (2, 3, 16, 16)]


def test_memory_does_not_grow_with_the_classes_times_the_image():
    import tracemalloc

    classes = 200

    def run(planes):
        return np.broadcast_to(planes[:, :1], (len(planes), classes, *planes.shape[2:])).copy()

    image = np.zeros((512, 1024, 3), np.uint8)
    segment = Segmenter(Session(run, Processor(classes)), tile=64, overlap=8)
    tracemalloc.start()
    segment(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * classes * 512 * 1024 * 4  # mmseg's map of all logits


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(tile=0), 'tile must be at least 1, got 0'),
        (dict(tile=8, overlap=8), 'overlap must be from 0 to below the tile of 8, got 8'),
        (dict(tile=64.0), 'tile must be a whole number of pixels, got 64.0'),
        (dict(tile='64'), "tile must be a whole number of pixels, got '64'"),
        (dict(tile=(64, 64)), 'tile must be a whole number of pixels, got .64, 64.'),
        (dict(tile=64, overlap=0.25), 'overlap must be a whole number of pixels, got 0.25'),
        (dict(tile=64, overlap='8'), "overlap must be a whole number of pixels, got '8'"),
        (dict(overlap=8), 'overlap 8 is that of tiles; give tile as well'),
        (dict(scale=0), 'scale must be a factor above 0, or a .width, height.; got 0'),
        (dict(scale=(3, 4, 5)), 'scale must be a factor'),
        (dict(scale=(0.5, 2)), 'scale must be a factor'),
    ],
)
def test_what_is_no_tiling(shades, options, message):
    with pytest.raises(UserError, match=message):
        Segmenter(shades, **options)


def test_numbers_of_numpy_are_tilings(shades):
    image = blocks(20, 30)
    found = Segmenter(shades, tile=np.int64(16), overlap=np.uint8(4))(image)
    np.testing.assert_array_equal(found, Segmenter(shades, tile=16, overlap=4)(image))


def test_tiles_that_change_nothing_are_refused():
    resized = Processor(3, resize=dict(scale=[240, 180], keep_ratio=True))
    with pytest.raises(UserError, match='at most 240 long, so that a tile of 512 changes nothing'):
        Segmenter(Session(lambda x: x, resized), tile=512)
    labels = Session(lambda x: x[..., 0], Processor(3, end_to_end=True))
    with pytest.raises(UserError, match='an end-to-end file gives labels; export without'):
        Segmenter(labels, tile=8)(blocks(20, 20))
    fixed = Session(lambda x: x, Processor(3, fixed_size=(16, 16)))
    with pytest.raises(UserError, match='takes 16x16 pixels alone, not 8x8'):
        Segmenter(fixed, tile=8)(blocks(20, 20))
    assert Segmenter(fixed, tile=16)(blocks(20, 20)).shape == (20, 20)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            'model["test_cfg"] = dict(mode="slide", crop_size=(48, 48), stride=(32, 32))',
            r'runs in sliding windows .model.test_cfg. already: leave tile out, or set model.test',
        ),
        ('test_pipeline[1:1] = [dict(type="RandomFlip", prob=1.0)]', 'flips images takes no tiles'),
    ],
)
def test_what_mmseg_does_around_the_network_takes_no_tiles(tiny_config, photo, changes, message):
    model = init_model(tiny_config(changes), device='cpu')
    session = TorchSession(model_module.ready(model, model.cfg))
    assert Segmenter(session)(photo).shape == (101, 150)
    with pytest.raises(UserError, match=message):
        Segmenter(session, tile=64)(photo)
