import json
import os
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.datasets import PascalVOCDataset
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.miniature import folder
from ssnet_mm.miniature.drawing import CLASSES, VOID, draw_sample
from ssnet_mm.miniature.folder import make_miniature
from ssnet_mm.palette import voc_palette

ROOT = Path(__file__).parents[2]
NUM_TRAIN, NUM_VAL, SIZE = 24, 20, (96, 64)


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('drawn') / 'miniature'
    assert make_miniature(root, NUM_TRAIN, NUM_VAL, SIZE)
    return root


def make_small(root: Path, num_train: int = 2, **kwargs) -> bool:
    return make_miniature(root, num_train, 1, (33, 32), **kwargs)


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in root.rglob('*') if path.is_file())
    return {str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def read_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# --- drawing --------------------------------------------------------------------------------------


def test_classes_and_palette_are_vocs():
    assert PascalVOCDataset.METAINFO['classes'] == CLASSES
    assert voc_palette()[: len(CLASSES)].tolist() == PascalVOCDataset.METAINFO['palette']
    assert voc_palette()[VOID].tolist() == [224, 224, 192]


def test_a_sample_depends_on_its_arguments_alone():
    image, mask = draw_sample('val', 3, SIZE, seed=5)
    draw_sample('train', 0)
    again, mask_again = draw_sample('val', 3, SIZE, seed=5)
    assert image.tobytes() == again.tobytes() and mask.tobytes() == mask_again.tobytes()
    for other in (('train', 3, SIZE, 5), ('val', 4, SIZE, 5), ('val', 3, SIZE, 6)):
        assert draw_sample(*other)[1].tobytes() != mask.tobytes(), other


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"expected split to be one of .*, got 'test'"):
        draw_sample('test', 0)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (161, 119)])
def test_any_size_can_be_drawn(size):
    image, mask = draw_sample('train', 0, size)
    assert image.shape == (size[1], size[0], 3) and image.dtype == np.uint8
    assert mask.shape == (size[1], size[0]) and mask.dtype == np.uint8
    assert image.std() > 20 and len(np.unique(mask)) >= 3  # ground, void and an object


def test_void_separates_all_classes():
    for i in range(20):
        _, mask = draw_sample('train', i, SIZE)
        for a, b in (
            (mask[1:], mask[:-1]),
            (mask[:, 1:], mask[:, :-1]),
            (mask[1:, 1:], mask[:-1, :-1]),
            (mask[1:, :-1], mask[:-1, 1:]),
        ):
            assert not np.any((a != b) & (a != VOID) & (b != VOID)), f'train {i}'
        assert 0.02 < np.mean(mask == VOID) < 0.3, f'train {i}'


def test_every_object_shows_its_classes_colour():
    """The masks lie where the objects are: a bus is red, a bottle green, a horse violet."""
    for name, channel in {'bus': 0, 'bottle': 1, 'horse': 2}.items():
        pixels = []
        for i in range(20):
            image, mask = draw_sample('train', i)
            pixels.append(image[mask == CLASSES.index(name)])
        assert np.argmax(np.concatenate(pixels).mean(axis=0)) == channel, name


# --- files ----------------------------------------------------------------------------------------


def test_layout_is_vocs(drawn):
    lists = {p.stem: p.read_text().split() for p in (drawn / 'ImageSets/Segmentation').iterdir()}
    assert sorted(lists) == ['train', 'trainval', 'val']
    assert len(lists['train']) == NUM_TRAIN and len(lists['val']) == NUM_VAL
    assert lists['trainval'] == lists['train'] + lists['val']
    assert sorted(p.stem for p in (drawn / 'JPEGImages').iterdir()) == lists['trainval']
    assert sorted(p.stem for p in (drawn / 'SegmentationClass').iterdir()) == lists['trainval']
    assert sorted(p.name for p in drawn.iterdir()) == [
        'ImageSets', 'JPEGImages', 'SegmentationClass', 'miniature.json',
    ]  # fmt: skip
    assert [p.name for p in drawn.parent.iterdir()] == ['miniature']


def test_files_hold_the_samples(drawn):
    image, mask = draw_sample('val', 7, SIZE)
    with Image.open(drawn / 'SegmentationClass/val_00007.png') as png:
        assert png.mode == 'P' and png.size == SIZE
        assert png.getpalette() == voc_palette().ravel().tolist()
        assert np.array_equal(np.asarray(png), mask)
    with Image.open(drawn / 'JPEGImages/val_00007.jpg') as jpg:
        assert jpg.mode == 'RGB' and jpg.size == SIZE
        assert np.abs(np.asarray(jpg).astype(int) - image).mean() < 12  # what JPEG loses


def test_every_class_is_in_both_splits(drawn):
    for split in ('train', 'val'):
        images = np.zeros(256, int)
        for path in (drawn / 'SegmentationClass').glob(f'{split}_*.png'):
            images[np.unique(read_mask(path))] += 1
        assert np.all(images[1 : len(CLASSES)] >= 1), split
        assert images[len(CLASSES) : VOID].sum() == 0, split
        assert images[0] == images[VOID] == (NUM_TRAIN if split == 'train' else NUM_VAL)


def test_classes_are_balanced_over_many_images():
    masks = [draw_sample('train', i, (32, 32))[1] for i in range(100)]
    images = np.array([sum(np.any(m == c) for m in masks) for c in range(1, 21)])
    assert images.min() >= 6 and images.max() <= 4 * 5  # 5 for each slot of a 100 images


def test_a_larger_miniature_begins_with_the_smaller(tmp_path):
    make_small(tmp_path / 'a', num_train=2)
    make_small(tmp_path / 'b', num_train=3)
    a, b = contents(tmp_path / 'a'), contents(tmp_path / 'b')
    pictures = [name for name in a if name.endswith(('.jpg', '.png'))]
    assert len(pictures) == 6
    assert all(a[name][0] == b[name][0] for name in pictures)


def test_mmseg_loads_indices_not_colours(drawn):
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/miniature.py')
    cfg.val_dataloader.dataset.data_root = cfg.train_dataloader.dataset.data_root = str(drawn)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == NUM_VAL
    for i in (0, 7):
        sample = dataset[i]
        name = Path(sample['data_samples'].img_path).stem
        seg_map = sample['data_samples'].gt_sem_seg.data[0].numpy()
        assert np.array_equal(seg_map, read_mask(drawn / f'SegmentationClass/{name}.png'))
        assert sample['inputs'].shape == (3, SIZE[1], SIZE[0])
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == NUM_TRAIN
    seen = {
        v
        for i in range(NUM_TRAIN)
        for v in train[i]['data_samples'].gt_sem_seg.data.unique().tolist()
    }
    assert seen == {*range(21), VOID}


# --- running it again -----------------------------------------------------------------------------


def test_the_same_miniature_is_left_alone(tmp_path):
    assert make_small(tmp_path / 'mini')
    before = contents(tmp_path / 'mini')
    assert not make_small(tmp_path / 'mini')
    assert contents(tmp_path / 'mini') == before


def test_other_parameters_need_overwrite(tmp_path):
    root = tmp_path / 'mini'
    make_small(root, num_train=3)
    before = contents(root)
    with pytest.raises(UserError, match=r'num_train 3 instead of 2: .*overwrite'):
        make_small(root, num_train=2)
    assert contents(root) == before
    assert make_small(root, num_train=2, overwrite=True)
    assert len(list((root / 'JPEGImages').iterdir())) == 3  # two for training, one for validation
    assert not make_small(root, num_train=2)
    assert [p.name for p in tmp_path.iterdir()] == ['mini']


def test_a_miniature_of_another_version_needs_overwrite(tmp_path, monkeypatch):
    make_small(tmp_path / 'mini')
    monkeypatch.setattr(folder, 'VERSION', folder.VERSION + 1)
    with pytest.raises(UserError, match='version 1 instead of 2'):
        make_small(tmp_path / 'mini')
    assert make_small(tmp_path / 'mini', overwrite=True)


def test_a_missing_file_is_named_and_overwrite_mends_it(tmp_path):
    root = tmp_path / 'mini'
    make_small(root)
    (root / 'JPEGImages/val_00000.jpg').unlink()
    with pytest.raises(UserError, match=r'val_00000\.jpg is missing'):
        make_small(root)
    assert make_small(root, overwrite=True)
    assert (root / 'JPEGImages/val_00000.jpg').is_file()


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize('metadata', [None, '{', '[]', '{"made_by": "ssnet_mm"}'])
def test_a_foreign_folder_is_refused(tmp_path, overwrite, metadata):
    root = tmp_path / 'photos'
    root.mkdir()
    (root / 'holiday.jpg').write_bytes(b'precious')
    if metadata is not None:
        (root / 'miniature.json').write_text(metadata)
    before = contents(root)
    with pytest.raises(UserError, match='photos holds something else than a miniature'):
        make_small(root, overwrite=overwrite)
    assert contents(root) == before


def test_overwriting_never_deletes_a_users_file(tmp_path):
    root = tmp_path / 'mini'
    make_small(root)
    (root / 'JPEGImages/mine.jpg').write_bytes(b'precious')
    before = contents(root)
    with pytest.raises(UserError, match=r'mine\.jpg is not of the miniature'):
        make_small(root, num_train=3, overwrite=True)
    assert contents(root) == before


def test_forged_metadata_does_not_release_a_foreign_folder(tmp_path):
    make_small(tmp_path / 'mini')
    root = tmp_path / 'voc'
    (root / 'JPEGImages').mkdir(parents=True)
    (root / 'JPEGImages/2007_000032.jpg').write_bytes(b'precious')
    (root / 'miniature.json').write_bytes((tmp_path / 'mini/miniature.json').read_bytes())
    with pytest.raises(UserError, match=r'2007_000032\.jpg is not of the miniature'):
        make_small(root, overwrite=True)
    assert (root / 'JPEGImages/2007_000032.jpg').read_bytes() == b'precious'


def test_an_empty_folder_may_be_there_already(tmp_path):
    (tmp_path / 'mini').mkdir()
    assert make_small(tmp_path / 'mini')


def test_a_link_is_followed_not_replaced(tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'mini').symlink_to(tmp_path / 'disk')
    assert make_small(tmp_path / 'mini')
    assert (tmp_path / 'mini').is_symlink() and (tmp_path / 'disk/miniature.json').is_file()


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_an_interruption_leaves_nothing_half_written(tmp_path, error):
    root = tmp_path / 'mini'

    def stop_after_two(samples):
        yield from samples[:2]
        raise error

    expected, match = (
        (UserError, 'No space left') if isinstance(error, OSError) else (KeyboardInterrupt, None)
    )
    with pytest.raises(expected, match=match):
        make_small(root, progress=stop_after_two)
    assert list(tmp_path.iterdir()) == []

    make_small(root)
    before = contents(root)
    with pytest.raises(expected, match=match):
        make_small(root, num_train=3, overwrite=True, progress=stop_after_two)
    assert contents(root) == before and [p.name for p in tmp_path.iterdir()] == ['mini']


@pytest.mark.parametrize(
    ('wrong', 'match'),
    [
        ({'num_train': 0}, 'training images, got 0'),
        ({'num_val': -1}, 'validation images, got -1'),
        ({'num_train': 10**9}, 'training images, got 1000000000'),
        ({'size': (31, 128)}, '32 to 2048 pixels, got 31x128'),
        ({'size': (128, 100_000)}, '32 to 2048 pixels, got 128x100000'),
        ({'size': (64,)}, '32 to 2048 pixels, got 64'),
        ({'seed': -1}, 'a seed of 0 or more, got -1'),
    ],
)
def test_nonsense_numbers_are_refused(tmp_path, wrong, match):
    with pytest.raises(UserError, match=match):
        make_miniature(tmp_path / 'mini', **wrong)
    assert list(tmp_path.iterdir()) == []


# --- the tool -------------------------------------------------------------------------------------


SMALL = ('--train', '2', '--val', '1', '--size', '33', '47')


def test_tool_draws_shows_progress_and_can_be_run_again(tmp_path, tool, capsys):
    main, root = tool('make_miniature').main, str(tmp_path / 'mini')
    main([root, *SMALL, '--seed', '4'])
    shown = capsys.readouterr()
    assert '3/3' in shown.err and shown.out.endswith('mini: drawn\n')
    assert json.loads((tmp_path / 'mini/miniature.json').read_text())['size'] == [33, 47]
    mask = read_mask(tmp_path / 'mini/SegmentationClass/train_00001.png')
    assert np.array_equal(mask, draw_sample('train', 1, (33, 47), seed=4)[1])
    main([root, *SMALL, '--seed', '4'])
    assert 'left as it is' in capsys.readouterr().out
    main([root, *SMALL, '--seed', '5', '--overwrite'])
    assert 'mini: drawn' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (('mini', '--size', 8, 8), '32 to 2048 pixels, got 8x8'),
        (('mini', '--train', 0), 'got 0'),
        (('file', *SMALL), 'file is a file: choose another folder'),
        (('file/mini', *SMALL), "can't write"),
        (('photos', *SMALL, '--overwrite'), 'photos holds something else than a miniature'),
    ],
)
def test_tool_says_in_one_line_what_is_wrong(tmp_path, fails, args, match):
    (tmp_path / 'file').write_text('precious')
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/holiday.jpg').write_bytes(b'precious')
    assert match in fails('make_miniature', tmp_path / args[0], *args[1:])
    assert not (tmp_path / 'mini').exists()
    assert (tmp_path / 'photos/holiday.jpg').read_bytes() == b'precious'


@pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere'
)
def test_tool_names_a_folder_it_may_not_write(tmp_path, fails):
    tmp_path.chmod(0o500)
    assert 'Permission denied' in fails('make_miniature', tmp_path / 'mini', *SMALL)
