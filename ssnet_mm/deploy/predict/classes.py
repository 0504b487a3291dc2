"""Names of a model's classes."""

from __future__ import annotations

from collections.abc import Collection

from ssnet_mm.deploy.segmenter import Segmenter
from ssnet_mm.errors import UserError


def class_names(segment: Segmenter) -> list[str]:
    """A name for each label: the model's, or 'class 3'."""
    known = segment.classes
    return [
        known[i] if i < len(known) else f'class {i}' for i in range(segment.session.num_classes)
    ]


def labels_of(segment: Segmenter, names: Collection[str]) -> frozenset[int]:
    """Labels of the classes of some names; UserError with all names where there is no such class.

    Classes of one name are meant together.
    """
    known = class_names(segment)
    for name in names:
        if name not in known:
            raise UserError(f'no class {name!r}; the classes are {", ".join(known)}')
    return frozenset(i for i, name in enumerate(known) if name in names)
