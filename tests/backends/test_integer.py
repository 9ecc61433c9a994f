"""Products of two int8 operands, against the same computation by NumPy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import pytest
from burnish.backends.onnxruntime import integer, kernels
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes, write
from burnish.ir.rewrite import Editor
from burnish.ir.verify import verify
from burnish.passes.base import Context
from burnish.passes.quantize import Quantize

Make = Callable[..., onnx_ir.Model]
Array = np.ndarray[Any, Any]
K, N = 200, 256
WIDE = {"hidden": 192, "inner": 320}
IDS = np.random.default_rng(1).integers(0, 4096, (2, 7))


def ops(model: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def graph(*leading: int | str, kind: Any = np.float32) -> tuple[onnx_ir.Model, Editor, onnx_ir.Value]:
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    dtype = onnx_ir.DataType.from_numpy(np.dtype(kind))
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape([*leading, K]))
    model.graph.inputs.append(x)
    return model, Editor(model, "test"), x


def by_channel(weights: Array) -> tuple[Array, Array]:
    """Codes [N, K] and scales [N, 1]: the largest weight of a channel is -128 times its scale."""
    largest = weights[np.arange(len(weights)), np.abs(weights).argmax(axis=1)][:, None]
    scale = (largest / np.float32(-128)).astype(np.float32)
    return np.clip(np.rint(weights * (1 / scale)), -128, 127).astype(np.int64), scale


def by_numpy(x: Array, weights: Array) -> Array:
    """The integer computation: ``weights`` [N, K], codes and scales of each channel and each token."""
    w, scale = by_channel(weights)
    low, high = np.minimum(x.min(axis=-1, keepdims=True), 0), np.maximum(x.max(axis=-1, keepdims=True), 0)
    step = np.maximum((high - low) * np.float32(1 / 255), np.finfo(np.float32).tiny)
    zero = np.rint(-low / step)
    q = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64) - zero.astype(np.int64)
    return ((q @ w.T).astype(np.float32) * scale[:, 0]) * step


def compiled(model: onnx_ir.Model, target: str = "onnxruntime") -> Session:
    outcome = Quantize("w8a8").run(model, Context())
    assert outcome.changed
    verify(model)
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    lower(model, target)
    verify(model, lowered=True)
    return Session(to_bytes(model), threads=1)


@pytest.mark.parametrize(
    ("form", "leading"),
    [
        *itertools.product(("[N, K]", "[K, N]"), [(5,), (2, 5), ("batch", "tokens"), (1, 2, 5)]),
        *itertools.product(("Gemm", "Gemm transB"), [(5,), ("tokens",)]),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_integer_computation(form: str, leading: tuple[int | str, ...], bias: bool) -> None:
    random = np.random.default_rng(len(leading))
    weights = random.standard_normal((N, K)).astype(np.float32)
    offset = random.standard_normal(N).astype(np.float32) if bias else np.zeros(N, np.float32)
    model, edit, x = graph(*leading)
    turned = form in ("[K, N]", "Gemm")
    w = edit.initializer(np.ascontiguousarray(weights.T) if turned else weights, "w")
    if form.startswith("Gemm"):
        y = edit.op("Gemm", [x, w, *([edit.initializer(offset, "b")] if bias else [])], {"transB": int(not turned)})
    else:
        y = edit.op("MatMul", [x, w if turned else edit.op("Transpose", [w], {"perm": [1, 0]})])
        if bias:
            y = edit.op("Add", [y, edit.initializer(offset, "b")])
    model.graph.outputs.append(y)
    session = compiled(model)
    count = ops(model)
    assert (count["QuantizeLinear"], count["Concat"], count["MatMulIntegerToFloat"]) == (1, 1, 1)
    assert not count.keys() & {"DequantizeLinear", "MatMul", "Gemm", "Transpose", "MatMulNBits"}
    assert count["Add"] == int(bias)
    values = random.standard_normal([d if isinstance(d, int) else 3 for d in leading] + [K]).astype(np.float32)
    values[..., 0, :] = 0  # a row without a scale
    values[..., 1, :] *= 1e-30
    have = session.run({"x": values})[0]
    want = by_numpy(values, weights) + offset
    # The integers are equal; only the order of the two multiplications in float32 may differ.
    np.testing.assert_allclose(have, want, rtol=3e-7, atol=1e-35)
    exact = values.astype(np.float64) @ weights.T + offset
    # Each operand is off by half a step at most, and steps do not conspire: six standard deviations of their sum.
    step = np.abs(values).max(axis=-1, keepdims=True) / 127
    spread = step * np.sqrt(np.square(weights).sum(axis=1))
    spread = np.hypot(
        spread, np.sqrt(np.square(values).sum(axis=-1, keepdims=True)) * np.abs(weights).max(axis=1) / 128
    )
    assert (np.abs(have - exact) <= 6 / np.sqrt(12) * spread + 1e-6).all()


def test_factors_of_a_gemm_are_kept() -> None:
    random = np.random.default_rng(0)
    model, edit, x = graph(4)
    w, b = (random.standard_normal(shape).astype(np.float32) for shape in ((N, K), (N,)))
    inputs = [x, edit.initializer(w, "w"), edit.initializer(b, "b")]
    model.graph.outputs.append(edit.op("Gemm", inputs, {"transB": 1, "alpha": 0.5, "beta": 3.0}))
    values = random.standard_normal((4, K)).astype(np.float32)
    have = compiled(model).run({"x": values})[0]
    np.testing.assert_allclose(have, by_numpy(values, w) * 0.5 + 3 * b, rtol=1e-6, atol=1e-5)


def test_one_outlier_row_costs_the_others_nothing() -> None:
    random = np.random.default_rng(0)
    model, edit, x = graph("tokens")
    weights = random.standard_normal((K, N)).astype(np.float32)
    model.graph.outputs.append(edit.op("MatMul", [x, edit.initializer(weights, "w")]))
    values = random.standard_normal((16, K)).astype(np.float32)
    values[3] *= 100
    have = compiled(model).run({"x": values})[0]
    # ONNX Runtime's own dynamic kernel has one scale for the whole input.
    tensor, edit, x = graph("tokens")
    scales = np.abs(weights).max(axis=0) / 127
    inputs = [edit.initializer(np.rint(weights / scales).astype(np.int8), "w"), edit.initializer(scales, "s")]
    y = edit.op(
        "DynamicQuantizeMatMul", [x, *inputs], domain="com.microsoft", dtype=onnx_ir.DataType.FLOAT, shape=["tokens", N]
    )
    tensor.graph.outputs.append(y)
    other = Session(to_bytes(tensor), threads=1).run({"x": values})[0]
    rows = np.delete(np.arange(16), 3)
    want = (values @ weights)[rows]

    def error(y: Array) -> float:
        return float(np.linalg.norm(y[rows] - want) / np.linalg.norm(want))

    assert error(have) < 0.015 < 0.3 < error(other)


def test_a_shared_input_is_quantized_once() -> None:
    random = np.random.default_rng(0)
    model, edit, x = graph("batch", "tokens")
    other = edit.op("Relu", [x])
    for at, source in enumerate((x, x, other, x)):
        w = edit.initializer(random.standard_normal((K, N)).astype(np.float32), f"w{at}")
        model.graph.outputs.append(edit.op("MatMul", [source, w]))
    compiled(model)
    count = ops(model)
    assert (count["QuantizeLinear"], count["ReduceMax"], count["MatMulIntegerToFloat"]) == (2, 2, 4)
    assert count["Concat"] == 2
    assert "DequantizeLinear" not in count


def test_tied_table_is_one_copy(tiny_lm: Make, tmp_path: Path) -> None:
    model = tiny_lm({"scheme": "w8a8"}, **WIDE)
    lower(model)
    count = ops(model)
    assert count["MatMulIntegerToFloat"] == 5 and count["Gather"] == 2 and "DequantizeLinear" not in count
    size = write(model, tmp_path / "m.onnx", external=True)
    codes = 4096 * 192 + 2 * 2 * 192 * 320
    assert codes < size < codes * 1.25
    have = Session(tmp_path / "m.onnx").run({"ids": IDS})[0]
    want = Session(to_bytes(tiny_lm(**WIDE))).run({"ids": IDS})[0]
    assert 0 < np.abs(have - want).max() <= 2e-2 * np.abs(want).max()


def test_standard_operators_only(tiny_lm: Make, tmp_path: Path) -> None:
    between = tiny_lm({"scheme": "w8a8"}, **WIDE)
    proto = onnx_ir.to_proto(between)
    want = onnx.reference.ReferenceEvaluator(proto).run(None, {"ids": IDS})[0]
    model = tiny_lm({"scheme": "w8a8"}, **WIDE)
    lower(model, "onnx")
    assert {node.domain for node in model.graph} == {""}
    path = tmp_path / "m.onnx"
    write(model, path, external=True)
    onnx.checker.check_model(str(path), full_check=True)
    reference = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"ids": IDS})[0]
    lowered = tiny_lm({"scheme": "w8a8"}, **WIDE)
    lower(lowered)
    for have in (reference, Session(path).run({"ids": IDS})[0], Session(to_bytes(lowered)).run({"ids": IDS})[0]):
        # Sums in another order may round an activation the other way: one step of one product.
        assert np.abs(have - want).max() <= 1e-3 * np.abs(want).max()


def test_without_the_kernel_the_input_stays_quantized(monkeypatch: pytest.MonkeyPatch, tiny_lm: Make) -> None:
    original = kernels.has

    def has(domain: str, op: str, *rest: Any) -> bool:
        return op != "MatMulIntegerToFloat" and original(domain, op, *rest)

    monkeypatch.setattr(integer.kernels, "has", has)
    model = tiny_lm({"scheme": "w8a8"}, **WIDE)
    remarks = lower(model)
    assert sum("has no MatMulIntegerToFloat" in r.reason for r in remarks if r.kind == "missed") == 5
    count = ops(model)
    assert count["MatMulNBits"] == 5 and count["QuantizeLinear"] == count["DequantizeLinear"] == 5
    want = Session(to_bytes(tiny_lm(**WIDE))).run({"ids": IDS})[0]
    assert np.abs(Session(to_bytes(model)).run({"ids": IDS})[0] - want).max() <= 3e-2 * np.abs(want).max()


def test_weights_that_do_not_fit_are_left_and_told() -> None:
    model, edit, x = graph("tokens")
    w = edit.initializer(np.random.default_rng(0).standard_normal((K, N)).astype(np.float32), "w")
    y = edit.op("MatMul", [x, w])
    model.graph.outputs.append(y)
    Quantize("w8a8").run(model, Context())
    node = next(n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer())  # type: ignore[union-attr]
    node.replace_input_with(2, edit.initializer(np.full(N, 127, np.uint8), "zeros"))
    remarks = lower(model)
    assert any(r.kind == "missed" and "its weight has zero points" in r.reason for r in remarks)
    assert ops(model)["MatMulNBits"] == 1 and "MatMulIntegerToFloat" not in ops(model)


def test_inputs_on_one_side_get_the_whole_range() -> None:
    random = np.random.default_rng(0)
    model, edit, x = graph("tokens")
    weights = random.standard_normal((N, K)).astype(np.float32)
    weights[:, :150] = np.abs(weights[:, :150])  # sums of channels far from zero
    w = edit.initializer(weights, "w")
    model.graph.outputs.append(edit.op("MatMul", [x, edit.op("Transpose", [w], {"perm": [1, 0]})]))
    values = np.maximum(random.standard_normal((16, K)), -0.1).astype(np.float32)
    have = compiled(model).run({"x": values})[0]
    np.testing.assert_allclose(have, by_numpy(values, weights), rtol=3e-7)
    codes, scales = by_channel(weights)
    step = np.abs(values).max(axis=-1, keepdims=True) / 127
    symmetric = (np.rint(values / step) * step) @ (codes * scales).T
    want = values @ (codes * scales).T
    assert np.linalg.norm(have - want) < 0.65 * np.linalg.norm(symmetric - want)


@pytest.mark.parametrize("axis", [0, 1])
def test_extra_weights_cancel_zero_points(axis: int) -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (24, 24)).astype(np.int8)
    codes[3] = codes[:, 3] = 127
    codes[4] = codes[:, 4] = -128
    extended = integer.cancelling(codes, 32, axis)
    assert extended.dtype == np.int8 and extended.shape[axis] == 56
    assert not extended.sum(axis=axis, dtype=np.int32).any()
    np.testing.assert_array_equal(np.delete(extended, np.s_[24:], axis), codes)
