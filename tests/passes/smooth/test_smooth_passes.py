"""``SmoothQuant`` and ``ScaleSalientChannels`` on graphs: scales from statistics, remarks, errors, the compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish import compile
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes import EqualizeLog, Quantize, ScaleSalientChannels, SmoothQuant
from burnish.passes.base import Context, Pass
from burnish.passes.spec import format_pass

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

NETWORK = """g (float[B, 64] x) => (float[B, 48] y, float[B, 32] z) {
    n = RMSNormalization(x, scale)
    a = MatMul(n, w1)
    up = MatMul(n, w2)
    gate = Sigmoid(a)
    h = Mul(gate, up)
    y = MatMul(h, w3)
    r = Relu(x)
    z = MatMul(r, w4)
}"""
PASSES: list[Pass] = [EqualizeLog(), SmoothQuant(), SmoothQuant(alpha="search"), ScaleSalientChannels(group_size=32)]


@pytest.fixture
def network(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Feeds]:
    """Two groups, the first with outlier channels that the norm's weight makes; ``w4`` is in none."""
    random = np.random.default_rng(0)
    scale = np.ones(64, np.float32)
    scale[[3, 20, 41]] = 60
    weights = {"w1": (64, 96), "w2": (64, 96), "w3": (96, 48), "w4": (64, 32)}
    graph = parse(NETWORK, scale=scale, **weights)
    return graph, {"x": random.standard_normal((200, 64)).astype(np.float32)}


def w8a8(graph: onnx_ir.Model, inputs: Callable[..., list[Array]], feeds: Feeds) -> float:
    """Relative squared error of the first product with weights and activations rounded to 8 bits."""
    values = {v.name: v for node in graph.graph for v in node.outputs}
    kept = list(graph.graph.outputs)
    graph.graph.outputs[:] = [values["n"]]
    (x,) = inputs(graph, feeds)
    graph.graph.outputs[:] = kept
    product = next(node for node in graph.graph if node.op_type == "MatMul")
    assert product.inputs[1] is not None and product.inputs[1].const_value is not None
    w = product.inputs[1].const_value.numpy()
    qx = np.rint(x / (step := np.abs(x).max(axis=1, keepdims=True) / 127)) * step
    qw = np.rint(w / (step := np.abs(w).max(axis=0, keepdims=True) / 127)) * step
    return float(np.square(qx @ qw - x @ w).sum() / np.square(x @ w).sum())


@pytest.mark.parametrize("item", PASSES, ids=format_pass)
def test_outputs_stay_and_all_is_told(
    item: Pass, network: tuple[onnx_ir.Model, Feeds], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    graph, feeds = network
    before = outputs(graph, feeds)
    outcome = item.run(graph, calibrated(graph, feeds))
    assert sum(outcome.rewrites.values()) == 2
    assert [remark.kind for remark in outcome.remarks] == ["applied", "applied", "missed"]
    assert "can take the scale" in outcome.remarks[2].reason
    for a, b in zip(before, outputs(graph, feeds), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


@pytest.mark.parametrize(("alpha", "factor"), [(0.5, 10), ("search", 10)])
def test_smoothquant_reduces_the_error_of_w8a8(
    alpha: float | str,
    factor: float,
    network: tuple[onnx_ir.Model, Feeds],
    calibrated: Callable[..., Context],
    outputs: Callable[..., Any],
) -> None:
    graph, feeds = network
    plain = w8a8(graph, outputs, feeds)
    outcome = SmoothQuant(alpha).run(graph, calibrated(graph, feeds))
    assert w8a8(graph, outputs, feeds) < plain / factor
    figures = outcome.remarks[0].values
    assert figures["spread_after"] < figures["spread_before"] / 5


def test_logarithmic_equalization_reduces_it(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    graph, feeds = network
    plain = w8a8(graph, outputs, feeds)
    EqualizeLog().run(graph, calibrated(graph, feeds))
    assert w8a8(graph, outputs, feeds) < plain / 1.5


def test_search_takes_the_alpha_that_is_best(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    graph, feeds = network
    searched = graph.clone()
    chosen = SmoothQuant("search").run(searched, calibrated(searched, feeds)).remarks[0].values["alpha"]
    errors = {}
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        copy = graph.clone()
        SmoothQuant(alpha).run(copy, calibrated(copy, feeds))
        errors[alpha] = w8a8(copy, outputs, feeds)
    assert 0 < chosen < 1
    assert w8a8(searched, outputs, feeds) <= 1.25 * min(
        errors.values()
    )  # the range of a token is taken to be that of all
    assert w8a8(searched, outputs, feeds) < errors[0.0] / 10


def test_awq_reduces_the_error_of_four_bits(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    graph, feeds = network
    before = outputs(graph, feeds)

    def error(model: onnx_ir.Model) -> float:
        Quantize(method="rtn", group_size=32).run(model, Context())
        return float(np.square(outputs(model, feeds)[0] - before[0]).sum() / np.square(before[0]).sum())

    plain = error(graph.clone())
    outcome = ScaleSalientChannels(group_size=32).run(graph, calibrated(graph, feeds))
    values = outcome.remarks[0].values
    assert values["ratio"] > 0
    assert values["output_error"] < values["output_error_before"] / 2
    assert error(graph) < plain / 1.5


def test_awq_leaves_what_it_cannot_better(
    parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context]
) -> None:
    """Weights on the grid of the scheme are restored exactly as they are."""
    weights = np.random.default_rng(0).integers(0, 16, (32, 8)).astype(np.float32)
    weights[:2] = [[0] * 8, [15] * 8]
    text = "g (float[B, 32] x) => (float[B, 8] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }"
    graph = parse(text, s=(32,), w=weights)
    feeds = {"x": np.random.default_rng(1).standard_normal((20, 32)).astype(np.float32)}
    outcome = ScaleSalientChannels(group_size=32).run(graph, calibrated(graph, feeds))
    assert not outcome.changed
    (remark,) = outcome.remarks
    assert (remark.kind, remark.reason) == ("skipped", "scaling does not lower the error of its products")


@pytest.mark.parametrize("item", PASSES, ids=format_pass)
def test_channels_of_zeros(
    item: Pass, parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context], outputs: Callable[..., Any]
) -> None:
    random = np.random.default_rng(0)
    scale, w1 = np.ones(32, np.float32), random.standard_normal((32, 24)).astype(np.float32)
    scale[:4], scale[[4, 10]] = 0, 30
    w1[3:8] = 0
    text = """g (float[B, 32] x) => (float[B, 8] y) {
        n = RMSNormalization(x, s) a = MatMul(n, w1) r = Relu(a) y = MatMul(r, w2) }"""
    graph = parse(text, s=scale, w1=w1, w2=np.zeros((24, 8), np.float32))
    feeds = {"x": random.standard_normal((20, 32)).astype(np.float32)}
    outcome = item.run(graph, calibrated(graph, feeds))
    assert outcome.changed
    for value in graph.graph.initializers.values():
        assert value.const_value is not None and np.isfinite(value.const_value.numpy()).all()
    assert np.all(outputs(graph, feeds)[0] == 0)


@pytest.mark.parametrize("item", PASSES, ids=format_pass)
def test_data_are_needed(item: Pass, network: tuple[onnx_ir.Model, Feeds]) -> None:
    with pytest.raises(CalibrationError, match="calibration="):
        item.run(network[0], Context())


@pytest.mark.parametrize("item", PASSES, ids=format_pass)
def test_nothing_to_smooth(item: Pass, parse: Callable[..., onnx_ir.Model], calibrated: Callable[..., Context]) -> None:
    graph = parse("g (float[B, 8] x) => (float[B, 8] y) { y = Relu(x) }")
    outcome = item.run(graph, calibrated(graph, {}))
    assert not outcome.changed
    assert [(r.kind, r.reason) for r in outcome.remarks] == [
        ("skipped", "there is nothing to smooth: no product has a producer that can take a scale")
    ]
    with pytest.raises(CalibrationError):
        item.run(graph, Context())


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "best", True, None])
def test_alpha_is_checked(alpha: Any) -> None:
    with pytest.raises(OptionError, match="migration strength"):
        SmoothQuant(alpha)


def test_scheme_is_checked() -> None:
    with pytest.raises(OptionError, match="bits=5"):
        ScaleSalientChannels(bits=5)


def test_through_the_compiler() -> None:
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64)
    )
    with torch.no_grad():
        model[0].weight[5] = 40
    model.eval()
    x = torch.randn(16, 64)
    result = compile(
        model, (x,), passes="scale_salient_channels,smoothquant(alpha=search)", calibration=[x], cache=False
    )
    with torch.no_grad():
        expected = model(x)
    assert float((result(x) - expected).abs().max() / expected.abs().max()) < 1e-5
    counts = {name: n for record in result.report.passes for name, n in record.rewrites.items()}
    assert (counts["AWQ"], counts["SmoothQuant"]) == (2, 2)
