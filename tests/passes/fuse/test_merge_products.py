"""Products of one input as one: equal results, what is left alone, and random sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.ir.graph import Graph
from burnish.passes import MergeProducts, Quantize
from burnish.passes.base import Context, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

WIDTH = 64


def make(
    channels: Sequence[int], *, op: str = "MatMul", bias: bool = False, turned: bool = False, shared: bool = False
) -> Graph:
    """``x`` [rows, 64] times a weight for each of ``channels``, each result an output behind a Relu."""
    random = np.random.default_rng(0)
    nodes, tensors, outputs = [], [], []
    for index, size in enumerate(channels):
        shape = (size, WIDTH) if turned else (WIDTH, size)
        weight = "w0" if shared else f"w{index}"
        if not shared or index == 0:
            tensors.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), weight))
        inputs = ["x", weight]
        if turned and op == "MatMul":
            nodes.append(helper.make_node("Transpose", [weight], [f"t{index}"], perm=[1, 0]))
            inputs[1] = f"t{index}"
        if bias:
            tensors.append(numpy_helper.from_array(random.standard_normal(size).astype(np.float32), f"b{index}"))
        attributes = {"transB": 1} if turned and op == "Gemm" else {}
        if bias and op == "Gemm":
            inputs.append(f"b{index}")
        nodes.append(helper.make_node(op, inputs, [f"m{index}"], **attributes))
        last = f"m{index}"
        if bias and op == "MatMul":
            nodes.append(helper.make_node("Add", [last, f"b{index}"], [f"a{index}"]))
            last = f"a{index}"
        nodes.append(helper.make_node("Relu", [last], [f"y{index}"]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["rows", size]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])
    graph = helper.make_graph(nodes, "g", [x], outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    found = onnx_ir.from_proto(model)
    from burnish.ir.infer import infer_graph

    infer_graph(found)
    return found


def run(graph: Graph, rows: int = 3) -> list[np.ndarray]:
    x = np.random.default_rng(1).standard_normal((rows, WIDTH)).astype(np.float32)
    return [np.asarray(y) for y in Session(to_bytes(graph)).run({"x": x})]


def merged(graph: Graph, **options: bool) -> Outcome:
    return MergeProducts(**options).run(graph, Context())


def count(graph: Graph, *ops: str) -> int:
    return sum(node.op_type in ops for node in graph.graph)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_three_become_one(op: str, bias: bool, turned: bool) -> None:
    graph = make([32, 16, 16], op=op, bias=bias, turned=turned)
    before = run(graph)
    outcome = merged(graph)
    assert sum(outcome.rewrites.values()) == 1
    assert count(graph, "MatMul", "Gemm") == 1 and count(graph, "Split") == 1 and count(graph, "Add") <= 1
    for a, b in zip(before, run(graph), strict=True):
        # The same sums; a wider matrix may be cut into other blocks.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["w4a16", "w8a16", "w8a8"])
def test_quantized_products_give_the_same_numbers(scheme: str) -> None:
    # Above the size from which int8 inputs pay.
    sizes = [1024, 640] if scheme == "w8a8" else [256, 128]
    alone, together = make(sizes, turned=True), make(sizes, turned=True)
    for graph in (alone, together):
        Quantize(scheme, method="rtn").run(graph, Context())
    assert merged(together).changed
    for graph in (alone, together):
        lower(graph)
    kernel = "MatMulIntegerToFloat" if scheme == "w8a8" else "MatMulNBits"
    assert (count(alone, kernel), count(together, kernel)) == (2, 1)
    for a, b in zip(run(alone), run(together), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.booleans(), st.booleans())
def test_random_sizes(channels: list[int], bias: bool, turned: bool) -> None:
    graph = make(channels, bias=bias, turned=turned)
    before = run(graph, rows=2)
    assert merged(graph).changed
    for a, b in zip(before, run(graph, rows=2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_one_product_has_no_sibling() -> None:
    outcome = merged(make([32]))
    assert not outcome.changed and "no two products" in outcome.remarks[0].reason


def test_what_is_left_alone() -> None:
    shared = merged(make([16, 16], shared=True))
    assert not shared.changed and "other readers" in shared.remarks[0].reason
    floats = merged(make([16, 16]), floats=False)
    assert not floats.changed and "floating point" in floats.remarks[0].reason
    mixed = make([16, 16, 16])
    weight = mixed.graph.initializers["w2"]
    weight.const_value = onnx_ir.Tensor(np.asarray(weight.const_value.numpy()), name="w2")
    mixed.graph.outputs.append(mixed.graph[0].outputs[0])
    outcome = merged(mixed)
    assert outcome.changed and any("output of the graph" in remark.reason for remark in outcome.remarks)


@pytest.mark.parametrize(("part", "joined"), [(0.5, True), (0.99, False), (2.0, False)])
@pytest.mark.parametrize(
    ("op", "bias", "turned"), [("MatMul", True, True), ("Gemm", True, False), ("MatMul", False, False)]
)
def test_measured_products_are_joined_where_that_is_faster(
    part: float, joined: bool, op: str, bias: bool, turned: bool
) -> None:
    seen: list[list[str]] = []

    def clock(models: Sequence[Graph]) -> list[float]:
        seen.extend([node.op_type for node in model.graph] for model in models)
        return [1.0, part]

    graph = make([16, 16, 8], op=op, bias=bias, turned=turned)
    want = run(graph)
    outcome = MergeProducts(measured=True).run(graph, Context(clock=clock))
    assert outcome.changed == joined
    assert [names.count(op) for names in seen] == [3, 1] and "Split" in seen[1] and "Relu" not in seen[0]
    assert f"{part:.2f} times the time" in outcome.remarks[0].reason
    for mine, theirs in zip(run(graph), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_products_that_were_not_timed_stay_apart() -> None:
    graph = make([16, 16])
    outcome = MergeProducts(measured=True).run(graph, Context(clock=lambda models: None))
    assert not outcome.changed and "were not timed" in outcome.remarks[0].reason
