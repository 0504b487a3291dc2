"""A model card: what a file of released weights is, what it reached, and where it ends."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssnet_mm.errors import UserError
from ssnet_mm.files import digest
from ssnet_mm.version import __version__

_WEAK = 50.0  # IoU in percent, below which a class is named among the limits


def read_scores(path: str | os.PathLike[str], checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``report.json`` of a checkpoint's test.

    Raises:
        UserError: It can't be read, or is of another checkpoint, or of one that has changed.
    """
    try:
        scores = json.loads(Path(path).read_text())
        tested, _, _ = scores['checkpoint'], scores['mIoU'] + 0.0, scores['classes'][0]['IoU']
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f'{path} is no report.json of ssnet_mm test --report ({type(error).__name__}: {error})'
        ) from error
    if not os.path.exists(tested) or not os.path.samefile(tested, checkpoint):
        raise UserError(
            f'{path} holds the scores of {tested}, not of {os.fspath(checkpoint)}; test this one: '
            f'ssnet_mm test CONFIG {os.fspath(checkpoint)} --report DIR'
        )
    if scores.get('sha256') not in (None, digest(checkpoint)):
        raise UserError(
            f'{path} holds the scores of another {os.fspath(checkpoint)}, which was written anew '
            f'since; test this one: ssnet_mm test CONFIG {os.fspath(checkpoint)} --report DIR'
        )
    return dict(scores)


def model_card(
    file: Path,
    config: str,
    parameters: int,
    scores: Mapping[str, Any],
    licence: str,
) -> str:
    """Markdown to lie beside a file of weights.

    Args:
        file: The weights, written.
        config: Name of our config that they are of.
        parameters: How many it has.
        scores: As of :func:`read_scores`.
        licence: Of the data that they were trained on; empty where it is not known.
    """
    rows = [row for row in scores['classes'] if row['IoU'] is not None]
    weak = [f'{row["class"]} ({row["IoU"]:.0f}%)' for row in rows if row['IoU'] < _WEAK]
    table = '\n'.join(
        f'| {row["class"]} | {row["IoU"]:.1f} | {_figure(row["boundary_IoU"])} | {row["support"]} |'
        for row in rows
    )
    tested, options = os.path.basename(scores['checkpoint']), scores.get('options') or ()
    command = shlex.join(
        ['ssnet_mm', 'test', config, tested, '--report', 'DIR', *map(str, options)]
    )
    found = f'Found badly: {", ".join(weak)}. ' if weak else ''
    return f"""# {file.stem}
The network of `{config}` (ssnet_mm {__version__}), {parameters:,} parameters,
{len(scores['classes'])} classes: {', '.join(row['class'] for row in scores['classes'])}.

```python
from ssnet_mm.deploy import Segmenter

labels = Segmenter('{file.name}')('photo.jpg')  # (height, width), class numbers
```

`ssnet_mm predict {file.name} photos/ --out-dir out` does that for a folder, and
`load_from` of a config starts a training with it.

## Scores
{scores['images']} images, mIoU {scores['mIoU']:.1f}%, pixels right {scores['aAcc']:.1f}%, by
`{command}`:

| class | IoU, % | boundary IoU, % | pixels |
|---|---|---|---|
{table}

## Data
{licence or 'Their licence is not stated here; look it up before you use the weights.'}

## Limits
{found}Every pixel gets one of the classes above, whatever it shows. On other cameras,
places or weathers than the data's nothing was measured. The network is not for decisions on
which somebody's safety depends.

## The file
SHA-256 {digest(file)}, {file.stat().st_size:,} bytes
"""


def _figure(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'
