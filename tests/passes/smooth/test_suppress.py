"""``SuppressOutliers``: γ migration, shifts and thresholds; outputs stay, 8-bit activations lose less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes import SuppressOutliers
from burnish.passes.base import Context
from burnish.passes.smooth import suppression
from hypothesis import given
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Calibrated = Callable[[onnx_ir.Model, Feeds], Context]
Outputs = Callable[[onnx_ir.Model, Feeds], list[Array]]

TEXT = """g (float[B, 48] x) => (float[B, 32] y, float[B, 24] z, float[B, 16] v) {
    n = LayerNormalization(x, gamma, beta)
    a = MatMul(n, w1)
    y = Add(a, bias)
    z = Gemm(n, w2, c)
    v = MatMul(n, w3)
}"""


@pytest.fixture
def network(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Feeds]:
    """Channels whose ranges lie far from zero and differ, as behind the layer normalizations of OPT and BERT."""
    random = np.random.default_rng(0)
    gamma, beta = np.ones(48, np.float32), np.zeros(48, np.float32)
    beta[[4, 17, 30]] = [60, -45, 80]
    gamma[[9, 22]] = [25, -25]
    shapes = {"w1": (48, 32), "bias": (32,), "w2": (48, 24), "c": (24,), "w3": (48, 16)}
    graph = parse(TEXT, gamma=gamma, beta=beta, **shapes)
    return graph, {"x": random.standard_normal((300, 48)).astype(np.float32)}


def static_error(graph: onnx_ir.Model, outputs: Outputs, feeds: Feeds, before: list[Array]) -> float:
    """Relative squared error of ``v`` with one range of 8 bits for all of ``n``."""
    from onnx_ir import Value

    values = {v.name: v for node in graph.graph for v in node.outputs}
    kept: list[Value] = list(graph.graph.outputs)
    graph.graph.outputs[:] = [values["n"]]
    (n,) = outputs(graph, feeds)
    graph.graph.outputs[:] = kept
    low, high = min(n.min(), 0), max(n.max(), 0)
    rounded = np.rint(n / (step := (high - low) / 255)) * step
    product = next(u.node for u in values["n"].uses() if u.node.op_type == "MatMul" and _width(u.node) == 16)
    weights = product.inputs[1].const_value.numpy()  # type: ignore[union-attr]
    return float(np.square((rounded - n) @ weights).sum() / np.square(before[2] - before[2].mean(axis=0)).sum())


def _width(node: onnx_ir.Node) -> int:
    assert node.inputs[1] is not None and node.inputs[1].shape is not None
    return int(node.inputs[1].shape[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["shift", "gamma"])
def test_outputs_stay(
    method: str, network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    before, nodes = outputs(graph, feeds), len(graph.graph)
    outcome = SuppressOutliers(method).run(graph, calibrated(graph, feeds))
    assert outcome.changed
    # Only the product that nothing was added to gets a bias.
    assert len(graph.graph) == nodes + (method == "shift")
    for a, b in zip(before, outputs(graph, feeds), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_shift_and_threshold_beat_plain_rounding(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    before = outputs(graph, feeds)
    plain = static_error(graph, outputs, feeds, before)
    migrated = graph.clone()
    SuppressOutliers("gamma").run(migrated, calibrated(migrated, feeds))
    outcome = SuppressOutliers().run(graph, calibrated(graph, feeds))
    assert static_error(graph, outputs, feeds, before) < plain / 10
    assert static_error(graph, outputs, feeds, before) < static_error(migrated, outputs, feeds, before)
    values = [remark.values for remark in outcome.remarks if "largest_shift" in remark.values]
    assert len(values) == 1 and values[0]["added"] == 1 and values[0]["largest_shift"] > 70


def test_gamma_migration_beats_plain_rounding_where_the_weight_makes_the_outliers(
    parse: Callable[..., onnx_ir.Model], calibrated: Calibrated, outputs: Outputs
) -> None:
    random = np.random.default_rng(0)
    gamma = np.ones(48, np.float32)
    gamma[[9, 22]] = [60, -60]
    shapes = {"w1": (48, 32), "bias": (32,), "w2": (48, 24), "c": (24,)}
    w3 = random.standard_normal((48, 16)).astype(np.float32)
    w3[[9, 22]] /= 60
    graph = parse(TEXT, gamma=gamma, beta=np.zeros(48, np.float32), w3=w3, **shapes)
    feeds = {"x": random.standard_normal((300, 48)).astype(np.float32)}
    before = outputs(graph, feeds)
    plain = static_error(graph, outputs, feeds, before)
    SuppressOutliers("gamma").run(graph, calibrated(graph, feeds))
    assert static_error(graph, outputs, feeds, before) < plain / 10


def test_an_rms_normalization_is_scaled_but_not_shifted(
    parse: Callable[..., onnx_ir.Model], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph = parse(
        "g (float[B, 8] x) => (float[B, 4] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }", s=(8,), w=(8, 4)
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)}
    before = outputs(graph, feeds)
    outcome = SuppressOutliers().run(graph, calibrated(graph, feeds))
    assert [r.reason for r in outcome.remarks if r.kind == "skipped"] == [
        "channels are not shifted: no layer normalization with a bias makes them"
    ]
    assert np.abs(before[0] - outputs(graph, feeds)[0]).max() <= 1e-5 * np.abs(before[0]).max()


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=8), st.floats(0.01, 100))
def test_scales_bring_channels_down_to_the_threshold(largest: list[float], threshold: float) -> None:
    array = np.asarray(largest, np.float32)
    scales = suppression.scales(array, threshold)
    assert (scales >= 1).all() and (array / scales <= max(threshold, 0) * 1.001).all()


def test_options_and_data_are_asked_for(network: tuple[onnx_ir.Model, Feeds]) -> None:
    with pytest.raises(OptionError, match="use one of shift, gamma"):
        SuppressOutliers("gama")
    with pytest.raises(CalibrationError, match="calibration="):
        SuppressOutliers().run(network[0], Context())
