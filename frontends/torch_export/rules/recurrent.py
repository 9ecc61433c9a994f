"""LSTM and GRU layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
from onnx_ir import Value

from ....ir.symbolic import Dim
from ....ir.weights import Array, lazy
from ..builder import Builder, dims, fixed
from ..registry import rule
from .reshaping import transpose

# Where ONNX keeps torch's gates: LSTM i f g o -> i o f c, GRU r z n -> z r h.
_GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}


@rule("aten.lstm.input")
def lstm(
    b: Builder,
    x: Value,
    hx: list[Value],
    params: list[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Value]:
    return _layers(
        b, "LSTM", x, hx, params, has_biases, num_layers, dropout if train else 0, bidirectional, batch_first
    )


@rule("aten.gru.input")
def gru(
    b: Builder,
    x: Value,
    hx: Value,
    params: list[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Value]:
    return _layers(
        b, "GRU", x, [hx], params, has_biases, num_layers, dropout if train else 0, bidirectional, batch_first
    )


def _layers(
    b: Builder,
    op_type: str,
    x: Value,
    states: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    bidirectional: bool,
    batch_first: bool,
) -> list[Value]:
    if dropout:
        raise b.unsupported("dropout between the layers is active; call model.eval() before compiling")
    directions = 2 if bidirectional else 1
    per_direction = 4 if has_biases else 2
    if len(params) != num_layers * directions * per_direction:
        raise b.unsupported("an LSTM with projections has no operator in ONNX")
    hidden = fixed(dims(params[1])[1])
    sequence = transpose(b, x, [1, 0, 2]) if batch_first else x
    length, batch = dims(sequence)[0], dims(sequence)[1]
    finals: list[list[Value]] = [[] for _ in states]
    for layer in range(num_layers):
        first = layer * directions * per_direction
        own = [params[first + d * per_direction : first + (d + 1) * per_direction] for d in range(directions)]
        weights = [_gates(b, op_type, [p[i] for p in own], hidden) for i in range(2)]
        bias = _biases(b, op_type, [(p[2], p[3]) for p in own], hidden) if has_biases else None
        starts = [_part(b, state, layer * directions, directions, num_layers) for state in states]
        outputs = b.ops(
            op_type,
            [sequence, *weights, bias, None, *starts],
            1 + len(states),
            {
                "hidden_size": hidden,
                "direction": "bidirectional" if bidirectional else "forward",
                "linear_before_reset": 1 if op_type == "GRU" else None,
            },
        )
        steps: list[Dim] = [length, directions, batch, hidden]
        for value, shape in zip(outputs, [steps, *[steps[1:]] * len(states)], strict=True):
            assert x.dtype is not None
            value.type, value.shape = onnx_ir.TensorType(x.dtype), onnx_ir.Shape(shape)
        for i, value in enumerate(outputs[1:]):
            finals[i].append(value)
        # [seq, dirs, batch, hidden] -> [seq, batch, dirs · hidden]
        width = directions * hidden
        if directions == 1:
            sequence = b.op("Squeeze", outputs[0], b.ints([1]), shape=[length, batch, width])
        else:
            turned = transpose(b, outputs[0], [0, 2, 1, 3])
            sequence = b.op("Reshape", turned, b.ints([0, 0, width]), shape=[length, batch, width])
    result = transpose(b, sequence, [1, 0, 2]) if batch_first else sequence
    ends = []
    for parts in finals:
        shape = [num_layers * directions, batch, hidden]
        ends.append(parts[0] if len(parts) == 1 else b.op("Concat", *parts, shape=shape, axis=0))
    return [result, *ends]


def _part(b: Builder, state: Value, start: int, count: int, layers: int) -> Value:
    if layers == 1:
        return state
    shape = [count, *dims(state)[1:]]
    return b.op("Slice", state, b.ints([start]), b.ints([start + count]), b.ints([0]), shape=shape)


def _data(b: Builder, value: Value) -> onnx_ir.TensorProtocol:
    if value.const_value is None:
        raise b.unsupported("a recurrent layer whose weights are computed")
    return value.const_value


def _reorder(op_type: str, array: Array, hidden: int) -> Array:
    gates = [array[i * hidden : (i + 1) * hidden] for i in range(len(_GATES[op_type]))]
    return np.concatenate([gates[i] for i in _GATES[op_type]])


def _shape(tensor: onnx_ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.shape)  # type: ignore[arg-type]


def _gates(b: Builder, op_type: str, weights: Sequence[Value], hidden: int) -> Value:
    tensors = [_data(b, w) for w in weights]
    shape = [len(tensors), *_shape(tensors[0])]
    data = lazy(lambda: np.stack([_reorder(op_type, t.numpy(), hidden) for t in tensors]), tensors[0].dtype, shape)
    return b.initializer(data, f"{weights[0].name}.gates")


def _biases(b: Builder, op_type: str, pairs: Sequence[tuple[Value, Value]], hidden: int) -> Value:
    tensors = [[_data(b, v) for v in pair] for pair in pairs]
    width = _shape(tensors[0][0])[0]

    def compute() -> Array:
        rows = [np.concatenate([_reorder(op_type, t.numpy(), hidden) for t in pair]) for pair in tensors]
        return np.stack(rows)

    data = lazy(compute, tensors[0][0].dtype, [len(tensors), 2 * width])
    return b.initializer(data, f"{pairs[0][0].name}.gates")
