"""Each format: how it is told, and the masks that come of it."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssnet_mm.commands import prepare as command
from ssnet_mm.errors import UserError
from ssnet_mm.prepare.formats import FORMATS

from .conftest import SIZE, names, photo, read_mask, striped

ARCHIVE = Path(__file__).parents[1] / 'reference' / 'annotations.zip'


def test_the_command_knows_the_formats():
    assert tuple(FORMATS) == command.FORMATS


@pytest.mark.parametrize(
    ('name', 'classes'),
    [
        ('labelme', ['background', 'car', 'pole', 'sign', 'sky', 'tree']),
        ('coco', ['background', 'cat', 'bird', 'dog']),
        ('label-studio', ['background', 'big dog', 'cat']),
        ('label-studio-png', ['background', 'big dog', 'cat']),
    ],
)
def test_masks_are_those_of_the_tools_own_code(tmp_path, run, name, classes):
    """Pixel by pixel; the archive is made by tests/reference/make_annotations.py."""
    if name == 'coco':
        pytest.importorskip('pycocotools')
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    made, said = run(tmp_path / name)
    assert made.record.classes == classes and not made.faults
    assert FORMATS[name].title in said
    masks = sorted((tmp_path / 'masks' / name).iterdir())
    assert masks
    for path in masks:
        wanted = np.asarray(Image.open(path))
        np.testing.assert_array_equal(read_mask(made.root, path.stem), wanted)
        assert len(np.unique(wanted)) > 2 or path.stem == 'b'


def two(mask_a, mask_b, suffix='.png'):
    return {
        'images/a.jpg': photo(0),
        'images/b.jpg': photo(1),
        f'masks/a{suffix}': mask_a,
        f'masks/b{suffix}': mask_b,
    }


def test_index_masks_keep_their_numbers(source, run):
    folder = source(two(striped(0, 1, 2, 255), striped(2, 2, 0, 0)))
    made, said = run(folder)
    assert 'masks of class numbers' in said and '0, 1, 2, 255' in said
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1, 2, 255))
    assert made.record.classes == ['class 0', 'class 1', 'class 2']
    assert sorted(names(made.root, 'train') + names(made.root, 'val')) == ['a', 'b']
    assert (made.root / 'classes.txt').read_text() == 'class 0\nclass 1\nclass 2\n'
    assert (made.root / 'JPEGImages' / 'a.jpg').read_bytes() == photo(0)


def test_index_masks_of_16_bits_and_of_a_palette_are_the_same(source, run):
    palette = Image.fromarray(striped(0, 1))
    palette.putpalette([9, 9, 9, 200, 0, 0])
    buffer = io.BytesIO()
    palette.save(buffer, 'PNG')  # a palette of two colours is stored in one bit a pixel
    made, _ = run(source(two(striped(1, 65535, dtype=np.uint16), buffer.getvalue())))
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(1, 255))
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(0, 1))


def test_index_masks_lose_the_numbers_that_are_void(source, run):
    folder = source({**two(striped(0, 1, 9), striped(2, 9)), 'classes.txt': 'x\ny\nz\n'})
    made, _ = run(folder, void=['9'])
    assert made.record.classes == ['x', 'y', 'z']
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1, 255))
    lowered, _ = run(folder, 'lowered', void=['0', '9'], classes=['p', 'q'])
    np.testing.assert_array_equal(read_mask(lowered.root, 'a'), striped(255, 0, 255))


@pytest.mark.parametrize('classes', [(), ('crack',), ('ground', 'crack')])
def test_black_and_white_masks_have_two_classes(source, run, classes):
    made, said = run(source(two(striped(0, 255), striped(255, 0))), classes=classes)
    assert 'black and white' in said
    assert made.record.classes == [
        classes[0] if len(classes) == 2 else 'background',
        classes[-1] if classes else 'object',
    ]
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1))


def test_black_and_white_masks_may_be_soft_or_of_one_bit(source, run):
    soft = np.tile(np.repeat([0, 0, 0, 40, 90, 130, 170, 210, 230, 255, 255, 255], 2), (16, 1))
    soft[:8, 4:20] = np.repeat([0, 255], 8)  # few pixels on the edge
    soft[8:, :] = np.repeat([0, 255], 12)
    soft[0, 8:16] = [10, 40, 70, 100, 150, 180, 210, 240]
    made, said = run(
        source(two(soft.astype(np.uint8), striped(0, 1).astype(bool))), format='binary'
    )
    np.testing.assert_array_equal(read_mask(made.root, 'a'), soft > 127)
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(0, 1))


def blobs(values):
    """A mask of zeros with a small square of each value."""
    mask = np.zeros((120, 160), np.uint8)
    for i, value in enumerate(values):
        mask[10 * (i % 10) :, 12 * (i // 10) :][:8, :8] = value
    return mask


def cut_out(colour):
    """An RGBA mask that is one colour; where it is opaque is the object."""
    return np.dstack([np.full((*SIZE[::-1], 3), colour, np.uint8), striped(0, 255)])


@pytest.mark.parametrize(
    ('mask', 'classes', 'wanted'),
    [
        (striped(0, 65535, dtype=np.uint16), ['background', 'object'], striped(0, 1)),
        # ten classes in few pixels, in no way edges between black and white
        (blobs(range(25, 251, 25)), 11, None),
        (blobs([1, 2, 3, 17, 44, 71, 98, 125, 152, 171, 255]), 12, None),
        (cut_out((0, 0, 0)), ['background', 'object'], striped(0, 1)),
        (cut_out((255, 255, 255)), ['background', 'object'], striped(0, 1)),
    ],
    ids=['16 bits', 'sparse grey levels', 'sparse numbers', 'black, cut out', 'white, cut out'],
)
def test_what_looks_black_and_white_and_what_does_not(source, run, mask, classes, wanted):
    files = {f'photos/{n}.jpg': photo(i, mask.shape[1::-1]) for i, n in enumerate('ab')}
    made, _ = run(source({**files, 'masks/a.png': mask, 'masks/b.png': mask}))
    found = made.record.classes
    assert not made.faults and (found == classes or len(found) == classes)
    if wanted is not None:
        np.testing.assert_array_equal(read_mask(made.root, 'a'), wanted)


RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 180, 0)


def coloured(*colours):
    return np.array(colours, np.uint8)[striped(*range(len(colours)))]


def test_colours_are_proposed_and_those_of_edges_told(source, run):
    edged = coloured((0, 0, 0), RED, RED, BLUE)
    edged[:, 5] = (100, 0, 0)  # between black and red, a pixel wide
    edged[:, 17] = (100, 0, 100)
    made, said = run(source(two(edged, coloured(RED, RED, (0, 0, 0)))))
    assert '3 classes by the colours found, #000000, #c80000, #0000c8' in said
    assert 'of edge colours (#640000, #640064): void' in said
    mask = read_mask(made.root, 'a')
    assert (mask[:, 5] == 255).all() and (mask[:, 6] == 1).all() and (mask[:, 18] == 2).all()
    assert made.record.palette == [(0, 0, 0), RED, BLUE]
    named, _ = run(made.root.parent / 'source', 'named', classes=['ground', 'r', 'b'])
    assert named.record.classes == ['ground', 'r', 'b']


@pytest.mark.parametrize(
    'table',
    [
        '# label:color_rgb:parts:actions\nr:200,0,0::\nb:0,0,200::\nvoid:0,0,0::\n',
        '200 0 0\tr\n0 0 200\t\tb\n0 0 0 Void\n',
        'name,r,g,b\nr,200,0,0\nb,0,0,200\nvoid,0,0,0\n',
    ],
)
def test_colours_go_by_a_table_in_three_spellings(source, run, tmp_path, table):
    folder = source(two(coloured(RED, BLUE), coloured((0, 0, 0), BLUE)))
    (tmp_path / 'table').write_text(table)
    made, _ = run(folder, colours=tmp_path / 'table')
    assert made.record.classes == ['r', 'b']
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(255, 1))
    again, _ = run(folder)  # the folder made remembers
    assert again.counts == made.counts and again.record.void == ['#000000']


def test_new_colours_follow_those_that_the_folder_was_made_with(source, run):
    black = (0, 0, 0)
    folder = source(two(coloured(black, RED), coloured(black, RED)))
    run(folder, classes=['background', 'scratch'])
    source({'photos/c.jpg': photo(2), 'masks/c.png': coloured(RED, BLUE, BLUE, BLUE)})
    made, _ = run(folder, classes=['background', 'scratch', 'dent'])
    assert made.record.palette == [black, RED, BLUE]  # though there is more blue
    np.testing.assert_array_equal(read_mask(made.root, 'c'), striped(1, 2, 2, 2))
    (folder / 'labelmap.txt').write_text('background:0,0,0\nscratch:0,0,200\ndent:200,0,0\n')
    table = dict(colours=folder / 'labelmap.txt', format='colours')
    with pytest.raises(UserError, match='was made with #c80000 for scratch, and now it is #0000c8'):
        run(folder, **table)


def test_grey_levels_far_apart_are_colours(source, run):
    made, said = run(source(two(striped(0, 127, 255), striped(0, 127, 127))))
    assert 'few, and far apart' in said
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1, 2))


def test_masks_of_cvat_lie_beside_their_table_and_may_lie_elsewhere(source, run):
    table = '# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:200,0,0::\n'
    folder = source(
        {
            'photos/a.jpg': photo(0),
            'photos/b.jpg': photo(1),
            'export/labelmap.txt': table,
            'export/ImageSets/Segmentation/default.txt': 'a\nb\n',
            'export/SegmentationClass/a.png': coloured((0, 0, 0), RED),
            'export/SegmentationClass/b.png': coloured(RED, (0, 0, 0)),
            'export/SegmentationObject/a.png': coloured(GREEN, BLUE),
            'export/SegmentationObject/b.png': coloured(GREEN, BLUE),
        }
    )
    for masks in (folder / 'export', folder / 'export' / 'SegmentationClass'):
        made, said = run(folder / 'photos', masks.name, masks=masks)
        assert "CVAT's segmentation masks" in said and not made.faults
        assert made.record.classes == ['background', 'scratch']
        np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1))


def test_label_studio_knows_polygons_rectangles_and_ellipses(source, run):
    size = dict(original_width=SIZE[0], original_height=SIZE[1])
    corners = [[0, 0], [50, 0], [50, 100], [0, 100]]
    shapes = [
        dict(value=dict(points=corners, polygonlabels=['a'])),
        dict(value=dict(x=75, y=50, width=25, height=50, rotation=0, rectanglelabels=['b'])),
        dict(value=dict(x=25, y=50, radiusX=12.5, radiusY=25, ellipselabels=['b'])),
        dict(type='choices', value=dict(choices=['sunny'])),
    ]
    result = [{**shape, **size} for shape in shapes]
    task = dict(id=1, data=dict(image='s3://bucket/x/a.jpg'), annotations=[dict(result=result)])
    made, _ = run(source({'a.jpg': photo(), 'export.json': json.dumps([task])}))
    mask = read_mask(made.root, 'a')
    assert mask[0, 0] == mask[15, 11] == 1 and mask[8, 6] == 2 and mask[1, 6] == 1
    assert mask[12, 20] == 2 and mask[4, 20] == 0
    assert abs((mask[:, :12] == 2).sum() - np.pi * 3 * 4) < 14


def regions(*results, data=None):
    """Label Studio's export of one task."""
    size = dict(original_width=SIZE[0], original_height=SIZE[1])
    result = [{**size, **result} for result in results]
    data = data or dict(image='https://host/x/a.jpg?sv=2024&sig=x%2Fy.z')
    return json.dumps([dict(id=7, data=data, annotations=[dict(result=result)])])


def half(right=False, **value):
    x = 50 * right
    return dict(value=dict(points=[[x, 0], [x + 50, 0], [x + 50, 100], [x, 100]], **value))


def test_label_studios_labels_may_be_chosen_apart_from_the_shape(source, run):
    shape = dict(half(), type='polygon', id='r')
    labelled = dict(half(labels=['cat']), type='labels', id='r')
    box = dict(value=dict(x=50, y=0, width=50, height=100, rotation=0, labels=['dog']))
    made, _ = run(source({'a.jpg': photo(), 'ls.json': regions(shape, labelled, box)}))
    assert made.record.classes == ['background', 'cat', 'dog']
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(1, 2))


@pytest.mark.parametrize(
    ('results', 'told'),
    [
        ([dict(value=dict(x=5, y=5, width=1, keypointlabels=['x']))], 'region of keypointlabels'),
        ([dict(value=dict(vertices=[], vectorlabels=['x']))], 'region of vectorlabels'),
        (
            [dict(half(labels=['x']), to_name='a'), dict(half(labels=['x']), to_name='b')],
            'task 7: has regions on several images, a, b; annotate one image a task',
        ),
        ([half(labels=['x'])], 'task 7: names several images, a, b, and not on which'),
    ],
)
def test_label_studios_regions_are_drawn_or_told(source, run, results, told):
    good = regions(half(polygonlabels=['x']), data=dict(image='good.jpg'))
    several = dict(a='a.jpg', b='b.jpg')
    bad = regions(*results, data=several if 'images' in told else dict(image='a.jpg'))
    files = {f'{n}.jpg': photo(i) for i, n in enumerate(['a', 'b', 'good'])}
    made, _ = run(source({**files, 'bad.json': bad, 'good.json': good}))
    assert len(made.faults) == 1 and told in made.faults[0]
    assert read_mask(made.root, 'good').any()


def test_of_several_images_of_a_task_the_regions_name_theirs(source, run):
    export = regions(
        dict(half(labels=['x']), to_name='right'), data=dict(left='a.jpg', right='b.jpg')
    )
    made, _ = run(source({'a.jpg': photo(), 'b.jpg': photo(1), 'ls.json': export}))
    assert list(made.record.images) == ['b']


def test_a_photo_may_be_in_the_json_of_labelme_alone(source, run):
    import base64

    shapes = [dict(label='x', points=[[2, 2], [9, 2], [9, 9]], shape_type='polygon')]
    content = dict(
        shapes=shapes,
        imagePath='..\\lost\\a.jpg',
        imageData=base64.b64encode(photo()).decode(),
        imageWidth=SIZE[0],
        imageHeight=SIZE[1],
    )
    made, _ = run(source({'a.json': json.dumps(content)}))
    assert (made.root / 'JPEGImages' / 'a.jpg').read_bytes() == photo()
    assert read_mask(made.root, 'a')[3, 8] == 1


def test_camvid_of_segnet_has_12_numbers_and_the_last_is_void(source, run):
    files = {}
    for i, split in enumerate(('train', 'val', 'test')):
        files[f'CamVid/{split}/f{i}.png'] = photo(i, kind='PNG')
        files[f'CamVid/{split}annot/f{i}.png'] = striped(0, 10, 11)
    made, _ = run(source(files), format='camvid')
    assert [names(made.root, split) for split in ('train', 'val', 'test')] == [
        ['f0'],
        ['f1'],
        ['f2'],
    ]
    np.testing.assert_array_equal(read_mask(made.root, 'f0'), striped(0, 10, 255))
    assert len(made.record.classes) == 11


def test_the_original_camvid_is_grouped_into_11_classes(source, run):
    from ssnet_mm.datasets.camvid import COLOURS

    lines = Path(__file__).with_name('label_colors.txt').read_text()
    table = {line.split(None, 3)[3]: line.split()[:3] for line in lines.splitlines()}
    assert len(table) == 32
    shown = ['Sky', 'Wall', 'LaneMkgsNonDriv', 'Child', 'Void', 'Train']
    mask = coloured(*(tuple(map(int, table[name])) for name in shown))
    frames = ['0001TP_006690', '0001TP_008550', '0016E5_07959', '0016E5_07980', 'Seq05VD_f00000']
    files = {'label_colors.txt': lines}
    for i, name in enumerate(frames):
        files[f'701_StillsRaw_full/{name}.png'] = photo(i, kind='PNG')
        files[f'LabeledApproved_full/{name}_L.png'] = mask
    made, _ = run(source(files), format='camvid', images='jpg')
    wanted = [made.record.classes.index(n) for n in ('sky', 'building', 'road', 'pedestrian')]
    np.testing.assert_array_equal(
        read_mask(made.root, frames[0]), striped(*wanted, 255, made.record.classes.index('car'))
    )
    assert names(made.root, 'train') == [frames[0], frames[3]]
    assert names(made.root, 'val') == [frames[2]]
    assert names(made.root, 'test') == [frames[1], frames[4]]
    assert dict(zip(made.record.classes, map(list, made.record.palette))) == COLOURS


@pytest.mark.parametrize(
    ('files', 'told'),
    [
        ({'a.jpg': photo()}, 'holds no annotations that are known'),
        (
            {**two(striped(0, 1), striped(1, 0)), 'a.json': '{"shapes": []}'},
            r'may be index .* or labelme .*; say which by --format',
        ),
        (
            two(b'', b''),
            r'masks/a.png: is empty \(0 bytes\); .* \(of 2 masks looked at none',
        ),
    ],
)
def test_what_is_not_clear_is_refused(source, run, files, told):
    with pytest.raises(UserError, match=told):
        run(source(files))


def indexed(mask, *colours):
    """A mask with a palette, as PNG."""
    image = Image.fromarray(mask)
    image.putpalette([value for colour in colours for value in colour])
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def test_palettes_that_differ_are_read_as_the_user_says(source, run):
    """As tools write them that choose the colours for each file."""
    black, white = (0, 0, 0), (255, 255, 255)
    folder = source(two(indexed(striped(0, 1), black, white), indexed(striped(1, 0), white, black)))
    with pytest.raises(UserError, match=r'b.png: 0 is #ffffff in its palette, and #000000 in that'):
        run(folder)
    made, _ = run(folder, 'colours', format='colours')
    for name in 'ab':
        np.testing.assert_array_equal(read_mask(made.root, name), striped(0, 1))
    made, _ = run(folder, 'index', format='index')
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(1, 0))


def test_all_masks_of_a_palette_count(source, run):
    red, green, blue = np.eye(3, dtype=np.uint8) * 200
    folder = source({
        **two(indexed(striped(0, 1), red, green, blue), indexed(striped(0, 2), red, green, green)),
        'images/c.jpg': photo(2),
        'masks/c.png': indexed(striped(0, 2), red, green, blue),
    })  # fmt: skip
    with pytest.raises(UserError, match=r'c.png: 2 is #0000c8 in its palette, and #00c800 in that'):
        run(folder)


def test_palettes_may_differ_in_what_no_pixel_or_void_has(source, run):
    red, green, blue = np.eye(3, dtype=np.uint8) * 200
    folder = source(
        two(indexed(striped(0, 1), red, green), indexed(striped(0, 1), red, green, blue))
    )
    made, _ = run(folder)
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(0, 1))


def test_what_is_transparent_is_not_painted(source, run):
    colours = np.array([[250, 0, 0, 0], [250, 0, 0, 255], [0, 0, 250, 99]], np.uint8)
    made, _ = run(source(two(colours[striped(0, 1, 2)], colours[striped(0, 1, 0)])))
    assert made.record.classes == ['background', '#fa0000', '#0000fa']
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1, 2))


def test_black_and_white_of_16_bits_is_cut_in_the_middle(source, run):
    black = np.where(striped(0, 1), 65535, 300).astype(np.uint16)
    made, _ = run(source(two(black, striped(0, 65535, dtype=np.uint16))), format='binary')
    np.testing.assert_array_equal(read_mask(made.root, 'a'), striped(0, 1))
    np.testing.assert_array_equal(read_mask(made.root, 'b'), striped(0, 1))


def coco(images, **ids):
    """A square on each image, from x of its number on."""
    squares = [
        dict(
            id=i,
            image_id=ids.get('image_id', int)(i),
            category_id=1,
            segmentation=[[i, 0, i + 4, 0, i + 4, 4, i, 4]],
        )
        for i in range(len(images))
    ]
    rows = [dict(id=i, file_name=name) for i, name in enumerate(images)]
    names = [dict(id=ids.get('category', int)(1), name=' dent\n')]
    return json.dumps(dict(images=rows, annotations=squares, categories=names))


@pytest.mark.parametrize('kind', [str, float])
def test_numbers_may_be_written_as_text_or_with_a_point(source, run, kind):
    pytest.importorskip('pycocotools')
    files = {f'{i}.jpg': photo(i) for i in range(2)}
    files['a.json'] = coco(sorted(files), image_id=kind, category=kind)
    made, _ = run(source(files))
    assert not made.faults and made.record.classes == ['background', 'dent']
    assert read_mask(made.root, '1')[2, 3] == 1 and read_mask(made.root, '0')[2, 7] == 0


def test_a_photo_goes_to_the_annotation_that_names_its_folder(source, run):
    pytest.importorskip('pycocotools')
    files = {f'camB/{i}.jpg': photo(i) for i in range(2)}
    listed = [f'cam{letter}/{i}.jpg' for letter in 'AB' for i in range(2)]
    made, _ = run(source({**files, 'a.json': coco(listed)}))
    assert [fault.partition(': ')[2] for fault in made.faults] == [
        f'names an image that is not there, camA/{i}.jpg; put it there' for i in range(2)
    ]
    assert read_mask(made.root, 'camB_0')[2, 5] == 1  # of the third image, from x=2 on


def test_a_photo_goes_to_the_labelme_file_beside_it(source, run):
    shape = dict(label='dent', points=[[1, 1], [9, 1], [9, 9]])
    files = {f'{s}/{s}.jpg': photo(i) for i, s in enumerate(('train', 'val'))}
    files |= {f'{s}/{s}.json': dict(imagePath=f'{s}.jpg', shapes=[shape]) for s in ('train', 'val')}
    files['train/lost.json'] = dict(imagePath='val.jpg', shapes=[])
    files = {k: json.dumps(v) if isinstance(v, dict) else v for k, v in files.items()}
    made, _ = run(source(files))
    (fault,) = made.faults
    assert fault.endswith(
        'train/lost.json: names an image that is not there, val.jpg; put it there'
    )
    assert read_mask(made.root, 'val_val').any()


def test_a_folder_that_is_not_there_is_told(source, run):
    pytest.importorskip('pycocotools')
    files = {f'camB/{i}.jpg': photo(i) for i in range(2)}
    _, said = run(source({**files, 'a.json': coco(['camA/0.jpg', 'camA/1.jpg'])}))
    assert '2 annotations name a photo in a folder that is not there' in said
    assert 'camA/0.jpg for camB/0.jpg' in said


def test_umlauts_may_be_one_character_or_two(source, run):
    made, _ = run(
        source({'images/\u00e4.jpg': photo(), 'masks/a\u0308.png': striped(0, 1)}), val='0'
    )
    assert not made.faults and made.counts == {'train': 1}


def labelled(*labels):
    shapes = [dict(label=label, points=[[1, 1], [9, 1], [9, 9]]) for label in labels]
    return {'a.jpg': photo(), 'a.json': json.dumps(dict(imagePath='a.jpg', shapes=shapes))}


def test_labels_lose_blanks_and_differ_by_more_than_case(source, run):
    folder = source(labelled('dent', 'dent ', 'Rust'))
    made, said = run(folder, void=('rust', 'scrach'))
    assert made.record.classes == ['background', 'dent']
    assert 'note: --void scrach: nothing here has that' in said
    folder = source(labelled('dent', 'Dent'))
    with pytest.raises(UserError, match="labels 'Dent' and 'dent' differ in case alone"):
        run(folder, 'other')
    made, _ = run(folder, 'both', classes=('dent', 'Dent'))
    assert made.record.classes == ['background', 'dent', 'Dent']


@pytest.mark.parametrize('void', ['7', '#00ff00'])
def test_void_that_no_mask_has_is_told(source, run, void):
    colours = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)
    masks = [striped(0, 1, 2), striped(2, 0, 1)]
    made, said = run(
        source(two(*(masks if void == '7' else colours[np.stack(masks)]))), void=[void]
    )
    assert f'note: --void {void}: nothing here has that' in said
    assert len(made.record.classes) == 3


def test_names_that_stand_twice_in_a_file_are_refused(source, run):
    folder = source({**two(striped(0, 1), striped(1, 0)), 'classes.txt': 'dent\nrust\ndent \n'})
    with pytest.raises(UserError, match=r'classes.txt names dent twice; delete one'):
        run(folder)


def test_masks_named_for_a_format_without_are_refused(source, run, tmp_path):
    folder = source(labelled('dent'))
    (tmp_path / 'masks').mkdir()
    Image.fromarray(striped(0, 1)).save(tmp_path / 'masks' / 'a.png')
    with pytest.raises(UserError, match=r'--masks .*masks: LabelMe reads none'):
        run(folder, masks=tmp_path / 'masks', format='labelme')
