"""The verifier finds each breach of the graph's rules, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import VerificationError
from burnish.ir.graph import MODULE, RULE
from burnish.ir.infer import infer_graph
from burnish.ir.verify import touched, verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WEIGHTS = ", ".join(["0.5"] * 32)
TEXT = f"""agraph (float[B, 8] x) => (float[B, 4] y) <float[8, 4] w = {{{WEIGHTS}}}> {{
    [one] h = Relu(x) [two] m = MatMul(h, w) [three] y = Neg(m) }}"""


@pytest.fixture
def model(parse: Any) -> onnx_ir.Model:
    graph: onnx_ir.Model = parse(TEXT)
    infer_graph(graph)
    return graph


def node(model: onnx_ir.Model, name: str) -> onnx_ir.Node:
    return next(n for n in model.graph.all_nodes() if n.name == name)


def breach(model: onnx_ir.Model, **options: Any) -> VerificationError:
    with pytest.raises(VerificationError) as error:
        verify(model, **options)
    return error.value


def test_a_sound_graph_passes(model: onnx_ir.Model) -> None:
    verify(model)
    verify(model, [node(model, "two")])


def test_order(model: onnx_ir.Model) -> None:
    first = node(model, "one")
    model.graph.remove(first)
    model.graph.append(first)
    error = breach(model)
    assert "input 'h' is made by a node that comes later (Relu 'one')" in error.what
    assert error.where is not None and "two" in error.where


def test_removed_producer(model: onnx_ir.Model) -> None:
    model.graph.remove(node(model, "one"))
    assert "made by a node that was removed (Relu 'one')" in breach(model).what


def test_value_from_nowhere(model: onnx_ir.Model) -> None:
    node(model, "two").replace_input_with(0, onnx_ir.Value(name="stray"))
    assert "'stray' is neither a graph input nor an initializer" in breach(model).what


def test_name_defined_twice(model: onnx_ir.Model) -> None:
    node(model, "one").outputs[0].name = "m"
    assert "the name 'm' is defined twice" in breach(model).what


def test_output_without_producer(model: onnx_ir.Model) -> None:
    model.graph.outputs[0] = onnx_ir.Value(name="z")
    assert "graph output 'z' is made by no node" in breach(model).what


def test_output_listed_twice(model: onnx_ir.Model) -> None:
    model.graph.outputs.append(model.graph.outputs[0])
    assert "graph output 'y' is listed twice" in breach(model).what


def test_initializer_without_data(model: onnx_ir.Model) -> None:
    model.graph.initializers["w"].const_value = None
    assert "initializer 'w' has no data" in breach(model).what


def test_initializer_of_another_shape(model: onnx_ir.Model) -> None:
    model.graph.initializers["w"].const_value = onnx_ir.Tensor(np.zeros((8, 5), np.float32))
    assert "initializer 'w' is declared [8, 4], its data is [8, 5]" in breach(model).what


def test_initializer_of_another_type(model: onnx_ir.Model) -> None:
    model.graph.initializers["w"].const_value = onnx_ir.Tensor(np.zeros((8, 4), np.float16))
    assert "declared FLOAT, its data is FLOAT16" in breach(model).what


def test_missing_opset(model: onnx_ir.Model) -> None:
    node(model, "one").domain = "my.domain"
    assert "'my.domain' has no opset import" in breach(model).what
    model.opset_imports["my.domain"] = 1
    verify(model)


def test_shape_that_contradicts(model: onnx_ir.Model) -> None:
    node(model, "two").outputs[0].shape = onnx_ir.Shape(["B", 5])
    assert "output 'm' of MatMul: recorded shape [B, 5], inferred [B, 4]" in breach(model).what
    verify(model, types=False)
    verify(model, [node(model, "one")])


def test_rank_that_contradicts(model: onnx_ir.Model) -> None:
    node(model, "one").outputs[0].shape = onnx_ir.Shape(["B", 8, 1])
    assert "recorded shape [B, 8, 1], inferred [B, 8]" in breach(model, nodes=[node(model, "one")]).what


def test_type_that_contradicts(model: onnx_ir.Model) -> None:
    node(model, "one").outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.DOUBLE)
    assert "recorded type DOUBLE, inferred FLOAT" in breach(model).what


def test_unknown_is_no_contradiction(model: onnx_ir.Model) -> None:
    value = node(model, "two").outputs[0]
    value.shape, value.type = None, None
    verify(model)
    value.shape = onnx_ir.Shape([None, "columns"])
    verify(model)


def test_inputs_that_an_operator_refuses(model: onnx_ir.Model) -> None:
    model.graph.inputs[0].shape = onnx_ir.Shape(["B", 9])
    node(model, "one").outputs[0].shape = onnx_ir.Shape(["B", 9])
    assert "MatMul does not accept its inputs" in breach(model).what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y = Relu(x, x)", "Relu has 2 inputs, opset 23 wants 1"),
        ("y = Transpose<parm = [1, 0]>(x)", "Transpose of opset 23 has no attribute parm"),
        ("y = Concat(x, x)", "Concat has no attribute axis"),
        ("y = TensorScatter(x, x)", "TensorScatter does not exist in opset 23"),
    ],
)
def test_schema(parse: Any, text: str, said: str) -> None:
    assert said in breach(parse(f"agraph (float[2, 2] x) => (float[2, 2] y) {{ {text} }}")).what


def test_runtime_operator_that_a_pass_inserted_too_early(model: onnx_ir.Model) -> None:
    relu = node(model, "one")
    relu.domain, relu.op_type = "com.microsoft", "QuickGelu"
    model.opset_imports["com.microsoft"] = 1
    verify(model)  # as it came with a file
    relu.metadata_props[RULE] = "my rule"
    assert "was inserted by 'my rule' before lowering" in breach(model).what
    verify(model, lowered=True)


def test_domains_of_our_own(model: onnx_ir.Model) -> None:
    relu = node(model, "one")
    relu.domain = "aten"
    model.opset_imports["aten"] = 1
    verify(model)
    assert "ATen operator Relu is left in a lowered graph" in breach(model, lowered=True).what
    relu.domain = "burnish"
    model.opset_imports["burnish"] = 1
    assert "has no function body" in breach(model).what


def test_functions_are_checked(parse: Any) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 23, "burnish" : 1]>
        agraph (float[2, 2] x) => (float[2, 2] y) { y = burnish.Twice(x) }
        <domain: "burnish", opset_import: ["" : 23]> Twice (a) => (b) { c = Add(a, a) b = Identity(c) }"""
    )
    verify(model)
    (function,) = model.functions.values()
    next(iter(function)).outputs[0].name = "b"
    assert "'b' is defined twice" in breach(model).what


BRANCHES = """agraph (bool c, float[2] x) => (float[2] y) {
    h = Relu(x)
    y = If(c) <then_branch = t () => (float[2] a) { a = Neg(h) },
               else_branch = e () => (float[2] a) { a = Abs(h) }> }"""


def test_subgraphs_see_the_outer_graph(parse: Any) -> None:
    model = parse(BRANCHES)
    verify(model)
    # Branches may use the same names; a name that hides the one meant may not be used.
    abs_node = next(n for n in model.graph.all_nodes() if n.op_type == "Abs")
    relu = next(n for n in model.graph.all_nodes() if n.op_type == "Relu")
    extra = onnx_ir.Node("", "Exp", [relu.outputs[0]])
    extra.outputs[0].name = "h"
    abs_node.graph.insert_before(abs_node, extra)
    assert "'h' is hidden by another value of that name" in breach(model).what


def test_values_of_a_subgraph_are_not_visible_outside(parse: Any) -> None:
    model = parse(BRANCHES)
    neg = next(n for n in model.graph.all_nodes() if n.op_type == "Neg")
    model.graph.append(onnx_ir.Node("", "Exp", [neg.outputs[0]], name="outside"))
    assert "belongs to a graph that is not visible here" in breach(model).what


def test_messages_name_module_and_rule(model: onnx_ir.Model) -> None:
    two = node(model, "two")
    two.metadata_props[MODULE] = "model.layers.0.mlp"
    two.metadata_props[RULE] = "fuse"
    two.outputs[0].shape = onnx_ir.Shape(["B", 5])
    assert breach(model).where == "model.layers.0.mlp, node two (MatMul, made by fuse)"


def test_many_breaches_are_listed_in_part(model: onnx_ir.Model) -> None:
    for i in range(9):
        model.graph.append(onnx_ir.Node("", "Relu", [onnx_ir.Value(name=f"stray{i}")]))
    assert breach(model).what.endswith("and 4 more")


def test_touched_nodes_and_their_readers(model: onnx_ir.Model) -> None:
    removed = onnx_ir.Node("", "Relu", [])
    assert [n.name for n in touched([node(model, "one"), removed])] == ["one", "two"]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs_pass(random_graphs: Any, data: Any) -> None:
    model = onnx_ir.from_proto(data.draw(random_graphs()).model)
    verify(model)
    infer_graph(model)
    verify(model)


def test_speed_on_three_thousand_nodes(least_seconds: Any) -> None:
    value = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["B", 8]))
    nodes, last = [], value
    for i in range(3000):
        nodes.append(onnx_ir.Node("", "Add", [last, value], name=f"n{i}"))
        last = nodes[-1].outputs[0]
        last.name = f"v{i}"
    graph = onnx_ir.Graph([value], [last], nodes=nodes, opset_imports={"": 23}, name="g")
    model = onnx_ir.Model(graph, ir_version=10)
    infer_graph(model)
    # About 0.04 s on an idle machine.
    assert least_seconds(lambda: verify(model)) < 0.5
