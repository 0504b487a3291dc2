"""16 threads x 500 requests to one Segmenter, in a process spawned and in one forked."""

import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.export_formats import need

from ssnet_mm.deploy import Segmenter
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor

pytestmark = pytest.mark.slow

THREADS, REQUESTS = 16, 500
SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}


def images() -> list[np.ndarray]:
    """Of eight sizes, so that threads disturb each other where they can."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (32 + 4 * i, 48, 3), dtype=np.uint8) for i in range(8)]


def serve(arguments: tuple, expected: list[np.ndarray], connection) -> None:
    """Answer all requests in a Segmenter of this process' own; tell how many answers differ."""
    segment = Segmenter(*arguments, threads=2)
    given, wrong = images(), []

    def ask(thread: int) -> None:
        for i in range(REQUESTS):
            which = (thread + i) % len(given)
            if not np.array_equal(segment(given[which]), expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.send(len(wrong))


@pytest.mark.parametrize('method', ['spawn', 'fork'])
@pytest.mark.parametrize('format', ['torch', *SUFFIXES])
def test_every_answer_is_that_of_one_thread(tmp_path, tiny_config, format, method):
    config = tiny_config()
    model = build_segmentor(launch.load_config(config))
    checkpoint = str(tmp_path / 'a.pth')
    torch.save({'state_dict': model.state_dict()}, checkpoint)
    arguments = (config, checkpoint)
    if format != 'torch':
        need(format)
        file = Path(tmp_path, 'a').with_suffix(SUFFIXES[format])
        export(load_model(launch.load_config(config), checkpoint, 'cpu'), file, format, size=(32, 32))
        arguments = (str(file),)
    segment = Segmenter(*arguments, threads=2)
    expected = [segment(image) for image in images()]
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=serve, args=(arguments, expected, there), daemon=True)
    child.start()
    try:
        assert here.poll(300), 'no answer in five minutes'
        wrong = here.recv()
    finally:
        child.kill()
    print(f'{format}, {method}: {THREADS} x {REQUESTS} requests, {wrong} wrong')
    assert wrong == 0
