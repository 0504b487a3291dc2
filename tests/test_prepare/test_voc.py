"""VOC 2012 and SBD, as archives and unpacked, to one folder."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from ssnet_mm.errors import UserError
from ssnet_mm.palette import voc_palette
from ssnet_mm.prepare.voc import prepare_voc

from .conftest import names, photo, striped

VOC, SBD = 'VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset'
TRAIN, VAL, EXTRA = ['2007_000032', '2007_000039'], ['2007_000033'], ['2008_000008', '2008_000015']


def palette_png(mask):
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def mat(mask):
    buffer = io.BytesIO()
    struct = dict(Boundaries=np.zeros(1), Segmentation=mask, CategoriesPresent=np.unique(mask))
    savemat(buffer, {'GTcls': struct}, do_compression=True)
    return buffer.getvalue()


@pytest.fixture
def downloads(source):
    files = {}
    for i, name in enumerate([*TRAIN, *VAL, *EXTRA, '2009_000001']):
        files[f'{VOC}/JPEGImages/{name}.jpg'] = photo(i)
    for name in (*TRAIN, *VAL):
        files[f'{VOC}/SegmentationClass/{name}.png'] = palette_png(striped(0, 20, 255))
    for split, listed in dict(train=TRAIN, val=VAL, trainval=[*TRAIN, *VAL]).items():
        files[f'{VOC}/ImageSets/Segmentation/{split}.txt'] = '\n'.join(listed) + '\n'
    files[f'{VOC}/ImageSets/Main/train.txt'] = 'other\n'
    for name in (*EXTRA, TRAIN[0], VAL[0]):
        files[f'{SBD}/cls/{name}.mat'] = mat(striped(0, 15))
        files[f'{SBD}/img/{name}.jpg'] = photo(9)
    files[f'{SBD}/train.txt'] = '\n'.join(EXTRA)
    return source(files)


def packed(folder):
    """The two archives, and nothing else."""
    for name, top, mode in (
        ('VOCtrainval_11-May-2012.tar', 'VOCdevkit', 'w'),
        ('benchmark.tgz', 'benchmark_RELEASE', 'w:gz'),
    ):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(folder / top, top)
        shutil.rmtree(folder / top)
    return folder


@pytest.mark.parametrize('unpacked', [True, False])
def test_voc_and_sbd_are_merged(downloads, tmp_path, unpacked):
    folder, dest, said = downloads if unpacked else packed(downloads), tmp_path / 'dest', []
    assert not prepare_voc(folder, dest, said.append)
    assert 'VOC 2012 and SBD (2 train, 1 val, 2 aug)' in said[0]
    assert names(dest, 'train') == TRAIN and names(dest, 'val') == VAL
    assert names(dest, 'aug') == EXTRA and names(dest, 'trainaug') == [*TRAIN, *EXTRA]
    assert sorted(p.stem for p in dest.glob('JPEGImages/*')) == sorted([*TRAIN, *VAL, *EXTRA])
    assert (dest / 'JPEGImages' / f'{TRAIN[0]}.jpg').read_bytes() == photo(0)
    for name in (*TRAIN, *EXTRA):
        with Image.open(dest / 'SegmentationClassAug' / f'{name}.png') as image:
            assert image.mode == 'P'
            wanted = striped(0, 15) if name in EXTRA else striped(0, 20, 255)
            np.testing.assert_array_equal(np.asarray(image), wanted)
    before = {p: p.stat().st_mtime_ns for p in dest.rglob('*')}
    assert not prepare_voc(folder, dest, said.append)
    assert {p: p.stat().st_mtime_ns for p in dest.rglob('*')} == before


def test_an_unpacked_voc_may_be_added_to_in_place(downloads):
    dest = downloads / VOC
    assert not prepare_voc(downloads, dest)
    assert names(dest, 'aug') == EXTRA
    assert (dest / 'JPEGImages' / '2009_000001.jpg').is_file()


def test_voc_alone_will_do(downloads, tmp_path):
    shutil.rmtree(downloads / 'benchmark_RELEASE')
    assert not prepare_voc(downloads / 'VOCdevkit', tmp_path / 'dest')
    assert not (tmp_path / 'dest' / 'SegmentationClassAug').exists()


def test_what_is_damaged_is_told_and_left_out(downloads, tmp_path):
    (downloads / SBD / 'cls' / f'{EXTRA[0]}.mat').write_bytes(b'MATLAB 5.0')
    (downloads / VOC / 'JPEGImages' / f'{TRAIN[1]}.jpg').unlink()
    faults = prepare_voc(downloads, tmp_path / 'dest')
    assert any(f'{EXTRA[0]}.mat: damaged' in line for line in faults)
    assert any(line.startswith(f'{TRAIN[1]}: no ') for line in faults)
    assert names(tmp_path / 'dest', 'trainaug') == [TRAIN[0], EXTRA[1]]


def test_an_archive_cut_short_is_one_line(downloads, tmp_path, fails):
    folder = packed(downloads)
    path = folder / 'benchmark.tgz'
    path.write_bytes(path.read_bytes()[:-200])
    assert 'benchmark.tgz is damaged or cut short' in fails(
        'prepare', 'voc', folder, tmp_path / 'd'
    )


def test_a_folder_without_voc_is_refused(source, tmp_path):
    with pytest.raises(UserError, match='holds no VOC 2012: put VOCtrainval_11-May-2012.tar there'):
        prepare_voc(source({'a.jpg': photo()}), tmp_path / 'dest')
