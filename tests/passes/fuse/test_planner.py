"""The planner: blocks of known graphs, what stays apart and why, and no illegal block on random graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import networkx
import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.errors import PassError
from burnish.ir.infer import infer_graph
from burnish.ir.verify import verify
from burnish.passes import Fuse
from burnish.passes.base import Context
from burnish.passes.fuse.block_types import BlockType
from burnish.passes.fuse.partition import Plan, check, planned_nodes
from burnish.passes.fuse.planner import plan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]


def planned(text: str, opset: int = 23) -> tuple[onnx_ir.Model, list[str]]:
    """A graph from text and its blocks, each as the operators in it."""
    model = onnx_ir.from_proto(
        onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\nagraph {text}')
    )
    infer_graph(model)
    return model, blocks(plan(model))


def blocks(found: Plan) -> list[str]:
    return ["+".join(node.op_type for node in block.nodes) for block in found.blocks]


def legal(model: onnx_ir.Model, found: Plan) -> None:
    """What :func:`check` promises, said again by other means."""
    home = {node: index for index, block in enumerate(found.blocks) for node in block.nodes}
    assert len(home) == sum(len(block.nodes) for block in found.blocks)
    assert set(home) == set(planned_nodes(model))
    graph = networkx.DiGraph()
    graph.add_nodes_from(home)
    for node in home:
        graph.add_edges_from(
            (value.producer(), node) for value in node.inputs if value is not None and value.producer()
        )
    graph.remove_nodes_from([node for node in list(graph) if node not in home])
    quotient = networkx.quotient_graph(graph, [set(block.nodes) for block in found.blocks])
    assert networkx.is_directed_acyclic_graph(quotient)
    place = {frozenset(block.nodes): index for index, block in enumerate(found.blocks)}
    assert all(place[frozenset(a)] < place[frozenset(b)] for a, b in quotient.edges)


def test_elementwise_chains_are_one_block() -> None:
    assert planned("(float[B, 4] x) => (float[B, 4] y) { a = Relu(x) b = Exp(a) y = Mul(a, b) }")[1] == ["Relu+Exp+Mul"]


def test_a_layer_norm_taken_apart_is_one_block() -> None:
    text = """(float[B, S, 16] x, float[B, S, 16] r) => (float[B, S, 16] y)
    <int64[1] last = {-1}, float two = {2.0}, float e = {0.00001}> {
    h = Add(x, r) m = ReduceMean(h, last) c = Sub(h, m) q = Pow(c, two) v = ReduceMean(q, last)
    s = Add(v, e) o = Sqrt(s) y = Div(c, o) }"""
    model, found = planned(text)
    assert found == ["Add+ReduceMean+Sub+Pow+ReduceMean+Add+Sqrt+Div"]
    assert plan(model).blocks[0].type is BlockType.REDUCTION


def test_a_product_takes_what_follows_and_no_other_product() -> None:
    text = """(float[B, 8] x, float[8, 8] w, float[8] b) => (float[B, 8] y) {
    p = MatMul(x, w) q = Add(p, b) a = Relu(q) y = MatMul(a, w) }"""
    assert planned(text)[1] == ["MatMul+Add+Relu", "MatMul"]


def test_what_precedes_a_product_joins_it_where_nothing_else_reads_it() -> None:
    text = "(float[B, 8] x, float[8, 8] w) => (float[B, 8] y) { a = Sigmoid(x) b = Mul(a, x) y = MatMul(b, w) }"
    assert planned(text)[1] == ["Sigmoid+Mul+MatMul"]
    both = "(float[B, 8] x, float[8, 8] w) => (float[B, 8] y, float[B, 8] b) { b = Exp(x) y = MatMul(b, w) }"
    assert planned(both)[1] == ["Exp", "MatMul"]


def test_reductions_over_other_axes_stay_apart() -> None:
    text = "(float[4, 8] x) => (float[4, 8] y) { a = Softmax <axis = 0> (x) y = Softmax <axis = 1> (a) }"
    model, found = planned(text)
    assert found == ["Softmax", "Softmax"]
    assert plan(model).reasons["reductions over different rows"] >= 1


def test_rows_of_a_named_size_do_not_fit_into_a_tile() -> None:
    text = "(float[{}, 8] x, float[8, {}] w) => (float[{}, {}] y) {{ p = MatMul(x, w) y = Softmax(p) }}"
    assert planned(text.format("B", 32, "B", 32))[1] == ["MatMul+Softmax"]
    assert planned(text.format("B", 512, "B", 512))[1] == ["MatMul", "Softmax"]
    assert planned(text.format("B", "S", "B", "S"))[1] == ["MatMul", "Softmax"]


def test_rotating_halves_is_no_epilogue() -> None:
    # Each element needs one that another program of the product may hold.
    text = """(float[B, 8] x, float[8, 8] w) => (float[B, 8] y) {
    p = MatMul(x, w) a, b = Split <axis = -1, num_outputs = 2> (p) n = Neg(b) r = Concat <axis = -1> (n, a)
    y = Add(p, r) }"""
    model, found = planned(text)
    assert found[0].startswith("MatMul") and len(found) == 2
    assert any("different places" in reason for reason in plan(model).reasons)


def test_views_and_transposes_store_through_an_index_map() -> None:
    text = """(float[2, 4, 8] x, float[8, 8] w) => (float[2, 2, 4, 4] y) <int64[4] s = {2, 4, 2, 4}> {
    p = MatMul(x, w) v = Reshape(p, s) y = Transpose <perm = [0, 2, 1, 3]> (v) }"""
    assert planned(text)[1] == ["MatMul+Reshape+Transpose"]


def test_picking_from_a_product_stays_apart() -> None:
    text = """(float[4, 8] x, float[8, 8] w) => (float[2, 8] y) <int64[2] i = {3, 1}> {
    p = MatMul(x, w) y = Gather(p, i) }"""
    assert planned(text)[1] == ["MatMul", "Gather"]


def test_pools_without_overlap_end_a_convolution() -> None:
    text = """(float[1, 3, 8, 8] x, float[4, 3, 3, 3] w) => (float[1, 4, {0}, {0}] y) {{
    c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu(c)
    y = MaxPool <kernel_shape = [{1}, {1}], strides = [2, 2], pads = [{2}, {2}, {2}, {2}]> (r) }}"""
    assert planned(text.format(4, 2, 0))[1] == ["Conv+Relu+MaxPool"]
    assert planned(text.format(4, 3, 1))[1] == ["Conv+Relu", "MaxPool"]


def test_residual_edges_close_no_cycle() -> None:
    # Fusing Exp with Add around the product would make the block wait for itself.
    text = """(float[4, 4] x, float[4, 4] w) => (float[4, 4] y) { e = Exp(x) s = Softmax <axis = 0> (e)
    t = Softmax <axis = 1> (s) y = Add(e, t) }"""
    model, found = planned(text)
    legal(model, plan(model))
    assert len(found) == 2


def test_control_flow_runs_alone() -> None:
    text = """(bool c, float[2] x) => (float[2] z) { a = Exp(x)
    y = If (c) <then_branch = t () => (float[2] p) { p = Abs(a) }, else_branch = f () => (float[2] q) { q = Neg(a) }>
    z = Neg(y) }"""
    assert planned(text)[1] == ["Exp", "If", "Neg"]


def test_sizes_are_the_hosts() -> None:
    text = """(float[B, S, 8] x) => (float[B, N, 4] y) <int64[1] two = {0}, int64[2] rest = {-1, 4}> {
    e = Exp(x) s = Shape(e) b = Gather(s, two) t = Concat <axis = 0> (b, rest) y = Reshape(e, t) }"""
    model, _ = planned(text)
    kinds = {node.op_type: block.type for block in plan(model).blocks for node in block.nodes}
    assert kinds["Shape"] is kinds["Gather"] is kinds["Concat"] is BlockType.HOST


def test_check_refuses_broken_partitions() -> None:
    model, _ = planned("(float[4] x) => (float[4] y) { a = Exp(x) b = Neg(a) y = Add(a, b) }")
    a, b, y = planned_nodes(model)
    check(model, [[a, b], [y]])
    for wrong, message in (
        ([[a], [b]], "in no block"),
        ([[a, b], [b, y]], "several"),
        ([[a, y], [b]], "wait for each other"),
    ):
        with pytest.raises(PassError, match=message):
            check(model, wrong)


def unchanged(model: onnx_ir.Model, feeds: Mapping[str, Array], run: Callable[..., Any]) -> None:
    """Plan and outline; the plan is legal, and the same bits come out."""
    legal(model, plan(model))
    before = run(model, feeds)
    Fuse(machine="gpu").run(model, Context())
    verify(model)
    after = run(model, feeds)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old, new, equal_nan=True)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_networks(data: st.DataObject, networks: Any, feeds: Any, outputs: Any) -> None:
    unchanged(data.draw(networks()), feeds, outputs)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs(data: st.DataObject, random_graphs: Any, outputs: Any) -> None:
    drawn = data.draw(random_graphs(max_steps=14))
    model = onnx_ir.from_proto(drawn.model)
    infer_graph(model)
    unchanged(model, drawn.feeds(B=2, S=3), outputs)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_five_hundred_random_networks(data: st.DataObject, networks: Any, feeds: Any, outputs: Any) -> None:
    unchanged(data.draw(networks(max_steps=24)), feeds, outputs)
