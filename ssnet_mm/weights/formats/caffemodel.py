"""Caffe's ``.caffemodel`` files.

OpenCV read them until version 4, with a prototxt beside; version 5 does not. What is needed of
https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto is described here by its field
numbers, and Google's protobuf does the parsing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssnet_mm.errors import UserError, require

from .size_limit import damaged

_INT64, _INT32, _STRING, _MESSAGE, _BYTES = 3, 5, 9, 11, 12  # protobuf's numbers of types
_OPTIONAL, _REPEATED = 1, 3
_INNER_PRODUCT = ('InnerProduct', 14)  # a LayerParameter's type, a V1LayerParameter's
_PARSED_AT_MOST = 2**31 - 1  # bytes: protobuf's own limit

# Message: field: number, type, whether it is repeated, its message. The numbers of a blob are
# taken as the bytes they are: packed, in one piece or several. As floats each would become a
# Python object, 134 million of them.
_MESSAGES: dict[str, dict[str, tuple[int, int, int, str]]] = {
    'BlobShape': {'dim': (1, _INT64, _REPEATED, '')},
    'BlobProto': {
        'num': (1, _INT32, _OPTIONAL, ''),
        'channels': (2, _INT32, _OPTIONAL, ''),
        'height': (3, _INT32, _OPTIONAL, ''),
        'width': (4, _INT32, _OPTIONAL, ''),
        'data': (5, _BYTES, _REPEATED, ''),
        'shape': (7, _MESSAGE, _OPTIONAL, 'BlobShape'),
        'double_data': (8, _BYTES, _REPEATED, ''),
    },
    'LayerParameter': {
        'name': (1, _STRING, _OPTIONAL, ''),
        'type': (2, _STRING, _OPTIONAL, ''),
        'blobs': (7, _MESSAGE, _REPEATED, 'BlobProto'),
    },
    'V1LayerParameter': {
        'name': (4, _STRING, _OPTIONAL, ''),
        'type': (5, _INT32, _OPTIONAL, ''),
        'blobs': (6, _MESSAGE, _REPEATED, 'BlobProto'),
    },
    'NetParameter': {
        'layers': (2, _MESSAGE, _REPEATED, 'V1LayerParameter'),
        'layer': (100, _MESSAGE, _REPEATED, 'LayerParameter'),
    },
}


@cache
def _net_parameter() -> Any:
    """The class of message that a ``.caffemodel`` is."""
    pb = require('google.protobuf.descriptor_pb2', 'protobuf', 'reading a .caffemodel')
    pool = require('google.protobuf.descriptor_pool', 'protobuf', 'reading a .caffemodel')
    factory = require('google.protobuf.message_factory', 'protobuf', 'reading a .caffemodel')
    file = pb.FileDescriptorProto(name='ssnet_mm/caffe.proto', package='caffe', syntax='proto2')
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, label, of) in fields.items():
            message.field.add(
                name=field,
                number=number,
                type=kind,
                label=label,
                type_name=f'.caffe.{of}' if of else None,
            )
    own = pool.DescriptorPool()  # others in this process may know caffe.proto itself
    own.Add(file)
    return factory.GetMessageClass(own.FindMessageTypeByName('caffe.NetParameter'))


def recognises(path: str, start: bytes, members: Sequence[str] | None) -> bool:
    """Whether it is named so: its files begin with nothing of their own."""
    return members is None and path.lower().endswith('.caffemodel')


def read(path: str) -> dict[str, Tensor]:
    """Read the blobs of all layers: ``LAYER.weight``, ``LAYER.bias`` and, were there more,
    ``LAYER.2`` and so on, in Caffe's shapes.

    Weights of convolutions are (out, in, kh, kw), of deconvolutions (in, out, kh, kw), of fully
    connected layers (out, in); the leading ones of Caffe's old four-dimensional shapes are dropped
    from biases and fully connected layers.

    Raises:
        UserError: It is damaged, or no such file.
    """
    message = _net_parameter()
    if os.path.getsize(path) > _PARSED_AT_MOST:
        raise UserError(f'{path} is larger than 2 GiB, which no .caffemodel may be')
    with open(path, 'rb') as file:
        try:
            net = message.FromString(file.read())
        except Exception as error:  # protobuf's DecodeError has moved between versions
            raise damaged(path, error) from error
    tensors: dict[str, Tensor] = {}
    for layer in (*net.layers, *net.layer):
        for i, blob in enumerate(layer.blobs):
            key = f'{layer.name}.{dict(enumerate(("weight", "bias"))).get(i, i)}'
            if key in tensors:
                raise UserError(f'{path} holds {key} twice; it is no net that Caffe trained')
            tensor = _to_tensor(blob, f'{path}: {key}')
            if not blob.HasField('shape'):  # four-dimensional whatever the layer
                if i:
                    tensor = tensor.flatten()
                elif layer.type in _INNER_PRODUCT:
                    tensor = tensor.flatten(0, 2)
            tensors[key] = tensor
    if not tensors:
        raise UserError(f'{path} holds no layers with weights; is it a .caffemodel of Caffe?')
    return tensors


def _to_tensor(blob: Any, where: str) -> Tensor:
    data, dtype = (blob.data, '<f4') if blob.data else (blob.double_data, '<f8')
    data = b''.join(data)
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:
        shape = (blob.num, blob.channels, blob.height, blob.width)
    if min(shape, default=0) < 1 or prod(shape) * np.dtype(dtype).itemsize != len(data):
        raise UserError(
            f'{where} is said to be of {shape}, which its {len(data)} bytes are not; the file is '
            'damaged: copy it again'
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder('='), copy=True))
