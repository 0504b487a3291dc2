"""Labels in the formats of annotation tools."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ssnet_mm.deploy.predict.polygons import regions
from ssnet_mm.deploy.predict.task import Result, Task
from ssnet_mm.files import write_result

Coco = tuple[dict[str, Any], list[str]]  # an image, and its annotations as JSON


def coco_annotations(task: Task, image: Result) -> Coco:
    """An image's entry in COCO's file, and its annotations without their numbers.

    They are text, since the objects of a thousand images would take gigabytes.
    """
    height, width = image.labels.shape
    annotations = [
        json.dumps(
            {
                'category_id': region.label + 1,  # 0 is the background to some tools
                'segmentation': [part.ravel().tolist() for part in region.corners()],
                'area': region.area,
                'bbox': region.box,
                'iscrowd': 0,
            }
        )
        for region in regions(task.outline, image.labels, image.present)
    ]
    return {'file_name': image.reference, 'width': width, 'height': height}, annotations


def write_coco(task: Task, images: list[Coco]) -> None:
    """The file of all images."""
    rows = [{'id': i, **image} for i, (image, _) in enumerate(images, 1)]
    names = task.overlay.names
    categories = [
        {'id': i + 1, 'name': names[i], 'supercategory': ''} for i in sorted(task.outline.labels)
    ]
    annotations = [
        (i, annotation) for i, (_, found) in enumerate(images, 1) for annotation in found
    ]
    listed = ',\n'.join(
        f'{{"id": {number}, "image_id": {i}, {annotation[1:]}'
        for number, (i, annotation) in enumerate(annotations, 1)
    )
    head = json.dumps({'info': {}, 'licenses': [], 'images': rows, 'categories': categories})
    text = f'{head[:-1]}, "annotations": [\n{listed}\n]}}\n'
    write_result(task.out_dir / 'coco.json', text.encode())


def labelme_file(out_dir: Path, name: str) -> Path:
    """LabelMe's file of an image."""
    return out_dir / 'labelme' / f'{name}.json'


def labelme_annotations(task: Task, image: Result) -> None:
    """LabelMe's file of an image: polygons through the pixels at their edge, as it draws them.

    Smaller regions come later, since they cover larger ones.
    """
    path = labelme_file(task.out_dir, image.name)
    found = sorted(
        regions(task.outline, image.labels, image.present), key=lambda region: -region.area
    )
    shapes = []
    for group, region in enumerate(found, 1):
        polygons = region.centres()
        for points in polygons:
            corners = (points + 0.5).tolist()
            corners += corners[-1:] * (3 - len(corners))  # LabelMe takes no fewer
            shapes.append(
                {
                    'label': task.overlay.names[region.label],
                    'points': corners,
                    'group_id': group if len(polygons) > 1 else None,
                    'description': '',
                    'shape_type': 'polygon',
                    'flags': {},
                    'mask': None,
                }
            )
    height, width = image.labels.shape
    content = {
        'version': '5.0.0',
        'flags': {},
        'shapes': shapes,
        'imagePath': Path(os.path.relpath(image.path, path.parent)).as_posix(),
        'imageData': None,
        'imageHeight': height,
        'imageWidth': width,
    }
    write_result(path, json.dumps(content, indent=1).encode())
