"""Random small graphs for property tests: valid, executable, with named dimensions.

Used through the fixture ``random_graphs`` of ``tests/conftest.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Size = int | str
UNARY = ("Relu", "Neg", "Abs", "Tanh", "Sigmoid", "Exp", "Sqrt", "Identity", "Softplus", "Erf")
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")


@dataclass
class RandomGraph:
    """A random model: ``inputs`` are the shapes of its float inputs, ints or the names ``B`` and ``S``."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[Size, ...]]

    def feeds(self, seed: int = 0, **sizes: int) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs for named sizes such as ``B=2, S=3``; values in [0.5, 2] keep Div, Sqrt and Exp tame."""
        random = np.random.default_rng(seed)
        return {
            name: random.uniform(0.5, 2.0, [d if isinstance(d, int) else sizes[d] for d in shape]).astype(np.float32)
            for name, shape in self.inputs.items()
        }


@dataclass
class _Builder:
    draw: Any
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    values: dict[str, tuple[Size, ...]] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], shape: tuple[Size, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.values[name] = shape
        return name

    def hidden(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node whose value later steps do not pick up (shape arithmetic)."""
        name = f"s{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, data: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(data, dtype=dtype), name))
        return name

    def pick(self, least: int = 0) -> tuple[str, tuple[Size, ...]]:
        names = [n for n, s in self.values.items() if len(s) >= least]
        name = self.draw(st.sampled_from(names)) if names else next(iter(self.values))
        return name, self.values[name]

    def axis(self, shape: tuple[Size, ...]) -> int:
        return int(self.draw(st.integers(0, len(shape) - 1)))


def _unary(b: _Builder) -> None:
    x, shape = b.pick()
    op = b.draw(st.sampled_from(UNARY))
    if op in ("Exp", "Sqrt"):
        # Bounded and positive, whatever came before.
        x = b.hidden("Abs", [b.hidden("Tanh", [x])])
    b.add(op, [x], shape)


def _binary(b: _Builder) -> None:
    x, shape = b.pick()
    op = b.draw(st.sampled_from(BINARY))
    others = [n for n, s in b.values.items() if s == shape]
    way = b.draw(st.sampled_from(("same", "scalar", "row")))
    if op == "Div":
        way = "scalar"
    if way == "same":
        y = b.draw(st.sampled_from(others))
    elif way == "scalar" or not shape or not isinstance(shape[-1], int):
        y = b.constant(b.draw(st.sampled_from((0.5, 2.0, 1.0, 3.0))), np.float32)
    else:
        y = b.constant(np.linspace(0.5, 1.5, shape[-1]), np.float32)
    b.add(op, b.draw(st.sampled_from(([x, y], [y, x] if op != "Div" else [x, y]))), shape)


def _matmul(b: _Builder) -> None:
    x, shape = b.pick(2)
    if len(shape) < 2 or not isinstance(shape[-1], int):
        return
    columns = b.draw(st.integers(1, 5))
    weight = b.constant(np.linspace(-1, 1, shape[-1] * columns).reshape(shape[-1], columns), np.float32)
    b.add("MatMul", [x, weight], (*shape[:-1], columns))


def _transpose(b: _Builder) -> None:
    x, shape = b.pick(2)
    perm = b.draw(st.permutations(range(len(shape))))
    b.add("Transpose", [x], tuple(shape[p] for p in perm), perm=perm)


def _reduce(b: _Builder) -> None:
    x, shape = b.pick(1)
    if not shape:
        return
    axis, keep = b.axis(shape), b.draw(st.integers(0, 1))
    op = b.draw(st.sampled_from(("ReduceMean", "ReduceSum", "ReduceMax")))
    out = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
    b.add(op, [x, b.constant([axis])], out, keepdims=keep)


def _softmax(b: _Builder) -> None:
    x, shape = b.pick(1)
    if shape:
        b.add("Softmax", [x], shape, axis=b.axis(shape))


def _concat(b: _Builder) -> None:
    x, shape = b.pick(1)
    fixed = [i for i, d in enumerate(shape) if isinstance(d, int)]
    if not fixed:
        return
    axis = b.draw(st.sampled_from(fixed))
    size = shape[axis]
    assert isinstance(size, int)
    y = b.draw(st.sampled_from([n for n, s in b.values.items() if s == shape]))
    b.add("Concat", [x, y], (*shape[:axis], 2 * size, *shape[axis + 1 :]), axis=axis)


def _slice(b: _Builder) -> None:
    x, shape = b.pick(1)
    fixed = [i for i, d in enumerate(shape) if isinstance(d, int) and d > 1]
    if not fixed:
        return
    axis = b.draw(st.sampled_from(fixed))
    size = shape[axis]
    assert isinstance(size, int)
    start = b.draw(st.integers(0, size - 1))
    end = b.draw(st.integers(start + 1, size + 3))
    inputs = [x, b.constant([start]), b.constant([end]), b.constant([axis])]
    b.add("Slice", inputs, (*shape[:axis], min(end, size) - start, *shape[axis + 1 :]))


def _gather(b: _Builder) -> None:
    x, shape = b.pick(1)
    fixed = [i for i, d in enumerate(shape) if isinstance(d, int)]
    if not fixed:
        return
    axis = b.draw(st.sampled_from(fixed))
    size = shape[axis]
    assert isinstance(size, int)
    indices = b.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3))
    b.add("Gather", [x, b.constant(indices)], (*shape[:axis], len(indices), *shape[axis + 1 :]), axis=axis)


def _unsqueeze(b: _Builder) -> None:
    x, shape = b.pick()
    if len(shape) > 4:
        return
    axis = b.draw(st.integers(0, len(shape)))
    y = b.add("Unsqueeze", [x, b.constant([axis])], (*shape[:axis], 1, *shape[axis:]))
    if b.draw(st.booleans()):
        b.add("Squeeze", [y, b.constant([axis])], shape)


def _reshape(b: _Builder) -> None:
    """Through constants with 0 and −1, or through the shape arithmetic that exporters write."""
    x, shape = b.pick(2)
    if len(shape) < 2 or not isinstance(shape[-1], int):
        return
    if b.draw(st.booleans()):
        factors = [f for f in range(1, shape[-1] + 1) if shape[-1] % f == 0]
        first = b.draw(st.sampled_from(factors))
        out = (*shape[:-1], first, shape[-1] // first)
        if len(out) <= 5:
            b.add("Reshape", [x, b.constant([*[0] * (len(shape) - 1), first, -1])], out)
        return
    sizes = b.hidden("Shape", [x])
    parts = [b.hidden("Gather", [sizes, b.constant([i])], axis=0) for i in range(len(shape) - 1)]
    target = b.hidden("Concat", [*parts, b.constant([1]), b.constant([-1])], axis=0)
    if len(shape) < 5:
        b.add("Reshape", [x, target], (*shape[:-1], 1, shape[-1]))


def _expand(b: _Builder) -> None:
    x, shape = b.pick(1)
    if not shape or 1 not in shape:
        return
    y = b.hidden("Shape", [x])
    b.add("Expand", [x, b.hidden("Identity", [y])], shape)


_STEPS = (
    _unary,
    _unary,
    _binary,
    _binary,
    _matmul,
    _transpose,
    _reduce,
    _softmax,
    _concat,
    _slice,
    _gather,
    _unsqueeze,
    _reshape,
    _expand,
)


@st.composite
def random_graphs(draw: Any, max_steps: int = 12, symbolic: bool = True) -> RandomGraph:
    """Strategy of small float graphs of opset 23 that ONNX Runtime executes."""
    b = _Builder(draw)
    named: list[Size] = ["B", "S"] if symbolic else []
    inputs: dict[str, tuple[Size, ...]] = {}
    for i in range(draw(st.integers(1, 2))):
        lead = draw(st.sampled_from([*named, 2]))
        middle = draw(st.sampled_from([*named, 3, 4]))
        shape = (lead, middle, draw(st.integers(2, 6))) if draw(st.booleans()) else (lead, draw(st.integers(2, 6)))
        inputs[f"x{i}"] = shape
    b.values.update(inputs)
    for _ in range(draw(st.integers(1, max_steps))):
        draw(st.sampled_from(_STEPS))(b)
    if not b.nodes:
        b.add("Relu", ["x0"], inputs["x0"])
    used = {name for node in b.nodes for name in node.input}
    outputs = [n for n in b.values if n not in used and n not in inputs] or [next(reversed(b.values))]
    outputs = list(dict.fromkeys([*outputs, draw(st.sampled_from([n for n in b.values if n not in inputs]))]))
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(b.values[n])) for n in outputs],
        b.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return RandomGraph(model, inputs)
