import io

import pytest
from PIL import Image

from ssnet_mm.benchmark import report


def result(**changes):
    return {
        'config': 'configs/net.py', 'backend': 'torch', 'precision': 'fp32', 'shape': [64, 64],
        'batch': 2, 'params': 20_713_530, 'macs': 14_241_746_944,
        'latency_ms': {'median': 50.0, 'p95': 60.0}, 'end_to_end_ms': None, 'images_per_s': 40.0,
        'peak_mib': 1234.5, 'held_mib': None, 'ratio': 1.0, 'error': None, **changes,
    }  # fmt: skip


FAILED = result(
    backend='openvino', latency_ms=None, images_per_s=None, peak_mib=None, ratio=None,
    error='openvino is not installed here',
)  # fmt: skip


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


def test_columns_that_only_some_runs_have():
    end_to_end = report.table([result(end_to_end_ms={'median': 55.0, 'p95': 65.0}), FAILED])
    lines = end_to_end.splitlines()
    assert cells(lines[2])[cells(lines[0]).index('end to end ms')] == '55.0'
    lines = report.table([result(backend='train', held_mib=877.2)]).splitlines()
    assert cells(lines[2])[cells(lines[0]).index('held MiB/image')] == '877'


@pytest.mark.parametrize(
    'number, text',
    [(None, '-'), (0.0614, '0.06'), (9.994, '9.99'), (14.24, '14.2'), (1234.4, '1,234')],
)
def test_three_figures(number, text):
    assert report.short(number) == text


def test_a_table_of_layers():
    layers = [
        dict(name='a', ms=3.0, macs=30_000_000, gflops=20.0, peak_share=0.2, limit_ms=0.6,
             bound='arithmetic'),
        dict(name='(all else)', ms=1.0, macs=0, gflops=0.0, peak_share=0.0, limit_ms=None,
             bound=None),
    ]  # fmt: skip
    text = report.layer_table(
        dict(config='c/net.py', backend='fused', peak_gflops=100.0, bandwidth_gb_s=12.0,
             layers=layers)
    )  # fmt: skip
    title, _, head, _, first, rest, total = text.splitlines()
    assert title.startswith('net, fused: ') and '100 GFLOP/s' in title and '12.0 GB/s' in title
    assert cells(first) == ['a', '30.0', '3.00', '75.0', '20.0', '20', '0.60', 'arithmetic']
    assert cells(rest)[-2:] == ['-', '-']
    # 60 million operations in 4 ms are 15 GFLOP/s, 15% of the peak
    assert cells(total) == ['total', '30.0', '4.00', '100.0', '15.0', '15', '0.60', '-']


def test_a_chart_has_a_bar_for_each_row():
    results = [result(), result(backend='fused', latency_ms={'median': 20.0, 'p95': 21.0}), FAILED]
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
