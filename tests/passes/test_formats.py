"""Weights in NF4 and FP8, in groups beside 8-bit inputs, and channels with outliers beside an int8 product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes.base import Context
from burnish.passes.quantize import Quantize, Scheme
from burnish.passes.quantize.formats import NF4, fp8, nf4
from burnish.passes.quantize.methods.rtn import dequantize, quantize
from burnish.passes.quantize.scheme import Activations, resolve

Array = np.ndarray[Any, Any]
Parse = Callable[..., onnx_ir.Model]
Calibrated = Callable[[onnx_ir.Model, Any], Context]
Outputs = Callable[[onnx_ir.Model, Any], list[Array]]

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((64, 256)).astype(np.float32)
TEXT = "g (float[b, 256] x) => (float[b, 192] y) { y = MatMul(x, w) }"
FEEDS = {"x": RANDOM.standard_normal((40, 256)).astype(np.float32)}
WEIGHT = RANDOM.standard_normal((256, 192)).astype(np.float32)


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_nf4_picks_the_nearest_level() -> None:
    codes, scales = nf4(NORMAL, 64)
    parts = NORMAL.reshape(64, 4, 64) / scales
    best = np.abs(parts[..., None] - NF4).argmin(axis=-1)
    assert np.array_equal(codes, best) and np.array_equal(np.abs(parts).max(axis=2), np.ones((64, 4)))


def test_nf4_beats_integers_on_normal_weights() -> None:
    codes, scales = nf4(NORMAL, 64)
    scheme = Scheme(bits=4, group_size=64, symmetric=True)
    integer = dequantize(quantize(NORMAL, scheme), scheme, 256)
    assert relative(NORMAL, (NF4[codes] * scales).reshape(64, 256)) < 0.97 * relative(NORMAL, integer)


def test_a_shorter_last_group_and_zeros() -> None:
    codes, scales = nf4(np.zeros((3, 20), np.float32), 16)
    assert codes.shape == (3, 2, 16) and (NF4[codes] == 0).all() and (scales == 1).all()
    numbers, scales = fp8(np.zeros((3, 20), np.float32))
    assert (numbers.astype(np.float32) == 0).all() and (scales == 1).all()


def test_fp8_keeps_the_largest_of_a_channel() -> None:
    codes, scales = fp8(NORMAL)
    back = codes.astype(np.float32) * scales[:, None]
    at = np.abs(NORMAL).argmax(axis=1)
    rows = np.arange(64)
    np.testing.assert_allclose(back[rows, at], NORMAL[rows, at], rtol=1e-6)
    assert relative(NORMAL, back) < 0.03


@pytest.mark.parametrize(
    ("scheme", "op", "limit"),
    [
        ("nf4", "MatMulBnb4", 0.12),
        ("fp8", "MatMul", 0.04),
        ("w4a8", "MatMulNBits", 0.13),
        ("w8a8_groups", "MatMulNBits", 0.012),
    ],
)
@pytest.mark.parametrize("width", [256, 240])
def test_a_product(parse: Parse, outputs: Outputs, scheme: str, op: str, limit: float, width: int) -> None:
    text = TEXT.replace("256", str(width))
    feeds = {"x": np.ascontiguousarray(FEEDS["x"][:, :width])}
    graph = parse(text, w=np.ascontiguousarray(WEIGHT[:width]))
    (before,) = outputs(graph, feeds)
    Quantize(scheme).run(graph, Context())
    (after,) = outputs(graph, feeds)
    assert 1e-3 < relative(before, after) < limit
    lower(graph)
    counts = Counter(node.op_type for node in graph.graph)
    if scheme != "nf4" or width == 256:
        assert counts[op] == 1
    if op == "MatMulNBits":
        assert counts.total() == 1
    from onnx_ir import to_proto
    from onnxruntime import InferenceSession

    lowered = InferenceSession(to_proto(graph).SerializeToString()).run(None, feeds)[0]
    assert relative(after, lowered) < (0.01 if op == "MatMulNBits" else 1e-5)


def test_an_embedding_stays_float_in_such_a_format(parse: Parse) -> None:
    graph = parse(
        "g (int64[b] i, float[b, 256] x) => (float[b, 256] e, float[b, 2000] y)"
        "{ e = Gather(w, i) t = Transpose(w) y = MatMul(x, t) }",
        w=[2000, 256],
    )
    outcome = Quantize("nf4").run(graph, Context())
    assert not outcome.rewrites
    assert any("an embedding reads the weight, too" in remark.reason for remark in outcome.remarks)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scheme(4, 64, True, format="nf5"),
        lambda: Scheme(8, 64, True, format="nf4"),
        lambda: Scheme(4, 0, True, format="nf4"),
        lambda: Scheme(8, 64, True, format="fp8"),
        lambda: Scheme(4, 64, True, Activations(), format="nf4"),
        lambda: resolve("nf4", bits=8),
        lambda: Scheme(4, 64, False, Activations("tensor", dynamic=False)),
        lambda: Quantize("w8a8", outliers=-1.0),
    ],
)
def test_what_there_is_not(make: Callable[[], Any]) -> None:
    with pytest.raises(OptionError):
        make()


def test_outlier_channels_beside_an_int8_product(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    x = FEEDS["x"].copy()
    x[:, [3, 100]] *= 60
    errors = {}
    for outliers in (None, 6.0):
        graph = parse(TEXT, w=WEIGHT)
        (before,) = outputs(graph, {"x": x})
        outcome = Quantize("w8a8", outliers=outliers).run(graph, calibrated(graph, {"x": x}))
        errors[outliers] = relative(before, outputs(graph, {"x": x})[0])
    assert errors[6.0] < 0.2 * errors[None]
    assert any("2 input channels exceed 6" in remark.reason for remark in outcome.remarks)
    lower(graph)
    counts = Counter(node.op_type for node in graph.graph)
    assert counts["MatMulIntegerToFloat"] == 1 and counts["MatMul"] == 1


def test_no_outliers_are_told(parse: Parse, calibrated: Calibrated) -> None:
    graph = parse(TEXT, w=WEIGHT)
    outcome = Quantize("w8a8", outliers=50.0).run(graph, calibrated(graph, FEEDS))
    assert any("no input channel exceeds 50" in remark.reason for remark in outcome.remarks)
    assert not any(node.op_type == "Gather" for node in graph.graph)


def test_outliers_need_data(parse: Parse) -> None:
    with pytest.raises(CalibrationError):
        Quantize("w8a8", outliers=6.0).run(parse(TEXT, w=WEIGHT), Context())
