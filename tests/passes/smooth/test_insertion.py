"""Scales in front of products that nothing before them can take: behind a GELU, behind a norm that a residual reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError
from burnish.ir.graph import is_op
from burnish.passes import Quantize, SmoothQuant
from burnish.passes.base import Context
from hypothesis import given
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]

SIZE, HIDDEN = 192, 384
"""Smaller products stay in floating point."""
FEED_FORWARD = """g (float[B, 192] x) => (float[B, 192] y) {
    n = LayerNormalization(x, scale, bias)
    up = MatMul(n, w1)
    h = Gelu(up)
    down = MatMul(h, w2)
    y = Add(n, down)
}"""
"""Post-norm: what the normalization makes goes into the residual, too."""


def feed_forward(parse: Callable[..., onnx_ir.Model], outlier: float = 40) -> onnx_ir.Model:
    scale = np.ones(SIZE, np.float32)
    scale[[5, 17]] = outlier
    random = np.random.default_rng(1)
    w1 = random.standard_normal((SIZE, HIDDEN)).astype(np.float32) / 14
    w1[[5, 17]] /= outlier
    w1[:, [3, 70]] *= outlier
    w2 = random.standard_normal((HIDDEN, SIZE)).astype(np.float32)
    return parse(FEED_FORWARD, scale=scale, bias=np.zeros(SIZE, np.float32), w1=w1, w2=w2)


def rows(count: int, seed: int = 0, size: int = SIZE) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)}


def error(graph: onnx_ir.Model, run: Callable[..., Any], expected: Array) -> float:
    (found,) = run(graph, rows(100, 1))
    return float(np.square(found - expected).mean() / np.square(expected).mean())


def test_static_scales_lose_far_less(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    """It must beat smoothing that inserts nothing on data made for it."""
    losses = {}
    for insert in (False, True):
        graph = feed_forward(parse)
        (expected,) = outputs(graph, rows(100, 1))
        outcome = SmoothQuant(0.8, insert=insert).run(graph, calibrated(graph, rows(400)))
        kinds = [remark.kind for remark in outcome.remarks]
        assert kinds == (["applied", "applied"] if insert else ["missed", "missed", "skipped"])
        Quantize("w8a8_static", method="rtn").run(graph, calibrated(graph, rows(400)))
        losses[insert] = error(graph, outputs, expected)
    assert losses[True] < losses[False] / 5


def test_what_is_told_and_what_is_left_alone(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    graph = feed_forward(parse)
    before = outputs(graph, rows(50, 1))
    outcome = SmoothQuant(0.8, insert=True).run(graph, calibrated(graph, rows(400)))
    assert outcome.rewrites == {"SmoothQuant, by a multiplication": 2}
    for remark in outcome.remarks:
        assert "nothing before it can" in remark.reason
        assert remark.values["error"] < remark.values["error_before"] / 2
        assert remark.values["spread_after"] < remark.values["spread_before"]
    nodes = [node.op_type for node in graph.graph]
    assert nodes == ["LayerNormalization", "Mul", "MatMul", "Gelu", "Mul", "MatMul", "Add"]
    # The residual reads the normalization as it was.
    assert is_op(graph.graph[-1].inputs[0].producer(), "LayerNormalization")
    (expected,), (found,) = before, outputs(graph, rows(50, 1))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_nothing_is_inserted_that_gains_little(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context]
) -> None:
    """Channels of one size: a multiplication would only take time."""
    random = np.random.default_rng(0)
    weights = random.choice([-1, 1], (64, 32)).astype(np.float32)
    graph = parse("g (float[B, 64] x) => (float[B, 32] y) { r = Relu(x) y = MatMul(r, w) }", w=weights)
    outcome = SmoothQuant(insert=True).run(graph, calibrated(graph, rows(400, size=64)))
    assert [remark.kind for remark in outcome.remarks] == ["skipped", "missed", "skipped"]
    assert "enough to pay" in outcome.remarks[0].reason
    assert outcome.remarks[0].values["error"] > outcome.remarks[0].values["error_before"] / 2
    assert [node.op_type for node in graph.graph] == ["Relu", "MatMul"]


def test_half_precision_is_left_alone(parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context]) -> None:
    """No kernel takes it in 8 bits, and a small scale's reciprocal would be infinite."""
    text = "g (float16[B, 64] x) => (float16[B, 32] y) { r = Gelu(x) y = MatMul(r, w) }"
    graph = parse(text, w=np.ones((64, 32), np.float16))
    feeds = {"x": (rows(50, size=64)["x"] * np.where(np.arange(64) == 3, 50, 1)).astype(np.float16)}
    outcome = SmoothQuant(insert=True).run(graph, calibrated(graph, feeds))
    assert not outcome.rewrites
    assert [node.op_type for node in graph.graph] == ["Gelu", "MatMul"]


def test_shared_weights_are_left_alone(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    text = """g (float[B, 64] x) => (float[B, 64] y, float[B, 64] z) {
        a = Mul(x, big) y = MatMul(a, w) b = Exp(x) z = MatMul(b, w)
    }"""
    big = np.where(np.arange(64) == 9, 100, 1).astype(np.float32)
    graph = parse(text, w=(64, 64), big=big)
    before = outputs(graph, rows(20, size=64))
    outcome = SmoothQuant(insert=True).run(graph, calibrated(graph, rows(400, size=64)))
    assert not outcome.rewrites
    for a, b in zip(before, outputs(graph, rows(20, size=64)), strict=True):
        assert np.array_equal(a, b)


def test_a_product_whose_output_takes_a_scale_too(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    """Its weight is multiplied along one axis and divided along the other."""
    text = "g (float[B, 64] x) => (float[B, 16] y) { n = Gelu(x) h = MatMul(n, w1) y = MatMul(h, w2) }"
    random = np.random.default_rng(0)
    w1 = (random.standard_normal((64, 48)) * np.where(np.arange(48) == 7, 50, 1)).astype(np.float32)
    graph = parse(text, w1=w1, w2=(48, 16))
    feeds = {"x": rows(400, size=64)["x"] * np.where(np.arange(64) == 3, 50, 1).astype(np.float32)}
    (expected,) = outputs(graph, feeds)
    outcome = SmoothQuant(insert=True).run(graph, calibrated(graph, feeds))
    assert outcome.rewrites == {"SmoothQuant": 1, "SmoothQuant, by a multiplication": 1}
    (found,) = outputs(graph, feeds)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@given(outlier=st.floats(1, 1000), alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_outputs_stay_whatever_the_outliers(
    outlier: float, alpha: float, seed: int,
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any],
) -> None:  # fmt: skip
    graph = feed_forward(parse, outlier)
    (expected,) = outputs(graph, rows(20, seed))
    SmoothQuant(alpha, insert=True).run(graph, calibrated(graph, rows(100, seed)))
    (found,) = outputs(graph, rows(20, seed))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_data_are_needed_for_it(parse: Callable[..., onnx_ir.Model]) -> None:
    outcome = SmoothQuant(insert=True, only_calibrated=True).run(feed_forward(parse), Context())
    assert not outcome.rewrites
    with pytest.raises(CalibrationError):
        SmoothQuant(insert=True).run(feed_forward(parse), Context())
