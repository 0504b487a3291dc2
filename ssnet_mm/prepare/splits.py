"""Which images train, and which validate."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssnet_mm.errors import UserError, few

VAL_SHARE = 0.2
_FEWEST = 20  # photos whose order tells something


@dataclass(frozen=True)
class Candidate:
    """An image that wants a split.

    Args:
        key: Its path in the source, without suffix.
        digest: Of its content.
        told: The split that the source says; empty where it doesn't.
        known: The split that it had before; empty where it is new.
        small: Its thumbnail, where it is at hand.
    """

    key: str
    digest: str
    told: str
    known: str
    small: NDArray[np.float32] | None = None


def read_val(text: str) -> float | list[str]:
    """What --val says: a share, or names from a file.

    Raises:
        UserError: It is neither.
    """
    try:
        share = float(text)
    except ValueError:
        path = Path(text)
        try:
            lines = path.read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f'--val {text}: neither a share, as 0.2, nor a list of names that can be read '
                f'({error})'
            ) from error
        return [line.strip() for line in lines if line.strip()]
    if not 0 <= share < 1:
        raise UserError(f'--val {text}: expected a share of the images, from 0 to below 1')
    return share


def assign(
    candidates: Mapping[str, Candidate], val: float | Collection[str] | None, seed: int
) -> tuple[dict[str, str], str, list[str]]:
    """Give each image a split; those of the same content get the same.

    What an image had before, it keeps.

    Args:
        candidates: By name.
        val: The share that validates, or the names of those; None to do as the source says, which
            is the default share where it says nothing.
        seed: Of the draw.

    Returns:
        The splits by name; how they came about; notes: a line for each image that would have been
        in two splits and is left out, and on photos that should not be drawn one by one.
    """
    notes: list[str] = []
    told = {n: c.told for n, c in candidates.items()}
    if isinstance(val, (list, tuple, set)):
        told, how = _listed(candidates, val), 'by the list'
    elif val is None and 'val' in told.values():
        unnamed = sum(not split for split in told.values())
        how = 'as the source has it'
        if unnamed:
            how += f'; {unnamed} photos outside of its splits train'
        told = {n: split or 'train' for n, split in told.items()}
    else:
        val = val if isinstance(val, float) else VAL_SHARE
        told = {n: split if split == 'test' else '' for n, split in told.items()}
        how = f'{val:g} of the images validate, drawn with seed {seed}'
        if val and _are_frames(candidates.values()):
            notes.append(
                'most photos are like the one before them, as frames of a video are; drawn one by '
                'one they validate what was trained on, so name whole recordings by --val FILE'
            )
    splits = {n: c.known or told[n] for n, c in candidates.items()}
    by_content: dict[str, list[str]] = defaultdict(list)
    for name, candidate in candidates.items():
        by_content[candidate.digest].append(name)
    for names in by_content.values():
        given = {splits[n] for n in names} - {''}
        if not given:
            continue
        known = [candidates[n].known for n in names if candidates[n].known]
        # new ones in two splits stay where they are scored
        kept = known[0] if known else next(s for s in ('test', 'val', 'train') if s in given)
        for name in names:
            if splits[name] in ('', kept):
                splits[name] = kept
            else:
                first = next(n for n in names if splits.get(n) == kept)
                notes.append(f'{name} is the same image as {first}, of {kept}, and is left out')
                del splits[name]
    open_contents = [
        (hashlib.blake2b(f'{seed} {digest}'.encode()).digest(), names)
        for digest, names in by_content.items()
        if any(splits.get(name) == '' for name in names)
    ]
    share = val if isinstance(val, float) else 0.0
    total = sum(split != 'test' for split in splits.values())
    missing = round(share * total) - sum(split == 'val' for split in splits.values())
    if share and total > 1 and 'val' not in splits.values():
        missing = max(missing, 1)
    for number, (_, names) in enumerate(sorted(open_contents)):
        last = number == len(open_contents) - 1 and 'train' not in splits.values()
        split = 'val' if missing > 0 and not last else 'train'
        missing -= len(names) if split == 'val' else 0
        splits.update({name: split for name in names if splits.get(name) == ''})
    return splits, how, notes


def _are_frames(candidates: Iterable[Candidate]) -> bool:
    """Whether photos differ from the next by name half as much as from any, in the median."""
    ordered = sorted(candidates, key=lambda c: [t.zfill(9) for t in re.split(r'(\d+)', c.key)])
    small = [c.small for c in ordered if c.small is not None]
    if len(small) < _FEWEST:
        return False
    stack = np.stack(small)
    mixed = np.random.default_rng(0).permutation(stack)
    near, far = (np.median(np.abs(np.diff(s, axis=0)).mean((1, 2))) for s in (stack, mixed))
    return bool(near < far / 2)


def _listed(candidates: Mapping[str, Candidate], names: Collection[str]) -> dict[str, str]:
    """Validation by names: of DEST, paths in the source, or file names, with or without suffix."""
    by_tail: dict[str, list[str]] = defaultdict(list)
    for name, candidate in candidates.items():
        for form in {name, candidate.key, candidate.key.rpartition('/')[2]}:
            by_tail[form].append(name)
    chosen, unknown = {}, []
    for text in names:
        plain = text.replace('\\', '/')
        stem = plain.rpartition('.')[0] if '.' in plain.rpartition('/')[2] else plain
        forms = (plain, stem, stem.rpartition('/')[2])
        found = next((by_tail[form] for form in forms if len(by_tail.get(form, ())) == 1), None)
        if found:
            chosen[found[0]] = 'val'
        else:
            unknown.append(text)
    if unknown:
        raise UserError(
            f'--val: {len(unknown)} of {len(names)} names in the list are no image here, or of '
            f'several: {few(unknown)}'
        )
    rest = {n: 'test' if c.told == 'test' else 'train' for n, c in candidates.items()}
    return {**rest, **chosen}
