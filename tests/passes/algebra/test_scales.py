"""Factors and shifts into weights: through what they pass, when they are exact, and what stops them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.infer import infer_graph
from burnish.ir.verify import verify
from burnish.passes.algebra.scales import fold_scales, power_of_two
from burnish.passes.base import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Run = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


HEAD = "g (float[B,4,8] x, float[B,4,8] z) => (float[B,4,8] y)"
CONSTANTS = {"w": random(8, 8), "b": random(8, seed=1), "v": random(8, 8, seed=3), "u": random(8, seed=4),
             "eighth": np.array(0.125, np.float32), "third": np.array(1 / 3, np.float32),
             "eight": np.array([8.0], np.float32),
             "powers": np.array([1, 2, -4, 0.5, 8, 1, 1, 0.25], np.float32), "row": random(8, seed=2),
             "kernel": random(4, 8, 3, 3), "four": random(4), "minus": np.array(-0.5, np.float32),
             "shape": np.array([0, 4, 2, 4]), "flat": np.array([0, 4, 8]), "split": np.array([3, 5])}  # fmt: skip
FEEDS = {"x": random(3, 4, 8, seed=5), "z": random(3, 4, 8, seed=6)}


def graph_of(body: str, head: str = HEAD) -> onnx_ir.Model:
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(f"{head} {{ {body} }}"))
    proto.opset_import.add(domain="", version=23)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in CONSTANTS.items() if n in used)
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    return graph


def folded(graph: onnx_ir.Model, reassociate: bool = False) -> Outcome:
    outcome = Outcome()
    fold_scales(graph, reassociate, outcome)
    verify(graph)
    return outcome


def operators(graph: onnx_ir.Model) -> list[str]:
    return sorted(node.op_type for node in graph.graph)


EXACT = [
    "p = MatMul(x, w) y = Mul(p, eighth)",
    "p = MatMul(x, w) q = Add(p, b) y = Mul(eighth, q)",
    "p = MatMul(x, w) q = Sub(b, p) y = Div(q, eight)",
    "p = MatMul(x, w) q = Add(p, b) y = Mul(q, powers)",
    "p = MatMul(x, w) q = Add(b, p) r = Relu(q) y = Mul(r, eighth)",
    "p = MatMul(x, w) q = Reshape(p, shape) t = Transpose<perm=[0,2,1,3]>(q) s = Transpose<perm=[0,2,1,3]>(t) "
    "r = Reshape(s, flat) y = Mul(r, eighth)",
    "p = MatMul(x, w) t = Transpose<perm=[0,2,1]>(z) m = MatMul(p, t) s = Mul(m, eighth) y = MatMul(s, z)",
    "p = MatMul(x, w) c, d = Split<axis=-1>(p, split) e = Mul(d, eighth) y = Concat<axis=-1>(c, e)",
    "p = MatMul(x, w) q = MatMul(z, v) r = Add(p, q) y = Mul(r, eighth)",
    "p = Mul(x, b) y = Mul(p, eighth)",
    "p = Div(x, b) y = Mul(p, eighth)",
]


@pytest.mark.parametrize("body", EXACT)
def test_powers_of_two_change_no_bit(body: str, run: Run) -> None:
    graph = graph_of(body)
    before, count = run(graph, FEEDS), len(graph.graph)
    outcome = folded(graph)
    assert sum(outcome.rewrites.values()) == 1 and len(graph.graph) == count - 1
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])
    assert folded(graph, True).rewrites == {} or "Mul" in operators(graph)


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w) q = Add(p, b) y = Mul(q, third)",
        "p = MatMul(x, w) q = Add(p, b) y = Mul(q, row)",
        "n = Mul(x, row) p = MatMul(n, w) y = Add(p, b)",
        "n = Add(x, row) p = MatMul(n, w) y = Add(p, b)",
        "n = Sub(x, third) p = MatMul(n, w) y = Add(p, b)",
        "n = Mul(x, row) o = Add(n, u) p = MatMul(o, w) c = Add(p, b) q = MatMul(o, v) d = Add(u, q) y = Add(c, d)",
    ],
)
def test_what_rounds_only_if_asked_for(body: str, run: Run) -> None:
    graph = graph_of(body)
    before, count = run(graph, FEEDS), len(graph.graph)
    refused = folded(graph)
    assert not refused.changed and "reassociate=True" in refused.remarks[0].reason
    outcome = folded(graph, True)
    assert len(graph.graph) == count - sum(outcome.rewrites.values()) < count
    # Sums of eight products of float32.
    np.testing.assert_allclose(run(graph, FEEDS)[0], before[0], rtol=1e-5, atol=1e-5)


def test_gemm(run: Run) -> None:
    head = "g (float[R,8] x) => (float[R,8] y)"
    for options in ("", "<transB=1>", "<alpha=0.5, beta=2.0>"):
        for body in ("p = Gemm{}(x, w, b) y = Mul(p, row)", "n = Mul(x, row) y = Gemm{}(n, w, b)"):
            graph = graph_of(body.format(options), head)
            feeds = {"x": random(5, 8, seed=7)}
            before = run(graph, feeds)
            assert folded(graph, True).changed and operators(graph) == ["Gemm"]
            np.testing.assert_allclose(run(graph, feeds)[0], before[0], rtol=1e-5, atol=1e-5)


def test_convolution(run: Run) -> None:
    head = "g (float[N,8,5,5] x) => (float[N,4,5,5] y)"
    feeds = {"x": random(2, 8, 5, 5, seed=8)}
    body = "p = Conv<pads=[1,1,1,1]>(x, kernel, four) q = MaxPool<kernel_shape=[1,1]>(p) y = Mul(q, eighth)"
    graph = graph_of(body, head)
    before = run(graph, feeds)
    assert folded(graph).changed and operators(graph) == ["Conv", "MaxPool"]
    np.testing.assert_array_equal(run(graph, feeds)[0], before[0])
    # A maximum of what is negated is another one.
    assert not folded(graph_of(body.replace("eighth", "minus"), head)).changed


@pytest.mark.parametrize(
    "body",
    [
        "p = MatMul(x, w) q = Gelu(p) y = Mul(q, eighth)",
        "p = MatMul(x, w) q = Softmax(p) y = Mul(q, eighth)",
        "p = MatMul(x, w) m = Mul(p, eighth) y = Add(m, p)",
        "p = MatMul(x, w) q = Add(p, z) y = Mul(q, eighth)",
        "y = Mul(x, eighth)",
        "n = Mul(x, powers) p = MatMul(n, w) y = Add(p, n)",
        "p = MatMul(x, w) q = Relu(p) n = Neg(eighth) y = Mul(q, n)",
    ],
)
def test_what_stops_a_factor(body: str) -> None:
    graph = graph_of(body)
    count = len(graph.graph)
    assert not folded(graph, True).changed and len(graph.graph) == count


def test_a_large_weight_with_another_reader_is_not_copied() -> None:
    graph = graph_of("p = MatMul(x, w) q = MatMul(z, w) m = Mul(p, eighth) y = Add(m, q)")
    assert folded(graph).changed  # small: a copy costs nothing
    big = onnx_ir.Tensor(np.ones((300, 300), np.float32))
    text = "g (float[B,300] x) => (float[B,300] y) { p = MatMul(x, w) q = MatMul(p, w) y = Mul(q, s) }"
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=23)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(big.numpy(), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "s"))
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    assert not folded(graph).changed


def test_powers_of_two_may_lose_bits_of_half_precision() -> None:
    text = "g (float16[2,8] x) => (float16[2,8] y) { p = MatMul(x, w) y = Mul(p, s) }"
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=23)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(CONSTANTS["w"].astype(np.float16), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.125, np.float16), "s"))
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    assert not folded(graph).changed
    assert folded(graph, True).changed and operators(graph) == ["MatMul"]


def test_integers_are_left_alone() -> None:
    text = "g (int64[2,2] x) => (int64[2,2] y) { p = MatMul(x, w) y = Mul(p, s) }"
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=23)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(2, dtype=np.int64), "w"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2), "s"))
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    assert not folded(graph, True).changed


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_powers(number: float) -> None:
    array = np.array(number, np.float32)
    expected = number != 0 and bool(np.frexp(abs(number))[0] == 0.5)
    assert power_of_two(array) == expected


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.sampled_from(["Add(#, b)", "Relu(#)", "Neg(#)", "Mul(#, row)", "MatMul(#, w)", "MatMul(#, v)",
                                 "Mul(#, eighth)", "Mul(third, #)", "Div(#, eight)", "Add(#, z)", "Add(u, #)",
                                 "Transpose<perm=[0,1,2]>(#)", "Softmax(#)"]), min_size=2, max_size=9),
       reassociate=st.booleans())  # fmt: skip
def test_random_chains(steps: list[str], reassociate: bool, run: Run) -> None:
    lines, value = [], "x"
    for i, step in enumerate(steps):
        name = "y" if i == len(steps) - 1 else f"t{i}"
        lines.append(f"{name} = {step.replace('#', value)}")
        value = name
    graph = graph_of(" ".join(lines))
    before = run(graph, FEEDS)
    folded(graph, reassociate)
    (after,) = run(graph, FEEDS)
    if reassociate:
        np.testing.assert_allclose(after, before[0], rtol=1e-4, atol=1e-5 * np.abs(before[0]).max())
    else:
        np.testing.assert_array_equal(after, before[0])
