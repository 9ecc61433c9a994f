"""A few nodes as a graph of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
import pytest
from burnish.ir.excerpt import excerpt, timed, usual_sizes
from burnish.ir.graph import Graph
from burnish.ir.infer import infer_graph
from burnish.ir.rewrite import Editor
from burnish.ir.verify import verify
from burnish.ir.weights import lazy

FLOAT = onnx_ir.DataType.FLOAT


def graph(*inputs: tuple[str, list[int | str]]) -> tuple[Graph, Editor]:
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    for name, shape in inputs:
        value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(FLOAT), shape=onnx_ir.Shape(shape))
        model.graph.inputs.append(value)
    return model, Editor(model, "test").at(None)


def never() -> np.ndarray:
    raise AssertionError("the weight was read")


def block() -> tuple[Graph, list[onnx_ir.Node]]:
    model, edit = graph(("x", ["batch", "tokens", 64]))
    weight = edit.initializer(lazy(never, FLOAT, [64, 64]), "weight")
    product = edit.op("MatMul", [model.graph.inputs[0], weight])
    total = edit.op("Add", [product, edit.initializer(np.arange(64, dtype=np.float32), "bias")])
    model.graph.outputs.append(edit.op("Relu", [total]))
    infer_graph(model)
    return model, [product.producer(), total.producer()]  # type: ignore[list-item]


def test_it_has_plain_sizes_and_constants_that_nobody_read() -> None:
    model, nodes = block()
    small = excerpt(model, nodes, {"batch": 2, "tokens": 5})
    assert small is not None
    verify(small)
    assert [list(value.shape or ()) for value in (*small.graph.inputs, *small.graph.outputs)] == [[2, 5, 64]] * 2
    assert [node.op_type for node in small.graph] == ["MatMul", "Add"]
    constants = {name: value.const_value for name, value in small.graph.initializers.items()}
    assert constants["bias"].numpy()[5] == 5.0  # type: ignore[union-attr]
    assert constants["weight"].numpy().std() == pytest.approx(1, abs=0.1)  # type: ignore[union-attr]


def test_without_sizes_there_is_none() -> None:
    model, nodes = block()
    assert excerpt(model, nodes, {"batch": 2}) is None


def test_usual_sizes_are_a_prompt_and_for_decoders_a_token() -> None:
    model, _ = graph(("ids", ["batch", "tokens"]), ("scale", ["channels"]))
    assert usual_sizes(model) == [{"batch": 1, "tokens": 128, "channels": 128}]
    model, _ = graph(("ids", ["batch", "tokens"]), ("past_key_values.0.key", ["batch", 3, "past", 64]))
    assert usual_sizes(model) == [{"batch": 1, "tokens": 128, "past": 128}, {"batch": 1, "tokens": 1, "past": 128}]


def test_variants_are_applied_to_copies_and_compared_over_all_sizes() -> None:
    model, edit = graph(("ids", ["batch", "tokens"]), ("past_key_values.0.key", ["batch", 3, "past", 64]))
    model.graph.outputs.append(edit.op("Relu", [model.graph.inputs[0]], dtype=FLOAT, shape=["batch", "tokens"]))

    def other(small: Graph) -> None:
        relu = small.graph[0]
        edit = Editor(small, "other").at(relu)
        edit.replace(relu.outputs[0], edit.op("Abs", list(relu.inputs)))
        edit.sweep([relu])

    asked = []

    def clock(models: Sequence[Graph]) -> list[float]:
        asked.append([(model.graph[0].op_type, list(model.graph.inputs[0].shape or ())) for model in models])
        tokens = asked[-1][0][1][1]
        return [float(tokens), tokens * (0.5 if tokens == 1 else 2.0)]

    found = timed(model, [model.graph[0]], {"usual": lambda small: None, "other": other}, clock)
    assert asked == [[("Relu", [1, 128]), ("Abs", [1, 128])], [("Relu", [1, 1]), ("Abs", [1, 1])]]
    assert found == {"usual": 64.5, "other": 64.5 * 1.25}  # half and twice the time: a prompt counts like a token
    assert model.graph[0].op_type == "Relu"
    assert timed(model, [model.graph[0]], {"usual": lambda small: None}, lambda models: None) is None
