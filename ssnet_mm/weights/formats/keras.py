"""What Keras 2 and 3 write: HDF5 files of weights or whole models, and ``.keras`` archives.

Two layouts are found in them. The older one names groups by the layers, the newer one by the
layers' classes, counted::

    conv1_1/conv1_1/kernel:0              model.save_weights('a.h5') of Keras 2
    model_weights/conv1_1/conv1_1/kernel  model.save('a.h5') of Keras 2 and 3
    layers/conv2d/vars/0                  'a.weights.h5' of Keras 2 and 3, and inside of a.keras

Which layer ``conv2d_3`` is, recent versions of Keras 3 say in an attribute; of an archive its
``config.json`` tells; else it is told by the order of layers in SSNeT's networks.

HDF5 can lead a reader to other files, and can declare arrays without holding them. h5py does the
parsing, but nothing is followed that Keras does not write: no links, no virtual and no external
arrays. Of ``config.json`` only names are read; no code in it is looked at.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ssnet_mm.errors import UserError, require
from ssnet_mm.limits import check_size, damaged, parse_json

from ..dialects import APPLICATIONS_LAYERS, KERAS_LAYERS

# By Keras' names of the classes in snake case: what ``vars/0``, ``vars/1`` ... are.
_VARIABLES = {
    'conv2d': ('kernel', 'bias'),
    'dense': ('kernel', 'bias'),
    'separable_conv2d': ('depthwise_kernel', 'pointwise_kernel', 'bias'),
    'conv2d_transpose': ('kernel', 'bias'),
    'batch_normalization': ('gamma', 'beta', 'moving_mean', 'moving_variance'),
}
# SSNeT's layers, in Keras' order.
_CONVS = tuple(layer for key, layer in KERAS_LAYERS.items() if '.upsamples.' not in key)
_ORDER = {
    'conv2d': _CONVS,
    'separable_conv2d': _CONVS,
    'conv2d_transpose': tuple(layer for layer in KERAS_LAYERS.values() if layer not in _CONVS),
    'batch_normalization': tuple(f'{conv}_bn' for conv in _CONVS if conv.startswith('conv')),
}
# The layers of keras.applications' VGG16, of which SSNeT has more.
_VGG16 = {
    'conv2d': tuple(APPLICATIONS_LAYERS.values())[:13],
    'dense': (*tuple(APPLICATIONS_LAYERS.values())[13:], 'predictions'),
}
_HDF5 = b'\x89HDF\r\n\x1a\n'
_CONTAINERS = ('layers', '_layer_checkpoint_dependencies')  # the second in Keras 2.12 to 2.15
_VARS = re.compile(
    rf'(?:(?P<attribute>[^/]+)/)?(?:{"|".join(_CONTAINERS)})/'
    r'(?P<layer>(?P<kind>[^/]+?)(?:_(?P<count>\d+))?)/vars/(?P<index>\d+)'
)
_NOT_WEIGHTS = ('optimizer', 'optimizer_weights', 'metrics')
_DEPTH, _OBJECTS = 12, 100_000  # of groups; Keras needs six, and a few hundred


def recognises(path: str, start: bytes, members: Sequence[str] | None) -> bool:
    """Whether it is HDF5, or a zip archive of a model's configuration and its weights."""
    if members is None:
        return start.startswith(_HDF5)
    return {'config.json', 'model.weights.h5'} <= set(members)


def read(path: str) -> dict[str, Tensor]:
    """Read a file of Keras: names are ``LAYER/NAME``, as ``conv1_1/kernel``.

    The sizes in a ``.keras`` archive must have been checked.

    Raises:
        UserError: It is damaged, hostile or not Keras', or does not tell which layer is which.
    """
    h5py = require('h5py', 'h5py', f'reading {path}')
    try:
        source, config = _open(path)
        with h5py.File(source, 'r') as file:
            datasets = dict(_datasets(h5py, path, file))
            if any(re.search(r'/vars/\d+$', key) for key in datasets):
                names = _names_by_class(path, file, datasets, config)
            else:
                names = _names_by_layer(path, datasets)
            by_name: dict[str, Any] = {}
            for key, name in names.items():
                if by_name.setdefault(name, datasets[key]) is not datasets[key]:
                    raise UserError(
                        f'{path} holds {name} twice; if it is a model within a model, save the '
                        'inner one alone'
                    )
            return _load(path, by_name)
    except UserError:
        raise
    except Exception as error:  # HDF5's errors are of all kinds
        raise damaged(path, error) from error


def _open(path: str) -> tuple[str | io.BytesIO, Any]:
    """The HDF5 of a file or in an archive, and the archive's configuration."""
    with open(path, 'rb') as file:
        if file.read(len(_HDF5)) == _HDF5:
            return path, None
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read('model.weights.h5')), parse_json(archive.read('config.json'))


def _datasets(h5py: Any, path: str, root: Any) -> Iterator[tuple[str, Any]]:
    """Every array in a file and its path, found through plain links alone."""
    seen = 0

    def walk(group: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        nonlocal seen
        for name in group:
            seen += 1
            if depth > _DEPTH or seen > _OBJECTS:
                raise UserError(f'{path} is refused: its groups go on without end')
            key = f'{prefix}{name}'
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UserError(
                    f'{path} is refused: {key} is a link to elsewhere, which Keras does not '
                    'write; save the weights anew in Keras'
                )
            item = group[name]
            if isinstance(item, h5py.Group):
                yield from walk(item, f'{key}/', depth + 1)
            elif isinstance(item, h5py.Dataset):
                yield key, item

    yield from walk(root, '', 1)


def _names_by_layer(path: str, datasets: Iterable[str]) -> dict[str, str]:
    """Paths in the older layout to ``LAYER/NAME``: a layer's group holds ``SCOPE/NAME:0``."""
    names = {}
    for key in datasets:
        layer, *rest = key.removeprefix('model_weights/').split('/')
        if layer not in _NOT_WEIGHTS and rest:
            names[key] = f'{layer}/{rest[-1].partition(":")[0]}'
    if not names:
        raise UserError(f'{path} holds no weights of Keras layers; is it a Keras file?')
    return names


def _names_by_class(path: str, file: Any, datasets: Iterable[str], config: Any) -> dict[str, str]:
    """Paths in the newer layout to ``LAYER/NAME``: ``layers/CLASS_COUNT/vars/INDEX``.

    A model of one's own class has such containers within attributes: ``ATTRIBUTE/layers/...``
    becomes ``ATTRIBUTE/CLASS_COUNT/NAME``.
    """
    names = {}
    groups: dict[str, dict[int, list[str]]] = defaultdict(dict)  # class: count: paths
    for key in datasets:
        container, *rest = key.split('/')
        if container in _NOT_WEIGHTS or 'seed_generator' in rest:  # a dropout's random state
            continue
        found = _VARS.fullmatch(key)
        if found is None or found['kind'] not in _VARIABLES:
            names[key] = key  # no layer of ours: left for the caller to tell of
        elif found['attribute']:
            index, variables = int(found['index']), _VARIABLES[found['kind']]
            name = variables[index] if index < len(variables) else found['index']
            names[key] = f'{found["attribute"]}/{found["layer"]}/{name}'
        else:
            groups[found['kind']].setdefault(int(found['count'] or 0), []).append(key)
    layers = None if config is None else _layers_of(path, config)
    for kind, by_count in groups.items():
        vars_of = [by_count[count] for count in sorted(by_count)]
        # recent versions of Keras 3 store a layer's name
        given = [_attribute(file[keys[0].rpartition('/')[0]], 'name') for keys in vars_of]
        if not all(isinstance(name, str) and name for name in given):
            if layers is not None:
                given = layers[kind.replace('_', '')]
            elif len(groups.get('conv2d', ())) == len(_VGG16['conv2d']):
                given = list(_VGG16.get(kind, ()))
            else:  # nothing tells how SSNeT's order goes on where both kinds are mixed
                mixed = {'conv2d', 'separable_conv2d'} <= groups.keys()
                given = [] if mixed else list(_ORDER.get(kind, ()))
        if kind == 'dense' and len(given) != len(vars_of):  # of another net: for the caller too
            names.update({key: key for keys in vars_of for key in keys})
            continue
        if len(given) != len(vars_of):
            whose = "SSNeT's network" if layers is None else 'its config.json'
            raise UserError(
                f'{path} does not tell which layer is which: it has {len(vars_of)} of {kind} with '
                f'weights, {whose} {len(given)}; save the whole model in Keras: '
                "model.save('NAME.keras')"
            )
        variables = _VARIABLES[kind]
        for layer, keys in zip(given, vars_of):
            for key in keys:
                index = int(key.rpartition('/')[2])
                if index >= len(variables) or (kind == 'batch_normalization' and len(keys) != 4):
                    raise UserError(
                        f'{path}: {layer}, a {kind}, has {len(keys)} weights, not the '
                        f'{", ".join(variables)} of SSNeT; only its networks can be converted'
                    )
                names[key] = f'{layer}/{variables[index]}'
    return names


def _attribute(group: Any, name: str) -> Any:
    """A text beside a group; None where there is none, or one too long for a name."""
    if name not in group.attrs or group.attrs.get_id(name).get_storage_size() > 4096:
        return None
    return group.attrs[name]


def _layers_of(path: str, config: Any) -> dict[str, list[str]]:
    """The names of a model's layers by their class in lower case, in order."""
    layers: dict[str, list[str]] = defaultdict(list)
    try:
        for layer in config['config']['layers']:
            name = layer['config']['name']
            if not isinstance(name, str):
                raise TypeError(f'a layer is named {name!r}')
            layers[layer['class_name'].lower()].append(name)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: its config.json lists no layers; only functional models can be converted'
        ) from error
    return layers


def _load(path: str, datasets: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the arrays, after everything about them has been looked at."""
    for name, dataset in datasets.items():
        if dataset.dtype.kind not in 'fi' or dataset.dtype.itemsize > 8 or dataset.shape is None:
            raise UserError(
                f'{path}: {name} is of {dataset.dtype}, not of numbers that can be read; save the '
                'weights in Keras as float32'
            )
        if dataset.is_virtual or dataset.external:
            raise UserError(
                f'{path} is refused: {name} lies in another file, which Keras does not write; '
                'save the weights anew in Keras'
            )
        if dataset.compression is not None or dataset.id.get_create_plist().get_nfilters() > 1:
            # nothing bounds what a compressed chunk unpacks to
            raise UserError(
                f'{path} is refused: {name} is compressed, which Keras does not do; save the '
                'weights anew in Keras'
            )
    # a chunk is unpacked whole, and may be larger than its array
    sizes = {name: max(d.size, prod(d.chunks) if d.chunks else 0) for name, d in datasets.items()}
    check_size(path, sum(sizes[name] * d.dtype.itemsize for name, d in datasets.items()))
    arrays = {name: dataset[()] for name, dataset in datasets.items()}
    return {
        name: torch.from_numpy(array.astype(array.dtype.newbyteorder('='), copy=False))
        for name, array in arrays.items()
    }
