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
from ssnet_mm.limits import damaged

_INNER_PRODUCT = ('InnerProduct', 14)  # a LayerParameter's type, a V1LayerParameter's
_PARSED_AT_MOST = 2**31 - 1  # bytes: protobuf's own limit

# The numbers of a blob are taken as the bytes they are: packed, in one piece or several. As floats
# each would become a Python object, 134 million of them.
_PROTO = """
name: "ssnet_mm/caffe.proto" package: "caffe" syntax: "proto2"
message_type { name: "BlobShape"
  field { number: 1 name: "dim" type: TYPE_INT64 label: LABEL_REPEATED } }
message_type { name: "BlobProto"
  field { number: 1 name: "num" type: TYPE_INT32 }
  field { number: 2 name: "channels" type: TYPE_INT32 }
  field { number: 3 name: "height" type: TYPE_INT32 }
  field { number: 4 name: "width" type: TYPE_INT32 }
  field { number: 5 name: "data" type: TYPE_BYTES label: LABEL_REPEATED }
  field { number: 7 name: "shape" type_name: ".caffe.BlobShape" }
  field { number: 8 name: "double_data" type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "LayerParameter"
  field { number: 1 name: "name" type: TYPE_STRING }
  field { number: 2 name: "type" type: TYPE_STRING }
  field { number: 7 name: "blobs" type_name: ".caffe.BlobProto" label: LABEL_REPEATED } }
message_type { name: "V1LayerParameter"
  field { number: 4 name: "name" type: TYPE_STRING }
  field { number: 5 name: "type" type: TYPE_INT32 }
  field { number: 6 name: "blobs" type_name: ".caffe.BlobProto" label: LABEL_REPEATED } }
message_type { name: "NetParameter"
  field { number: 2 name: "layers" type_name: ".caffe.V1LayerParameter" label: LABEL_REPEATED }
  field { number: 100 name: "layer" type_name: ".caffe.LayerParameter" label: LABEL_REPEATED } }
"""


@cache
def _net_parameter() -> Any:
    """The class of message that a ``.caffemodel`` is."""
    descriptor_pb2, descriptor_pool, message_factory, text_format = (
        require(f'google.protobuf.{module}', 'protobuf', 'reading a .caffemodel')
        for module in ('descriptor_pb2', 'descriptor_pool', 'message_factory', 'text_format')
    )
    pool = descriptor_pool.DescriptorPool()  # others in this process may know caffe.proto itself
    pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName('caffe.NetParameter'))


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
