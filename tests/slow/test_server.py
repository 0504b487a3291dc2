"""demo/server.py under load on loopback: nothing is lost, memory is bounded, bad input is told."""

import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need
from PIL import Image

from ssnet_mm import build_model
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.segmenter import Segmenter

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
REQUESTS, AT_ONCE = 5000, 50


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """The file named in MODEL, or a network of a few channels."""
    if given := os.environ.get('MODEL'):
        return Path(given)
    need('onnx')
    torch.manual_seed(0)
    net = build_model(3, 'ds', base_channels=4, fc_channels=8).eval()
    for name, weight in net.decode_head.named_parameters():
        if 'scores' in name and weight.ndim == 4:
            torch.nn.init.normal_(weight.data)
    file = tmp_path_factory.mktemp('model') / 'tiny.onnx'
    export(net, file, 'onnx', end_to_end=True, size=(60, 80))
    return file


@pytest.fixture(scope='module')
def server(model):
    """Port and process of the server."""
    for package in ('fastapi', 'uvicorn'):
        pytest.importorskip(package, reason=f'the server needs {package}: pip install {package}')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = ['uvicorn', '--app-dir', str(ROOT / 'demo'), 'server:app', '--port', str(port)]
    env = {**os.environ, 'MODEL': str(model), 'PYTHONPATH': os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, '-m', *command, '--log-level', 'warning'], env=env, cwd=ROOT
    )
    try:
        for _ in range(600):
            with socket.socket() as trial:
                if not trial.connect_ex(('127.0.0.1', port)):
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield port, process
    finally:
        process.terminate()
        process.wait()


def post(connection, kind, body):
    connection.request('POST', f'/{kind}', body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def pictures(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        blocks = rng.integers(0, 256, (8, 10, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        png = io.BytesIO()
        Image.fromarray(blocks[: 60 + i % 3]).save(png, format='PNG')
        yield png.getvalue()


def peak(process):
    """MiB that the process has held at most."""
    status = Path(f'/proc/{process.pid}/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1024


def test_answers_are_those_of_a_segmenter(server, model):
    connection = http.client.HTTPConnection('127.0.0.1', server[0], timeout=60)
    segment = Segmenter(model)
    (data,) = pictures(1)
    labels = segment(data)
    status, mask = post(connection, 'mask', data)
    picture = Image.open(io.BytesIO(mask))
    assert status == 200 and picture.mode == 'P'
    np.testing.assert_array_equal(np.asarray(picture), labels)
    _, overlay = post(connection, 'overlay', data)
    expected = segment.overlay(data, labels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(overlay))), np.asarray(expected))
    shares = json.loads(post(connection, 'areas', data)[1])
    counts = np.bincount(labels.ravel(), minlength=len(shares)) / labels.size
    assert list(shares.values()) == pytest.approx(counts.tolist(), abs=1e-6)


def test_bad_input_is_told(server):
    connection = http.client.HTTPConnection('127.0.0.1', server[0], timeout=60)
    (data,) = pictures(1)
    huge = io.BytesIO()
    Image.new('1', (5000, 5000)).save(huge, format='PNG')
    for kind, body, expected, words in (
        ('mask', b'', 400, 'can not be read'),
        ('mask', b'no image', 400, 'can not be read'),
        ('areas', data[:-400], 400, 'can not be read'),
        ('mask', huge.getvalue(), 400, '5000x5000 pixels, the limit is 16.0 million'),
        ('drawing', data, 422, "Input should be 'mask', 'overlay' or 'areas'"),
    ):
        status, answer = post(connection, kind, body)
        assert status == expected and words in answer.decode(), answer
    with socket.create_connection(('127.0.0.1', server[0]), timeout=60) as raw:  # too many bytes
        raw.sendall(b'POST /mask HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\n\r\n')
        with contextlib.suppress(OSError):
            raw.sendall(bytes(30_000_000))
        assert b' 413 ' in raw.recv(1000)
    assert post(http.client.HTTPConnection('127.0.0.1', server[0]), 'mask', data)[0] == 200


def test_nothing_is_lost_at_fifty_at_once(server, model):
    port, process = server
    images = list(pictures(20))
    segment = Segmenter(model)
    expected = [segment(image) for image in images]

    def ask(worker):
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
        seconds = []
        for i in range(worker, REQUESTS, AT_ONCE):
            start = time.perf_counter()
            status, mask = post(connection, 'mask', images[i % len(images)])
            seconds.append(time.perf_counter() - start)
            assert status == 200
            found = np.asarray(Image.open(io.BytesIO(mask)))
            np.testing.assert_array_equal(found, expected[i % len(images)])
        return seconds

    before, start = peak(process), time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seconds = sorted(one for some in pool.map(ask, range(AT_ONCE)) for one in some)
    whole = time.perf_counter() - start
    assert len(seconds) == REQUESTS
    print(
        f'\n{REQUESTS} requests, {AT_ONCE} at once: {REQUESTS / whole:.0f} a second, p50 '
        f'{1000 * seconds[REQUESTS // 2]:.0f} ms, p95 {1000 * seconds[REQUESTS * 95 // 100]:.0f} '
        f'ms; {peak(process):.0f} MiB at the peak, {before:.0f} before'
    )
    assert peak(process) < before + 300
