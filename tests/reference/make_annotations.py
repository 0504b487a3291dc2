"""Writes annotations.zip: tiny photos annotated, and the masks that the tools' own code makes.

Run where labelme 6.3, pycocotools 2.0.11 and label-studio-converter 0.0.59 are installed; none of
them is needed by the tests but pycocotools.
"""

import base64
import contextlib
import io
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from label_studio_converter import brush
from labelme._label_file import write_label_file
from labelme.utils import shapes_to_label
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

WIDTH, HEIGHT = 61, 45
ARCHIVE = Path(__file__).with_name('annotations.zip')
rng = np.random.default_rng(0)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    return buffer.getvalue()


def photo(i):
    buffer = io.BytesIO()
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, 'JPEG')
    return buffer.getvalue()


def write_labelme(root):
    blob = rng.random((9, 12)) > 0.4
    shapes = [
        ('sky', 'polygon', [[0.4, 0.2], [60.7, 1.5], [40.2, 20.9], [3.3, 17.1]], None),
        ('car', 'rectangle', [[30, 40], [12.5, 22.25]], None),
        ('car', 'circle', [[40, 30], [46.5, 31]], None),
        ('pole', 'line', [[5, 5], [50, 40]], None),
        ('pole', 'linestrip', [[5, 40], [20, 35], [30, 44]], None),
        ('sign', 'point', [[55, 10]], None),
        ('sign', 'oriented_rectangle', [[20, 5], [30, 10], [27, 16], [17, 11]], None),
        ('__ignore__', 'polygon', [[50, 35], [70, 35], [70, 50]], None),
        ('_background_', 'polygon', [[2, 30], [9, 30], [6, 42]], None),
        ('tree', 'mask', [[33.0, 12.0], [44.0, 20.0]], blob),
    ]
    values = dict(_background_=0, car=1, pole=2, sign=3, sky=4, tree=5, __ignore__=255)
    rows = []
    for label, kind, points, mask in shapes:
        row = dict(label=label, points=points, group_id=None, shape_type=kind, flags={})
        stored = None if mask is None else base64.b64encode(png(mask)).decode()
        rows.append((dict(row, mask=mask), dict(row, description='', mask=stored)))
    made, _ = shapes_to_label((HEIGHT, WIDTH), [row for row, _ in rows], values)
    write_label_file(
        str(root / 'a.json'),
        shapes=[row for _, row in rows],
        image_path='a.jpg',
        image_height=HEIGHT,
        image_width=WIDTH,
    )
    (root / 'a.jpg').write_bytes(photo(0))
    return {'a': made.astype(np.uint8)}


def write_coco(root):
    (root / 'images').mkdir()
    blobs = rng.random((3, HEIGHT, WIDTH)) > 0.7
    blobs[1, :, 30:] = False
    encoded = coco_mask.encode(np.asfortranarray(blobs[0].astype(np.uint8)))
    runs = np.flatnonzero(np.diff(np.r_[2, blobs[1].ravel('F').astype(int), 2]))
    counts = np.diff(runs).tolist()
    counts = counts if not blobs[1, 0, 0] else [0, *counts]
    segmentations = [
        (20, [[1.5, 2.5, 50.25, 3, 44, 40.75, 2, 39]]),
        (10, [[5, 5, 20, 5, 12, 20], [30.3, 30.1, 58, 28, 50, 44.9, 35, 44]]),
        (30, dict(size=encoded['size'], counts=encoded['counts'].decode())),
        (20, dict(size=[HEIGHT, WIDTH], counts=counts)),
    ]
    annotations = [
        dict(id=i, image_id=7, category_id=c, segmentation=s, iscrowd=int(isinstance(s, dict)))
        for i, (c, s) in enumerate(segmentations, 1)
    ]
    images = [
        dict(id=7, file_name='a.jpg', width=WIDTH, height=HEIGHT),
        dict(id=8, file_name='b.jpg', width=WIDTH, height=HEIGHT),
    ]
    categories = [dict(id=i, name=name) for i, name in ((30, 'dog'), (10, 'cat'), (20, 'bird'))]
    path = root / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    for name in 'ab':
        (root / 'images' / f'{name}.jpg').write_bytes(photo(0))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    areas = [
        (coco.annToMask(a) > 0, a['category_id'] // 10) for a in coco.loadAnns(coco.getAnnIds())
    ]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for area, number in sorted(areas, key=lambda pair: -pair[0].sum()):
        mask[area] = number
    return {'a': mask, 'b': np.zeros_like(mask)}


def write_label_studio(root, png_root):
    blobs = {'cat': rng.random((HEIGHT, WIDTH)) > 0.7, 'big dog': np.zeros((HEIGHT, WIDTH), bool)}
    blobs['big dog'][10:40, 20:50] = True
    results, mask = [], np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, area in blobs.items():
        rle = brush.mask2rle((area * 255).astype(np.uint8))
        value = dict(format='rle', rle=rle, brushlabels=[label])
        size = dict(original_width=WIDTH, original_height=HEIGHT, image_rotation=0)
        results.append(dict(type='brushlabels', from_name='tag', value=value, **size))
        mask[area] = ['background', 'big dog', 'cat'].index(label)
    cancelled = dict(id=4, was_cancelled=True, result=results[:1])
    task = dict(
        id=12,
        data=dict(image='/data/upload/3/0a1b2c3d-a.jpg'),
        annotations=[dict(id=3, was_cancelled=False, result=results), cancelled],
    )
    (root / 'project.json').write_text(json.dumps([task]))
    flat = [
        dict(type='brushlabels', rle=r['value']['rle'], brushlabels=r['value']['brushlabels'],
             original_width=WIDTH, original_height=HEIGHT) for r in results
    ]  # fmt: skip
    item = dict(id=12, annotation_id=3, completed_by=dict(email='a@b.c'), output=dict(tag=flat))
    brush.convert_task_dir([item], str(png_root), out_format='png')
    (png_root / 'project.csv').write_text(
        'annotation_id,id,image\n3,12,/data/upload/3/0a1b2c3d-a.jpg\n'
    )
    for folder in (root, png_root):
        (folder / 'a.jpg').write_bytes(photo(0))
    by_size = np.zeros_like(mask)  # nothing says in which order PNGs were painted
    for label, area in sorted(blobs.items(), key=lambda row: -row[1].sum()):
        by_size[area] = ['background', 'big dog', 'cat'].index(label)
    return {'a': mask}, {'a': by_size}


def main():
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(ARCHIVE, 'w', 8) as archive:
        roots = {
            n: Path(scratch, n) for n in ('labelme', 'coco', 'label-studio', 'label-studio-png')
        }
        for root in roots.values():
            root.mkdir()
        masks = {'labelme': write_labelme(roots['labelme']), 'coco': write_coco(roots['coco'])}
        both = roots['label-studio'], roots['label-studio-png']
        masks['label-studio'], masks['label-studio-png'] = write_label_studio(*both)
        for name, made in masks.items():
            for stem, mask in made.items():
                archive.writestr(f'masks/{name}/{stem}.png', png(mask))
        for path in sorted(Path(scratch).rglob('*')):
            if path.is_file():
                archive.write(path, path.relative_to(scratch).as_posix())


if __name__ == '__main__':
    main()
