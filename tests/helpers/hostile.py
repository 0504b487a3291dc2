"""Files that nobody should load: made to run code, to take memory or time, or to fail in odd ways.

Each maker gets the path to write to and a command; what runs code runs the command.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.checkpoints import Hostile

Maker = Callable[[Path, str], None]

WEIGHTS = {'state_dict': {'backbone.w': torch.ones(4, 3, 3, 3)}, 'meta': {'iter': 1, 'epoch': 0}}


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, 'w', compression, compresslevel=6) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_pickle(path: Path, data: bytes) -> None:
    """A checkpoint whose pickle is another."""
    torch.save(WEIGHTS, path)
    members = members_of(path)
    name = next(name for name in members if name.endswith('/data.pkl'))
    zip_of(path, {**members, name: data})


def _saved(value: Any, legacy: bool = False) -> Maker:
    def make(path: Path, command: str) -> None:
        made = value(command) if callable(value) else value
        torch.save(made, path, _use_new_zipfile_serialization=not legacy)

    return make


def _flipped(path: Path, command: str) -> None:
    torch.save(WEIGHTS, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(3).numpy().tobytes()) + 6] ^= 0x40
    path.write_bytes(data)


def _bomb(path: Path, command: str) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open('archive/data.pkl', 'w', force_zip64=True) as file:
            for _ in range(16):
                file.write(bytes(1 << 24))


def _tuples(key: bool) -> bytes:
    """Tuples of which each holds the one before ten times, in a list or as keys: 10^39 values."""
    tuples = b')q\x01' + (b'(' + b'h\x01' * 10 + b'tq\x01') * 39
    return b'\x80\x02' + (b'}(' + tuples + b'u.' if key else b'](' + tuples + b'e.')


def _large_storage(path: Path, command: str) -> None:
    """A legacy file with a storage of 8 GB in its pickle."""
    torch.save({'state_dict': {'a': torch.ones(7)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b'K\x07', b'J\x00\x00\x00\x78'))


def checkpoints() -> dict[str, Maker]:
    """``.pth`` files."""
    weights = WEIGHTS['state_dict']
    return {
        'system': _saved(lambda c: {**WEIGHTS, 'x': Hostile(os.system, c)}),
        'system, legacy': _saved(lambda c: {**WEIGHTS, 'x': Hostile(os.system, c)}, legacy=True),
        'eval': _saved(
            lambda c: {**WEIGHTS, 'x': Hostile(eval, f'__import__("os").system("{c}")')}
        ),
        'getattr': _saved({**WEIGHTS, 'x': Hostile(getattr, np.ndarray, 'tofile')}),
        'torch.load': _saved({**WEIGHTS, 'x': Hostile(torch.load, '/etc/passwd')}),
        'bare pickle': lambda p, c: p.write_bytes(pickle.dumps(Hostile(os.system, c))),
        'bit flipped': _flipped,
        'cut short': lambda p, c: (
            torch.save(WEIGHTS, p),
            p.write_bytes(p.read_bytes()[:-300]),
        ),
        'empty': lambda p, c: p.write_bytes(b''),
        'zeros': lambda p, c: p.write_bytes(bytes(5000)),
        'zip bomb': _bomb,
        'array of 80 GB': _saved({**WEIGHTS, 'x': Hostile(np.ndarray, (10**10,))}),
        'bytes of 8 GB': _saved({**WEIGHTS, 'x': Hostile(bytearray, 1 << 33)}),
        'tensor of 8 GB': _saved({'state_dict': {'w': torch.ones(1).expand(1 << 31)}}),
        'storage of 8 GB, legacy': _large_storage,
        'object array': _saved({**WEIGHTS, 'x': np.array([Hostile(os.system, 'true')], object)}),
        'tuples': lambda p, c: with_pickle(p, _tuples(key=False)),
        'tuples as a key': lambda p, c: with_pickle(p, _tuples(key=True)),
        'holds itself': lambda p, c: with_pickle(p, b'\x80\x02]q\x00h\x00a.'),
        'opcodes without end': lambda p, c: with_pickle(p, b'\x80\x02' + b'N0' * 3_000_000 + b'N.'),
        'names are numbers': _saved({'state_dict': {1: torch.ones(1)}}),
        'a list': _saved([1]),
        'meta is text': _saved({**WEIGHTS, 'meta': 'x' * 40_000}),
        'palette is text': _saved({**WEIGHTS, 'meta': {'dataset_meta': {'palette': 'red'}}}),
        'classes are numbers': _saved({**WEIGHTS, 'meta': {'dataset_meta': {'classes': [1, 2]}}}),
        'weights are text': _saved({'state_dict': {**weights, 'backbone.v': 'text'}}),
    }


def other_weights() -> dict[str, Maker]:
    """Files of other formats, by names that end in their suffix."""
    bomb = json.dumps([[]] * 100).encode() * 300_000

    def hdf5(path: Path, command: str) -> None:
        import h5py

        with h5py.File(path, 'w') as file:
            file.create_dataset('conv/a/kernel:0', (1 << 29,), 'f4')

    def linked(path: Path, command: str) -> None:
        import h5py

        with h5py.File(path, 'w') as file:
            file['conv/a/kernel:0'] = h5py.ExternalLink('/etc/passwd', '/x')

    def packed(path: Path, command: str) -> None:
        import h5py

        with h5py.File(path, 'w') as file:
            zeros = np.zeros(1 << 27, 'f4')
            file.create_dataset(
                'conv/a/kernel:0', data=zeros, compression='gzip', chunks=(1 << 24,)
            )

    def objects(path: Path, command: str) -> None:
        np.savez(path.with_suffix('.npz'), w=np.array([Hostile(os.system, command)], object))

    def large(path: Path, command: str) -> None:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296,), }"
        header += b' ' * (117 - len(header)) + b'\n'
        zip_of(path, {'w.npy': b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header})

    def deep(path: Path, command: str) -> None:
        header = b'{"a":' * 50_000 + b'1' + b'}' * 50_000
        path.write_bytes(struct.pack('<Q', len(header)) + header)

    def meta(path: Path, command: str) -> None:
        import safetensors.torch

        nested = '[' * 100_000 + ']' * 100_000
        safetensors.torch.save_file({'backbone.w': torch.ones(2)}, path, {'meta': nested})

    return {
        'objects.npz': objects,
        'large.npz': large,
        'zeros.npz': lambda p, c: zip_of(p, {'w.npy': bytes(1 << 29)}, zipfile.ZIP_DEFLATED),
        'declared.h5': hdf5,
        'linked.h5': linked,
        'packed.h5': packed,
        'config.keras': lambda p, c: zip_of(
            p, {'config.json': bomb, 'model.weights.h5': b''}, zipfile.ZIP_DEFLATED
        ),
        'lambda.keras': lambda p, c: zip_of(
            p,
            {'config.json': b'{"class_name": "Lambda"}', 'model.weights.h5': b'\x89HDF\r\n\x1a\n'},
        ),
        'deep.safetensors': deep,
        'meta.safetensors': meta,
        'blob.caffemodel': lambda p, c: p.write_bytes(b'\xa2\x06\x08\x0a\x01a\x3a\x03\x3a\x01\xff'),
        'noise.caffemodel': lambda p, c: p.write_bytes(bytes(range(1, 250)) * 40),
    }


def _edited(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """A ``.pt2`` of a small network, its members changed."""
    from ssnet_mm.deploy.processor import KEY, Processor

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() * self.w).sum(3).to(torch.uint8)

    shapes = ({i: torch.export.Dim(name, min=2, max=99) for i, name in enumerate('nhw')},)
    images = torch.ones(4, 8, 9, 3, dtype=torch.uint8)
    program = torch.export.export(Net(), (images,), dynamic_shapes=shapes)
    text = Processor(num_classes=200, end_to_end=True).to_json()
    torch.export.save(program, path, extra_files={KEY: text})
    zip_of(path, {name: change(name, data) for name, data in members_of(path).items()})


def exported(pt2: bool = True) -> dict[str, Maker]:
    """Files that ``tools/predict.py`` is given, by names that end in their suffix."""

    def pickled(command: str) -> bytes:
        file = io.BytesIO()
        torch.save(Hostile(os.system, command), file)
        return file.getvalue()

    def weight(name: str, data: bytes, command: str) -> bytes:
        if name.endswith('model_weights_config.json'):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return pickled(command) if name.endswith('/weight_0') else data

    def expression(name: str, data: bytes, command: str) -> bytes:
        evil = json.dumps(f"__import__('os').system('{command}')").encode()
        if name.endswith('models/model.json'):
            return re.sub(rb'"expr_str": "[^"]*"', lambda _: b'"expr_str": ' + evil, data)
        return data

    def called(name: str, data: bytes, command: str) -> bytes:
        return data.replace(b'torch.ops.aten.mul.Tensor', b'torch.ops.aten.from_file.default')

    def guard(name: str, data: bytes, command: str) -> bytes:
        evil = json.dumps([f"__import__('os').system('{command}')"]).encode()
        return re.sub(rb'"guards_code": \[[^\]]*\]', lambda _: b'"guards_code": ' + evil, data)

    def edit(change: Callable[[str, bytes, str], bytes]) -> Maker:
        return lambda path, command: _edited(path, lambda n, d: change(n, d, command))

    def xml(layer: str) -> Maker:
        text = f'<?xml version="1.0"?><net name="a" version="11"><layers>{layer}</layers></net>'
        return lambda p, c: (p.write_text(text), p.with_suffix('.bin').write_bytes(b''))

    files: dict[str, Maker] = {
        'loop.onnx': onnx_file(loop=True),
        'external.onnx': onnx_file(external='../../../../../../etc/passwd'),
        'functions.onnx': onnx_file(functions=True),
        'declared.onnx': onnx_file(dims=[1 << 33]),
        'zeros.onnx': onnx_file(zeros=1 << 33),
        'resize.onnx': onnx_file(meta={'resize': {'keep_ratio': False, 'scale': [10**9, 10**9]}}),
        'classes.onnx': onnx_file(meta={'num_classes': 10**9}),
        'palette.onnx': onnx_file(meta={'palette': [['a', 'b', 'c']] * 5}),
        'recursive.onnx': onnx_file(text='[' * 100_000),
        'noise.onnx': lambda p, c: p.write_bytes(bytes(range(256)) * 20),
        'loop.xml': xml('<layer id="0" name="l" type="Loop" version="opset5"/>'),
        'hidden.xml': xml('<layer id="0" name="l" type="&#76;oop" version="opset5"/>'),
        'noise.xml': lambda p, c: p.write_bytes(bytes(range(256)) * 20),
        'entities.xml': lambda p, c: p.write_text(
            '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;">]><net>&b;</net>'
        ),
        'large.xml': xml(
            '<layer id="0" name="l" type="Const" version="opset1"><data element_type="f32" '
            'shape="1000000000" offset="0" size="4000000000"/><output><port id="0" '
            'precision="FP32"><dim>1000000000</dim></port></output></layer>'
        ),
        'noise.pt2': lambda p, c: p.write_bytes(bytes(range(256)) * 20),
        'bomb.pt2': _bomb,
    }
    if pt2:
        files |= {
            'weight.pt2': edit(weight),
            'inputs.pt2': edit(lambda n, d, c: pickled(c) if '/sample_inputs/' in n else d),
            'expression.pt2': edit(expression),
            'called.pt2': edit(called),
            'guard.pt2': edit(guard),
        }
    return files


def onnx_file(
    *,
    meta: dict[str, Any] | None = None,
    text: str = '',
    loop: bool = False,
    external: str = '',
    functions: bool = False,
    dims: list[int] | None = None,
    zeros: int = 0,
) -> Maker:
    """A network that labels by the red channel, with what it should not have."""

    def make(path: Path, command: str) -> None:
        from onnx import TensorProto, helper, numpy_helper

        from ssnet_mm.deploy.processor import KEY, Processor

        constants = {'z': [0], 'o': [1], 'axis': [3]}
        weights = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
        nodes = [
            helper.make_node('Slice', ['x', 'z', 'o', 'axis'], ['q']),
            helper.make_node('Squeeze', ['q', 'axis'], ['y']),
        ]
        if loop:
            many = numpy_helper.from_array(np.array(1 << 60), 'many')
            go_on = numpy_helper.from_array(np.array(True), 'true')
            weights += [many, go_on]
            body = helper.make_graph(
                [helper.make_node('Identity', ['going'], ['goes'])],
                'body',
                [
                    helper.make_tensor_value_info('i', TensorProto.INT64, []),
                    helper.make_tensor_value_info('going', TensorProto.BOOL, []),
                ],
                [helper.make_tensor_value_info('goes', TensorProto.BOOL, [])],
            )
            nodes.append(helper.make_node('Loop', ['many', 'true'], [], body=body))
        if zeros:
            weights.append(numpy_helper.from_array(np.array([zeros], np.int64), 'size'))
            nodes.append(helper.make_node('ConstantOfShape', ['size'], ['large']))
            nodes.append(helper.make_node('Size', ['large'], ['count']))
        if external or dims:
            weight = helper.make_tensor('w', TensorProto.INT8, [1], b'\0', raw=True)
            weights.append(weight)
            if external:
                weight.ClearField('raw_data')
                weight.data_location = TensorProto.EXTERNAL
                entry = weight.external_data.add()
                entry.key, entry.value = 'location', external
            else:
                weight.ClearField('dims')
                weight.dims.extend(dims or [])
        shape = ['n', 'h', 'w']
        graph = helper.make_graph(
            nodes,
            'net',
            [helper.make_tensor_value_info('x', TensorProto.UINT8, [*shape, 3])],
            [helper.make_tensor_value_info('y', TensorProto.UINT8, shape)],
            weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
        if functions:
            inner = [helper.make_node('Identity', ['a'], ['b'])]
            imports = [helper.make_opsetid('', 17)]
            model.functions.append(helper.make_function('own', 'f', ['a'], ['b'], inner, imports))
        fields = json.loads(Processor(num_classes=256, end_to_end=True).to_json())
        helper.set_model_props(model, {KEY: text or json.dumps({**fields, **(meta or {})})})
        path.write_bytes(model.SerializeToString())

    return make


def resumed(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A sound checkpoint with one thing in it that is not what resuming needs."""

    def with_hub(**parts: Any) -> dict[str, Any]:
        return {**checkpoint, 'message_hub': {**checkpoint['message_hub'], **parts}}

    meta, runtime = checkpoint['meta'], checkpoint['message_hub']['runtime_info']
    optimizer = checkpoint['optimizer']
    group = optimizer['param_groups'][0]
    return {
        'meta': {**checkpoint, 'meta': ['x']},
        'iter missing': {**checkpoint, 'meta': {k: v for k, v in meta.items() if k != 'iter'}},
        'iter text': {**checkpoint, 'meta': {**meta, 'iter': 'two'}},
        'iter huge': {**checkpoint, 'meta': {**meta, 'iter': 1 << 62}},
        'epoch': {**checkpoint, 'meta': {**meta, 'epoch': -1}},
        'seed': {**checkpoint, 'meta': {**meta, 'seed': 'x' * 100_000}},
        'dataset_meta': {**checkpoint, 'meta': {**meta, 'dataset_meta': 5}},
        'classes': {**checkpoint, 'meta': {**meta, 'dataset_meta': {'classes': 5}}},
        'palette': {**checkpoint, 'meta': {**meta, 'dataset_meta': {'palette': [[1]]}}},
        'hub': {**checkpoint, 'message_hub': 7},
        'scalars': with_hub(log_scalars=[1]),
        'history': with_hub(log_scalars={'loss': {'log_history': 'x'}}),
        'runtime': with_hub(runtime_info=None),
        'score': with_hub(runtime_info={**runtime, 'best_score': 'high'}),
        'keep': with_hub(runtime_info={**runtime, 'keep_ckpt_ids': 7}),
        'early stopping': with_hub(runtime_info={**runtime, 'early_stopping': [['mIoU', 1]]}),
        'keys': with_hub(resumed_keys={'loss': 'yes'}),
        'optimizer': {**checkpoint, 'optimizer': 'SGD'},
        'groups': {**checkpoint, 'optimizer': {**optimizer, 'param_groups': [5]}},
        'rate': {**checkpoint, 'optimizer': {**optimizer, 'param_groups': [{**group, 'lr': 'x'}]}},
        'momentum': {
            **checkpoint,
            'optimizer': {
                **optimizer,
                'state': {k: {'momentum_buffer': torch.ones(1, 99)} for k in optimizer['state']},
            },
        },
        'schedulers': {**checkpoint, 'param_schedulers': 'poly'},
        'schedule': {**checkpoint, 'param_schedulers': [{'last_step': 'x', '_global_step': []}]},
        'no state_dict': {k: v for k, v in checkpoint.items() if k != 'state_dict'},
    }
