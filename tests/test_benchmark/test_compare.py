import json
import mmap
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssnet_mm.benchmark import compare, worker
from ssnet_mm.benchmark.compare import RowError, Worker
from ssnet_mm.benchmark.memory import Memory
from ssnet_mm.benchmark.rows import Row, Settings, plan
from ssnet_mm.benchmark.worker import Predictor, Trainer, build_row
from ssnet_mm.deploy import Segmenter
from ssnet_mm.deploy.model import ready
from ssnet_mm.deploy.processor import Processor
from ssnet_mm.deploy.runtimes import openvino
from ssnet_mm.deploy.runtimes.eager import TorchSession
from ssnet_mm.errors import UserError

SMALL = Settings(shape=(32, 40), batch=2, rounds=3)
KEYS = {
    'config', 'checkpoint', 'backend', 'precision', 'training', 'shape', 'batch', 'params', 'macs',
    'latency_ms', 'end_to_end_ms', 'images_per_s', 'peak_mib', 'held_mib', 'ratio', 'peak_gflops',
    'limit_ms', 'error',
}  # fmt: skip
ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason="needs Linux' account of memory")


# What is asked for -------------------------------------------------------------------------------


def test_rows_come_config_by_config_then_backend_by_backend():
    rows = plan(['a.py', 'b.py'], ['torch', 'fused'], ['fp32', 'int8'], ['a.pth', 'b.pth'])
    assert rows[:3] == [
        Row('a.py', 'torch', 'fp32', 'a.pth'),
        Row('a.py', 'torch', 'int8', 'a.pth'),
        Row('a.py', 'fused', 'fp32', 'a.pth'),
    ]
    assert len(rows) == 8 and rows[4].checkpoint == 'b.pth'
    assert plan(['a.py'])[0].checkpoint is None
    with pytest.raises(UserError, match='one file a config: got 1 for 2'):
        plan(['a.py', 'b.py'], checkpoints=['a.pth'])


@pytest.mark.parametrize(
    'given, message',
    [
        (dict(shape=(0, 64)), r'shape must be at least 1, got \(0, 64\)'),
        (dict(batch=-1), 'batch must be at least 1, got -1'),
        (dict(threads=0), 'threads must be at least 1, got 0'),
        (dict(rounds=0), 'rounds must be at least 1, got 0'),
        (dict(num_classes=0), 'num_classes must be at least 1, got 0'),
        (dict(threads=100_000), 'threads must be at most 1024, got 100000'),
        (dict(device='abacus'), 'torch knows no device abacus'),
        (dict(device='cuda:99'), 'device cuda:99: torch finds'),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(UserError, match=message):
        Settings(**given)


def test_a_model_is_built_without_the_network(tiny_config, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('something reached for the network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)
    config = tiny_config("""
model['pretrained'] = 'torchvision://vgg16'
model['backbone'].update(
    norm_cfg=dict(type='SyncBN'),
    init_cfg=dict(type='Pretrained', checkpoint='https://example.org/x.pth'))
""")
    model, _ = build_row(Row(config), SMALL)
    assert not model.training
    model.init_weights()  # nothing is left that would be fetched
    assert model(torch.rand(1, 3, 32, 40), mode='tensor').shape == (1, 3, 4, 5)
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def test_classes_are_set_in_all_heads():
    head = dict(num_classes=19, loss_decode=[dict(class_weight=[1.0] * 19, loss_weight=0.4)])
    model = dict(decode_head=head, auxiliary_head=[dict(num_classes=19)], n=(1, 2))
    assert worker.with_classes(model, 21) == dict(
        decode_head=dict(num_classes=21, loss_decode=[dict(loss_weight=0.4)]),
        auxiliary_head=[dict(num_classes=21)],
        n=(1, 2),
    )
    assert head['num_classes'] == 19


def test_configs_of_mmseg_have_short_names():
    path = worker.find_config('mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py')
    assert os.path.isfile(path)
    assert worker.find_config('configs/x.py') == 'configs/x.py'


def test_faulty_input_is_found_before_anything_is_timed(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, '_start', lambda *args: pytest.fail('a row was started'))
    torch.save({'state_dict': {'w': torch.ones(1)}}, tmp_path / 'other.pth')
    config = tiny_config()
    for row, message in [
        (Row(config, 'torch', 'fp32', str(tmp_path / 'other.pth')), '1 unexpected: w'),
        (Row(config, 'torch', 'fp32', str(tmp_path / 'none.pth')), 'none.pth not found'),
        (Row('none.py', 'torch', 'fp32'), 'config none.py not found'),
        (Row(tiny_config("model['type'] = 'Nothing'"), 'torch', 'fp32'), 'Nothing is not in'),
    ]:
        with pytest.raises(UserError, match=message):
            compare.run([Row(config, 'torch', 'fp32'), row], SMALL)


# Timing ------------------------------------------------------------------------------------------


class FakeWorker:
    """Takes as many seconds as it is told, and notes its calls."""

    def __init__(self, name, seconds, calls):
        self.name, self.seconds, self.calls = name, list(seconds), calls

    def ask(self, method):
        self.calls.append((method, self.name))
        if method == 'facts':
            return {'peak_mib': 5.0}
        if not self.seconds:
            raise RowError('its process died (SIGSEGV)')
        return {'network': self.seconds.pop(0)}

    def stop(self):
        self.calls.append(('stop', self.name))


class Meter(FakeWorker):
    """Measures the operations a second that it is told."""

    def __init__(self, rates):
        super().__init__('meter', rates, [])

    def ask(self, method):
        assert method == 'turn'
        return self.seconds.pop(0)


def fake_run(monkeypatch, tiny_config, seconds):
    calls, config = [], tiny_config()

    def start(context, row, settings, path):
        if seconds[row.runtime] is None:
            raise RowError('not here')
        return FakeWorker(row.runtime, seconds[row.runtime], calls)

    monkeypatch.setattr(compare, '_start', start)
    monkeypatch.setattr(compare, '_start_meters', lambda *_: {'fp32': Meter([2e9, 4e9, 3e9])})
    results = compare.run([Row(config, name, 'fp32') for name in seconds], SMALL)
    return [result.to_dict() for result in results], calls


def test_rows_take_turns_and_a_failure_costs_one_row(monkeypatch, tiny_config):
    a, b, c, d = 'torch', 'fused', 'compile', 'openvino'
    results, calls = fake_run(
        monkeypatch,
        tiny_config,
        {a: [0.2, 0.1, 0.3], b: [0.05], c: None, d: [0.5, 0.9, 0.4]},
    )
    turns = [name for method, name in calls if method == 'turn']
    assert turns == [a, b, d, a, b, d, a, d]
    assert sorted(name for method, name in calls if method == 'stop') == sorted([a, b, d])
    first, died, absent, last = results
    assert all(set(result) == KEYS for result in results)
    assert first['latency_ms'] == pytest.approx({'median': 200, 'p95': 290})
    assert first['images_per_s'] == pytest.approx(2 / 0.2)  # a batch of two
    assert (first['ratio'], first['error'], first['peak_mib']) == (1.0, None, 5.0)
    assert last['ratio'] == pytest.approx(2.5)
    # two images, two operations a multiply-add, at the best rate
    assert first['peak_gflops'] == 4
    assert first['limit_ms'] == pytest.approx(1e3 * 2 * 2 * first['macs'] / 4e9)
    assert died['error'] == 'its process died (SIGSEGV)' and absent['error'] == 'not here'
    for failed in (died, absent):
        assert failed['latency_ms'] is failed['ratio'] is failed['peak_mib'] is None
        assert failed['params'] == first['params'] > 0


def test_the_best_rate_may_be_a_network_s(monkeypatch, tiny_config):
    seconds = {'torch': [0.2, 0.1, 0.3], 'fused': [1e-7] * 3}
    first, quick = fake_run(monkeypatch, tiny_config, seconds)[0]
    assert quick['limit_ms'] == pytest.approx(quick['latency_ms']['median'])
    assert first['limit_ms'] == quick['limit_ms'] and first['peak_gflops'] > 4


def test_without_a_first_row_there_are_no_ratios(monkeypatch, tiny_config):
    results, _ = fake_run(monkeypatch, tiny_config, {'torch': None, 'fused': [0.1, 0.2, 0.3]})
    assert [result['ratio'] for result in results] == [None, None]
    assert results[1]['latency_ms']['median'] == pytest.approx(200)


@ON_LINUX
def test_a_process_that_dies_says_how():
    context = compare._context()
    with pytest.raises(RowError, match=r'its process died \(exit code 3\)'):
        Worker(context, os._exit, 3)
    with pytest.raises(RowError, match=r'died \(SIGKILL: out of memory\?\)'):
        Worker(context, signal.raise_signal, signal.SIGKILL)
    with pytest.raises(RowError, match='ValueError: invalid literal'):
        Worker(context, int, 'x')
    worker = Worker(context, list, 'ab')
    assert worker.ask('pop') == 'b' and worker.ask('pop') == 'a'
    with pytest.raises(RowError, match='IndexError: pop from empty list'):
        worker.ask('pop')
    worker.stop()
    assert not worker.process.is_alive()


# Rows --------------------------------------------------------------------------------------------


def test_a_predictor_segments_as_the_model_does(tiny_config):
    row, settings = Row(tiny_config(), 'torch', 'fp32'), Settings((32, 40), 2, end_to_end=True)
    torch.manual_seed(0)
    predictor = Predictor(row, settings)
    assert set(turn := predictor.turn()) == {'network', 'end_to_end'}
    assert 0 < turn['network'] < 10 and 0 < turn['end_to_end'] < 10
    labels = predictor.segment()
    assert len(labels) == 2
    assert labels[0].shape == worker.PHOTO and labels[0].dtype == np.uint8
    np.testing.assert_array_equal(labels[0], labels[1])

    torch.manual_seed(0)
    model, cfg = build_row(row, settings)
    expected = Segmenter(TorchSession(ready(model, cfg)))(predictor.photo)
    np.testing.assert_array_equal(labels[0], expected)
    image = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        logits = model(image, mode='tensor')
        torch.testing.assert_close(predictor.run(predictor.prepare(image)), logits)


def test_memory_is_not_told_of_rows_without_the_way_that_others_go(tiny_config):
    config, told = tiny_config(), []
    for precision in ('fp32', 'fp16'):
        predictor = Predictor(
            Row(config, precision=precision), Settings((8, 8), 1, end_to_end=True)
        )
        told.append((predictor.segmenter is None, predictor.facts()['peak_mib'] is None))
    assert told == [(False, False), (True, True)]


def test_the_way_from_a_jpeg_goes_through_the_test_pipeline(tiny_config, tmp_path):
    resize = 'test_pipeline[1:1] = [dict(type="Resize", scale=(24, 20), keep_ratio=True)]'
    config = tiny_config(resize)
    settings = Settings((32, 40), end_to_end=True)
    seen = []
    for runtime in ('fused', 'onnxruntime'):
        path = None
        if runtime == 'onnxruntime':
            pytest.importorskip('onnxruntime')
            path = str(tmp_path / 'net.onnx')
            worker.export_row(Row(config, runtime), settings, path)
        predictor = Predictor(Row(config, runtime), settings, path)
        session = predictor.segmenter.session
        if path is None:
            session.model.backbone.register_forward_pre_hook(
                lambda _, inputs: seen.append(tuple(inputs[0].shape[2:]))
            )
            predictor.segment()
        else:
            seen.append(session.processor.input_size(*worker.PHOTO))
    assert seen == [(18, 24), (18, 24)]
    # nobody predicts in torch's float16: no time is better than one of something else
    assert Predictor(Row(config, 'torch', 'fp16'), settings).segmenter is None
    assert Predictor(Row(config, 'torch', 'bf16'), settings).segmenter is not None


def test_the_same_row_twice_gives_two_results(monkeypatch, tiny_config):
    times = iter([[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]])
    monkeypatch.setattr(compare, '_start', lambda *_: FakeWorker('a', next(times), []))
    monkeypatch.setattr(compare, '_start_meters', lambda *_: {})
    first, second = compare.run([Row(tiny_config())] * 2, SMALL)
    assert (first.ratio, second.ratio) == (1.0, pytest.approx(2.0))


def test_a_fused_predictor_gives_the_same_logits(tiny_config):
    config = tiny_config()
    image = torch.rand(2, 3, 32, 40)
    logits = []
    for backend in ('torch', 'fused'):
        torch.manual_seed(0)
        predictor = Predictor(Row(config, backend, 'fp32'), SMALL)
        logits.append(predictor.run(predictor.prepare(image)))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    assert not logits[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('backend, package', [('onnxruntime', 'onnx'), ('openvino', 'openvino')])
def test_an_exported_predictor_gives_the_same_logits(tiny_config, tmp_path, backend, package):
    pytest.importorskip(backend)
    pytest.importorskip(package)
    config = tiny_config()
    path = str(tmp_path / ('net.onnx' if backend == 'onnxruntime' else 'net.xml'))
    row = Row(config, backend, 'fp32')
    torch.manual_seed(0)
    worker.export_row(row, SMALL, path)
    predictor = Predictor(row, SMALL, path)
    torch.manual_seed(0)
    model, _ = build_row(row, SMALL)
    image = torch.rand(2, 3, 32, 40)
    with torch.no_grad():
        expected = model(image, mode='tensor')
    logits = torch.as_tensor(predictor.run(predictor.prepare(image)))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('precision, hint', [('fp32', 'f32'), ('int8', 'f32'), ('bf16', 'bf16')])
def test_openvino_computes_in_the_precision_asked_for(monkeypatch, precision, hint):
    given = {}
    stored = Processor(2, precision='fp32' if precision == 'bf16' else precision).to_json()

    class Core:
        def read_model(self, path):
            return SimpleNamespace(
                has_rt_info=lambda keys: True,
                get_rt_info=lambda keys: SimpleNamespace(value=stored),
            )

        def compile_model(self, model, device, options):
            given.update(options, device=device)
            return SimpleNamespace(create_infer_request=lambda: None)

    monkeypatch.setitem(sys.modules, 'openvino', SimpleNamespace(Core=Core))
    monkeypatch.setattr(openvino, 'check_weights', lambda *_: None)
    monkeypatch.setattr(openvino, '_pool_single_pixels', lambda _: None)
    openvino.load(Path('x.xml'), 'cpu', 3, precision, trust=True)
    assert given == {
        'device': 'CPU', 'INFERENCE_NUM_THREADS': 3, 'INFERENCE_PRECISION_HINT': hint,
    }  # fmt: skip


def test_what_a_backend_cannot_do_is_one_line(tiny_config, monkeypatch):
    config = tiny_config()
    with pytest.raises(UserError, match='fused runs no int8; onnxruntime and openvino do'):
        Predictor(Row(config, 'fused', 'int8'), SMALL)
    with pytest.raises(UserError, match='training in float16 needs CUDA; take bf16'):
        Trainer(Row(config, 'torch', 'fp16', training=True), SMALL)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(UserError, match='needs openvino; run: pip install openvino'):
        Predictor(Row(config, 'openvino', 'fp32'), SMALL, 'x.xml')


def test_a_trainer_trains(tiny_config):
    trainer = Trainer(Row(tiny_config(), training=True), SMALL)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    assert set(trainer.turn()) == {'network'}
    same = [torch.equal(a, b) for a, b in zip(before, trainer.model.parameters())]
    assert not any(same)
    held = trainer.facts()['held_mib']
    # at the least what the two first convolutions give, four channels each, and their inputs
    assert held > 2 * 4 * (32 * 40 * 4) / 2**20
    mixed = Trainer(Row(tiny_config(), precision='bf16', training=True), SMALL)
    assert type(mixed.optimizer).__name__ == 'BFloat16OptimWrapper'
    assert set(mixed.turn()) == {'network'}
    once = Trainer(Row(tiny_config(), training=True), Settings(shape=(32, 40), batch=4))
    assert once.facts()['held_mib'] == pytest.approx(held, rel=0.2)  # of one image


@ON_LINUX
def test_memory_is_counted_from_where_it_starts():
    memory = Memory(torch.device('cpu'))
    block = mmap.mmap(-1, 64 * 2**20)  # not of what malloc has kept of other tests
    block.write(bytes(64 * 2**20))
    held = memory.peak_mib()
    assert 60 <= held <= 160
    block.close()
    memory.restart()
    assert memory.peak_mib() <= held - 55


# The tool ----------------------------------------------------------------------------------------


@pytest.fixture
def main(tool, capfd, monkeypatch):
    """Run the tool: its exit code, and what it wrote to stdout and stderr."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tools/benchmark.py'])
        try:
            tool('benchmark').main([str(arg) for arg in args])
            code = 0
        except SystemExit as error:
            code = error.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_tool_measures_what_it_can_and_says_what_it_cannot(main, tiny_config, tmp_path):
    config, out = tiny_config(), tmp_path / 'out'
    code, text, _ = main(
        config, '--precision', 'fp32', 'int8', '--shape', 32, 40, '--rounds', 2, '--end-to-end',
        '--threads', 1, '--json', out / 'rows.json', '--chart', out / 'rows.png',
    )  # fmt: skip
    assert code == 1 and 'Could not import' not in text
    assert f'torch {torch.__version__}' in text and '1 x 3 x 32 x 40' in text
    assert '2 interleaved rounds' in text and '1 threads' in text and 'fp32, int8' in text
    assert 'int8: torch runs no int8; onnxruntime and openvino do' in text
    first, failed = json.loads((out / 'rows.json').read_text())
    assert set(first) == set(failed) == KEYS
    assert (first['config'], first['shape'], first['batch']) == (config, [32, 40], 1)
    assert first['ratio'] == 1.0 and first['error'] is None and failed['latency_ms'] is None
    assert 0 < first['latency_ms']['median'] <= first['latency_ms']['p95']
    assert first['latency_ms']['median'] < first['end_to_end_ms']['median']
    assert first['images_per_s'] == pytest.approx(1e3 / first['latency_ms']['median'])
    if sys.platform == 'linux':
        assert 0 <= first['peak_mib'] < 500
    assert Image.open(out / 'rows.png').format == 'PNG'


def test_the_tool_looks_into_layers(main, tiny_config, tmp_path):
    options = ['--layers', '--shape', 32, 40, '--rounds', 1, '--json', tmp_path / 'layers.json']
    code, text, _ = main(tiny_config(), *options, '--threads', 1)
    assert code == 0 and 'torch, fp32: the machine does ' in text
    assert '| backbone.stages.0.0.conv ' in text and 'GFLOP/s in a matrix product' in text
    (result,) = json.loads((tmp_path / 'layers.json').read_text())
    assert result['backend'] == 'torch' and len(result['layers']) > 20


def test_bad_input_is_one_line(main, tiny_config, tmp_path):
    config = tiny_config()
    one_band = tiny_config(
        'model["backbone"]["in_channels"] = 1\n'
        'model["data_preprocessor"].update(mean=[127.5], std=[64.0], bgr_to_rgb=False)'
    )
    for args, message in [
        ([config, '--shape', 0, 32], 'shape must be at least 1'),
        ([config, '--threads', 0], 'threads must be at least 1'),
        (['none.py'], 'config none.py not found'),
        ([config, '--checkpoint', 'none.pth'], 'none.pth not found'),
        ([config, '--layers', '--backends', 'compile'], 'torch and fused, in fp32 and bf16'),
        ([one_band, '--layers', '--shape', 32, 40], 'torch, fp32: RuntimeError: Given groups=1'),
    ]:
        code, _, err = main(*args)
        line = err.strip().splitlines()[-1]
        assert code == 2 and message in line and line.startswith('benchmark.py: error: ')
        assert 'Traceback' not in err
    for args, message in [
        ([config, '--train', '--backends', 'fused'], '--train goes without'),
        ([config, '--layers', '--end-to-end'], '--layers times the network alone; leave'),
        ([config, '--train', '--precision', 'int8'], 'fp32, fp16 and bf16'),
        ([config, '--backends', 'abacus'], 'invalid choice'),
        ([config, '--chart', 'a.pdf'], 'cannot write a.pdf: the name must end in .png'),
    ]:
        code, _, err = main(*args)
        assert code == 2 and message in err
