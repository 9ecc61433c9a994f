"""Orders of matrix products: the cheapest, if that is certain, and never a dearer one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
from burnish.ir.cost import graph_cost
from burnish.ir.infer import infer_graph
from burnish.ir.verify import verify
from burnish.passes.algebra.chains import order_chains
from burnish.passes.base import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Run = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]


def chain(
    inputs: Mapping[str, str], body: str, out: str, constants: Mapping[str, tuple[int, ...]] = {}
) -> onnx_ir.Model:
    head = ", ".join(f"float[{shape}] {name}" for name, shape in inputs.items())
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(f"g ({head}) => (float[{out}] y) {{ {body} }}"))
    proto.opset_import.add(domain="", version=23)
    random = np.random.default_rng(0)
    for name, shape in (constants or {}).items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        )
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    return graph


def ordered(graph: onnx_ir.Model) -> Outcome:
    outcome = Outcome()
    order_chains(graph, outcome)
    verify(graph)
    return outcome


def random(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_a_vector_goes_first(run: Run) -> None:
    graph = chain({"a": "64,64", "b": "64,64", "x": "64,1"}, "t = MatMul(a, b) y = MatMul(t, x)", "64,1")
    feeds = {"a": random(64, 64), "b": random(64, 64), "x": random(64, 1)}
    before, cost = run(graph, feeds), graph_cost(graph).flops
    assert ordered(graph).changed
    assert graph_cost(graph).flops < cost / 10
    # Sums of 64 · 64 products.
    np.testing.assert_allclose(run(graph, feeds)[0], before[0], rtol=1e-4, atol=1e-3)


def test_two_constants_become_one(run: Run) -> None:
    graph = chain({"x": "B,S,32"}, "t = MatMul(x, a) y = MatMul(t, b)", "B,S,16", {"a": (32, 32), "b": (32, 16)})
    feeds = {"x": random(2, 3, 32)}
    before = run(graph, feeds)
    assert ordered(graph).changed and len(graph.graph) == 1
    np.testing.assert_allclose(run(graph, feeds)[0], before[0], rtol=1e-4, atol=1e-4)


def test_a_product_of_low_rank_stays() -> None:
    graph = chain({"x": "B,S,32"}, "t = MatMul(x, a) y = MatMul(t, b)", "B,S,32", {"a": (32, 4), "b": (4, 32)})
    assert not ordered(graph).changed


def test_what_depends_on_sizes_stays() -> None:
    graph = chain({"a": "M,K", "b": "K,N", "c": "N,P"}, "t = MatMul(a, b) y = MatMul(t, c)", "M,P")
    outcome = ordered(graph)
    assert not outcome.changed and "depends on sizes not known" in outcome.remarks[0].reason


def test_a_named_size_that_does_not_matter(run: Run) -> None:
    graph = chain({"a": "M,64", "b": "64,64", "x": "64,1"}, "t = MatMul(a, b) y = MatMul(t, x)", "M,1")
    # M·64·64 + M·64 against 64·64 + M·64: equal at M = 1, less at any other.
    assert ordered(graph).changed
    graph = chain({"a": "N,64", "b": "64,N", "x": "N,1"}, "t = MatMul(a, b) y = MatMul(t, x)", "N,1")
    # 64·N² + N² against 64·N + 64·N: less only from N = 2 on.
    assert not ordered(graph).changed
    graph = chain({"a": "64,64", "b": "64,N", "x": "N,1"}, "t = MatMul(a, b) y = MatMul(t, x)", "64,1")
    assert ordered(graph).changed


def test_an_inner_product_with_other_readers_stays() -> None:
    graph = chain(
        {"a": "64,64", "b": "64,64", "x": "64,1"},
        "t = MatMul(a, b) u = MatMul(t, x) s = ReduceSum(t) y = Add(u, s)",
        "64,1",
    )
    assert not ordered(graph).changed


def test_batches_of_second_factors_stay() -> None:
    graph = chain({"a": "2,8,8", "b": "2,8,8", "x": "2,8,1"}, "t = MatMul(a, b) y = MatMul(t, x)", "2,8,1")
    assert not ordered(graph).changed


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 2, 5, 16, 40]), min_size=4, max_size=6), seed=st.integers(0, 9))
def test_random_chains_cost_least(sizes: list[int], seed: int, run: Run) -> None:
    count = len(sizes) - 1
    inputs = {f"a{i}": f"{sizes[i]},{sizes[i + 1]}" for i in range(count)}
    lines, parts = [], [f"a{i}" for i in range(count)]
    choose = np.random.default_rng(seed)
    while len(parts) > 1:
        at = int(choose.integers(0, len(parts) - 1))
        name = "y" if len(parts) == 2 else f"t{len(lines)}"
        lines.append(f"{name} = MatMul({parts[at]}, {parts[at + 1]})")
        parts[at : at + 2] = [name]
    graph = chain(inputs, " ".join(lines), f"{sizes[0]},{sizes[-1]}")
    feeds = {f"a{i}": random(sizes[i], sizes[i + 1]) for i in range(count)}
    before = run(graph, feeds)
    ordered(graph)
    assert graph_cost(graph).flops == 2 * _least(tuple(sizes))
    scale = max(1.0, float(np.abs(before[0]).max()))
    np.testing.assert_allclose(run(graph, feeds)[0], before[0], rtol=1e-3, atol=1e-4 * scale)


def _least(sizes: tuple[int, ...]) -> int:
    if len(sizes) < 3:
        return 0
    ways = (
        _least(sizes[: cut + 1]) + _least(sizes[cut:]) + sizes[0] * sizes[cut] * sizes[-1]
        for cut in range(1, len(sizes) - 1)
    )
    return min(ways)
