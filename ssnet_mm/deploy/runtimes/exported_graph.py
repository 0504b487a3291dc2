"""What torch.export writes, read as data.

torch's own loader unpickles weights and inputs, evaluates expressions and compiles code that it
finds in a file. Here a file is a list of operations, each of them in a table, and of weights; the
rest of it is not looked at.

https://github.com/pytorch/pytorch/blob/main/torch/_export/serde/schema.py describes the format.
"""

from __future__ import annotations

import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssnet_mm.errors import UserError
from ssnet_mm.limits import parse_json, stored_members

# Operations of networks for images that neither look beyond their arguments nor trust them.
_ATEN = frozenset(
    """
    _assert_scalar _assert_tensor_metadata _softmax _to_copy _unsafe_view abs amax amin
    adaptive_avg_pool1d adaptive_avg_pool2d add add_ addmm alias arange argmax avg_pool2d batch_norm
    bitwise_and bitwise_not bitwise_or bmm cat ceil channel_shuffle chunk clamp clamp_ clamp_max
    clamp_min clone concat constant_pad_nd contiguous conv1d conv2d conv_transpose2d cos detach
    detach_ div div_ dropout dropout_ einsum elu eq exp expand expand_as feature_dropout flatten
    flip floor floor_divide full full_like ge gelu glu group_norm gt hardsigmoid hardsigmoid_
    hardswish hardswish_ hardtanh hardtanh_ instance_norm layer_norm le leaky_relu leaky_relu_
    lift_fresh_copy linalg_vector_norm linear log log_softmax logical_and logical_not logical_or lt
    masked_fill matmul max max_pool2d maximum mean min minimum mish mm movedim mul mul_ narrow ne
    neg new_full new_ones new_zeros norm numpy_T ones ones_like pad permute pixel_shuffle
    pixel_unshuffle pow prelu reciprocal relu relu6 relu6_ relu_ repeat reshape roll round rsqrt
    rsub scaled_dot_product_attention select selu sigmoid sigmoid_ silu silu_ sin size slice softmax
    softplus split split_with_sizes sqrt square squeeze stack sub sub_ sum sym_numel sym_size
    sym_storage_offset sym_stride t tanh tanh_ tensor_split to topk transpose true_divide type_as
    unbind unflatten unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest2d view
    view_as where zeros zeros_like
    """.split()
)
_PYTHON = {
    f'_operator.{name}': getattr(operator, name)
    for name in 'add and_ eq floordiv ge gt le lt mod mul ne neg or_ sub truediv'.split()
} | {
    # torch's symbolic numbers are plain ones here
    'torch.sym_float': float, 'torch.sym_int': int, 'torch.sym_max': max, 'torch.sym_min': min,
    'torch.sym_not': operator.not_, 'math.trunc': int,
}  # fmt: skip
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_MEMORY_FORMATS = {
    1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format,
}  # fmt: skip
_STRIDED = 7  # the only layout
_PLAIN = {'as_int': int, 'as_float': float, 'as_bool': bool, 'as_string': str}


class ExportedGraph:
    """A network from an archive of ``torch.export.save``, to be called on a batch.

    Several threads may call it at once.

    Args:
        path: The file.
        device: Where it runs.

    Raises:
        UserError: It is damaged, or holds what no export of ours does.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.device = torch.device(device)
        try:
            with zipfile.ZipFile(path) as archive:
                members = stored_members(archive, path.stat().st_size)
                root = next(iter(members), '').partition('/')[0]

                def read(name: str) -> bytes:
                    return archive.read(f'{root}/{name}')

                self.extra = {
                    name.removeprefix(f'{root}/extra/'): archive.read(name).decode()
                    for name in members
                    if name.startswith(f'{root}/extra/')
                }
                program = parse_json(read('models/model.json'))
                weights = self._tensors(read, 'data/weights/', 'model_weights_config.json')
                constants = self._tensors(read, 'data/constants/', 'model_constants_config.json')
                self._build(program['graph_module'], weights, constants)
        except KeyError as error:
            raise _refused(
                path, f'has no {error.args[0]}' if error.args else 'lacks parts'
            ) from error
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            raise _refused(path, str(error)) from error
        except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
            raise UserError(f'{path} is not a file that torch.export wrote: {error}') from error

    def _tensors(self, read: Callable[[str], bytes], folder: str, config: str) -> dict[str, Tensor]:
        """Weights by their names; each is a record of plain numbers."""
        tensors = {}
        for name, payload in parse_json(read(folder + config))['config'].items():
            if payload['use_pickle']:
                raise ValueError(f'{name} is a pickle')
            meta = payload['tensor_meta']
            dtype = _DTYPES[meta['dtype']]
            size, stride = (_numbers(meta[key]) for key in ('sizes', 'strides'))
            data = read(folder + payload['path_name'])
            if len(data) != prod(size) * dtype.itemsize or min(size, default=1) < 0:
                raise ValueError(f'{name} has not the bytes of its shape')
            flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0)
            tensors[name] = flat.as_strided(size, stride).to(self.device)
        return tensors

    def _build(
        self, module: Mapping[str, Any], weights: Mapping[str, Tensor], others: Mapping[str, Tensor]
    ) -> None:
        graph, known = module['graph'], {**others, **weights}
        specs = module['signature']['input_specs']
        self.values: dict[str, Any] = {}  # of weights, by their names in the graph
        self.input = ''
        for spec, given in zip(specs, graph['inputs'], strict=True):
            ((kind, value),) = spec.items()
            name = str(given['as_tensor']['name'])
            if kind == 'user_input':
                self.input = name
            else:  # a parameter, a buffer or a constant
                self.values[name] = known[value[f'{kind}_name']]
        if sum('user_input' in spec for spec in specs) != 1:
            raise ValueError('it takes more than one batch')
        self.outputs = [str(output['as_tensor']['name']) for output in graph['outputs']]
        self.steps = [self._step(node) for node in graph['nodes']]
        # values are let go of once nothing needs them
        last = {name: i for i, step in enumerate(self.steps) for name in (*step[3], *step[4])}
        kept = {*self.values, *self.outputs}
        self.done: list[list[str]] = [[] for _ in self.steps]
        for name, i in last.items():
            if name not in kept:
                self.done[i].append(name)

    def _step(self, node: Mapping[str, Any]) -> tuple[Any, ...]:
        """A node as what is called, its arguments, and the names that it takes and gives."""
        function = _function(node['target'])
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        names: list[str] = []
        for given in node['inputs']:
            argument = self._argument(given['arg'])
            names += _names(argument)
            if given.get('kind') == 2:
                kwargs[str(given['name'])] = argument
            else:
                args.append(argument)
        outputs: list[str] = []
        single = True
        for output in node['outputs']:
            ((kind, value),) = output.items()
            if kind == 'as_tensors':
                outputs, single = [str(one['name']) for one in value], False
            else:
                outputs.append(str(value.get('as_name', value.get('name'))))
        return function, args, kwargs, names, outputs, single and len(outputs) == 1

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        if kind == 'as_none':
            return None
        if kind in _PLAIN:
            return _PLAIN[kind](value)
        if kind in ('as_ints', 'as_floats', 'as_bools'):
            return [_PLAIN[kind[:-1]](one) for one in value]
        if kind in ('as_tensor', 'as_name'):
            return _Name(value['name'] if kind == 'as_tensor' else value)
        if kind in ('as_sym_int', 'as_sym_bool', 'as_sym_float'):
            return self._argument(value)
        if kind == 'as_tensors':
            return [_Name(one['name']) for one in value]
        if kind in ('as_sym_ints', 'as_sym_floats', 'as_sym_bools', 'as_optional_tensors'):
            return [self._argument(one) for one in value]
        if kind == 'as_scalar_type':
            return _DTYPES[value]
        if kind == 'as_memory_format':
            return _MEMORY_FORMATS[value]
        if kind == 'as_device':
            return self.device
        if kind == 'as_layout' and value == _STRIDED:
            return torch.strided
        raise ValueError(f'an argument is {kind}')

    def __call__(self, batch: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it on a batch; a tuple where there is more than one output."""
        values = {**self.values, self.input: batch}
        for (function, args, kwargs, _, outputs, single), done in zip(self.steps, self.done):
            result = function(*_filled(args, values), **_filled(kwargs, values))
            if single:
                values[outputs[0]] = result
            else:
                values.update(zip(outputs, result or (), strict=True))
            for name in done:
                del values[name]
        found = tuple(values[output] for output in self.outputs)
        return found if len(found) > 1 else found[0]


class _Name(str):
    """The name of a value of the graph."""


def _refused(path: Path, reason: str) -> UserError:
    return UserError(
        f'{path} is refused: {reason}, which no file of tools/export.py does; export the model '
        'again, or, where you trust the file to run code, let torch load it (--trust-model)'
    )


def _function(target: str) -> Callable[..., Any]:
    if target in _PYTHON:
        return partial(_computed, _PYTHON[target])
    *package, name, overload = str(target).split('.')
    if package != ['torch', 'ops', 'aten'] or name not in _ATEN:
        raise ValueError(f'it calls {str(target)[:80]}')
    return getattr(getattr(torch.ops.aten, name), overload)


def _computed(function: Callable[..., Any], *numbers: Any) -> Any:
    """What Python computes of sizes: numbers alone, none of which grows without end."""
    result = function(*numbers) if {*map(type, numbers)} <= {int, float, bool} else None
    if result is None or abs(result) >= 1 << 63:
        raise ValueError(f'{function.__name__} of what is no size')
    return result


def _numbers(sizes: Sequence[Mapping[str, Any]]) -> list[int]:
    return [int(size['as_int']) for size in sizes]


def _names(argument: Any) -> Iterator[str]:
    if isinstance(argument, _Name):
        yield argument
    elif isinstance(argument, list):
        yield from (one for one in argument if isinstance(one, _Name))


def _filled(arguments: Any, values: Mapping[str, Any]) -> Any:
    """Arguments with values in the place of names."""
    if isinstance(arguments, _Name):
        return values[arguments]
    if isinstance(arguments, list):
        return [_filled(one, values) for one in arguments]
    if isinstance(arguments, dict):
        return {key: _filled(one, values) for key, one in arguments.items()}
    return arguments
