"""What the user says of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """How to prepare; empty where the source or the folder made before has to tell.

    Args:
        format: A name of ``FORMATS``.
        masks: Folder of the masks, where they are not in the source.
        classes: Names by index.
        colours: File with names and colours.
        void: Values, colours or names that do not count.
        val: The share of the images that validates, or a file with their names.
        seed: Of the draw.
        images: 'jpg' or 'png': what photos are stored as.
        exif: 'upright' or 'stored': what annotations were made on, where sizes do not tell.
    """

    format: str = ''
    masks: Path | None = None
    classes: Sequence[str] = ()
    colours: Path | None = None
    void: Sequence[str] = ()
    val: str = ''
    seed: int = 0
    images: str = ''
    exif: str = ''
