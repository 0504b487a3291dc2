"""16 threads x 500 requests to one Segmenter, in a process spawned and in one forked."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from helpers.export_formats import need
from helpers.many_requests import REQUESTS, THREADS, images, serve

from ssnet_mm.deploy import Segmenter
from ssnet_mm.deploy.export import export
from ssnet_mm.deploy.model import load_model
from ssnet_mm.engine import launch
from ssnet_mm.engine.config import build_segmentor

pytestmark = pytest.mark.slow

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}


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
        model = load_model(launch.load_config(config), checkpoint, 'cpu')
        export(model, file, format, size=(32, 32))
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
