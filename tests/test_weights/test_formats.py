import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ssnet_mm import limits
from ssnet_mm.engine import read_checkpoint
from ssnet_mm.errors import UserError
from ssnet_mm.weights import formats, read_weights
from ssnet_mm.weights.formats.checkpoints import write_safetensors

REFERENCE = Path(__file__).parents[1] / 'reference' / 'keras_files.zip'


def refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert '\n' not in str(error.value) and path.name in str(error.value)


def name_of_format(path):
    return formats.format_of(str(path)).name


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        given = tensors[key].numpy()
        assert given.dtype == value.dtype and np.array_equal(given, value), key


@pytest.fixture
def little(monkeypatch):
    """Let little bombs do: 4 MiB instead of more than 64."""
    monkeypatch.setattr(limits, 'FREE', 1 << 20)
    return bytes(4 << 20)


def arrays(*keys):
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal((2, 3, 1, 4)).astype(np.float32) for key in keys}


# torch


@pytest.mark.parametrize('wrapper', ['state_dict', 'model_state_dict', 'model', None])
@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.bin', ''])
def test_torch_checkpoints_are_read_out_of_their_wrappers(tmp_path, wrapper, suffix):
    state = {'a.weight': torch.arange(6.0).reshape(2, 3), 'n': torch.tensor(3)}
    path = tmp_path / f'a{suffix}'
    torch.save({wrapper: state, 'epoch': 3, 'meta': {'iter': 1}} if wrapper else state, path)
    weights = read_weights(path)
    assert name_of_format(path) == "torch's (.pth)"
    same(weights, {key: value.numpy() for key, value in state.items()})


def test_ddp_prefix_goes_where_all_names_have_it(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'module.a': torch.ones(1), 'module.b': torch.ones(2)}, path)
    assert set(read_weights(path)) == {'a', 'b'}
    torch.save({'module.a': torch.ones(1), 'b': torch.ones(2)}, path)
    assert set(read_weights(path)) == {'module.a', 'b'}


def test_an_address_is_no_file():
    with pytest.raises(UserError, match='^https://host/a.pth is not a local file; download it f'):
        read_weights('https://host/a.pth')


def test_torch_files_without_weights_or_with_code_or_with_air_are_refused(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': {'epoch': 3}}, path)
    refused(path, 'holds no weights')
    torch.save({'w': torch.ones(1), 'x': torch.nn.Conv2d(1, 1, 1)}, path)
    refused(path, 'refused: it asks for')
    torch.save({'w': torch.zeros(1).expand(1 << 40)}, path)  # one stored number
    refused(path, 'unpacks to 4,194,304 MiB, more than the 64 MiB')
    torch.save({'w': torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, 'damaged or cut short')
    torch.save({'w': torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, 'cut short')


# safetensors


def test_safetensors_keep_values_types_and_meta(tmp_path):
    pytest.importorskip('safetensors')
    path = tmp_path / 'deep' / 'a.safetensors'
    base = torch.arange(12.0).reshape(3, 4)
    state = {'w': base.T, 'shared': base, 'half': base.half(), 'n': torch.tensor(7)}
    meta = {'dataset_meta': {'classes': ['sky', 'road']}, 'iter': 5}
    write_safetensors(path, state, meta)
    assert [p.name for p in path.parent.iterdir()] == ['a.safetensors']  # nothing temporary
    weights = read_weights(path)
    assert name_of_format(path) == 'safetensors (.safetensors)'
    same(weights, {key: value.numpy() for key, value in state.items()})
    checkpoint = read_checkpoint(path)
    assert checkpoint['meta'] == meta and torch.equal(checkpoint['state_dict']['w'], base.T)
    with pytest.raises(UserError, match='must end in .safetensors'):
        write_safetensors(tmp_path / 'a.pth', state)


def test_broken_safetensors_are_named_in_one_line(tmp_path):
    pytest.importorskip('safetensors')
    path = tmp_path / 'a.safetensors'
    write_safetensors(path, {'w': torch.ones(1000)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(path, 'not a readable checkpoint: cut short')
    path.write_bytes(whole[:40])  # within the header
    refused(path, 'cut short')
    header = json.dumps({'w': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 1 << 42]}})
    path.write_bytes(struct.pack('<Q', len(header)) + header.encode() + bytes(64))
    refused(path, 'not a readable checkpoint')


def test_safetensors_of_others_are_read_without_our_meta(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'a.safetensors'
    for strings, meta in (
        (None, {}),
        ({'format': 'pt'}, {'format': 'pt'}),
        ({'meta': 'no {json'}, {'meta': 'no {json'}),
    ):
        safetensors.save_file({'w': torch.ones(1)}, path, strings)
        assert read_checkpoint(path)['meta'] == (meta or {})


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    path = tmp_path / 'a.safetensors'
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(4))
    monkeypatch.setitem(__import__('sys').modules, 'safetensors', None)
    refused(path, 'a.safetensors needs safetensors; run: pip install safetensors')


# npz


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz_arrays_are_read_as_stored(tmp_path, save):
    path = tmp_path / 'a.npz'
    stored = arrays('conv1_1.weight', 'conv1_1.bias')
    stored['double'] = np.float64([1, 2])
    stored['scalar'] = np.int64(3)
    stored['fortran'] = np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3))
    save(path, big=np.arange(3, dtype='>f4'), **stored)
    weights = read_weights(path)
    assert name_of_format(path) == "NumPy's (.npz)"
    same(weights, {'big': np.arange(3, dtype=np.float32), **stored})


def npy(header, data=b''):
    text = header.encode() + b'\n'
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


def test_hostile_and_broken_npz_are_refused(tmp_path, little):
    path = tmp_path / 'a.npz'

    def write(data):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
            file.writestr('w.npy', data)

    np.savez(path, w=np.array([{'a': 1}], dtype=object))
    refused(path, 'w is of object, not of numbers')
    np.savez(path, w=np.array(['text']))
    refused(path, 'w is of <U4')
    write(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }", bytes(64)))
    refused(path, 'w is said to be of .1099511627776,., which its .* bytes are not')
    write(b'\x93NUMPY\x01')
    refused(path, 'damaged or cut short')
    write(little)
    refused(path, 'unpacks to 4 MiB, more than the 1 MiB')
    np.savez(path, **arrays('a', 'b'))
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    refused(path, 'damaged or cut short')
    path.write_bytes(whole[:200] + bytes(8) + whole[208:])  # a number in the middle
    refused(path, 'damaged or cut short .*CRC')
    with pytest.warns(UserWarning, match='Duplicate'):
        with zipfile.ZipFile(path, 'a') as file:
            file.writestr('a.npy', b'')
    refused(path, 'damaged|twice')


def test_pickled_npy_is_refused_with_the_way_round(tmp_path):
    path = tmp_path / 'vgg16.npy'
    np.save(path, {'conv1_1': {'weights': np.ones(3)}})
    refused(path, r'could run code: .* numpy.savez\(NAME.npz')


# Keras


def keras_members():
    with zipfile.ZipFile(REFERENCE) as file:
        return [name for name in file.namelist() if not name.endswith('.npz')]


@pytest.fixture
def extracted(tmp_path):
    def extract(member):
        with zipfile.ZipFile(REFERENCE) as file:
            path = Path(file.extract(member, tmp_path))
            with np.load(io.BytesIO(file.read(f'{Path(member).parent}/weights.npz'))) as stored:
                return path, dict(stored)

    return extract


@pytest.mark.parametrize('member', keras_members())
def test_what_keras_wrote_gives_its_weights_under_its_names(member, extracted):
    pytest.importorskip('h5py')
    path, expected = extracted(member)
    weights = read_weights(path)
    assert name_of_format(path) == "Keras' (.h5, .keras)"
    assert len(expected) == (108 if '/ds/' in member else 90)
    same(weights, expected)


@pytest.mark.parametrize('conv_type', ['conv', 'ds'])
def test_layers_keras_3_does_not_name_are_told_by_ssnets_order(conv_type, extracted):
    h5py = pytest.importorskip('h5py')
    path, expected = extracted(f'keras3/{conv_type}/a.weights.h5')
    with h5py.File(path, 'r+') as file:
        for group in file['layers'].values():
            del group['vars'].attrs['name']  # as Keras 3 wrote before it knew of them
    same(read_weights(path), expected)
    with h5py.File(path, 'r+') as file:
        file.move('layers', '_layer_checkpoint_dependencies')  # as Keras 2.13 calls it
    same(read_weights(path), expected)
    with h5py.File(path, 'r+') as file:
        del file['_layer_checkpoint_dependencies/conv2d_transpose']
    refused(path, 'does not tell which layer is which: it has 1 of conv2d_transpose .* network 2')


def test_config_names_layers_whatever_their_order_or_name(tmp_path):
    h5py = pytest.importorskip('h5py')
    inner, path = io.BytesIO(), tmp_path / 'a.keras'
    stored = arrays(*map(str, range(11)))
    with h5py.File(inner, 'w') as file:
        for i in range(11):  # conv2d_10 comes after conv2d_9, not after conv2d_1
            file[f'layers/conv2d{f"_{i}" if i else ""}/vars/0'] = stored[str(i)]
        file['layers/dropout/seed_generator/vars/0'] = np.zeros(2, np.uint32)
        file['layers/dense/vars/0'] = np.float32([5])
        file['optimizer/vars/0'] = np.int64(1)
    layers = [{'class_name': 'Conv2D', 'config': {'name': f'my{i}'}} for i in range(11)]
    layers.insert(0, {'class_name': 'InputLayer', 'config': {'name': 'in'}})
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('config.json', json.dumps({'config': {'layers': layers}}))
        file.writestr('model.weights.h5', inner.getvalue())
    expected = {f'my{i}/kernel': stored[str(i)] for i in range(11)}
    same(read_weights(path), {**expected, 'layers/dense/vars/0': np.float32([5])})

    for config, message in (
        ({'config': {'layers': layers[:-1]}}, 'has 11 of conv2d with weights, its config.json 10'),
        ({'config': {}}, 'lists no layers; only functional'),
        ([], 'lists no layers'),
    ):
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('config.json', json.dumps(config))
            file.writestr('model.weights.h5', inner.getvalue())
        refused(path, message)


@pytest.mark.parametrize('scope', ['conv1_1', 'conv1_1_1'])  # the second in graphs of TensorFlow 1
def test_old_layout_goes_by_the_layers_group(tmp_path, scope):
    h5py = pytest.importorskip('h5py')
    path = tmp_path / 'a.h5'
    stored = arrays('conv1_1/kernel', 'conv1_1/bias')
    with h5py.File(path, 'w') as file:
        for key, value in stored.items():
            file[f'model_weights/conv1_1/{scope}/{key[8:]}:0'] = value
        file['optimizer_weights/x'] = np.int64(1)
    same(read_weights(path), stored)


def hdf5_cases():
    """What a file may hold that Keras does not write: (how it is written, the message)."""

    def case(message):
        def add(function):
            cases.append(pytest.param(function, message, id=function.__name__))
            return function

        return add

    cases = []

    @case('conv/a/bias is a link to elsewhere')
    def external_link(h5py, file):
        file['conv/a/bias'] = h5py.ExternalLink('other.h5', '/secret')

    @case('conv/a/bias is a link to elsewhere')
    def soft_link(h5py, file):
        file['conv/a/bias'] = h5py.SoftLink('/conv/a/kernel:0')

    @case('conv/bias lies in another file')
    def external_storage(h5py, file):
        file.create_dataset('conv/a/bias', (3,), 'f4', external=[('secret.bin', 0, 12)])

    @case('conv/bias lies in another file')
    def virtual_dataset(h5py, file):
        layout = h5py.VirtualLayout((3,), 'f4')
        layout[:] = h5py.VirtualSource('other.h5', 'secret', (3,))
        file.create_virtual_dataset('conv/a/bias', layout)

    @case('its groups go on without end')
    def cycle(h5py, file):
        file['conv/a/again'] = file['conv']

    @case('unpacks to 4,194,304 MiB, more than the 1 MiB')
    def never_written(h5py, file):
        file.create_dataset('conv/a/bias', (1 << 40,), 'f4')

    @case('conv/bias is compressed, which Keras does not do')
    def compressed_zeros(h5py, file):
        file.create_dataset('conv/a/bias', data=np.zeros(1 << 20, 'f4'), compression='gzip')

    @case('unpacks to 4 MiB')
    def chunk_larger_than_its_array(h5py, file):
        file.create_dataset('conv/a/bias', (1,), 'f4', chunks=(1 << 20,), maxshape=(None,))

    @case('conv/bias is of object')
    def objects(h5py, file):
        file['conv/a/bias'] = 'text'

    @case('conv/bias is of .*, not of numbers')
    def compound(h5py, file):
        file['conv/a/bias'] = np.zeros(2, [('x', 'f4'), ('y', 'f4')])

    @case('conv/kernel twice')
    def nested_model(h5py, file):
        file['conv/b/kernel:0'] = np.float32([2])

    @case('conv/bias is of')
    def empty_dataspace(h5py, file):
        file['conv/a/bias'] = h5py.Empty('f4')

    return cases


@pytest.mark.parametrize(('add', 'message'), hdf5_cases())
def test_hdf5_that_keras_would_not_write_is_refused(tmp_path, little, add, message):
    h5py = pytest.importorskip('h5py')
    secret = tmp_path / 'other.h5'
    with h5py.File(secret, 'w') as file:
        file['secret'] = np.float32([1, 2, 3])
    (tmp_path / 'secret.bin').write_bytes(bytes(12))
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['conv/a/kernel:0'] = np.float32([1])
    same(read_weights(path), {'conv/kernel': np.float32([1])})
    with h5py.File(path, 'r+') as file:
        add(h5py, file)
    refused(path, message)


@pytest.mark.parametrize('member', ['keras2/ds/a.h5', 'keras3/ds/a.weights.h5'])
def test_hdf5_cut_anywhere_is_refused(member, extracted):
    pytest.importorskip('h5py')
    path, _ = extracted(member)
    whole = path.read_bytes()
    for length in (12, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, 'damaged or cut short')


def test_archive_cut_short_or_packed_tight_is_refused(little, extracted):
    pytest.importorskip('h5py')
    path, _ = extracted('keras3/conv/model.keras')
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, 'damaged or cut short')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        file.writestr('config.json', '{}')
        file.writestr('model.weights.h5', little)
    refused(path, 'unpacks to 4 MiB')


def test_hdf5_with_an_archive_behind_it_is_read_as_hdf5(tmp_path, little):
    h5py = pytest.importorskip('h5py')
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['conv/a/kernel:0'] = np.float32([1])
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as file:  # whose sizes nobody has checked
        file.writestr('config.json', '{}')
        file.writestr('model.weights.h5', little)
    same(read_weights(path), {'conv/kernel': np.float32([1])})


def test_other_hdf5_is_not_taken_for_keras(tmp_path):
    h5py = pytest.importorskip('h5py')
    path = tmp_path / 'a.h5'
    with h5py.File(path, 'w') as file:
        file['data'] = np.float32([1])
    refused(path, 'holds no weights of Keras layers')


def test_batch_norm_without_scale_is_not_taken_for_one_with(extracted):
    h5py = pytest.importorskip('h5py')
    path, _ = extracted('keras2/conv/a.weights.h5')
    with h5py.File(path, 'r+') as file:
        del file['layers/batch_normalization/vars/3']
    refused(path, 'conv1_1_bn, a batch_normalization, has 3 weights')


# Caffe: its files are written here by hand, by https://protobuf.dev/programming-guides/encoding/


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array, legacy=False, **fields):
    """A BlobProto, with dimensions as ``shape`` or as num, channels, height, width."""
    data = field(5, array.astype('<f4').tobytes()) + field(6, array.astype('<f4').tobytes())
    if array.dtype == np.float64:
        data = field(8, array.tobytes())
    if legacy:
        dims = (1,) * (4 - array.ndim) + array.shape
        return b''.join(field(i, n) for i, n in enumerate(dims, 1)) + data
    return field(7, field(1, b''.join(map(varint, array.shape)))) + data


def test_caffe_layers_of_both_generations_give_the_same_blobs(tmp_path):
    pytest.importorskip('google.protobuf')
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((1, 1, 3, 3)).astype(np.float32)  # all that could be squeezed
    dense = rng.standard_normal((6, 8)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    expected = {'conv.weight': conv, 'conv.bias': bias[:1], 'fc.weight': dense, 'fc.bias': bias}

    new, old = tmp_path / 'new.caffemodel', tmp_path / 'old.caffemodel'
    new.write_bytes(
        field(1, 'net')
        + field(100, field(1, 'data') + field(2, 'Input'))
        + field(100, field(1, 'conv') + field(7, blob(conv)) + field(7, blob(bias[:1])))
        + field(100, field(1, 'fc') + field(7, blob(dense)) + field(7, blob(bias)))
    )
    old.write_bytes(
        field(1, 'net')
        + field(
            2,
            field(4, 'conv') + field(5, 4) + field(6, blob(conv, True))
            + field(6, blob(bias[:1], True)),
        )
        + field(
            2,
            field(4, 'fc') + field(5, 14) + field(6, blob(dense, True))
            + field(6, blob(bias, True)),
        )
    )  # fmt: skip
    for path in (new, old):
        weights = read_weights(path)
        assert name_of_format(path) == "Caffe's (.caffemodel)"
        same(weights, expected)


def test_caffe_takes_doubles_pieces_and_further_blobs(tmp_path):
    pytest.importorskip('google.protobuf')
    path = tmp_path / 'a.caffemodel'
    double = np.float64([1, 2, 3])
    pieces = field(7, field(1, b'\x03')) + field(5, struct.pack('<f', 1)) + field(
        5, struct.pack('<2f', 2, 3)
    )  # fmt: skip
    layer = field(1, 'bn') + field(7, blob(double)) + field(7, pieces) + field(7, blob(double))
    path.write_bytes(field(100, layer))
    expected = {'bn.weight': double, 'bn.bias': double.astype(np.float32), 'bn.2': double}
    same(read_weights(path), expected)


def test_broken_caffemodels_are_refused(tmp_path):
    pytest.importorskip('google.protobuf')
    path = tmp_path / 'a.caffemodel'
    value = np.zeros((2, 3), np.float32)
    layer = field(100, field(1, 'conv') + field(7, blob(value)))
    path.write_bytes(layer[:-5])
    refused(path, 'damaged or cut short')
    path.write_text('no network at all')
    refused(path, 'damaged or cut short')
    path.write_bytes(field(1, 'net'))
    refused(path, 'no layers with weights')
    path.write_bytes(layer * 2)
    refused(path, 'conv.weight twice')
    for dims in ([1 << 40], [2, 2], [], [0], [(1 << 64) - 2, (1 << 64) - 3]):  # the last negative
        shape = field(7, field(1, b''.join(map(varint, dims))))
        data = field(5, value.tobytes())
        path.write_bytes(field(100, field(1, 'conv') + field(7, shape + data)))
        refused(path, r'conv.weight is said to be of \(.*\), which its 24 bytes are not')


# which is which


def test_a_wrong_suffix_is_named_with_what_the_file_is(tmp_path, extracted):
    files = {}
    torch.save({'w': torch.ones(1)}, tmp_path / 'x')
    files["torch's"] = (tmp_path / 'x').read_bytes()
    torch.save({'w': torch.ones(1)}, tmp_path / 'x', _use_new_zipfile_serialization=False)
    files["torch's "] = (tmp_path / 'x').read_bytes()
    np.savez(tmp_path / 'x.npz', w=np.ones(1))
    files["NumPy's"] = (tmp_path / 'x.npz').read_bytes()
    files["Keras'"] = extracted('keras2/conv/a.h5')[0].read_bytes()
    files["Keras' "] = extracted('keras2/conv/model.keras')[0].read_bytes()
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    files['safetensors'] = struct.pack('<Q', len(header)) + header + bytes(4)
    own = dict(
        zip(files, [('.pth',), ('.pth',), ('.npz',), ('.h5', '.keras'), ('.keras', '.h5'), ()])
    )
    for name, data in files.items():
        for suffix in ('.pth', '.npz', '.h5', '.keras', '.caffemodel'):
            if suffix not in own[name]:
                path = tmp_path / f'a{suffix}'
                path.write_bytes(data)
                refused(path, f'says {suffix}, but the file is {name.strip()}')


def test_what_is_no_weights_at_all_is_named(tmp_path):
    refused(tmp_path, 'is a folder, .*save_weights')
    refused(tmp_path / 'none.h5', 'no file of weights at .*none.h5; check the path')
    for name, data, message in (
        ('empty.h5', b'', 'is empty'),
        ('text.h5', b'<!DOCTYPE html>', 'cut short, or none of the known formats'),
        ('a.h5.gz', gzip.compress(b'x'), 'none of the known formats'),
        ('pickle0.pth', pickle.dumps({}, 0), 'none of the known formats'),
        ('pickle.pth', pickle.dumps([1], 2), 'is not a'),
        ('short.safetensors', struct.pack('<Q', 1000) + b'{"', 'cut short'),
        ('a.npz', b'PK\x03\x04', 'damaged or cut short'),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        refused(path, message)
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as file:
        file.writestr('readme.txt', 'text')
    refused(tmp_path / 'b.npz', 'is a zip file, but of none')


def test_size_is_bounded_by_the_file_and_by_what_nets_need(tmp_path, monkeypatch):
    path = tmp_path / 'a'
    path.write_bytes(bytes(1000))
    monkeypatch.setattr(limits, 'FREE', 5000)
    limits.check_size(str(path), 20_000)
    with pytest.raises(UserError, match='is refused: it unpacks to'):
        limits.check_size(str(path), 20_001)
    with open(path, 'wb') as file:
        os.truncate(file.fileno(), 1 << 30)  # sparse
    limits.check_size(str(path), 4 << 30)
    with pytest.raises(UserError, match='than the 4,096 MiB'):
        limits.check_size(str(path), (4 << 30) + 1)


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    def denied(*args):
        raise PermissionError(13, 'Permission denied')

    path = tmp_path / 'a.pth'
    path.touch()
    monkeypatch.setattr(formats, 'open', denied, raising=False)  # the chmod of root denies nothing
    refused(path, 'can not be read: Permission denied')
