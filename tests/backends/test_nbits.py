"""Lowering to MatMulNBits and GatherBlockQuantized, against the dequantized weights in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.backends.onnxruntime.check import asked, check_running, running
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes, write
from burnish.ir.errors import OptionError, VerificationError
from burnish.ir.rewrite import Editor
from burnish.passes.base import Context
from burnish.passes.quantize import Quantize, Scheme
from burnish.passes.quantize.methods import rtn
from hypothesis import given, settings
from hypothesis import strategies as st

Make = Callable[..., onnx_ir.Model]
IDS = np.random.default_rng(1).integers(0, 4096, (2, 7))
SCHEMES: list[dict[str, Any]] = [
    {},
    {"scheme": "w8a16"},
    {"group_size": 16},
    {"group_size": 32, "symmetric": True},
    {"bits": 8, "group_size": 128, "symmetric": True},
    {"group_size": 256},
    {"group_size": 0},
    {"bits": 8, "group_size": -1, "symmetric": True},
]


def ops(model: onnx_ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def graph(k: int, kind: Any = np.float32) -> tuple[onnx_ir.Model, Editor, onnx_ir.Value]:
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    dtype = onnx_ir.DataType.from_numpy(np.dtype(kind))
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(["batch", k]))
    model.graph.inputs.append(x)
    return model, Editor(model, "test"), x


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(16, 300),
    n=st.integers(130, 200),
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([0, 16, 32, 64, 128, 256]),
    symmetric=st.booleans(),
    form=st.sampled_from(["[N, K]", "[K, N]", "Gemm", "Gemm transB"]),
    bias=st.booleans(),
    half=st.booleans(),
)
def test_product_equals_dequantized_product(
    k: int, n: int, bits: int, group_size: int, symmetric: bool, form: str, bias: bool, half: bool
) -> None:
    """Level 4 rounds activations to 8 bits in each block: at most 1/254 of a block's largest activation each."""
    kind = np.dtype(np.float16 if half and not form.startswith("Gemm") else np.float32)
    random = np.random.default_rng(k * 1000 + n)
    weights = random.standard_normal((n, k)).astype(kind)
    offset = random.standard_normal(n).astype(kind)
    model, edit, x = graph(k, kind)
    turned = form in ("[K, N]", "Gemm")
    w = edit.initializer(np.ascontiguousarray(weights.T) if turned else weights, "w")
    if form.startswith("Gemm"):
        inputs = [x, w, edit.initializer(offset, "b")] if bias else [x, w]
        y = edit.op("Gemm", inputs, {"transB": int(not turned)})
    else:
        y = edit.op("MatMul", [x, w if turned else edit.op("Transpose", [w], {"perm": [1, 0]})])
        if bias:
            y = edit.op("Add", [edit.initializer(offset, "b"), y])
    model.graph.outputs.append(y)
    scheme = Scheme(bits, group_size, symmetric)
    Quantize(bits=bits, group_size=group_size, symmetric=symmetric).run(model, Context())
    lower(model)
    assert ops(model) == {"MatMulNBits": 1}
    (node,) = model.graph
    assert node.attributes["accuracy_level"].value == 4
    assert len(node.inputs) < 5 or node.inputs[4] is None  # g_idx
    assert (len(node.inputs) > 3 and node.inputs[3] is not None) == (not symmetric)
    activations = random.standard_normal((3, k)).astype(kind)
    have = Session(to_bytes(model), threads=1).run({"x": activations})[0]
    assert have.dtype == kind
    restored = rtn.dequantize(rtn.quantize(weights, scheme, precision=kind), scheme, k)
    wide = activations.astype(np.float32)
    want = wide @ restored.T + (offset.astype(np.float32) if bias else 0)
    tolerance = np.abs(wide).max() / 254 * np.sqrt(np.square(restored).sum(axis=1)).max() * 4 / np.sqrt(3)
    tolerance += 4e-3 * np.abs(want).max() if half else 0
    assert np.abs(have.astype(np.float32) - want).max() <= tolerance


@pytest.mark.parametrize("options", SCHEMES)
def test_tied_language_model(tiny_lm: Make, options: dict[str, Any], tmp_path: Path) -> None:
    plain = tiny_lm(options)
    want = Session(to_bytes(plain), optimize=False).run({"ids": IDS})[0]
    model = tiny_lm(options)
    lower(model)
    count = ops(model)
    assert count["MatMulNBits"] == 5 and count["GatherBlockQuantized"] == 1
    assert "DequantizeLinear" not in count and "Transpose" not in count
    write(model, tmp_path / "m.onnx", external=True)
    have = Session(tmp_path / "m.onnx").run({"ids": IDS})[0]
    assert np.abs(have - want).max() <= 2e-2 * np.abs(want).max()
    # Codes of embedding and head are the same bytes of the file.
    proto = onnx_ir.load(tmp_path / "m.onnx")
    tables = [
        next(n for n in proto.graph if n.op_type == op).inputs[index] for op, index in [("GatherBlockQuantized", 0)]
    ]
    head = next(n for n in proto.graph if n.op_type == "MatMulNBits" and n.outputs[0].name == "logits").inputs[1]
    offsets = {value.const_value.offset for value in (*tables, head)}  # type: ignore[union-attr]
    assert len(offsets) == 1


def test_untied_language_model(tiny_lm: Make) -> None:
    model = tiny_lm({}, tied=False, hidden=128)
    want = Session(to_bytes(tiny_lm({}, tied=False, hidden=128)), optimize=False).run({"ids": IDS})[0]
    lower(model)
    assert ops(model)["GatherBlockQuantized"] == 1 and ops(model)["MatMulNBits"] == 5
    have = Session(to_bytes(model)).run({"ids": IDS})[0]
    assert np.abs(have - want).max() <= 2e-2 * np.abs(want).max()


def test_gemm_factors_are_kept() -> None:
    random = np.random.default_rng(0)
    model, edit, x = graph(64)
    w = edit.initializer(random.standard_normal((64, 128)).astype(np.float32), "w")
    b = edit.initializer(random.standard_normal(128).astype(np.float32), "b")
    model.graph.outputs.append(edit.op("Gemm", [x, w, b], {"alpha": 0.5, "beta": 3.0}))
    Quantize("w8a16").run(model, Context())
    feed = {"x": random.standard_normal((4, 64)).astype(np.float32)}
    want = Session(to_bytes(model), optimize=False).run(feed)[0]
    lower(model)
    assert ops(model) == {"MatMulNBits": 1, "Mul": 2, "Add": 1}
    np.testing.assert_allclose(Session(to_bytes(model)).run(feed)[0], want, atol=0.15)


def test_bias_that_others_read_is_not_folded() -> None:
    model, edit, x = graph(64)
    w = edit.initializer(np.ones((64, 128), np.float32), "w")
    y = edit.op("MatMul", [x, w])
    b = edit.initializer(np.ones(128, np.float32), "b")
    model.graph.outputs.extend([edit.op("Add", [y, b]), edit.op("Relu", [y])])
    Quantize().run(model, Context())
    lower(model)
    assert ops(model) == {"MatMulNBits": 1, "Add": 1, "Relu": 1}


def test_what_cannot_be_lowered_stays_and_is_told() -> None:
    model, edit, x = graph(64)
    codes = edit.initializer(np.zeros((64, 128), np.uint8), "codes")
    scales = edit.initializer(np.ones((64, 2), np.float32), "scales")
    w = edit.op("DequantizeLinear", [codes, scales], {"axis": 1, "block_size": 64})
    model.graph.outputs.append(edit.op("MatMul", [x, w]))
    remarks = lower(model)
    assert ops(model) == {"DequantizeLinear": 1, "MatMul": 1}
    assert any(r.kind == "missed" and "groups run along the output channels" in r.reason for r in remarks)


def test_remarks_list_nonstandard_operators(tiny_lm: Make) -> None:
    remarks = lower(tiny_lm({}))
    listed = {k: v for r in remarks if r.reason.startswith("non-standard") for k, v in r.values.items()}
    assert listed == {"com.microsoft.MatMulNBits": 5, "com.microsoft.GatherBlockQuantized": 1}


def test_float_transposes_are_folded_once(tiny_lm: Make) -> None:
    model = tiny_lm()
    remarks = lower(model)
    # The tied table stays one weight in the file, and its Transpose with it.
    assert ops(model)["Transpose"] == 1
    assert [r.kind for r in remarks] == ["missed"] and "stored once" in remarks[0].reason
    untied = tiny_lm(tied=False)
    assert lower(untied) == [] and "Transpose" not in ops(untied)
    want = Session(to_bytes(tiny_lm(tied=False))).run({"ids": IDS})[0]
    np.testing.assert_allclose(Session(to_bytes(untied)).run({"ids": IDS})[0], want, atol=1e-5)


def test_what_runs_is_what_was_asked(tiny_lm: Make, tmp_path: Path) -> None:
    model = tiny_lm({})
    lower(model)
    expected = asked(model)
    assert expected == {"MatMulNBits": 5, "GatherBlockQuantized": 1}
    write(model, tmp_path / "m.onnx")
    (remark,) = check_running(tmp_path / "m.onnx", expected)
    assert remark.values == expected
    with pytest.raises(VerificationError, match="6 MatMulNBits were asked for, the runtime runs 5"):
        check_running(tmp_path / "m.onnx", {"MatMulNBits": 6})
    assert running(tmp_path / "m.onnx")["MatMulNBits"] == 5


def test_unknown_target(tiny_lm: Make) -> None:
    with pytest.raises(OptionError, match="did you mean 'onnxruntime'"):
        lower(tiny_lm(), target="onnxruntim")
