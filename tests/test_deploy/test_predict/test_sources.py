import io
import os
from pathlib import Path

import pytest

from ssnet_mm.deploy import predict
from ssnet_mm.errors import UserError


def test_images_of_one_stem_do_not_overwrite_each_other():
    names = predict.output_names([Path('in/a.jpg'), Path('in/A.png'), Path('in/b.jpg')])
    assert names == ['a.jpg.png', 'A.png.png', 'b.jpg.png']
    assert predict.output_names([Path('in/a.jpg'), Path('in/b.png')]) == ['a.png', 'b.png']
    names = predict.output_names([Path('in/a.jpg'), Path('on/a.jpg'), Path('on/a.jpg')])
    assert names == ['a.jpg.png', 'a.jpg_2.png', 'a.jpg_3.png']


def test_images_are_sought_by_suffix_in_one_folder(pictures):
    (pictures / 'notes.txt').touch()
    (pictures / 'folder.jpg').mkdir()
    assert [p.name for p in predict.find_images(pictures)] == ['a.png', 'b.PNG']
    assert predict.find_images(pictures / 'a.png') == [pictures / 'a.png']
    with pytest.raises(UserError, match='no image in .*folder.jpg; looked for .bmp'):
        predict.find_images(pictures / 'folder.jpg')
    with pytest.raises(UserError, match='no image or folder .*none'):
        predict.find_images(pictures / 'none')


def test_paths_come_from_a_list():
    listing = io.StringIO('in/b.png\n\n in/a.png \n')
    assert predict.find_images('-', listing) == [Path('in/b.png'), Path('in/a.png')]
    with pytest.raises(UserError, match='standard input names none'):
        predict.find_images('-', io.StringIO('\n'))


def test_what_can_be_no_name_is_told(red, tmp_path):
    long = 300 * 'x'
    with pytest.raises(UserError, match='no image or folder xxx.*png; check the path'):
        predict.find_images(f'{long}.png')
    with pytest.raises(UserError, match='standard input holds data, no paths; name the image'):
        predict.find_images('-', io.StringIO('\x89PNG\n\x1a\n\0\0\0IHDR'))
    (failure,) = predict.predict_images(red, [tmp_path / f'{long}.png'], tmp_path / 'out')
    assert str(tmp_path) in failure and not list((tmp_path / 'out').rglob('*.png'))


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='there are no named pipes')
def test_a_pipe_is_named_and_not_waited_for(red, pictures, tmp_path):
    os.mkfifo(pictures / 'c.png')
    (failure,) = predict.predict_images(red, predict.find_images(pictures), tmp_path / 'out')
    assert 'c.png can not be read (ValueError: it is no file but a pipe or a device)' in failure


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


def test_output_below_a_file_is_refused(pictures):
    with pytest.raises(UserError, match='a.png is a file; choose another folder'):
        predict.check_output(pictures / 'a.png' / 'out', 0.5)


def test_folders_are_neither_cameras_nor_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('2012', 'frames.mov'):
        assert predict.is_video(name)
        (tmp_path / name).mkdir()
        assert not predict.is_video(name)
    assert all(predict.is_video(f'a{suffix}') for suffix in ('.mpg', '.wmv', '.flv', '.TS'))


@pytest.fixture
def nested(pictures):
    """Pictures in folders below, a hidden one, links that go round, and one that does not."""
    for folder in ('a/b', 'c', '.hidden', 'out/overlay'):
        (pictures / folder).mkdir(parents=True)
    for name in ('a/b/x.png', 'a/y.jpg', 'c/x.png', '.hidden/x.png', 'out/overlay/x.png'):
        (pictures / name).write_bytes((pictures / 'a.png').read_bytes())
    (pictures / 'a' / 'notes.txt').touch()
    (pictures / 'a' / 'b' / 'up').symlink_to(pictures)
    (pictures / 'a' / 'self').symlink_to(pictures / 'a' / 'self')
    (pictures / 'd').symlink_to(pictures / 'c')
    return pictures


def test_folders_below_are_searched_and_kept(nested, red, capsys):
    out = nested / 'out'
    images = predict.find_images(nested, recursive=True, leave_out=out)
    found = [path.relative_to(nested).as_posix() for path in images]
    assert found == ['a/b/x.png', 'a/y.jpg', 'a.png', 'b.PNG', 'c/x.png', 'd/x.png']
    said = capsys.readouterr().err
    assert said.startswith(
        f'4 in {nested} left out, no images by their names: a/b/up/, a/notes.txt'
    )
    names = predict.output_names(images, nested)
    assert names == ['a/b/x.png', 'a/y.png', 'a.png', 'b.png', 'c/x.png', 'd/x.png']
    assert predict.predict_images(red, images, out, root=nested) == []
    assert all((out / kind / name).is_file() for kind in ('overlay', 'index') for name in names)
    assert predict.find_images(nested, recursive=True, leave_out=out) == images  # not its results
    with pytest.raises(UserError, match='out would overwrite the images'):
        predict.predict_images(red, predict.find_images(out, recursive=True), out, root=out)


def test_stems_that_repeat_in_a_folder_below():
    images = [Path('in/a/x.png'), Path('in/a/x.jpg'), Path('in/y.png')]
    names = predict.output_names(images, Path('in'))
    assert names == ['a/x.png.png', 'a/x.jpg.png', 'y.png.png']


def test_images_that_are_in_folders_below_alone(pictures):
    (pictures.parent / 'above').mkdir()
    pictures.rename(pictures.parent / 'above' / 'in')
    with pytest.raises(UserError, match='with recursive the folders below count too'):
        predict.find_images(pictures.parent / 'above')
    assert len(predict.find_images(pictures.parent / 'above', recursive=True)) == 2


def test_a_folder_that_can_not_be_listed_is_named(nested, monkeypatch):
    listed = Path.iterdir

    def refused(folder):
        if folder.name == 'b':
            raise PermissionError(13, 'Permission denied')
        return listed(folder)

    monkeypatch.setattr(Path, 'iterdir', refused)
    with pytest.raises(UserError, match="can't list .*a/b: Permission denied; change its perm"):
        predict.find_images(nested, recursive=True)
