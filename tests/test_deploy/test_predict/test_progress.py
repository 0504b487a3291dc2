from types import SimpleNamespace

import pytest

from ssnet_mm.deploy.predict import progress
from ssnet_mm.deploy.predict.progress import Progress


def test_the_line_tells_what_is_left_and_covers_what_it_said_before(capsys, monkeypatch):
    clock = iter([0, 30, 30, 60.2, 60.2, 61, 3605])
    monkeypatch.setattr(progress, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    with Progress(200) as line:
        line.step()
        line.step()
        line.done = 199
        monkeypatch.setattr(progress, '_INTERVAL', 9999)
        line.step()
    first, second, last = capsys.readouterr().err.replace('\n', '\r').rstrip('\r').split('\r')
    assert first == '[1/200] elapsed: 0:00:30, ETA: 1:39:30'
    assert second == '[2/200] elapsed: 0:01:00, ETA: 1:39:20'
    assert last == '[200/200] elapsed: 1:00:05'.ljust(len(second))


def test_nobody_knows_how_long_a_camera_runs(capsys):
    with pytest.raises(ValueError, match='stop'), Progress(0) as line:
        line.step()
        raise ValueError('stop')
    assert capsys.readouterr().err == '[1/?] elapsed: 0:00:00\n'
    with Progress(3):
        pass
    assert capsys.readouterr().err == ''
