"""Reshapes and transposes that meet: the same numbers with fewer of them, and what must stay between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.infer import infer_graph
from burnish.ir.verify import verify
from burnish.passes.algebra.views import meet_views
from burnish.passes.base import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Run = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "rows": np.array([-1, 8]), "back": np.array([2, 3, 8]), "wide": np.array([2, 3, 12]),
    "heads": np.array([2, 3, 3, 4]),
    "w": random(8, 12), "b": random(12, seed=1), "c": random(8, seed=2), "s": np.array(0.3, np.float32),
    "table": random(3, 8, seed=3), "flat": np.array([-1]), "column": random(6, 1, seed=4), "g": random(12, seed=5),
}  # fmt: skip
FEEDS = {"x": random(2, 3, 8, seed=6), "z": random(2, 3, 8, seed=7)}


def graph_of(body: str, out: str = "2,3,8", head: str = "float[2,3,8] x, float[2,3,8] z") -> onnx_ir.Model:
    text = f"g ({head}) => (float[{out}] y) {{ {body} }}"
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=23)
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in CONSTANTS.items() if n in used)
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    return graph


def met(graph: onnx_ir.Model) -> Outcome:
    outcome = Outcome()
    meet_views(graph, outcome)
    verify(graph)
    return outcome


def count(graph: onnx_ir.Model, *ops: str) -> int:
    return sum(node.op_type in ops for node in graph.graph)


@pytest.mark.parametrize(
    ("body", "out", "left"),
    [
        ("r = Reshape(x, rows) m = MatMul(r, w) a = Add(m, b) y = Reshape(a, wide)", "2,3,12", 0),
        ("r = Reshape(x, rows) m = MatMul(r, w) a = Add(b, m) t = Tanh(a) y = Reshape(t, heads)", "2,3,3,4", 1),
        ("r = Reshape(x, rows) m = Mul(s, r) n = Add(m, c) e = Erf(n) y = Reshape(e, back)", "2,3,8", 0),
        ("r = Reshape(x, flat) m = Exp(r) y = Reshape(m, back)", "2,3,8", 0),
        ("r = Reshape(x, rows) m = Softmax(r) y = Reshape(m, back)", "2,3,8", 0),
        ("r = Reshape(x, rows) m = LayerNormalization(r, c) y = Reshape(m, back)", "2,3,8", 0),
        ("u = Unsqueeze(x, one) m = Relu(u) y = Squeeze(m, one)", "2,3,8", 0),
        ("r = Reshape(x, rows) m = MatMul(r, w) n = MatMul(r, w) a = Reshape(m, wide) d = Reshape(n, wide) "
         "y = Add(a, d)", "2,3,12", 0),
    ],
)  # fmt: skip
def test_views_meet(body: str, out: str, left: int, run: Run) -> None:
    CONSTANTS["one"] = np.array([1])
    graph = graph_of(body, out)
    before = run(graph, FEEDS)
    assert met(graph).changed
    assert count(graph, "Reshape", "Unsqueeze", "Squeeze") == left
    # ONNX Runtime multiplies the same rows by the same matrix.
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])


@pytest.mark.parametrize(
    ("body", "out"),
    [
        ("r = Reshape(x, rows) m = Softmax<axis=0>(r) y = Reshape(m, back)", "2,3,8"),
        ("r = Reshape(x, rows) m = Add(r, column) y = Reshape(m, back)", "2,3,8"),
        ("r = Reshape(x, flat) m = Softmax(r) y = Reshape(m, back)", "2,3,8"),
        ("r = Reshape(x, rows) q = Reshape(z, rows) m = Add(r, q) y = Reshape(m, back)", "2,3,8"),
        ("r = Reshape(x, rows) m = Exp(r) n = Reshape(m, back) o = MatMul(r, w) p = Reshape(o, wide) "
         "e = ReduceSum(m) y = Add(n, e)", "2,3,8"),
    ],
)  # fmt: skip
def test_what_stays_between(body: str, out: str, run: Run) -> None:
    graph = graph_of(body, out)
    views = count(graph, "Reshape")
    before = run(graph, FEEDS)
    met(graph)
    assert count(graph, "Reshape") >= views - 1
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])


def test_named_sizes() -> None:
    body = "r = Reshape(x, rows) m = MatMul(r, w) a = Add(m, b) t = Shape<end=2>(x) "
    body += "u = Concat<axis=0>(t, twelve) y = Reshape(a, u)"
    CONSTANTS["twelve"] = np.array([12])
    graph = graph_of(body, "B,S,12", "float[B,S,8] x")
    assert met(graph).changed and count(graph, "Reshape") == 0


@pytest.mark.parametrize(
    ("body", "out", "left"),
    [
        ("t = Transpose<perm=[0,2,1]>(x) e = Exp(t) y = Transpose<perm=[0,2,1]>(e)", "2,3,8", 0),
        ("t = Transpose<perm=[2,0,1]>(x) e = Add(t, s) f = Relu(e) y = Transpose<perm=[2,0,1]>(f)", "3,8,2", 1),
        ("t = Transpose<perm=[0,2,1]>(x) e = Mul(t, three) y = Transpose<perm=[0,2,1]>(e)", "2,3,8", 0),
        ("t = Transpose<perm=[1,2,0]>(x) u = Transpose<perm=[1,2,0]>(z) y = Add(t, u)", "3,8,2", 1),
        ("t = Transpose<perm=[1,2,0]>(x) u = Transpose<perm=[1,2,0]>(z) e = Div(t, u) y = Transpose<perm=[2,0,1]>(e)",
         "2,3,8", 0),
    ],
)  # fmt: skip
def test_transposes_meet(body: str, out: str, left: int, run: Run) -> None:
    CONSTANTS["three"] = random(8, 3, seed=9)
    graph = graph_of(body, out)
    before = run(graph, FEEDS)
    assert met(graph).changed
    if count(graph, "Transpose") > left:  # what one rewrite brought together, the next cancels
        from burnish.passes import Canonicalize
        from burnish.passes.base import Context

        Canonicalize().run(graph, Context())
    assert count(graph, "Transpose") == left
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[0,2,1]>(x) e = Softmax(t) y = Transpose<perm=[0,2,1]>(e)",
        "t = Transpose<perm=[1,2,0]>(x) u = Transpose<perm=[2,1,0]>(z) v = Transpose<perm=[2,1,0]>(u) y = Add(x, z)",
        "t = Transpose<perm=[0,2,1]>(x) e = CumSum(t, axis0) y = Transpose<perm=[0,2,1]>(e)",
    ],
)
def test_transposes_that_stay(body: str) -> None:
    CONSTANTS["axis0"] = np.array(0)
    graph = graph_of(body)
    assert not met(graph).changed


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_chains(data: st.DataObject, run: Run) -> None:
    """Views, transposes and functions of one element in any order."""
    shape, lines, value = [2, 3, 8], [], "x"
    for name in ("r1", "r2", "r3", "r4", "r5", "r6"):
        CONSTANTS.pop(name, None)
    steps = data.draw(st.lists(st.sampled_from(["view", "turn", "exp", "add", "scale"]), min_size=3, max_size=6))
    for i, step in enumerate(steps):
        out = f"t{i}"
        if step == "view":
            rest = data.draw(st.sampled_from([[6, 8], [48], [2, 3, 8], [3, 2, 8], [2, 24], [4, 12]]))
            CONSTANTS[f"r{i + 1}"] = np.array(rest)
            lines.append(f"{out} = Reshape({value}, r{i + 1})")
            shape = rest
        elif step == "turn":
            perm = data.draw(st.permutations(range(len(shape))))
            lines.append(f"{out} = Transpose<perm={list(perm)}>({value})")
            shape = [shape[axis] for axis in perm]
        elif step == "add" and shape[-1] == 8:
            lines.append(f"{out} = Add({value}, c)")
        else:
            lines.append(f"{out} = {'Tanh' if step == 'exp' else 'Neg'}({value})")
        value = out
    lines.append(f"y = Abs({value})")
    graph = graph_of(" ".join(lines), ",".join(map(str, shape)))
    before = run(graph, FEEDS)
    met(graph)
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])
