"""The report of a fit: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from shlex import quote
from string import Template
from typing import Any

import numpy as np
from mmengine.config import Config
from mmseg.registry import DATASETS

from ssnet_mm.deploy.network import last_head
from ssnet_mm.files import write_result
from ssnet_mm.fit.config_text import class_weights
from ssnet_mm.prepare.run import Prepared
from ssnet_mm.results.charts import curves_chart
from ssnet_mm.results.runs import read_run
from ssnet_mm.results.scores import Scores, count
from ssnet_mm.version import __version__
from ssnet_mm.visualization import Sample, draw_figure, pick_evenly, predict_samples

_MOST = 200  # validation images that are looked at for the best and worst
_SHOWN = 3  # of each
_HEADLINE = 36  # pixels
_PLACE = Path(__file__).with_name('page.html')


def draw_examples(model: Any, cfg: Config, out: Path) -> dict[str, list[list[Any]]]:
    """Write the pictures ``worst.jpg`` and ``best.jpg`` of validation images with predictions.

    Args:
        model: In eval mode.
        cfg: Its config.
        out: Folder.

    Returns:
        Names with their mIoU over the classes they show, by picture. Images that are all void have
        none, and are not shown.
    """
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    meta = dataset.metainfo
    indices = pick_evenly(len(dataset), _MOST)
    kept: list[tuple[float, int, Sample]] = []
    for index, sample in zip(indices, predict_samples(model, dataset, indices)):
        counts = count(
            sample.prediction,
            sample.truth,
            len(meta['classes']),
            last_head(model).ignore_index,
        )
        score = Scores(meta['classes'], counts, 1).means()['mIoU']
        if np.isnan(score):
            continue
        kept.append((score, index, sample))
        kept.sort(key=lambda row: row[:2])
        if len(kept) > 2 * _SHOWN:
            del kept[_SHOWN]  # in the middle
    half = (len(kept) + 1) // 2
    pictures = dict(worst=kept[:half], best=kept[half:][::-1])
    shown: dict[str, list[list[Any]]] = {}
    for name, rows in pictures.items():
        names = [Path(dataset.get_data_info(i)['img_path']).name for _, i, _ in rows]
        shown[name] = [[n, round(score, 1)] for n, (score, _, _) in zip(names, rows)]
        if rows:
            note = ', '.join(f'{n} {score:.0f}%' for n, score in shown[name])
            samples = [sample for *_, sample in rows]
            picture = draw_figure(samples, meta['classes'], meta['palette'], note=note)
            picture = picture.crop((0, _HEADLINE, *picture.size))  # it has none here
            encoded = io.BytesIO()
            picture.save(encoded, 'JPEG', quality=88)
            write_result(out / f'{name}.jpg', encoded.getvalue())
    return shown


def render(task: Any, steps: Mapping[str, Mapping[str, Any]], data: Prepared) -> str:
    """The page.

    Args:
        task: The fit.
        steps: Results, with the time they took.
        data: What was prepared.
    """
    scores = json.loads((task.out / 'test' / 'report.json').read_text(encoding='utf-8'))
    exported = steps['export']['result']
    shown = steps['pictures']['result']['images']
    made, trained = steps.get('config', {}).get('result', {}), steps['train']['result']
    train_minutes = steps['train']['seconds'] / 60
    colours = dict(zip(data.record.classes, data.record.palette))
    count = trained.get('counts', data.counts)['train']
    tiles = {
        f'mIoU, validation{_of_how_many(scores["classes"])}': f'{scores["mIoU"]:.1f}%',
        'of the pixels right': f'{scores["aAcc"]:.1f}%',
        'training and validation images': f'{count} + {data.counts["val"]}',
        'training': f'{train_minutes:.1f} min',
        'exported': f'{exported["bytes"] / 2**20:.0f} MiB',
    }
    parts: dict[str, str] = dict(
        title=escape(task.out.name),
        about=escape(
            f'{made.get("net", task.config.name)} on {trained["device"]}, ssnet_mm {__version__}'
        ),
        tiles=''.join(f'<div><b>{escape(v)}</b>{escape(k)}</div>' for k, v in tiles.items()),
        bars=''.join(_bars(scores['classes'], colours)),
        plan=escape('; '.join(filter(None, [made.get('plan'), trained['ended']]))),
        curves=_image(curves_chart([read_run(task.run)]), 'image/png', 'losses, mIoU and rate'),
        confusion=_file(task.out / 'test' / 'confusion.png', 'confusion matrix'),
        worst=_examples(task.out / 'worst.jpg', shown['worst'], 'The worst'),
        best=_examples(task.out / 'best.jpg', shown['best'], 'The best'),
        data=_table(
            ['class', 'pixels, training', 'images', 'weight'], _class_rows(data)
        ) + ''.join(f'<p class=note>{escape(n)}</p>' for n in steps['prepare']['result']['notes']),
        left=_left_out(data.faults),
        sheet=_file(task.out / 'data.png', 'images with their masks'),
        times=_table(['step', 'seconds'], [[n, f'{r["seconds"]:.0f}'] for n, r in steps.items()]),
        verified=escape(
            f'The exported file scores {exported["scores"]["exported"]:.2f}% mIoU where the '
            f'checkpoint scores {exported["scores"]["model"]:.2f}%.'
        ),
        commands=escape(_commands(task, data)),
    )  # fmt: skip
    return Template(_PLACE.read_text(encoding='utf-8')).substitute(parts)


def _of_how_many(classes: Sequence[Mapping[str, Any]]) -> str:
    """How many classes a mean is of, where the validation images lack some."""
    scored = sum(row['IoU'] is not None for row in classes)
    return f', {scored} of {len(classes)} classes' if scored < len(classes) else ''


def _bars(classes: Sequence[Mapping[str, Any]], colours: Mapping[str, Any]) -> Iterator[str]:
    for row in classes:
        iou = row['IoU']
        red, green, blue = colours.get(row['class'], (120, 120, 120))
        yield (
            f'<tr><td>{escape(row["class"])}<td class=bar><i style="width:{iou or 0:.1f}%;'
            f'background:rgb({red},{green},{blue})"></i>'
            + ''.join(f'<td class=n>{_percent(row[k])}' for k in ('IoU', 'precision', 'recall'))
            + f'<td class=n>{_percent(row["boundary_IoU"])}'
        )


def _percent(value: float | None) -> str:
    return '–' if value is None else f'{value:.1f}'


def _class_rows(data: Prepared) -> Iterator[list[str]]:
    totals = data.report.totals[0]
    weights = class_weights(totals.median_frequency_weights().tolist())
    for i, (name, share) in enumerate(zip(data.record.classes, totals.shares())):
        yield [name, f'{share:.2%}', str(totals.shown_by[i]), f'{weights[i]:.2f}']
    void = totals.labels[totals.split.ignore_index] / max(sum(totals.labels.values()), 1)
    yield ['void', f'{void:.2%} of all', '', '']


def _left_out(faults: Sequence[str]) -> str:
    if not faults:
        return ''
    rows = ''.join(f'<li>{escape(" ".join(line.split()))}' for line in faults[:200])
    return f'<details><summary>{len(faults)} files left out</summary><ul>{rows}</ul></details>'


def _examples(path: Path, rows: Sequence[Sequence[Any]], title: str) -> str:
    return f'<h3>{title}</h3>{_file(path, title)}' if rows else ''


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = ''.join(f'<th{" class=n" if i else ""}>{escape(c)}' for i, c in enumerate(head))
    body = ''.join(
        '<tr>' + ''.join(f'<td{" class=n" if i else ""}>{escape(c)}' for i, c in enumerate(row))
        for row in rows
    )
    return f'<table><tr>{cells}{body}</table>'


def _file(path: Path, alt: str) -> str:
    if not path.is_file():
        return ''
    kind = 'image/png' if path.suffix == '.png' else 'image/jpeg'
    return _image(path.read_bytes(), kind, alt)


def _image(data: bytes, kind: str, alt: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img alt="{escape(alt)}" src="data:{kind};base64,{encoded}">'


def _commands(task: Any, data: Prepared) -> str:
    # the source may hold images/ and masks/, and predict looks at one folder alone
    photos = [(task.source / entry.source).parent for entry in data.record.images.values()]
    source = quote(str(next(filter(Path.is_dir, photos), task.source)))
    out, config, exported = (quote(str(p)) for p in (task.out, task.config, task.export))
    best = quote(str(task.run / 'best'))
    longer = 4 * int(Config.fromfile(str(task.config)).max_iters)
    return '\n'.join(
        [
            '# new images, by the exported file or by the checkpoint',
            f'ssnet_mm predict {exported} {source} --out-dir {out}/predictions',
            f'ssnet_mm predict {config} {best} {source} --out-dir DIR',
            '# four times as long, into another folder',
            f'ssnet_mm train {config} --work-dir {out}/longer --cfg-options '
            f'max_iters={longer} val_interval={max(1, longer // 10)}',
            '# the scores again, as files',
            f'ssnet_mm test {config} {best} --report DIR',
        ]
    )
