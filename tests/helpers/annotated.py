"""Photos with label maps, written as annotation tools export them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

VOID = 255


@dataclass(frozen=True)
class Labelled:
    """Photos with their label maps (indices, 255 is void), classes and colours."""

    photos: Sequence[Path]
    masks: Sequence[Path]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]

    def pairs(self) -> Any:
        for photo, mask in zip(self.photos, self.masks, strict=True):
            yield photo, np.asarray(Image.open(mask))

    def copy_photos(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for photo in self.photos:
            shutil.copy(photo, folder)

    def write_masks(self, folder: Path, change: Callable[[Any], Any]) -> None:
        folder.mkdir(parents=True)
        for photo, labels in self.pairs():
            Image.fromarray(change(labels)).save(folder / f'{photo.stem}.png')

    @property
    def colours(self) -> Any:
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.palette)] = self.palette
        return table


def index(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root / 'photos')
    data.write_masks(root / 'masks', np.asarray)
    return [str(root / 'photos'), str(root / 'masks'), '--classes', *data.classes]


def binary(data: Labelled, root: Path) -> list[str]:
    """The class of most pixels, and the rest."""
    counts = sum(np.bincount(labels.ravel(), minlength=256) for _, labels in data.pairs())
    most = int(counts[1 : len(data.classes)].argmax()) + 1
    data.copy_photos(root / 'photos')
    data.write_masks(root / 'masks', lambda labels: np.uint8(255) * (labels == most))
    return [str(root / 'photos'), str(root / 'masks'), '--classes', 'rest', data.classes[most]]


def colours(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root / 'photos')
    data.write_masks(root / 'masks', lambda labels: data.colours[labels])
    table = [f'{n}:{",".join(map(str, c))}\n' for n, c in zip(data.classes, data.palette)]
    (root / 'colours.txt').write_text(''.join([*table, 'void:0,0,0\n']))
    return [str(root / 'photos'), str(root / 'masks'), '--colours', str(root / 'colours.txt')]


def cvat(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root / 'photos')
    data.write_masks(root / 'export' / 'SegmentationClass', lambda labels: data.colours[labels])
    rows = [f'{n}:{",".join(map(str, c))}::\n' for n, c in zip(data.classes, data.palette)]
    head = ['# label:color_rgb:parts:actions\n', 'background:0,0,0::\n']
    (root / 'export' / 'labelmap.txt').write_text(''.join([*head, *rows]))
    return [str(root / 'photos'), str(root / 'export'), '--void', 'background']


def coco(data: Labelled, root: Path) -> list[str]:
    from pycocotools import mask as coco_mask

    data.copy_photos(root / 'images')
    images, rows = [], []
    for i, (photo, labels) in enumerate(data.pairs()):
        height, width = labels.shape
        images.append(dict(id=i, file_name=photo.name, width=width, height=height))
        for label in range(len(data.classes)):
            if (labels == label).any():
                rle = coco_mask.encode(np.asfortranarray(labels == label, np.uint8))
                segmentation = dict(size=rle['size'], counts=rle['counts'].decode())
                rows.append(dict(id=len(rows), image_id=i, category_id=label + 1, iscrowd=1,
                                 segmentation=segmentation))  # fmt: skip
    categories = [dict(id=i, name=name) for i, name in enumerate(data.classes, 1)]
    content = dict(images=images, annotations=rows, categories=categories)
    (root / 'instances.json').write_text(json.dumps(content))
    return [str(root)]


def _outlines(labels: Any, num_classes: int) -> list[tuple[int, list[list[float]]]]:
    """Class and polygon of each area, larger ones first: what lies inside comes later."""
    found: list[tuple[float, int, list[list[float]]]] = []
    for label in range(num_classes):
        area = (labels == label).astype(np.uint8)
        for points in cv2.findContours(area, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]:
            if len(points) >= 3:
                corners = points[:, 0].astype(float).tolist()
                found.append((cv2.contourArea(points), label, corners))
    return [(label, corners) for _, label, corners in sorted(found, key=lambda r: -r[0])]


def labelme(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root / 'photos')
    for photo, labels in data.pairs():
        shapes = [
            dict(label=data.classes[label], points=points, shape_type='polygon', flags={})
            for label, points in _outlines(labels, len(data.classes))
        ]
        size = dict(imageHeight=labels.shape[0], imageWidth=labels.shape[1])
        content = dict(version='5', shapes=shapes, imagePath=photo.name, imageData=None, **size)
        (root / 'photos' / f'{photo.stem}.json').write_text(json.dumps(content))
    return [str(root / 'photos')]


def label_studio(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root)
    tasks = []
    for i, (photo, labels) in enumerate(data.pairs()):
        height, width = labels.shape
        results = [
            dict(
                type='polygonlabels', original_width=width, original_height=height,
                value=dict(points=[[100 * x / width, 100 * y / height] for x, y in points],
                           polygonlabels=[data.classes[label]]),
            )
            for label, points in _outlines(labels, len(data.classes))
        ]  # fmt: skip
        image = f'/data/upload/1/0a1b2c3d-{photo.name}'
        tasks.append(dict(id=i, data=dict(image=image), annotations=[dict(result=results)]))
    (root / 'project.json').write_text(json.dumps(tasks))
    return [str(root)]


def label_studio_png(data: Labelled, root: Path) -> list[str]:
    data.copy_photos(root)
    with open(root / 'project.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['annotation_id', 'id', 'image'])
        for i, (photo, labels) in enumerate(data.pairs(), 1):
            writer.writerow([i, i, f'/data/upload/1/0a1b2c3d-{photo.name}'])
            for label, name in enumerate(data.classes):
                if (labels == label).any():
                    file_name = f'task-{i}-annotation-{i}-by-1-tag-{name}-0.png'
                    Image.fromarray(np.uint8(255) * (labels == label)).save(root / file_name)
    return [str(root)]


FORMATS = {
    'index': index, 'binary': binary, 'colours': colours, 'cvat': cvat, 'coco': coco,
    'labelme': labelme, 'label-studio': label_studio, 'label-studio-png': label_studio_png,
}  # fmt: skip
