"""Annotations that are damaged or make no sense: a line each with the file; the rest goes on."""

import base64
import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image

from ssnet_mm.errors import UserError
from ssnet_mm.prepare.formats.label_studio import decode_rle
from ssnet_mm.prepare.source import BadAnnotationError

from .conftest import SIZE, photo, read_mask, striped

W, H = SIZE
TRIANGLE = [[1, 1], [9, 1], [9, 9]]


def labelme(shapes, **changes):
    content = dict(imagePath='bad.jpg', imageWidth=W, imageHeight=H, shapes=shapes)
    return {'bad.json': json.dumps({**content, **changes})}


def shape(points=TRIANGLE, label='x', kind='polygon', **others):
    return dict(label=label, points=points, shape_type=kind, **others)


def coco(annotation, **changes):
    """Two photos; the annotation is of the second, on top of a good one of the first."""
    good = dict(id=1, image_id=1, category_id=5, segmentation=runs([0, W * H]))
    bad = dict(id=2, image_id=2, category_id=5, segmentation=annotation)
    content = dict(
        images=[
            dict(id=1, file_name='good.jpg', width=W, height=H),
            dict(id=2, file_name='bad.jpg', width=W, height=H),
        ],
        annotations=[good, bad],
        categories=[dict(id=5, name='x')],
    )
    for key, value in changes.items():
        place, _, name = key.partition('__')
        content[place][-1][name] = value
    return {'coco.json': json.dumps(content)}


def runs(counts, size=(H, W)):
    return dict(counts=counts, size=list(size))


def studio(rle, image='bad.jpg', **changes):
    value = dict(format='rle', rle=rle, brushlabels=['x'])
    result = dict(value=value, original_width=W, original_height=H, **changes)
    return {
        'ls.json': json.dumps(
            [dict(id=7, data=dict(image=image), annotations=[dict(result=[result])])]
        )
    }


GOOD_LABELME = {
    'good.jpg': photo(1),
    'bad.jpg': photo(2),
    'good.json': json.dumps(dict(imagePath='good.jpg', shapes=[shape()])),
}
GOOD_COCO = {'good.jpg': photo(1), 'bad.jpg': photo(2)}
GOOD_MASKS = {
    'images/good.jpg': photo(1),
    'images/bad.jpg': photo(2),
    'masks/good.png': striped(0, 1, 2),
}
GOOD_COLOURS = {
    'images/good.jpg': photo(1),
    'images/bad.jpg': photo(2),
    'masks/good.png': np.array([[0, 0, 0], [200, 0, 0]], np.uint8)[striped(0, 1)],
    'labelmap.txt': 'a:0,0,0::\nb:200,0,0::\n',
}
GOOD_STUDIO = {'good.jpg': photo(1), 'bad.jpg': photo(2)}
NOISE = np.random.default_rng(0).integers(0, 256, (H, W, 3)).astype(np.uint8)


def encoded(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def deep_colours(mask):
    deep = mask[..., None].astype(np.uint16).repeat(3, 2)
    return cv2.imencode('.png', deep)[1].tobytes()


WHOLE = encoded(striped(0, 1, 2), 'PNG')
PAGE = Image.fromarray(striped(0, 2))
DEEP = '{"shapes": ' + '[' * 100_000
CASES = {
    # LabelMe
    'an empty file': (GOOD_LABELME, {'bad.json': b''}, 'bad.json: is not JSON (it is empty)'),
    'a file cut short': (GOOD_LABELME, {'bad.json': '{"shapes": ['}, 'bad.json: is not JSON'),
    'a file of another kind': (
        GOOD_LABELME,
        {'bad.json': '[1, 2]'},
        'bad.json: is JSON of another',
    ),
    'a file nested too deep': (
        GOOD_LABELME,
        {'bad.json': DEEP},
        'bad.json: is not JSON (JSON nest',
    ),
    'a file of bytes': (GOOD_LABELME, {'bad.json': b'\xff\xfe\x00{'}, 'bad.json: is not JSON'),
    'no photo': (
        GOOD_LABELME,
        labelme([], imagePath='lost.jpg'),
        'an image that is not there, lost',
    ),
    'a photo of another format': (
        GOOD_LABELME,
        {**labelme([], imagePath='lost.heic'), 'lost.heic': b'0'},
        'names lost.heic, of a format that is not read; make it a JPEG',
    ),
    'a path out of the folder': (
        GOOD_LABELME,
        labelme([], imagePath='../../../etc/passwd.jpg'),
        'an image that is not there',
    ),
    'a photo for two': (
        GOOD_LABELME,
        labelme([shape()], imagePath='good.jpg'),
        'is about the same photo',
    ),
    'two points': (GOOD_LABELME, labelme([shape(TRIANGLE[:2])]), 'a polygon of 2 points'),
    'points that are none': (
        GOOD_LABELME,
        labelme([shape([['1', 2]] * 3)]),
        'not pairs of numbers',
    ),
    'points beyond all numbers': (
        GOOD_LABELME,
        labelme([shape([[1, 1], [float('nan'), 2], [3, float('inf')]])]),
        'not pairs of numbers',
    ),
    'points outside': (
        GOOD_LABELME,
        labelme([shape([[900, 900], [990, 900], [990, 990]])]),
        'a polygon that lies outside of the 24x16 image, from x=900, y=900',
    ),
    'no label': (GOOD_LABELME, labelme([shape(label=None)]), 'a shape without a label'),
    'a shape of no kind': (GOOD_LABELME, labelme([shape(kind='cuboid')]), "unknown kind, 'cuboid'"),
    'shapes that are none': (GOOD_LABELME, labelme([7]), 'a shape that is no object'),
    'a kind that is no word': (GOOD_LABELME, labelme([shape(kind=[1])]), 'unknown kind, [1]'),
    'points that are shares': (
        GOOD_LABELME,
        labelme([shape([[0.1, 0.1], [0.5, 0.1], [0.5, 0.9]])]),
        'a polygon within the first pixel, up to x=0.5, y=0.9; are these shares of the sides?',
    ),
    'a scaled photo whose size is text': (
        GOOD_LABELME,
        labelme([], imageWidth='48', imageHeight=16.0),
        'was made on an image of 48x16',
    ),
    'a scaled photo': (GOOD_LABELME, labelme([], imageWidth=48), 'was made on an image of 48x16'),
    'a damaged mask': (
        GOOD_LABELME,
        labelme([shape([[1, 1], [9, 9]], kind='mask', mask='AAAA')]),
        'a shape whose mask is damaged',
    ),
    'a mask too large': (
        GOOD_LABELME,
        labelme(
            [shape([[9, 9], [9, 9]], kind='mask', mask=base64.b64encode(WHOLE).decode())]
        ),
        'a mask at 9,9 that reaches beyond the image',
    ),
    'a damaged photo': (
        GOOD_LABELME,
        {**labelme([]), 'bad.jpg': photo(2)[:200]},
        'bad.jpg: is cut',
    ),
    # COCO
    'a box alone': (GOOD_COCO, coco([]), 'bad.jpg: annotation 2: has no segmentation'),
    'an odd polygon': (GOOD_COCO, coco([[1, 2, 3, 4, 5]]), 'a polygon that is no list of three'),
    'runs that end early': (GOOD_COCO, coco(runs([3, 4])), 'run lengths that do not add up'),
    'runs that go on': (GOOD_COCO, coco(runs([0, W * H, 9])), 'run lengths that do not add up'),
    'runs below zero': (GOOD_COCO, coco(runs([-4, W * H + 4])), 'run lengths that do not add up'),
    'packed runs of noise': (GOOD_COCO, coco(runs('P\x7f!')), 'run lengths that do not add up'),
    'runs of another image': (GOOD_COCO, coco(runs([H], (H, 1))), 'run lengths of a [16, 1]'),
    'an unknown category': (
        GOOD_COCO,
        coco(runs([0, W * H]), annotations__category_id=99),
        'annotation 2 is of category 99',
    ),
    'an unknown image': (
        GOOD_COCO,
        coco(runs([0, W * H]), annotations__image_id=99),
        'annotation 2 is of image 99',
    ),
    'a name for two': (
        GOOD_COCO,
        coco([], images__file_name='good.jpg'),
        'good.jpg is in coco.json too',
    ),
    'no categories': (
        {**GOOD_COCO, **coco(runs([0, W * H]))},
        {'more.json': json.dumps(dict(images=[], annotations=[], categories=None))},
        'more.json: categories without name',
    ),
    'no file name': (GOOD_COCO, coco([], images__file_name=None), 'image 2 has no file_name'),
    # Label Studio
    'an address that is none': (
        GOOD_STUDIO,
        studio([], image='http://[cam1]/bad2.jpg'),
        'task 7: names an image that is not there, http://[cam1]/bad2.jpg',
    ),
    'strokes cut short': (
        GOOD_STUDIO,
        studio([0, 0, 6, 0]),
        'task 7: brush strokes that are damaged',
    ),
    'strokes that are none': (GOOD_STUDIO, studio('abc'), 'task 7: brush strokes that are damaged'),
    'strokes of another image': (
        GOOD_STUDIO,
        studio([0, 0, 0, 9, 57, 36, 124]),
        'brush strokes of an image of another size',
    ),
    'a rotated photo': (GOOD_STUDIO, studio([], image_rotation=90), 'was rotated in Label Studio'),
    # masks
    'a mask of another size': (
        GOOD_MASKS,
        {'masks/bad.png': striped(0, 1)[:9]},
        'bad.png: is 24x9, its photo 24x16',
    ),
    'a mask cut short': (GOOD_MASKS, {'masks/bad.png': WHOLE[:45]}, 'bad.png: is no image, or'),
    'a mask of too many pixels': (
        GOOD_MASKS,
        {'masks/bad.png': encoded(np.zeros((9000, 10000), bool), 'PNG')},
        'bad.png: has more than 89 million pixels',
    ),
    'no mask': (GOOD_MASKS, {}, 'bad.jpg: has no mask'),
    'a mask without photo': (GOOD_MASKS, {'masks/lone.png': WHOLE}, 'lone.png: a mask without a'),
    'a mask without a photo that is read': (
        GOOD_MASKS,
        {'masks/lone.png': WHOLE, 'images/lone.HEIC': b'0'},
        'lone.png: a mask without a photo; images/lone.HEIC is of a format that is not read',
    ),
    'a mask as JPEG': (GOOD_MASKS, {'masks/bad.jpg': encoded(striped(0, 1), 'JPEG')}, 'is a JPEG'),
    'a mask of several pages': (
        GOOD_MASKS,
        {'masks/bad.tif': encoded(striped(0, 1), 'TIFF', save_all=True, append_images=[PAGE])},
        'bad.tif: holds 2 pages; store each mask in its own file',
    ),
    'a mask of deep colours': (
        GOOD_MASKS,
        {'masks/bad.png': deep_colours(striped(0, 1))},
        'bad.png: has 16 bits a channel; store class numbers as grey',
    ),
    'a mask of grey areas': (
        {**GOOD_MASKS, 'masks/good.png': striped(0, 255)},
        {'masks/bad.png': striped(0, 120, 255)},
        '128 pixels of grey 120, between black and white',
    ),
    'a mask that is transparent': (
        GOOD_COLOURS,
        {'masks/bad.png': np.dstack([striped(0, 200)] * 3 + [striped(0)])},
        'is transparent throughout',
    ),
    'a mask of infinities': (
        GOOD_MASKS,
        {
            'masks/bad.tif': encoded(np.full((H, W), np.inf, np.float32), 'TIFF'),
            'classes.txt': '__ignore__\na\nb\nc\n',
        },
        'bad.tif: holds fractions, NaN or infinity',
    ),
    'a mask of large numbers': (
        GOOD_MASKS,
        {'masks/bad.png': striped(0, 700, dtype=np.uint16), 'classes.txt': 'a\nb\nc\n'},
        'holds 700, where classes are 0 to 2',
    ),
    'a mask among others that is coloured': (
        GOOD_MASKS,
        {'masks/bad.png': NOISE},
        'is a colour picture, and others hold numbers',
    ),
    'a photo as a mask': (GOOD_COLOURS, {'masks/bad.png': NOISE}, 'colours, as a photo has'),
    'a colour of no class': (
        GOOD_COLOURS,
        {'masks/bad.png': np.array([[0, 0, 0], [0, 90, 0]], np.uint8)[striped(0, 1)]},
        '192 pixels of #005a00, which is no colour of a class',
    ),
}  # fmt: skip


# cases in which more than one file is at fault, and those in which the second photo is not
SEVERAL = {'a mask without photo', 'a mask without a photo that is read'}
SOUND = {'an unknown image', 'no categories'}
# formats that these files alone would not tell
KINDS = {
    'a mask among others that is coloured': 'index',
    'a mask of grey areas': 'binary',
    'a mask that is transparent': 'cvat',
}


def packed(length, value):
    """A run of one value, as Label Studio packs it."""
    bits = f'{length:032b}' + '00111' + '0010001101111111' + f'111{length - 1:016b}{value:08b}'
    bits += '0' * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize('name', CASES)
def test_what_is_malformed_is_one_line_and_the_rest_goes_on(source, run, name):
    good, bad, told = CASES[name]
    kind = KINDS.get(name, '')
    if good is GOOD_STUDIO:  # the good task in a file of its own
        good = {**good, 'good.json': studio(packed(4 * W * H, 255), 'good.jpg')['ls.json']}
    made, said = run(source({**good, **bad}), format=kind)
    assert sum(told in fault for fault in made.faults) == 1, made.faults
    assert not any('\n' in fault for fault in made.faults)
    assert name in SEVERAL or len(made.faults) == 1
    if name not in SOUND:
        assert not (made.root / 'SegmentationClass' / 'bad.png').exists()
    assert read_mask(made.root, 'good').any()


@pytest.mark.parametrize(
    ('table', 'told'),
    [
        ('a:0,0,0::\nb: red\n', "line 2: 'b: red' is no name with red, green, blue"),
        ('a:0,0,0::\nb:0,0,300::\n', 'line 2'),
        ('a:0,0,0::\na:1,0,0::\n', 'line 2: a stands there twice'),
        ('a:200,0,0::\nb:200,0,0::\n', 'two classes have the same colour'),
        ('# nothing\n', 'names no colours'),
    ],
)
def test_a_table_of_colours_that_makes_no_sense_is_refused(source, run, tmp_path, table, told):
    (tmp_path / 'table').write_text(table)
    files = {**GOOD_COLOURS, 'labelmap.txt': '', 'masks/bad.png': striped(0, 0)}
    with pytest.raises(UserError, match=told):
        run(source(files), colours=tmp_path / 'table', format='colours')


def test_run_lengths_of_noise_raise_nothing_else():
    rng = np.random.default_rng(0)
    for _ in range(300):
        noise = rng.integers(0, 256, rng.integers(0, 40)).tolist()
        with pytest.raises(BadAnnotationError):
            decode_rle([0, 0, 6, 0, *noise], 4 * W * H)
