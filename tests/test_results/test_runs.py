import io
import json

import pytest
from helpers.training import train
from PIL import Image

from ssnet_mm.commands import main
from ssnet_mm.errors import UserError
from ssnet_mm.results import charts
from ssnet_mm.results.charts import _labels, curves_chart
from ssnet_mm.results.runs import Run, read_run


def write(folder, *entries, tail=''):
    (folder / 'vis_data').mkdir(parents=True)
    lines = ''.join(json.dumps(entry) + '\n' for entry in entries)
    (folder / 'vis_data' / 'scalars.json').write_text(lines + tail)


def step(number, loss, lr=0.1):
    return dict(lr=lr, base_lr=lr, loss=loss, iter=number, step=number)


def val(number, **scores):
    return dict(scores, time=0.1, step=number)


def test_a_resumed_run_is_one_curve(tmp_path):
    work = tmp_path / 'fast'
    write(work / '20260101_000000', step(10, 3.0), step(20, 2.0), val(20, mIoU=10.0, loss=2.5),
          step(30, 9.0), step(40, 9.0), val(40, mIoU=99.0), tail='{"lr": 0.1, "lo')  # fmt: skip
    write(work / '20260101_000100')  # stopped before it began
    write(
        work / '20260102_000000',
        val(20, mIoU=10.0, loss=2.5),
        step(30, 1.5),
        val(40, mIoU=20.0, loss=float('nan')),
    )
    run = read_run(work)
    assert run.name == 'fast'
    assert run.curves['loss'] == [(10, 3.0), (20, 2.0), (30, 1.5)]
    assert run.curves['mIoU'] == [(20, 10.0), (40, 20.0)]
    assert run.curves['validation loss'] == [(20, 2.5)]
    assert run.curves['learning rate'] == [(10, 0.1), (20, 0.1), (30, 0.1)]


def test_scores_by_epochs_stand_at_their_iterations(tmp_path):
    entries = [
        (step(2 * epoch - 1, 1.0), step(2 * epoch, 1.0), val(epoch, mIoU=10.0 * epoch))
        for epoch in range(1, 7)
    ]
    for epoch, (first, second, _) in enumerate(entries, 1):
        first['epoch'] = second['epoch'] = epoch
    write(tmp_path / 'a' / '1', *(entry for three in entries[:3] for entry in three))
    write(tmp_path / 'a' / '2', entries[2][-1], *(e for three in entries[3:] for e in three))
    run = read_run(tmp_path / 'a')
    assert [step for step, _ in run.curves['loss']] == list(range(1, 13))
    assert run.curves['mIoU'] == [(2 * epoch, 10.0 * epoch) for epoch in range(1, 7)]


def test_a_real_run_is_read(tiny_config, tmp_path):
    train(tiny_config("custom_hooks.append(dict(type='ValLossHook'))\n"), tmp_path / 'work')
    run = read_run(tmp_path / 'work')
    assert [step for step, _ in run.curves['loss']] == [1, 2]
    assert [step for step, _ in run.curves['mIoU']] == [2]
    assert list(run.curves) == ['loss', 'validation loss', 'learning rate', 'mIoU']


def test_a_log_alone_is_a_run(tmp_path):
    write(tmp_path / 'fast' / '1', step(10, 3.0))
    log = tmp_path / 'fast' / '1' / 'vis_data' / 'scalars.json'
    kept = tmp_path / 'fast_seed0.jsonl'
    kept.write_text('{"command": "tools/train.py"}\n' + log.read_text())
    runs = [read_run(log), read_run(kept)]
    assert [run.name for run in runs] == ['fast', 'fast_seed0']
    assert all(run.curves['loss'] == [(10, 3.0)] for run in runs)


def test_the_command_draws_and_tells(tmp_path, capsys):
    for name in ('a', 'b'):
        write(tmp_path / name / '1', step(10, 3.0), step(20, 2.0), val(20, mIoU=10.0),
              step(30, 2.0), val(30, mIoU=10.0))  # fmt: skip
    out = tmp_path / 'new' / 'curves.png'
    main(['plot', str(tmp_path / 'a'), str(tmp_path / 'b'), '--out', str(out)])
    told = capsys.readouterr().out.splitlines()
    assert told[1] == 'b: 30 iterations, best mIoU 10.00 at iteration 20'
    assert told[-1] == f'curves: {out}' and Image.open(out).format == 'PNG'


def test_a_name_that_is_no_text_is_drawn(tmp_path, capfd):
    write(tmp_path / 'caf\udce9' / '1', step(1, 2.0))
    main(['plot', str(tmp_path / 'caf\udce9'), '--out', str(tmp_path / 'c.png')])
    assert 'caf\\udce9: 1 iterations' in capfd.readouterr().out


def test_what_is_no_run_is_named(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'nothing' / '1', dict(other=1))
    for name, message in (('empty', 'no log of a training in'), ('nothing', 'neither losses nor')):
        with pytest.raises(UserError, match=message):
            read_run(tmp_path / name)
    with pytest.raises(SystemExit, match='2'):
        main(['plot', str(tmp_path / 'nothing'), '--out', 'a.gif'])
    assert 'a.gif: the name must end in .png' in capsys.readouterr().err


def test_many_runs_of_one_name_can_be_told_apart():
    assert _labels(['a', 'b', 'a']) == ['a (1)', 'b', 'a (2)']
    curve = [(i, 1.0 + i) for i in range(3)]
    runs = [Run('a', {'loss': curve}), *(Run('b', {'mIoU': curve}) for _ in range(12))]
    picture = Image.open(io.BytesIO(curves_chart(runs)))
    assert picture.width == 1210 and picture.height > 400


def test_every_run_stands_in_the_legend(monkeypatch):
    legends = []

    def png(figure):
        legends.extend([text.get_text() for text in figure.legends[0].get_texts()])
        return b''

    monkeypatch.setattr(charts, 'png', png)
    curves_chart([Run('_old', {'loss': [(1, 2.0)]}), Run('$new', {'mIoU': [(1, 2.0)]})])
    assert legends == ['_old', '$new']
