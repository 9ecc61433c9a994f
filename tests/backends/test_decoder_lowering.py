"""Attention with its cache inside and heads side by side; residual additions joined with their norms."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.ir.rewrite import Editor

HEADS, KV_HEADS, SIZE = 4, 2, 8
FLOAT = onnx_ir.DataType.FLOAT


def layer(*, causal: bool = False, rotary: bool = True, cache: bool = True, leak: str = "") -> onnx_ir.Model:
    """One attention layer as it is traced: ``x`` [batch, s, 32], past [batch, 2, p, 8] -> y, present."""
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    edit = Editor(model, "test")
    random = np.random.default_rng(0)

    def given(name: str, *shape: int | str) -> onnx_ir.Value:
        value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(FLOAT), shape=onnx_ir.Shape(shape))
        model.graph.inputs.append(value)
        return value

    def weight(*shape: int) -> onnx_ir.Value:
        return edit.initializer(random.standard_normal(shape).astype(np.float32) / 4, "w")

    width = HEADS * SIZE
    x = given("x", "b", "s", width)
    cos, sin = given("cos", "b", "s", SIZE // 2), given("sin", "b", "s", SIZE // 2)
    mask = given("mask", "b", 1, "s", "p + s")

    def heads(count: int) -> onnx_ir.Value:
        y = edit.op("MatMul", [x, weight(width, count * SIZE)])
        shape = edit.ints([0, 0, count, SIZE])
        y = edit.op("Reshape", [y, shape], dtype=FLOAT, shape=["b", "s", count, SIZE])
        return edit.op("Transpose", [y], {"perm": [0, 2, 1, 3]}, dtype=FLOAT, shape=["b", count, "s", SIZE])

    def turn(value: onnx_ir.Value) -> onnx_ir.Value:
        if not rotary:
            return value
        return edit.op("RotaryEmbedding", [value, cos, sin], dtype=FLOAT, shape=value.shape)

    query, key, value = turn(heads(HEADS)), turn(heads(KV_HEADS)), heads(KV_HEADS)
    if cache:
        pasts = [given(f"past_{name}", "b", KV_HEADS, "p", SIZE) for name in ("key", "value")]
        joined = ["b", KV_HEADS, "p + s", SIZE]
        key = edit.op("Concat", [pasts[0], key], {"axis": 2}, dtype=FLOAT, shape=joined)
        value = edit.op("Concat", [pasts[1], value], {"axis": -2}, dtype=FLOAT, shape=joined)
        key.name, value.name = "present_key", "present_value"
    outputs = [key, value] if cache else []
    if leak == "before":
        outputs.append(edit.op("Neg", [key]))
    y = edit.op("Attention", [query, key, value, None if causal else mask], {"is_causal": int(causal)})
    y.type, y.shape = onnx_ir.TensorType(FLOAT), onnx_ir.Shape(["b", HEADS, "s", SIZE])
    if leak == "after":
        outputs.append(edit.op("Neg", [key]))
    y = edit.op("Transpose", [y], {"perm": [0, 2, 1, 3]}, dtype=FLOAT, shape=["b", "s", HEADS, SIZE])
    y = edit.op("Reshape", [y, edit.ints([0, 0, width])], dtype=FLOAT, shape=["b", "s", width])
    total = edit.op("Add", [x, y], dtype=FLOAT, shape=["b", "s", width])
    norm = edit.op("RMSNormalization", [total, weight(width)], {"epsilon": 1e-6}, dtype=FLOAT, shape=total.shape)
    model.graph.outputs.extend([edit.op("Add", [total, norm]), *outputs])
    return model


def feeds(past: int, model: onnx_ir.Model) -> dict[str, Any]:
    random = np.random.default_rng(1)
    sizes = {"b": 2, "s": 3, "p": past, "p + s": past + 3}
    result = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.name is not None
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        result[value.name] = random.standard_normal(shape).astype(np.float32)
    return result


def ops(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("leak", ["", "after"])
def test_cache_and_heads(rotary: bool, past: int, leak: str) -> None:
    plain, model = (layer(rotary=rotary, leak=leak) for _ in range(2))
    names = [value.name for value in plain.graph.outputs]
    lower(model)
    assert [value.name for value in model.graph.outputs] == names
    count = ops(model)
    assert count["Attention"] == 1 and count["Concat"] == count["Transpose"] == count["Reshape"] == 0
    assert count["RotaryEmbedding"] == 2 * rotary
    assert count["SkipSimplifiedLayerNormalization"] == 1 and count["RMSNormalization"] == 0
    given = feeds(past, model)
    expected = Session(to_bytes(plain), optimize=False).run(given)
    for have, want in zip(Session(to_bytes(model)).run(given), expected, strict=True):
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, atol=2e-5)


def test_without_a_cache_only_the_heads_are_joined() -> None:
    plain, model = layer(cache=False), layer(cache=False)
    lower(model)
    assert ops(model)["Transpose"] == 0
    given = feeds(0, model)
    np.testing.assert_allclose(
        Session(to_bytes(model)).run(given)[0], Session(to_bytes(plain), optimize=False).run(given)[0], atol=2e-5
    )


@pytest.mark.parametrize(
    ("options", "reason"), [({"causal": True}, "is_causal"), ({"leak": "before"}, "reads the joined cache")]
)
def test_near_misses_say_why(options: dict[str, Any], reason: str) -> None:
    plain, model = layer(**options), layer(**options)
    remarks = lower(model)
    assert ops(model)["Concat"] == 2
    assert any(remark.kind == "missed" and reason in remark.reason for remark in remarks)
    given = feeds(5, model)
    for have, want in zip(
        Session(to_bytes(model)).run(given), Session(to_bytes(plain), optimize=False).run(given), strict=True
    ):
        np.testing.assert_allclose(have, want, atol=2e-5)


def test_portable_graphs_keep_standard_operators() -> None:
    model = layer()
    lower(model, "onnx")
    assert all(node.domain == "" for node in model.graph)
