"""Outlining: boundaries, order, shared functions, constants, provenance, refusals, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.errors import PassError
from burnish.ir.graph import MODULE, RULE, SOURCE
from burnish.ir.infer import infer_graph
from burnish.ir.outline import Outliner, boundary, inline, inline_all, outline
from burnish.ir.printer import format_graph
from burnish.ir.verify import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TEXT = """agraph (float[B, 4] x) => (float[B, 4] y, float[B, 4] z) <float one = {1.0}> {
    h = Relu(x) e = Exp(h) t = Neg(h) s = Add(h, one) y = Mul(e, s) z = Neg(t)
}"""


def nodes(model: onnx_ir.Model, *op_types: str) -> list[onnx_ir.Node]:
    return [n for n in model.graph if n.op_type in op_types]


def ops(model: onnx_ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


@pytest.fixture
def model(parse: Any) -> onnx_ir.Model:
    graph: onnx_ir.Model = parse(TEXT)
    infer_graph(graph)
    return graph


def check(model: onnx_ir.Model) -> onnx.ModelProto:
    verify(model)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_a_call_takes_the_place_of_its_nodes(model: onnx_ir.Model, run: Any) -> None:
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    before = run(onnx_ir.to_proto(model), feeds)
    call = outline(model, nodes(model, "Relu", "Exp", "Add", "Mul"), "tail", {"burnish.block": "one-to-one"})
    # Neg(h) needs the block although it stood between its nodes.
    assert ops(model) == ["tail", "Neg", "Neg"]
    assert [v.name for v in call.inputs] == ["x"] and [v.name for v in call.outputs] == ["h", "y"]
    assert str(call.outputs[1].shape) == "[B,4]" and call.outputs[1].dtype == onnx_ir.DataType.FLOAT
    assert call.metadata_props["burnish.block"] == "one-to-one"
    body = next(iter(model.functions.values()))
    assert [n.op_type for n in body] == ["Constant", "Relu", "Exp", "Add", "Mul"]
    assert not model.graph.initializers
    assert "function burnish::tail(%x)" in format_graph(model)
    after = run(check(model), feeds)
    assert all(np.array_equal(before[name], after[name]) for name in ("y", "z"))


def test_inline_is_the_inverse(model: onnx_ir.Model, run: Any) -> None:
    feeds = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
    before = run(onnx_ir.to_proto(model), feeds)
    call = outline(model, nodes(model, "Relu", "Exp", "Add", "Mul"), "tail")
    made = inline(model, call)
    assert [n.op_type for n in made] == ["Relu", "Exp", "Add", "Mul"]
    assert not model.functions and len(model.graph.initializers) == 1
    assert {v.name for v in model.graph.outputs} == {"y", "z"}
    after = run(check(model), feeds)
    assert all(np.array_equal(before[name], after[name]) for name in ("y", "z"))


def test_the_same_body_is_one_function(parse: Any) -> None:
    model = parse(
        """agraph (float[2, 4] x, float[2, 4] u, float[3, 4] w) => (float[2, 4] y, float[2, 4] z, float[3, 4] v)
        <float one = {1.0}, float also = {1.0}> {
        a = Exp(x) y = Add(a, one) b = Exp(u) z = Add(b, also) c = Exp(w) v = Add(c, one) }"""
    )
    infer_graph(model)
    order = list(model.graph)
    outliner = Outliner(model)
    first, second, third = (outliner.outline(order[at : at + 2], "f") for at in (0, 2, 4))
    assert first.op_type == second.op_type == "f"
    assert third.op_type == "f_2"  # other sizes
    assert len(model.functions) == 2
    check(model)
    # A later outliner knows them, too; a call that goes leaves the function to the other.
    inline(model, second)
    assert len(model.functions) == 2
    again = Outliner(model).outline(nodes(model, "Exp", "Add"), "g")
    assert again.op_type == "f"
    check(model)


def test_large_constants_stay_inputs(parse: Any) -> None:
    model = parse(
        """agraph (float[2, 4] x) => (float[4, 2] y) <float[4] bias = {1.0, 2.0, 3.0, 4.0}, int64[2] shape = {4, 2}> {
        s = Add(x, bias) y = Reshape(s, shape) }"""
    )
    infer_graph(model)
    call = outline(model, list(model.graph), "f")
    assert [v.name for v in call.inputs] == ["x", "bias"]
    assert list(model.graph.initializers) == ["bias"]
    check(model)


def test_a_constant_that_others_read_stays(parse: Any) -> None:
    model = parse(
        """agraph (float[2] x) => (float[2] y, float[2] z) <float one = {1.0}> {
        a = Add(x, one) y = Exp(a) z = Sub(x, one) }"""
    )
    infer_graph(model)
    outline(model, nodes(model, "Add", "Exp"), "f")
    assert list(model.graph.initializers) == ["one"]
    check(model)


def test_an_initializer_that_the_caller_may_override_is_an_input(parse: Any) -> None:
    model = parse("agraph (float[2] x, float one) => (float[2] y) <float one = {1.0}> { a = Add(x, one) y = Exp(a) }")
    infer_graph(model)
    call = outline(model, list(model.graph), "f")
    assert [v.name for v in call.inputs] == ["x", "one"]


def test_provenance(model: onnx_ir.Model) -> None:
    for index, node in enumerate(nodes(model, "Relu", "Exp")):
        node.metadata_props.update({MODULE: f"m.layer.{index}", SOURCE: f"s{index}", RULE: "before"})
    call = outline(model, nodes(model, "Relu", "Exp"), "f")
    assert dict(call.metadata_props) == {MODULE: "m.layer", SOURCE: "s0", RULE: "before;outline"}
    body = next(iter(model.functions.values()))
    assert [n.metadata_props[MODULE] for n in body] == ["m.layer.0", "m.layer.1"]


def test_paths_that_leave_and_come_back_are_refused(model: onnx_ir.Model) -> None:
    before = format_graph(model)
    with pytest.raises(PassError, match="comes back to them"):
        outline(model, [*nodes(model, "Relu"), list(model.graph)[-1]], "f")
    assert format_graph(model) == before


def test_foreign_nodes_and_subgraphs_are_refused(model: onnx_ir.Model, parse: Any) -> None:
    with pytest.raises(PassError, match="main graph"):
        outline(model, [onnx_ir.Node("", "Relu", [None])], "f")
    branches = parse(
        """agraph (bool c, float[2] x) => (float[2] y) {
        y = If (c) <then_branch = a () => (float[2] p) { p = Exp(x) },
                    else_branch = b () => (float[2] q) { q = Neg(x) }>
        }"""
    )
    infer_graph(branches)
    with pytest.raises(PassError, match="subgraphs"):
        outline(branches, list(branches.graph), "f")
    with pytest.raises(PassError, match="only a call"):
        inline(model, next(iter(model.graph)))


def test_what_a_subgraph_reads_is_an_output(parse: Any) -> None:
    model = parse(
        """agraph (bool c, float[2] x) => (float[2] y) {
        a = Exp(x) e = Neg(a)
        y = If (c) <then_branch = t () => (float[2] p) { p = Abs(a) },
                    else_branch = f () => (float[2] q) { q = Neg(e) }>
        }"""
    )
    infer_graph(model)
    call = outline(model, nodes(model, "Exp", "Neg"), "f")
    assert [v.name for v in call.outputs] == ["a", "e"]
    check(model)


def test_boundary(model: onnx_ir.Model) -> None:
    inputs, outputs = boundary(nodes(model, "Exp", "Add", "Mul"))
    assert [v.name for v in inputs] == ["h", "one"] and [v.name for v in outputs] == ["y"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_convex_set_computes_the_same(data: st.DataObject, random_graphs: Callable[..., Any], run: Any) -> None:
    graph = data.draw(random_graphs(max_steps=12))
    model = onnx_ir.from_proto(graph.model)
    infer_graph(model)
    feeds = graph.feeds(B=2, S=3)
    before = run(graph.model, feeds)
    order = list(model.graph)
    first = data.draw(st.integers(0, len(order) - 1))
    last = data.draw(st.integers(first, len(order) - 1))
    # Whatever stands together in topological order is convex.
    chosen = order[first : last + 1]
    if not boundary(chosen)[1]:
        return
    outline(model, data.draw(st.permutations(chosen)), "f")
    after = run(check(model), feeds)
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    inline_all(model)
    assert not model.functions and "burnish" not in model.opset_imports
    again = run(check(model), feeds)
    assert all(np.array_equal(before[name], again[name], equal_nan=True) for name in before)
