"""Names of classes to indices, for annotations that name what they mark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.errors import UserError
from ssnet_mm.prepare.source import MAX_CLASSES, VOID, BadAnnotationError

BACKGROUND = 'background'
_BACKGROUNDS = {'_background_', '__background__', 'background', 'bg'}
_VOIDS = {'__ignore__', '_ignore_', 'ignore', 'unlabeled', 'unlabelled', 'void'}


class ClassNames:
    """What is not marked is the background, class 0; then names as they are given, or sorted.

    Args:
        given: By the user, with or without the background first; empty to take all that is found.
        found: In the source.
        void: Names that do not count, beside the usual ones.
    """

    def __init__(self, given: Sequence[str], found: Iterable[str], void: Iterable[str]) -> None:
        self._void = {name.casefold() for name in void}
        if given:
            ours = [clean(name) for name in given]
            late = [name for name in ours[1:] if is_background(name)]
            if late:
                raise UserError(
                    f'--classes: {late[0]} is what nothing marks, class 0; name it first'
                )
            if not is_background(ours[0]):
                ours.insert(0, BACKGROUND)
        else:
            kept = {n for n in map(clean, found) if not is_background(n) and not self._is_void(n)}
            ours = [BACKGROUND, *sorted(kept)]
            by_case: dict[str, str] = {}
            for name in ours:
                other = by_case.setdefault(name.casefold(), name)
                if other != name:
                    raise UserError(
                        f'the labels {other!r} and {name!r} differ in case alone; write them '
                        'alike, or name both by --classes if they are two classes'
                    )
        if len(ours) > MAX_CLASSES:
            raise UserError(f'{len(ours)} classes, where {MAX_CLASSES} are the limit; name fewer')
        self.classes = ours
        self._index = {name: i for i, name in enumerate(ours)}

    def _is_void(self, label: str) -> bool:
        return is_void(label) or label.casefold() in self._void

    def index(self, label: object) -> int:
        """The class of a label, or void.

        Raises:
            BadAnnotationError: It is none of the classes.
        """
        if not isinstance(label, str) or not label.strip():
            raise BadAnnotationError(f'a shape without a label ({label!r}); name it or delete it')
        label = clean(label)
        if label in self._index:
            return self._index[label]
        if self._is_void(label):
            return VOID
        if is_background(label):
            return 0
        raise BadAnnotationError(
            f'the label {label!r} is none of the classes; add it at the end of --classes, or leave '
            f'its areas out with --void {label!r}'
        )


def read_names(path: Path) -> list[str]:
    """A name a line; LabelMe's ``__ignore__``, which is no class, is left out.

    Raises:
        UserError: The file can't be read, or names one twice.
    """
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); save it as UTF-8 text") from error
    names = [name for line in lines if (name := clean(line)) and name != '__ignore__']
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f'{path} names {repeated[0]} twice; delete one of the lines')
    return names


def clean(label: str) -> str:
    """A label without the blanks around it, in one line."""
    return ' '.join(label.split())


def is_background(name: str) -> bool:
    """Whether a name is what tools call the background."""
    return name.casefold() in _BACKGROUNDS


def is_void(name: str) -> bool:
    """Whether a name is what tools call areas that do not count."""
    return name.casefold() in _VOIDS


def fingerprint(part: Any) -> str:
    """A short text that changes when a part of JSON does."""
    text = json.dumps(part, sort_keys=True, default=str).encode()
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def unmet_void(void: Iterable[str], found: Iterable[str]) -> list[str]:
    """A note on what --void names and nothing holds, which may be a slip."""
    known = {name.casefold() for name in map(clean, found)}
    unmet = [name for name in void if name.casefold() not in known]
    return [f'--void {" ".join(unmet)}: nothing here has that'] if unmet else []


def leave_unmarked(names: Sequence[str]) -> list[str]:
    """A note on photos that no annotation is about."""
    if not names:
        return []
    return [f'{len(names)} photos without an annotation are left out, the first is {names[0]}']
