"""The scores of a test, as files."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssnet_mm.files import printable, write_result
from ssnet_mm.results.charts import confusion_chart
from ssnet_mm.results.scores import Scores


def write_report(
    folder: str | os.PathLike[str], scores: Scores, about: Mapping[str, Any] | None = None
) -> None:
    """Write ``report.json``, ``classes.csv``, ``confusion.csv`` and ``confusion.png``.

    Each file is whole or not there; those of an earlier report are replaced.

    Args:
        folder: Made where it is missing.
        scores: Of the test.
        about: What else the JSON file should hold, such as the names of config and checkpoint.

    Raises:
        UserError: The folder can't be written to.
    """
    folder, about = Path(folder), about or {}
    means = scores.means()
    title = ', '.join(
        [
            *(
                os.path.basename(str(about[key]))
                for key in ('config', 'checkpoint')
                if about.get(key)
            ),
            f'{scores.images} images, mIoU {means["mIoU"]:.1f}%',
        ]
    )
    rows = scores.rows()
    predicted = [*scores.classes, 'no class'][: scores.confusion.shape[1]]
    table = [[name, *counts] for name, counts in zip(scores.classes, scores.confusion.tolist())]
    content = {**about, **scores.to_dict()}
    files = {
        'confusion.png': confusion_chart(scores, printable(title)),
        'confusion.csv': _csv(['truth \\ predicted', *predicted], table),
        'classes.csv': _csv(list(rows[0]), (row.values() for row in rows)),
        'report.json': json.dumps(content, indent=1, allow_nan=False).encode() + b'\n',
    }
    for name, data in files.items():
        write_result(folder / name, data)


def _csv(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode()
