"""Symbolic values: what shape arithmetic computes, checked against its execution."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir import symbolic
from burnish.ir.infer import infer_graph
from burnish.ir.shapes.node_view import show
from burnish.ir.values import LIMIT, Evaluator, propagate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

CONSTANTS = """<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {-1},
    int64 scalar = {1}, float half = {0.5}, float third = {0.33333}, int64[2] pair = {0, 1}, int64[1] far = {100}>"""


def elements(parse: Any, value_of: Any, body: str, name: str = "y") -> str:
    """The symbolic value of ``name`` in a graph over ``x[B, S, 8]``; ``None`` if it has none."""
    model = parse(
        f"agraph (float[B, S, 8] x, int64[1] given) => (int64[N] z) {CONSTANTS} {{ {body} z = Identity(one) }}"
    )
    infer_graph(model)
    found = propagate(model).get(value_of(model, name))
    return "None" if found is None else show(found.elements)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Shape(x)", "[B, S, 8]"),
        ("y = Shape<start=1>(x)", "[S, 8]"),
        ("y = Size(x)", "[8*B*S]"),
        ("s = Shape(x) y = Gather(s, pair)", "[B, S]"),
        ("s = Shape(x) y = Gather(s, scalar)", "[S]"),
        ("s = Shape(x) y = Slice(s, one, far)", "[S, 8]"),
        ("s = Shape(x) y = Slice(s, last, zero, zero, last)", "[8, S]"),
        ("s = Shape(x) g = Gather(s, one) y = Concat<axis=0>(g, last)", "[S, -1]"),
        ("s = Shape(x) g = Gather(s, one) y = Add(g, two)", "[S + 2]"),
        ("s = Shape(x) g = Gather(s, one) y = Sub(g, g)", "[0]"),
        ("s = Shape(x) y = Mul(s, two)", "[2*B, 2*S, 16]"),
        ("s = Shape(x) d = Mul(s, two) y = Div(d, two)", "[B, S, 8]"),
        ("s = Shape(x) y = Div(s, two)", "[floor(B/2), floor(S/2), 4]"),
        ("s = Shape(x) g = Gather(s, one) n = Sub(zero, g) y = Div(n, two)", "None"),
        ("s = Shape(x) y = Mod(s, three)", "[Mod(B, 3), Mod(S, 3), 2]"),
        ("s = Shape(x) y = ReduceProd(s)", "[8*B*S]"),
        ("s = Shape(x) y = ReduceSum<keepdims=0>(s)", "[B + S + 8]"),
        ("s = Shape(x) y = ReduceMax(s)", "[Max(8, B, S)]"),
        ("s = Shape(x) y = Cast<to=6>(s)", "[B, S, 8]"),
        (
            "s = Shape(x) f = Cast<to=1>(s) h = Mul(f, half) c = Ceil(h) y = Cast<to=7>(c)",
            "[-floor(-B/2), -floor(-S/2), 4]",
        ),
        ("s = Shape(x) f = Cast<to=1>(s) h = Mul(f, half) y = Cast<to=7>(h)", "[floor(B/2), floor(S/2), 4]"),
        ("s = Shape(x) f = Cast<to=1>(s) h = Mul(f, third) y = Cast<to=7>(h)", "None"),
        ("s = Shape(x) y = Unsqueeze(s, zero)", "[B, S, 8]"),
        ("s = Shape(x) u = Unsqueeze(s, zero) y = Squeeze(u, zero)", "[B, S, 8]"),
        ("s = Shape(x) a, y = Split<axis=0, num_outputs=2>(s)", "[8]"),
        ("s = Shape(x) e = Equal(s, s) y = Where(e, s, zero)", "[B, S, 8]"),
        ("s = Shape(x) e = Greater(zero, s) y = Where(e, zero, s)", "[B, S, 8]"),
        ("s = Shape(x) e = Equal(s, three) y = Where(e, zero, s)", "[?, ?, 8]"),
        ("y = ConstantOfShape<value = int64[1] {5}>(two)", "[5, 5]"),
        ("a = Squeeze(zero, zero) b = Squeeze(three, zero) y = Range(a, b, scalar)", "[0, 1, 2]"),
        ("s = Shape(x) y = Tile(s, two)", "[B, S, 8, B, S, 8]"),
        ("g = Gather(one, zero) y = Expand(g, three)", "[1, 1, 1]"),
        ("s = Shape(x) g = Gather(s, one) m = Max(g, one) y = Min(m, far)", "[Min(100, Max(1, S))]"),
        ("s = Shape(x) y = Concat<axis=0>(given, s)", "[?, B, S, 8]"),
        ("y = Add(given, one)", "None"),
        ("s = Shape(x) n = Neg(s) y = Abs(n)", "[?, ?, 8]"),
        ("y = Relu(x)", "None"),
    ],
)
def test_chain(parse: Any, value_of: Any, body: str, expected: str) -> None:
    assert elements(parse, value_of, body) == expected


def test_what_the_caller_may_override_is_not_constant(parse: Any, value_of: Any) -> None:
    model = parse("agraph (float[B] x, int64[1] w) => (int64[1] y) <int64[1] w = {3}> { y = Identity(w) }")
    infer_graph(model)
    assert value_of(model, "y") not in propagate(model)


def test_large_tensors_are_not_read() -> None:
    read = []

    def data() -> onnx_ir.TensorProtocol:
        read.append(1)
        return onnx_ir.Tensor(np.zeros(LIMIT + 1, np.int64))

    tensor = onnx_ir.LazyTensor(data, onnx_ir.DataType.INT64, onnx_ir.Shape([LIMIT + 1]))
    value = onnx_ir.Value(name="w", const_value=tensor, type=onnx_ir.TensorType(tensor.dtype))
    onnx_ir.Graph([], [], nodes=[], initializers=[value], name="g")
    assert Evaluator().of(value) is None
    assert not read


def test_constant_and_shape(parse: Any, value_of: Any) -> None:
    model = parse(f"agraph (float[2, 3] x) => (int64[2] y) {CONSTANTS} {{ s = Shape(x) y = Mul(s, two) }}")
    infer_graph(model)
    value = propagate(model)[value_of(model, "y")]
    constant = value.constant()
    assert constant is not None and constant.dtype == np.int64 and constant.tolist() == [4, 6]
    assert value.shape == (2,) and value.complete and [str(e) for e in value.exprs] == ["4", "6"]


def test_reshape_through_shape_arithmetic(parse: Any, value_of: Any) -> None:
    """The five-node chain that exporters write keeps every symbol."""
    model = parse(
        f"""agraph (float[B, S, 8] x) => (float[P, Q, 2, 4] y) {CONSTANTS} {{
            s = Shape(x) b = Gather(s, zero) q = Gather(s, one) two_ = Identity(two)
            t = Concat<axis=0>(b, q, two_, last) y = Reshape(x, t)
        }}"""
    )
    model.graph.outputs[0].shape = None
    infer_graph(model)
    assert show(value_of(model, "y").shape.dims) == "[B, S, 2, 4]"


OPERATORS = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")
STEP = st.tuples(st.sampled_from(OPERATORS), st.integers(0, 30), st.integers(0, 30), st.booleans())


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=1, max_size=8))
def test_arithmetic_against_execution(run: Any, steps: list[tuple[str, int, int, bool]]) -> None:
    """Whatever is known of sums, products, quotients … of sizes is what ONNX Runtime computes."""
    nodes = [helper.make_node("Shape", ["x"], ["s"])]
    inits = [numpy_helper.from_array(np.array([i], np.int64), f"i{i}") for i in range(3)]
    values = []
    for i in range(3):
        nodes.append(helper.make_node("Gather", ["s", f"i{i}"], [f"v{i}"]))
        values.append(f"v{i}")
    for n, (op, a, b, number) in enumerate(steps):
        left, right = values[a % len(values)], values[b % len(values)]
        if number or op in ("Div", "Mod"):
            right = f"c{n}"
            inits.append(numpy_helper.from_array(np.array([b % 5 + 1], np.int64), right))
        nodes.append(helper.make_node(op, [left, right], [f"r{n}"]))
        values.append(f"r{n}")
    graph = helper.make_graph(
        nodes,
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["A", "B", 6])],
        [helper.make_tensor_value_info(values[-1], TensorProto.INT64, [1])],
        inits,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = onnx_ir.from_proto(proto)
    infer_graph(model, strict=True)
    found = {v.name: value for v, value in propagate(model).items()}
    assert {"s", "v0", "v1", "v2"} <= set(found)
    for sizes in ({"A": 3, "B": 1}, {"A": 0, "B": 7}, {"A": 12, "B": 5}):
        got = run(proto, {"x": np.zeros((sizes["A"], sizes["B"], 6), np.float32)}, values)
        for name, array in got.items():
            if name in found:
                for element, number in zip(found[name].elements, array.ravel(), strict=True):
                    if symbolic.known(element):
                        assert symbolic.evaluate(element, sizes) == number, (name, element, sizes)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_graphs_against_execution(random_graphs: Any, run: Any, data: Any) -> None:
    sample = data.draw(random_graphs())
    model = onnx_ir.from_proto(sample.model)
    infer_graph(model)
    found = {v.name: value for v, value in propagate(model).items()}
    sizes = {"B": 3, "S": 4}
    got = run(sample.model, sample.feeds(**sizes), list(found))
    for name, value in found.items():
        assert [symbolic.evaluate(e, sizes) for e in value.elements] == got[name].ravel().tolist()
