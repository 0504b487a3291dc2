import io

import pytest
from PIL import Image

from ssnet_mm.benchmark import report
from ssnet_mm.benchmark.layers import REST, LayerCost, LayerTimes, Machine
from ssnet_mm.benchmark.rows import Result, Row, Settings, plan


def result(runtime='torch', training=False, **changes):
    values = {
        'params': 20_713_530, 'macs': 14_241_746_944, 'network': [0.05] * 10 + [0.07],
        'peak_mib': 1234.5, 'ratio': 1.0, **changes,
    }  # fmt: skip
    row = Row('configs/net.py', runtime, training=training)
    return Result(row, Settings(shape=(64, 64), batch=2), **values)


FAILED = result(
    'openvino', network=[], peak_mib=None, ratio=None, error='openvino is not installed here'
)


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_a_table_of_results():
    head, rule, first, failed, reason = report.table([result(), FAILED]).splitlines()
    assert len({len(line) for line in (head, rule, first, failed)}) == 1  # it lines up
    assert dict(zip(cells(head), cells(first))) == {
        'config': 'net', 'backend': 'torch', 'precision': 'fp32', 'params M': '20.7',
        'MACs G': '14.2', 'ms median': '50.0', 'ms p95': '60.0', 'images/s': '40.0',
        'ratio': '1.000', 'peak MiB': '1,234',
    }  # fmt: skip
    assert cells(failed)[5:] == ['failed', '-', '-', '-', '-']
    assert reason == 'failed: net, openvino, fp32: openvino is not installed here'


def test_the_limit_is_the_arithmetic_at_the_best_rate():
    assert result(peak_flops=1e13).limit == pytest.approx(4 * 14_241_746_944 / 1e13)
    assert result(peak_flops=1e9, network=[]).limit > 50
    assert result().limit is None
    assert result(network=[0.1, 0.2, 0.4]).flops == pytest.approx(4 * 14_241_746_944 / 0.2)


def test_columns_that_only_some_runs_have():
    end_to_end = report.table([result(end_to_end=[0.055]), FAILED])
    lines = end_to_end.splitlines()
    assert cells(lines[2])[cells(lines[0]).index('end to end ms')] == '55.0'
    lines = report.table([result(training=True, held_mib=877.2)]).splitlines()
    assert cells(lines[2])[cells(lines[0]).index('held MiB/image')] == '877'


@pytest.mark.parametrize(
    'number, text',
    [(None, '-'), (0.0614, '0.06'), (9.994, '9.99'), (14.24, '14.2'), (1234.4, '1,234')],
)
def test_three_figures(number, text):
    assert report.short(number) == text


def test_a_table_of_layers():
    # 30 million multiply-adds at 100 GFLOP/s take 0.6 ms
    costs = [LayerCost('a', 3e-3, 30_000_000, 12), LayerCost(REST, 1e-3, 0, 0)]
    times = LayerTimes(Row('c/net.py', 'fused'), Settings(), Machine(100e9, 12e9), costs)
    title, _, head, _, first, rest, total = report.layer_table(times).splitlines()
    assert (
        title.startswith('net, fused, fp32: ') and '100 GFLOP/s' in title and '12.0 GB/s' in title
    )
    assert cells(first) == ['a', '30.0', '3.00', '75.0', '20.0', '20', '0.60', 'arithmetic']
    assert cells(rest)[-2:] == ['-', '-']
    # 60 million operations in 4 ms are 15 GFLOP/s, 15% of the peak
    assert cells(total) == ['total', '30.0', '4.00', '100.0', '15.0', '15', '0.60', '-']
    (layer, other) = times.to_dict()['layers']
    assert layer['bound'] == 'arithmetic' and layer['peak_share'] == pytest.approx(0.2)
    assert other['limit_ms'] is None and layer['gflops'] == pytest.approx(20)


def test_a_chart_has_a_bar_for_each_row():
    results = [result(), result('fused', network=[0.02] * 10 + [0.021]), FAILED]
    image = Image.open(io.BytesIO(report.chart(results, 'title')))
    assert image.format == 'PNG'
    taller = Image.open(io.BytesIO(report.chart(results * 2, 'title')))
    assert taller.height > image.height and taller.width == image.width
    blue = (31, 119, 180)  # matplotlib's first colour: all rows are of one config
    pixels = image.convert('RGB').load()
    lengths = [sum(pixels[x, y] == blue for x in range(image.width)) for y in range(image.height)]
    # the first row has two bars; the second row's latency is 20 of 50, its memory is the same
    runs = sorted(set(lengths) - {0})
    assert len(runs) >= 2 and runs[0] < runs[-1]


def test_a_config_that_comes_twice_has_numbered_rows():
    rows = plan(['a.py', 'b.py', 'a.py'], checkpoints=['x.pth', 'y.pth', 'z.pth'])
    assert [row.name for row in rows] == ['a #1', 'b', 'a #2']
    alike = plan(['fit_a/config.py', 'b.py', 'fit_b/config.py'], ('torch', 'fused'))
    assert [row.name for row in alike[::2]] == ['config #1', 'b', 'config #2']
    assert [Result(row, Settings()).to_dict()['checkpoint'] for row in rows] == [
        'x.pth', 'y.pth', 'z.pth',
    ]  # fmt: skip
