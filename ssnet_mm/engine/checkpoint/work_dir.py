"""The checkpoints of a run: which one it starts from, or goes on with."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssnet_mm.engine.checkpoint.meta import check_resumable
from ssnet_mm.engine.checkpoint.reading import read_checkpoint
from ssnet_mm.engine.config.nested import dicts
from ssnet_mm.errors import UserError
from ssnet_mm.files import named_file


@dataclass(frozen=True)
class Place:
    """Where a run's checkpoints lie, and what those of its iterations or epochs are called.

    Args:
        folder: Holds them.
        name: Has their number as its first group.
        remote: Whether they lie where only mmengine looks.
    """

    folder: str
    name: str = r'(?:iter|epoch)_(\d+)\.pth'
    remote: bool = False

    @classmethod
    def of(cls, work_dir: str, cfg: Mapping[str, Any] | None) -> Place:
        """That of the config's checkpoint hook."""
        hook = ((cfg or {}).get('default_hooks') or {}).get('checkpoint') or {}
        whole, out_dir = os.path.abspath(work_dir), str(hook.get('out_dir') or '')
        remote, folder = '://' in out_dir, work_dir
        if out_dir and not remote and out_dir != whole:  # as mmengine does
            folder = os.path.join(out_dir, os.path.basename(whole))
        parts = re.split(r'\{[^{}]*\}', hook.get('filename_tmpl') or '')
        if len(parts) != 2:
            return cls(folder, remote=remote)
        return cls(folder, r'(\d+)'.join(re.escape(part) for part in parts), remote)


def find_checkpoint(
    load_from: str | None, resume: bool, work_dir: str, cfg: Mapping[str, Any] | None = None
) -> str | None:
    """Which checkpoint a Runner will load.

    Args:
        load_from: As :func:`read_checkpoint` takes it.
        resume: Whether the newest in ``work_dir`` is taken where there is no ``load_from``.
        work_dir: Of the run.
        cfg: Its config, which may have checkpoints named otherwise, or put elsewhere.

    Returns:
        Its path, or None where the weights start fresh: also for ``resume`` in a work directory
        that has none yet, so that a queue may start a job the same way every time.

    Raises:
        UserError: It is not a local file, or none to resume from is whole.
    """
    if resume and load_from is None:
        load_from, _ = newest_whole(work_dir, cfg)
    if load_from is not None and '://' in load_from:
        raise UserError(
            f'load_from={load_from} is not a local file; download it first: only what lies on this '
            'machine is looked at before it is loaded'
        )
    return None if load_from is None else named_file(load_from)


def newest_whole(
    work_dir: str, cfg: Mapping[str, Any] | None = None
) -> tuple[str | None, list[str]]:
    """The newest checkpoint of a run that can be resumed from, and what was passed over.

    ``last_checkpoint`` is not asked: it may be lost, or name what was never finished. Whether a
    file is whole is told by its checksums.

    Returns:
        Its path, None if there is no checkpoint; and for each newer one why it can't be taken.

    Raises:
        UserError: There are checkpoints, and none is whole.
    """
    passed: list[str] = []
    for path in numbered_checkpoints(work_dir, cfg):
        try:
            read_to_load(path, resume=True)
            return path, passed
        except UserError as error:
            passed.append(str(error))
    if passed:
        raise UserError(f'no checkpoint in {work_dir} can be resumed from: {"; ".join(passed)}')
    return None, []


def numbered_checkpoints(work_dir: str, cfg: Mapping[str, Any] | None = None) -> list[str]:
    """The checkpoints of a run that are named by iteration or epoch, the newest first.

    Where there are none by the config, the one that mmengine noted last.
    """
    place = Place.of(work_dir, cfg)
    found = {
        (name[: match.start(1)], int(match[1]), os.path.join(folder, name))
        for folder, pattern in {(work_dir, Place(work_dir).name), (place.folder, place.name)}
        for name in _names(folder)
        if (match := re.fullmatch(pattern, name))
    }
    if len({kind for kind, *_ in found}) > 1:  # counts epochs, and was stopped amid one
        return sorted((path for *_, path in found), key=_iteration, reverse=True)
    noted = os.path.join(work_dir, 'last_checkpoint')
    last = named_file(noted)
    return [path for *_, path in sorted(found, reverse=True)] or [last] * (last != noted)


def _iteration(path: str) -> float:
    try:
        return int(read_checkpoint(path)['meta']['iter'])
    except (UserError, KeyError, TypeError, ValueError):
        return math.inf  # looked at first, so that it is told


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def check_unmixed(
    work_dir: str, load_from: str | None, resume: bool, cfg: Mapping[str, Any] | None = None
) -> None:
    """UserError where a training would mix its checkpoints with those of an earlier one.

    Also where it is to go on with that one, of which the best checkpoints alone are left: they are
    without optimizer.
    """
    held = numbered_checkpoints(work_dir, cfg)
    newest = [os.path.abspath(path) for path in held[:1]]
    for folder in dict.fromkeys((work_dir, Place.of(work_dir, cfg).folder)):
        held += sorted(os.path.join(folder, n) for n in _names(folder) if n.startswith('best_'))
    if resume and load_from is None and held and not newest:
        raise UserError(
            f'{work_dir} holds no checkpoint that --resume can go on from, but {held[0]} of an '
            'earlier training, without its optimizer; start from its weights by --cfg-options '
            f'load_from={held[0]} and another --work-dir, without --resume, or remove it: rm '
            f'{shlex.quote(os.path.dirname(held[0]))}/*.pth'
        )
    given = load_from and os.path.abspath(load_from)
    older = [os.path.abspath(path) for path in held if os.path.abspath(path) not in newest]
    goes_on = given is None or given in newest or (bool(newest) and given not in older)
    if held and not (resume and goes_on):
        raise UserError(
            f'{work_dir} holds the checkpoints of an earlier training, as {held[0]}; go on with it '
            f'by --resume, give this one another --work-dir, or remove them: rm '
            f'{shlex.quote(os.path.dirname(held[0]))}/*.pth'
        )


def read_to_load(path: str, resume: bool) -> dict[str, Any]:
    """Read the checkpoint that a Runner will load, and see that it has what resuming needs.

    Raises:
        UserError: As ``read_checkpoint``, or there is nothing to resume from.
    """
    checkpoint = read_checkpoint(path)
    lacking = {'meta', 'state_dict', 'message_hub', 'optimizer'} - set(checkpoint)
    if resume and lacking:
        raise UserError(
            f'{path} has no {", ".join(sorted(lacking))} to resume from; to start from its '
            'weights alone use --cfg-options load_from=... without --resume'
        )
    if resume:
        check_resumable(checkpoint, path)
    return checkpoint


def pretrained_weights(model: Any) -> Iterator[str]:
    """The local files named by ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a config."""
    for _, part in dicts(model):
        checkpoint = part.get('checkpoint')
        if part.get('type') == 'Pretrained' and checkpoint and '://' not in checkpoint:
            yield os.path.expanduser(checkpoint)
