"""Graphs as text, and what differs between two."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.diff import diff
from burnish.ir.graph import MODULE
from burnish.ir.infer import infer_graph
from burnish.ir.printer import format_graph, format_size
from burnish.ir.rewrite import Editor

WEIGHTS = ", ".join(["0.5"] * 32)
TEXT = f"""agraph (float[B, 8] x) => (float[B, 4] y) <float[8, 4] w = {{{WEIGHTS}}}, float half = {{0.5}}> {{
    [one] h = Relu(x) [two] m = MatMul(h, w) [three] y = Mul(m, half) }}"""


@pytest.fixture
def model(parse: Any) -> onnx_ir.Model:
    graph: onnx_ir.Model = parse(TEXT)
    infer_graph(graph)
    for node in graph.graph:
        node.metadata_props[MODULE] = "layers.0" if node.name != "three" else "head"
    return graph


def test_whole_graph(model: onnx_ir.Model) -> None:
    assert format_graph(model).splitlines() == [
        "agraph (opset onnx 23)",
        "inputs: %x f32[B, 8]",
        "weights: 2 tensors, 132 B",
        "  # layers.0",
        "  %h f32[B, 8] = Relu(%x)",
        "  %m f32[B, 4] = MatMul(%h, %w f32[8, 4])",
        "  # head",
        "  %y f32[B, 4] = Mul(%m, f32 0.5)",
        "outputs: %y f32[B, 4]",
    ]


def test_options(model: onnx_ir.Model) -> None:
    assert "#" not in format_graph(model, modules=False)
    assert "  %w f32[8, 4]" in format_graph(model, weights=True).splitlines()


def test_weights_are_not_read(model: onnx_ir.Model) -> None:
    def fail() -> onnx_ir.TensorProtocol:
        raise AssertionError("a large weight was read")

    lazy = onnx_ir.LazyTensor(fail, onnx_ir.DataType.FLOAT, onnx_ir.Shape([8, 4]))
    model.graph.initializers["w"].const_value = lazy
    format_graph(model, weights=True)
    diff(model, model)


def test_attributes_subgraphs_and_functions(parse: Any) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 23, "burnish" : 1]>
        agraph (bool c, float[2, 3] x) => (float[3, 2] y) {
            t = Transpose<perm = [1, 0]>(x) s = burnish.Twice<scale = 2.5>(t)
            y = If(c) <then_branch = a () => (float[3, 2] p) { p = Neg(s) },
                       else_branch = b () => (float[3, 2] q) { q = Abs(s) }>
        }
        <domain: "burnish", opset_import: ["" : 23]> Twice <scale> (a) => (b) { b = Add(a, a) }"""
    )
    infer_graph(model)
    text = format_graph(model)
    assert "%t f32[3, 2] = Transpose(%x) {perm=[1, 0]}" in text
    assert "= burnish::Twice(%t) {scale=2.5}" in text
    assert "    then_branch() {\n      %p f32[3, 2] = Neg(%s)\n    } -> %p" in text
    assert "function burnish::Twice(%a) -> %b" in text


def test_sizes() -> None:
    assert [format_size(n) for n in (0, 999, 1500, 538_000_000, 2_200_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "538.0 MB",
        "2.2 GB",
    ]


def test_same_graphs_do_not_differ(model: onnx_ir.Model) -> None:
    found = diff(model, model.clone())
    assert found.empty and found.same == 3
    assert str(found) == "3 nodes the same, 0 removed, 0 added, 0 changed"


def test_names_do_not_matter(model: onnx_ir.Model) -> None:
    other = model.clone()
    for node in other.graph:
        node.name = f"renamed_{node.name}"
    other.graph.node(0).outputs[0].name = "q"
    found = diff(model, other)
    assert found.empty and found.same == 3


def test_replaced_node(model: onnx_ir.Model) -> None:
    other = model.clone()
    relu = other.graph.node(0)
    edit = Editor(other, "relu => abs").at(relu)
    edit.replace(relu.outputs[0], edit.op("Abs", [relu.inputs[0]]))
    edit.sweep([relu])
    found = diff(model, other)
    assert [n.op_type for n in found.removed] == ["Relu"]
    assert [n.op_type for n in found.added] == ["Abs"]
    ((_, changed, what),) = found.changed
    assert changed.op_type == "MatMul" and what == ["input 0: %h -> %Abs_out"]
    assert found.same == 1
    assert "- %h f32[B, 8] = Relu(%x)" in str(found)


def test_changed_attribute_type_and_weight(parse: Any) -> None:
    text = "agraph (float[2, 3] x) => (float[P, Q] y) {{ [t] y = Transpose<perm = [{}]>(x) }}"
    one, two = parse(text.format("0, 1")), parse(text.format("1, 0"))
    for model in (one, two):
        model.graph.outputs[0].shape = None
        infer_graph(model)
    found = diff(one, two)
    ((_, _, what),) = found.changed
    assert what == ["attribute perm: (0, 1) -> (1, 0)", "output 0: f32[2, 3] -> f32[3, 2]"]
    assert found.signature == ["output y: f32[2, 3] -> f32[3, 2]"]


def test_weights(model: onnx_ir.Model) -> None:
    other = model.clone()
    weight = other.graph.initializers["w"]
    weight.const_value = onnx_ir.Tensor(np.zeros((8, 4), np.float16))
    weight.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    Editor(other, "add").initializer(np.zeros(99, np.float32), "extra")
    assert diff(model, other).weights == ["weight added: %extra f32[99]", "weight w: f32[8, 4] -> f16[8, 4]"]
