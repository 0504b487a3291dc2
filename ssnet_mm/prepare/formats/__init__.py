"""The table of formats that are read. To add one: a file here, and its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ssnet_mm.errors import UserError
from ssnet_mm.prepare.formats import binary, camvid, coco, colours, index, label_studio, labelme
from ssnet_mm.prepare.source import Annotations, Folder, Options


def _by_name_only(folder: Folder) -> str:
    return ''


@dataclass(frozen=True)
class Format:
    """A way in which people have their annotations.

    Args:
        name: For --format.
        title: For messages.
        recognise: Says why a folder is of this format; empty if it isn't.
        read: Finds photos and annotations; it raises UserError where nothing can be read.
    """

    name: str
    title: str
    recognise: Callable[[Folder], str]
    read: Callable[[Folder, Options], Annotations]


FORMATS = {
    row.name: row
    for row in (
        Format('index', 'masks of class numbers', index.recognise, index.read),
        Format('binary', 'black and white masks', binary.recognise, binary.read),
        Format('colours', 'colour masks', colours.recognise, colours.read),
        Format('cvat', "CVAT's segmentation masks", colours.recognise_cvat, colours.read),
        Format('coco', 'COCO', coco.recognise, coco.read),
        Format('labelme', 'LabelMe', labelme.recognise, labelme.read),
        Format('label-studio', 'Label Studio', label_studio.recognise, label_studio.read),
        Format(
            'label-studio-png',
            "Label Studio's brush PNGs",
            label_studio.recognise_png,
            label_studio.read_png,
        ),
        Format('camvid', 'CamVid', _by_name_only, camvid.read),
    )
}


def recognise(folder: Folder) -> tuple[Format, str]:
    """The one format that a folder is of, and why.

    Raises:
        UserError: It is of none, or of several.
    """
    found = [(row, why) for row in FORMATS.values() if (why := row.recognise(folder))]
    if len(found) == 1:
        return found[0]
    names = ', '.join(FORMATS)
    if found:
        reasons = ' or '.join(f'{row.name} ({why})' for row, why in found)
        raise UserError(f'{folder.root} may be {reasons}; say which by --format')
    raise UserError(
        f'{folder.root} holds no annotations that are known ({len(folder.images)} images, '
        f'{len(folder.having(".json"))} JSON files); put masks into a folder masks/ beside the '
        f'photos, name their folder by --masks, or say --format, one of {names}'
    )
