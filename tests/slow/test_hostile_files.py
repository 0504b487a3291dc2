"""Every hostile file through every tool: nothing runs, nothing outside is touched, one line."""

import collections
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers.children import run_child
from helpers.export_formats import OLD_TORCH
from helpers.hostile import checkpoints, exported, other_weights, resumed
from helpers.tripwire import tripwire
from PIL import Image

from ssnet_mm.deploy import Segmenter
from ssnet_mm.errors import UserError

pytestmark = pytest.mark.slow

MIB = 2048  # no file may have a tool take more
LONGEST = 700  # characters of a line, with the tool's name
DISTILLED = """
teacher = dict(model)
model = dict(type='DistilledEncoderDecoder', teacher=teacher, teacher_checkpoint='NONE',
    distill_loss=dict(type='KLDistillLoss'), **{k: v for k, v in teacher.items() if k != 'type'})
"""


@pytest.fixture
def routes(tool, tiny_config, tmp_path):
    """From a file to what is called on it, by the tool's name and the way the file gets there."""
    plain, distilled = tiny_config(), tiny_config(DISTILLED)
    Image.new('RGB', (20, 17)).save(tmp_path / 'image.png')
    image, out = str(tmp_path / 'image.png'), str(tmp_path / 'out')

    def call(name, *args):
        def run():
            sys.argv = [f'tools/{name}.py']
            with tripwire() as seen:
                try:
                    tool(name).main([str(arg) for arg in args])
                finally:
                    if seen:
                        print('TRIPWIRE', seen)

        tool(name)
        return run

    def train(config, *options):
        work_dir = ['--work-dir', tmp_path / 'work', '--skip-data-check']
        return call('train', config, *work_dir, '--cfg-options', *options)

    def segment(*args):
        def run():
            try:
                Segmenter(*args)(np.zeros((9, 8, 3), np.uint8))
            except UserError as error:
                print(f'Segmenter: error: {error}')
                sys.exit(2)

        return run

    init = 'model.backbone.init_cfg'
    weights = {
        'train, load_from': lambda f: train(plain, f'load_from={f}'),
        'train, resume': lambda f: train(plain, f'load_from={f}', 'resume=True'),
        'train, Pretrained': lambda f: train(
            plain, f'{init}.type=Pretrained', f'{init}.checkpoint={f}'
        ),
        'train, ForeignPretrained': lambda f: train(
            plain, f'{init}.type=ForeignPretrained', f'{init}.checkpoint={f}'
        ),
        'train, teacher': lambda f: train(distilled, f'model.teacher_checkpoint={f}'),
        'test': lambda f: call(
            'test', plain, f, '--work-dir', tmp_path / 'test', '--skip-data-check'
        ),
        'predict': lambda f: call('predict', plain, f, image, '--out-dir', out),
        'export': lambda f: call(
            'export', plain, f, '--format', 'onnx', '--out', tmp_path / 'a.onnx'
        ),
        'convert': lambda f: call('convert_weights', f, tmp_path / 'converted.pth'),
        'Segmenter': lambda f: segment(plain, str(f)),
    }
    models = {
        'predict': lambda f: call('predict', f, image, '--out-dir', out),
        'Segmenter': lambda f: segment(str(f)),
    }
    return weights, models


@pytest.fixture
def verdicts(tmp_path):
    """Run and judge; at the end print a table of the routes and fail with all that was wrong."""
    outside = tmp_path / 'outside'
    outside.mkdir()
    for name in ('best_a.pth', 'iter_1.pth'):
        (outside / name).write_bytes(b'kept')
    marker, table, faults = tmp_path / 'ran', collections.defaultdict(list), []

    def judge(route, name, file, function, may_work=False):
        outcome = run_child(function, tmp_path / 'log')
        wrong = []
        if marker.exists() or 'TRIPWIRE' in outcome.output:
            wrong.append('code ran')
            marker.unlink(missing_ok=True)
        if sorted((p.name, p.read_bytes()) for p in outside.iterdir()) != [
            ('best_a.pth', b'kept'), ('iter_1.pth', b'kept'),
        ]:  # fmt: skip
            wrong.append('files outside touched')
        if 'Traceback' in outcome.output:
            wrong.append('traceback')
        if outcome.code != 2 and not (may_work and outcome.code == 0):
            wrong.append(f'exit code {outcome.code}')
        if outcome.code == 2 and file not in outcome.last:
            wrong.append('another error')
        if len(outcome.last) > LONGEST:
            wrong.append(f'a line of {len(outcome.last)} characters')
        if outcome.peak_mib > MIB:
            wrong.append(f'{outcome.peak_mib:.0f} MiB')
        if outcome.seconds > 60:
            wrong.append(f'{outcome.seconds:.0f} s')
        table[route].append((outcome, wrong))
        if wrong:
            faults.append(f'{route}: {name}: {", ".join(wrong)}: {outcome.output[-1500:]}')

    yield marker, judge
    print('\n| route | files | code run | tracebacks | faults | most MiB | longest line | most s |')
    print('|---|---|---|---|---|---|---|---|')
    for route, rows in table.items():
        kinds = collections.Counter(one for _, wrong in rows for one in wrong)
        print(
            f'| {route} | {len(rows)} | {kinds["code ran"]} | {kinds["traceback"]} '
            f'| {sum(map(bool, (wrong for _, wrong in rows)))} '
            f'| {max(o.peak_mib for o, _ in rows):.0f} | {max(len(o.last) for o, _ in rows)} '
            f'| {max(o.seconds for o, _ in rows):.1f} |'
        )
    assert not faults, '\n\n'.join(faults)


def test_weights(routes, verdicts, tmp_path):
    marker, judge = verdicts
    makers = {f'{name}.pth': make for name, make in checkpoints().items()} | other_weights()
    for name, make in makers.items():
        path = tmp_path / name.replace(' ', '_').replace(',', '')
        make(path, f'touch {marker}')
        for route, way in routes[0].items():
            judge(route, name, path.name, way(path))
        path.unlink()


def test_resumed_metadata(routes, verdicts, tmp_path, tool, tiny_config):
    _, judge = verdicts
    work_dir, config = tmp_path / 'sound', tiny_config()
    options = ['--work-dir', str(work_dir), '--skip-data-check']
    trained = run_child(lambda: tool('train').main([config, *options]), tmp_path / 'log')
    assert trained.code == 0, trained.output
    sound = torch.load(work_dir / 'iter_2.pth', weights_only=True)
    for route in ('train, load_from', 'train, teacher', 'test', 'predict', 'export', 'Segmenter'):
        outcome = run_child(routes[0][route](work_dir / 'iter_2.pth'), tmp_path / 'log')
        assert outcome.code == 0, outcome.output  # or the routes would not be what is judged
        shutil.rmtree(tmp_path / 'work', ignore_errors=True)
    outside = str(tmp_path / 'outside' / 'best_a.pth')
    sound['message_hub']['runtime_info'].update(best_ckpt=outside, last_ckpt=outside)
    cases = {**resumed(sound), 'sound': sound}
    for name, checkpoint in cases.items():
        torch.save(checkpoint, tmp_path / 'a.pth')
        way = routes[0]['train, resume'](tmp_path / 'a.pth')
        judge('train, resume', name, 'a.pth', way, may_work=name == 'sound')
        for route in ('test', 'predict', 'convert', 'export'):
            (tmp_path / 'converted.pth').unlink(missing_ok=True)
            judge(route, name, 'a.pth', routes[0][route](tmp_path / 'a.pth'), may_work=True)


def test_exported_models(routes, verdicts, tmp_path):
    marker, judge = verdicts
    for name, make in exported(pt2=not OLD_TORCH).items():
        make(tmp_path / name, f'touch {marker}')
        for route, way in routes[1].items():
            works = name in (
                'inputs.pt2',
                'expression.pt2',
                'guard.pt2',
            )  # what is hostile is unread
            judge(route, name, name, way(tmp_path / name), may_work=works)


def test_the_benchmark(verdicts, tmp_path, tiny_config):
    marker, judge = verdicts
    config = tiny_config()
    for name in ('system', 'zip bomb', 'tensor of 8 GB'):
        path = tmp_path / 'a.pth'
        checkpoints()[name](path, f'touch {marker}')
        command = [sys.executable, 'tools/benchmark.py', config, '--checkpoint', str(path)]
        judge(
            'benchmark', name, '', lambda command=command: os.execv(sys.executable, command), True
        )
