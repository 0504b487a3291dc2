"""What is made of a folder: names, splits, upright photos, and what a second run does."""

import json

import numpy as np
import pytest

from ssnet_mm.errors import UserError
from ssnet_mm.limits import TURNS
from ssnet_mm.prepare.source import split_of

from .conftest import SIZE, names, photo, read_mask, striped, write


def some(count, first=0, folder=''):
    files = {}
    for i in range(first, first + count):
        files[f'images/{folder}p{i}.jpg'] = photo(i)
        files[f'masks/{folder}p{i}.png'] = striped(0, 1, i % 3)
    return files


def contents(root):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob('*') if p.is_file()}


def test_names_stay_unique_whatever_folders_and_suffixes(source, run):
    keys = ('a/b/x', 'a/b_x', 'a_b/x', 'A/b/x', 'ä ö/x\n', '.hid')
    files = {}
    for i, key in enumerate(keys[:5]):
        suffix = ('.jpg', '.JPG', '.jpeg', '.png', '.bmp')[i]
        kind = {'.png': 'PNG', '.bmp': 'BMP'}.get(suffix, 'JPEG')
        files[f'images/{key}{suffix}'] = photo(i, kind=kind)
        files[f'masks/{key}.png'] = striped(0, i)
    made, said = run(source(files))
    assert len(made.record.images) == 5 and not made.faults
    assert len({name.casefold() for name in made.record.images}) == 5
    assert all(name == name.strip() and '/' not in name for name in made.record.images)
    for name, entry in made.record.images.items():
        i = next(i for i, key in enumerate(keys) if entry.source.startswith(f'images/{key}.'))
        np.testing.assert_array_equal(read_mask(made.root, name), striped(0, i))
    assert '2 photos were turned upright or were of another format: now JPEG' in said


def test_photos_without_a_jpeg_stay_png_bit_for_bit(source, run):
    made, _ = run(source({'images/a.png': photo(kind='PNG'), 'masks/a.png': striped(0, 1)}))
    assert (made.root / 'JPEGImages' / 'a.png').read_bytes() == photo(kind='PNG')


def test_folders_split_and_val_overrides_them(source, run):
    folder = source(
        {
            **{f'train/{k}': v for k, v in some(3).items()},
            **{f'valid/{k}': v for k, v in some(2, 3).items()},
            **{f'test/{k}': v for k, v in some(1, 5).items()},
        }
    )
    made, said = run(folder)
    assert 'as the source has it' in said
    assert names(made.root, 'val') == ['valid_p3', 'valid_p4']
    assert names(made.root, 'test') == ['test_p5'] and len(names(made.root, 'train')) == 3
    (folder.parent / 'list').write_text('p0.jpg\ntrain/images/p1\n')
    listed, said = run(folder, 'listed', val=str(folder.parent / 'list'))
    assert names(listed.root, 'val') == ['train_p0', 'train_p1'] and 'by the list' in said
    drawn, _ = run(folder, 'drawn', val='0.4')
    assert drawn.counts == {'train': 3, 'val': 2, 'test': 1}


@pytest.mark.parametrize(
    ('name', 'split'),
    [
        ('instances_train2017.json', 'train'),
        ('train/instances_eval.json', 'val'),
        ('val/train_val.json', 'val'),
        ('train_val.json', ''),
        ('evaluation/a.json', 'val'),
        ('rejected/a.json', ''),
    ],
)
def test_a_name_tells_one_split_or_none(name, split):
    assert split_of(name, stem=True) == split


@pytest.mark.parametrize('video', [True, False])
def test_frames_of_a_video_that_are_drawn_one_by_one_are_told(source, run, video):
    order = np.random.default_rng(0).permutation(24)
    files = {}
    for i, shift in enumerate(range(24) if video else order):  # a bright bar that moves
        image = np.zeros((16, 24, 3), np.uint8)
        image[:, : shift + 1] = 250
        files |= {f'images/v_{i + 1}.png': image, f'masks/v_{i + 1}.png': striped(0, 1)}
    folder = source(files)
    _, said = run(folder)
    assert ('note: most photos are like the one before them' in said) is video
    (folder.parent / 'list').write_text('v_1\nv_2\n')
    assert 'like the one before' not in run(folder, 'listed', val=str(folder.parent / 'list'))[1]


def test_lists_of_vocs_layout_split(source, run):
    files = {
        f'ImageSets/Segmentation/{s}.txt': f'{n}\n' for s, n in dict(val='p1', test='p2').items()
    }
    for name, content in some(4).items():
        files[name.replace('images/', 'JPEGImages/').replace('masks/', 'SegmentationClass/')] = (
            content
        )
    made, said = run(source(files))
    assert 'as the source has it; 2 photos outside of its splits train' in said
    assert [names(made.root, s) for s in ('train', 'val', 'test')] == [['p0', 'p3'], ['p1'], ['p2']]


def test_lists_and_photos_may_lie_deeper_and_lists_of_others_are_told(source, run):
    files = {f'task/{name}': content for name, content in some(4).items()}
    files['task/ImageSets/Segmentation/val.txt'] = 'p1\n'
    made, said = run(source(files))
    assert names(made.root, 'val') == ['task_p1']
    assert 'as the source has it' in said
    folder = source({'task/ImageSets/Segmentation/val.txt': 'x1\n'})
    assert 'the lists in ImageSets name none of the photos' in run(folder, 'others')[1]


def test_folders_that_are_links_count(source, run, tmp_path):
    folder = source(some(2))
    for name, content in some(5).items():
        write(tmp_path / 'more' / name, content)
    for part in ('images', 'masks'):
        (folder / part / 'more').symlink_to(tmp_path / 'more' / part)
        (tmp_path / 'more' / part / 'round').symlink_to(folder / part)
    made, _ = run(folder)
    assert sum(made.counts.values()) == 7


@pytest.mark.parametrize('end', ['_l', '_gt', '_mask'])
def test_photos_may_be_named_as_masks_are(source, run, end):
    files = {}
    for i, name in enumerate(['cam', f'cam{end}', f'x{end}', 'x_r']):
        files[f'images/{name}.jpg'] = photo(i)
        if name != 'cam':
            files[f'masks/{name}.png'] = striped(0, i)
    made, _ = run(source(files))
    assert made.faults == [
        f'{made.root.parent}/source/images/cam.jpg: has no mask; make one, or move it elsewhere'
    ]
    assert read_mask(made.root, f'cam{end}').max() == 1
    assert read_mask(made.root, f'x{end}').max() == 2


def test_a_draw_depends_on_the_seed_alone(source, run):
    folder = source(some(10))
    first, again, other = (
        names(run(folder, str(i), seed=seed)[0].root, 'val') for i, seed in enumerate((0, 0, 1))
    )
    assert first == again != other and len(first) == 2


def test_an_image_is_never_in_two_splits(source, run):
    files = some(6)
    for i in range(6):
        files[f'images/copy{i}.jpg'] = photo(i)
        files[f'masks/copy{i}.png'] = striped(0, 1)
    made, _ = run(source(files))
    split = {n: e.split for n, e in made.record.images.items()}
    assert all(split[f'p{i}'] == split[f'copy{i}'] for i in range(6))
    assert set(split.values()) == {'train', 'val'}
    assert not any(f.check.name == 'seen-in-training' for f in made.report.findings)


def test_a_copy_in_the_other_folder_is_left_out_of_training(source, run):
    folder = source(
        {
            **{f'train/{k}': v for k, v in some(3).items()},
            **{f'val/{k}': v for k, v in some(1, 2).items()},
        }
    )
    made, said = run(folder)
    assert 'train_p2 is the same image as val_p2, of val, and is left out' in said
    assert names(made.root, 'train') == ['train_p0', 'train_p1']


def test_a_second_run_does_nothing_and_then_only_what_is_new(source, run):
    folder = source(some(10))
    made, _ = run(folder)
    before = contents(made.root)
    again, _ = run(folder, seed=5)
    assert {p: data for p, data in contents(made.root).items() if p.name != 'prepared.json'} == {
        p: data for p, data in before.items() if p.name != 'prepared.json'
    }
    assert again.record == made.record
    old = {n: e.split for n, e in made.record.images.items()}
    more, said = run(source(some(10, 10)), seed=5)
    assert '10 images keep theirs' in said
    new = {n: e.split for n, e in more.record.images.items()}
    assert {n: new[n] for n in old} == old and more.counts == {'train': 16, 'val': 4}
    untouched = [p for p in before if p.suffix in ('.png', '.jpg')]
    assert all(contents(made.root)[p] == before[p] for p in untouched)


def test_what_changed_is_told_and_made_anew_only_where_it_was_deleted(source, run):
    folder = source(some(4))
    made, _ = run(folder)
    write(folder / 'masks' / 'p1.png', striped(1, 0))
    again, said = run(folder)
    assert '1 changed since they were prepared, and are left as they were: p1' in said
    np.testing.assert_array_equal(read_mask(made.root, 'p1'), striped(0, 1, 1))
    (made.root / 'SegmentationClass' / 'p1.png').unlink()
    again, said = run(folder)
    np.testing.assert_array_equal(read_mask(made.root, 'p1'), striped(1, 0))
    assert again.record.images['p1'].split == made.record.images['p1'].split
    write(folder / 'images' / 'p2.jpg', photo(77))
    write(folder / 'masks' / 'p2.png', striped(2, 0))
    (made.root / 'JPEGImages' / 'p2.jpg').unlink()  # a photo with another photo's mask is left
    run(folder)
    np.testing.assert_array_equal(read_mask(made.root, 'p2'), striped(2, 0))
    assert 'changed since' not in said + run(folder)[1]


def test_a_killed_run_is_gone_on_with(source, run, monkeypatch):
    from ssnet_mm.prepare import destination

    folder, calls = source(some(6)), []
    real = destination.write_result

    def dies(path, data):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(destination, 'write_result', dies)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    monkeypatch.setattr(destination, 'write_result', real)
    made, _ = run(folder)
    whole, _ = run(folder, 'whole')
    assert made.record == whole.record and made.counts == whole.counts
    for path in whole.root.rglob('*'):
        if path.is_file():
            assert (made.root / path.relative_to(whole.root)).read_bytes() == path.read_bytes()


def test_a_mended_annotation_comes_in_with_the_next_run(source, run):
    folder = source({**some(4), 'masks/p3.png': b''})
    made, _ = run(folder)
    assert made.faults == [f'{folder}/masks/p3.png: is empty (0 bytes); export it again']
    assert sum(made.counts.values()) == 3
    write(folder / 'masks' / 'p3.png', striped(0, 1))
    mended, _ = run(folder)
    assert not mended.faults and sum(mended.counts.values()) == 4


def test_new_classes_may_follow_and_old_ones_stay(source, run):
    shapes = [dict(label='cat', points=[[1, 1], [9, 1], [9, 9]], shape_type='polygon')]
    content = dict(imagePath='a.jpg', imageWidth=SIZE[0], imageHeight=SIZE[1], shapes=shapes)
    folder = source({'a.jpg': photo(), 'a.json': json.dumps(content)})
    run(folder)
    content.update(imagePath='b.jpg', shapes=[dict(shapes[0], label='ant')])
    source({'b.jpg': photo(1), 'b.json': json.dumps(content)})
    made, _ = run(folder)
    assert "label 'ant' is none of the classes" in made.faults[0]
    made, _ = run(folder, classes=['background', 'cat', 'ant'])
    assert not made.faults and read_mask(made.root, 'b').max() == 2
    with pytest.raises(UserError, match='was made with the classes background, cat, ant, and now'):
        run(folder, classes=['background', 'ant', 'cat'])


@pytest.mark.parametrize('orientation', range(2, 9))
@pytest.mark.parametrize('frame', ['upright', 'stored'])
def test_photos_that_exif_turns_are_turned_with_their_masks(source, run, orientation, frame):
    """The photo shows its mask: bright where the class is 1, upright as a viewer shows it."""
    import io

    from PIL import Image

    stored = np.zeros((16, 24), np.uint8)
    stored[2:7, 3:14] = 1
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored * np.uint8(255)).convert('RGB').save(buffer, 'JPEG', exif=exif)
    turned = np.asarray(Image.fromarray(stored).transpose(TURNS[orientation]))
    mask = turned if frame == 'upright' else stored
    folder = source({'images/a.jpg': buffer.getvalue(), 'masks/a.png': mask})
    settings = {} if orientation >= 5 else dict(exif=frame)  # sizes tell, or not
    made, _ = run(folder, **settings)
    np.testing.assert_array_equal(read_mask(made.root, 'a'), turned)
    with Image.open(made.root / 'JPEGImages' / 'a.jpg') as image:
        assert not image.getexif() and ((np.asarray(image.convert('L')) > 127) == turned).all()


def test_where_sizes_do_not_tell_how_a_photo_was_turned_it_is_refused(source, run):
    files = some(2)
    files['images/p1.jpg'] = photo(1, orientation=3)
    made, _ = run(source(files))
    assert 'say --exif upright or --exif stored' in made.faults[0] and 'p1.png' in made.faults[0]


@pytest.mark.parametrize(
    ('files', 'dest', 'told'),
    [
        ({'dest/own.txt': 'mine'}, 'dest', 'holds other files, which are left alone'),
        (
            {'source/masks/p0.png': striped(0), 'source/masks/p1.png': striped(0)},
            'dest',
            'hold one class alone, class 0',
        ),
        ({}, 'source/inside', 'lie in one another'),
        ({'dest/prepared.json': '{"made_by": 3}'}, 'dest', "prepared.json can't be read"),
    ],
)
def test_folders_that_hold_other_things_are_left_alone(source, run, tmp_path, files, dest, told):
    folder = source(some(2))
    for name, content in files.items():
        write(tmp_path / name, content)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=told):
        run(folder, dest)
    assert contents(tmp_path) == before


def test_a_folder_among_the_masks_is_refused(source, run):
    folder = source(some(2))
    with pytest.raises(UserError, match='masks lie in one another; name a folder elsewhere'):
        run(folder / 'images', 'source/masks/prepared', masks=folder / 'masks')
    assert not (folder / 'masks' / 'prepared').exists()


def test_the_tool_tells_what_was_left_out_and_that_by_its_exit_code(source, tool, capsys, tmp_path):
    folder = source({**some(3), 'images/alone.jpg': photo(9)})
    with pytest.raises(SystemExit, match='^1$'):
        tool('prepare').main([str(folder), str(tmp_path / 'dest')])
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f'left out: {folder}/images/alone.jpg: has no mask; make one, or move it elsewhere'
    ]
    assert said.out.splitlines()[-1].endswith('2 train, 1 val; classes: class 0, class 1, class 2')
    (folder / 'images' / 'alone.jpg').unlink()
    with pytest.raises(SystemExit, match='^0$'):
        tool('prepare').main([str(folder), str(tmp_path / 'dest')])


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['lost', 'dest'], 'no such folder'),
        (['source/images/p0.jpg', 'dest'], 'is a file; unpack archives'),
        (['source'], 'expected SOURCE and DEST'),
        (['source', 'dest', '--val', '1.5'], 'expected a share of the images'),
        (['source', 'dest', '--val', 'lost.txt'], 'neither a share'),
        (['source', 'dest', '--classes', 'a', 'b', 'a'], '--classes names a twice'),
        (['source', 'dest', '--classes', 'a'], 'p0.png: holds 1, 2|p0.png: holds 1'),
        (['source', 'dest', '--classes', 'latin.txt'], "latin.txt can't be read .* as UTF-8"),
        (['voc', 'source', 'dest', '--val', '0.1'], 'prepare voc takes no --val'),
        (['camvid', 'source', 'dest', '--format', 'coco'], 'prepare camvid takes no --format'),
        (['source', 'dest', '--void', 'grey'], '--void grey: the masks hold numbers'),
        (['source', 'dest', '--colours', 'lost.txt'], "lost.txt can't be read"),
    ],
)
def test_wrong_use_is_one_line(source, fails, tmp_path, monkeypatch, args, told):
    import re

    source(some(2))
    (tmp_path / 'latin.txt').write_bytes('Straße\nBäume\n'.encode('cp1252'))
    monkeypatch.chdir(tmp_path)
    assert re.search(told, fails('prepare', *args))
    assert not (tmp_path / 'dest').exists()
