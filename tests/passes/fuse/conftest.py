"""Random networks for the planner: products, convolutions, norms, pools, residual sums, parts and views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.infer import infer_graph
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


@dataclass
class Net:
    """A model in the making: values with their shapes, and nodes that read earlier values."""

    choose: Callable[[Sequence[Any]], Any]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, inputs: Sequence[str], *shapes: tuple[int, ...], **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{i}" for i in range(len(shapes))]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        self.shapes.update(zip(names, shapes, strict=True))
        return names[0]

    def constant(self, data: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(data, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(np.random.default_rng(len(self.constants)).uniform(-0.5, 0.5, shape))

    def pick(self, rank: int | None = None) -> tuple[str, tuple[int, ...]] | None:
        names = [n for n, s in self.shapes.items() if rank is None or len(s) == rank]
        if not names:
            return None
        # The latest are taken more often, so that chains grow.
        name = self.choose(names[-3:] if self.choose((True, True, False)) else names)
        return name, self.shapes[name]

    def step(self) -> None:
        kind = self.choose(list(_STEPS))
        found = self.pick(_STEPS[kind][0])
        if found is not None:
            _STEPS[kind][1](self, *found)


def _unary(net: Net, x: str, shape: tuple[int, ...]) -> None:
    net.add(net.choose(("Relu", "Tanh", "Sigmoid", "Neg", "Erf", "Abs")), [x], shape)


def _binary(net: Net, x: str, shape: tuple[int, ...]) -> None:
    others = [n for n, s in net.shapes.items() if s == shape]
    keeps = [n for n, s in net.shapes.items() if len(s) == len(shape) and _fits(s, shape)]
    y = net.choose((net.choose(others), net.choose(keeps), net.weight(shape[-1]), net.constant(2.0)))
    net.add(net.choose(("Add", "Mul", "Sub", "Max")), [x, y], shape)


def _fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return all(a in (1, b) for a, b in zip(small, large, strict=True))


def _product(net: Net, x: str, shape: tuple[int, ...]) -> None:
    columns = net.choose((4, 6, 8))
    net.add("MatMul", [x, net.weight(shape[-1], columns)], (*shape[:-1], columns))


def _scores(net: Net, x: str, shape: tuple[int, ...]) -> None:
    others = [n for n, s in net.shapes.items() if s == shape]
    turned = net.add("Transpose", [net.choose(others)], (shape[0], shape[2], shape[1]), perm=[0, 2, 1])
    net.add("MatMul", [x, turned], (shape[0], shape[1], shape[1]))


def _norm(net: Net, x: str, shape: tuple[int, ...]) -> None:
    if net.choose((True, False)):
        net.add("LayerNormalization", [x, net.weight(shape[-1]), net.weight(shape[-1])], shape, axis=-1)
        return
    axes = net.constant([-1], np.int64)
    mean = net.add("ReduceMean", [x, axes], (*shape[:-1], 1), keepdims=1)
    centred = net.add("Sub", [x, mean], shape)
    square = net.add("Mul", [centred, centred], shape)
    spread = net.add("ReduceMean", [square, axes], (*shape[:-1], 1), keepdims=1)
    root = net.add("Sqrt", [net.add("Add", [spread, net.constant(1e-3)], (*shape[:-1], 1))], (*shape[:-1], 1))
    net.add("Div", [centred, root], shape)


def _softmax(net: Net, x: str, shape: tuple[int, ...]) -> None:
    net.add("Softmax", [x], shape, axis=net.choose(range(len(shape))))


def _reduce(net: Net, x: str, shape: tuple[int, ...]) -> None:
    axis, keep = net.choose(range(len(shape))), net.choose((0, 1))
    left = (*shape[:axis], *([1] if keep else []), *shape[axis + 1 :])
    y = net.add(net.choose(("ReduceMean", "ReduceMax")), [x, net.constant([axis], np.int64)], left, keepdims=keep)
    if not keep and net.choose((True, False)):
        net.add("Unsqueeze", [y, net.constant([axis], np.int64)], (*shape[:axis], 1, *shape[axis + 1 :]))


def _conv(net: Net, x: str, shape: tuple[int, ...]) -> None:
    channels = net.choose((2, 4))
    net.add("Conv", [x, net.weight(channels, shape[1], 3, 3)], (shape[0], channels, *shape[2:]), pads=[1, 1, 1, 1])


def _pool(net: Net, x: str, shape: tuple[int, ...]) -> None:
    if shape[2] % 2 == shape[3] % 2 == 0 and net.choose((True, False)):
        half = (*shape[:2], shape[2] // 2, shape[3] // 2)
        net.add("MaxPool", [x], half, kernel_shape=[2, 2], strides=[2, 2])
    elif net.choose((True, False)):
        net.add("MaxPool", [x], shape, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    else:
        net.add("GlobalAveragePool", [x], (*shape[:2], 1, 1))


def _transpose(net: Net, x: str, shape: tuple[int, ...]) -> None:
    perm = list(range(len(shape)))
    a, b = net.choose(perm), net.choose(perm)
    perm[a], perm[b] = perm[b], perm[a]
    net.add("Transpose", [x], tuple(shape[p] for p in perm), perm=perm)


def _reshape(net: Net, x: str, shape: tuple[int, ...]) -> None:
    if shape[-1] % 2 == 0 and len(shape) < 4:
        target = (*shape[:-1], 2, shape[-1] // 2)
    elif len(shape) > 3:
        target = (*shape[:-2], shape[-2] * shape[-1])
    else:
        return
    net.add("Reshape", [x, net.constant(target, np.int64)], target)


def _split(net: Net, x: str, shape: tuple[int, ...]) -> None:
    if shape[-1] % 2 == 0:
        half = (*shape[:-1], shape[-1] // 2)
        a = net.add("Split", [x], half, half, axis=-1, num_outputs=2)
        if net.choose((True, False)):
            net.add("Mul", [a, a.replace("_0", "_1")], half)


def _slice(net: Net, x: str, shape: tuple[int, ...]) -> None:
    if shape[-1] > 1:
        bounds = [net.constant([n], np.int64) for n in (1, shape[-1], -1)]
        net.add("Slice", [x, *bounds], (*shape[:-1], shape[-1] - 1))


def _concat(net: Net, x: str, shape: tuple[int, ...]) -> None:
    others = [n for n, s in net.shapes.items() if s == shape]
    net.add("Concat", [x, net.choose(others)], (*shape[:-1], 2 * shape[-1]), axis=-1)


def _gather(net: Net, x: str, shape: tuple[int, ...]) -> None:
    net.add("Gather", [x, net.constant([0, shape[1] - 1], np.int64)], (shape[0], 2, *shape[2:]), axis=1)


_STEPS: dict[str, tuple[int | None, Callable[[Net, str, tuple[int, ...]], None]]] = {
    "unary": (None, _unary), "binary": (None, _binary), "sum": (None, _binary), "product": (3, _product),
    "scores": (3, _scores), "norm": (3, _norm), "softmax": (3, _softmax), "reduce": (3, _reduce), "conv": (4, _conv),
    "pool": (4, _pool), "transpose": (3, _transpose), "reshape": (3, _reshape), "split": (3, _split),
    "slice": (3, _slice), "concat": (3, _concat), "gather": (3, _gather), "back": (4, _reshape),
}  # fmt: skip


def build(choose: Callable[[Sequence[Any]], Any], steps: int) -> onnx_ir.Model:
    """A random network of about ``steps`` steps, shapes inferred; ``choose`` picks one of several."""
    net = Net(choose, {"x": (2, 4, 8), "image": (1, 2, 6, 6)})
    inputs = dict(net.shapes)
    for _ in range(steps):
        net.step()
    if not net.nodes:
        net.add("Relu", ["x"], inputs["x"])
    used = {name for node in net.nodes for name in node.input}
    made = [n for n in net.shapes if n not in inputs]
    outputs = list(dict.fromkeys([*(n for n in made if n not in used), choose(made)]))
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, net.shapes[n]) for n in outputs],
        net.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    infer_graph(model)
    return model


@st.composite
def _networks(draw: Any, max_steps: int = 14) -> onnx_ir.Model:
    return build(lambda among: draw(st.sampled_from(list(among))), draw(st.integers(1, max_steps)))


@pytest.fixture(scope="session")
def networks() -> Callable[..., Any]:
    """The strategy of random networks: ``data.draw(networks(max_steps=14))``."""
    return _networks


@pytest.fixture(scope="session")
def network() -> Callable[[int, int], onnx_ir.Model]:
    """A random network by seed and number of steps."""

    def make(seed: int, steps: int) -> onnx_ir.Model:
        random = np.random.default_rng(seed)
        return build(lambda among: list(among)[random.integers(len(among))], steps)

    return make


@pytest.fixture(scope="session")
def feeds() -> dict[str, Array]:
    """Inputs of a random network."""
    random = np.random.default_rng(0)
    return {
        "x": random.uniform(-1, 1, (2, 4, 8)).astype(np.float32),
        "image": random.uniform(-1, 1, (1, 2, 6, 6)).astype(np.float32),
    }
