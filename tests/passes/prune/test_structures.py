"""``PruneStructures`` on graphs: shapes shrink, the report says what went, methods beat each other as they should."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError, SelectorError
from burnish.ir.verify import verify
from burnish.passes import PruneStructures
from burnish.passes.base import Context
from burnish.passes.prune.importance import flap, standardized

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Outputs = Callable[[onnx_ir.Model, Feeds], list[Array]]
Calibrated = Callable[[onnx_ir.Model, Feeds], Context]
Transformer = Callable[[str], tuple[onnx_ir.Model, Feeds]]

MLP = """g (float[T, 16] x) => (float[T, 8] y) {
    a = MatMul(x, w1) b = Add(a, b1) r = Relu(b) c = MatMul(r, w2) s = Relu(c) y = MatMul(s, w3)
}"""


def _weights(graph: onnx_ir.Model) -> int:
    return sum(int(v.const_value.size) for v in graph.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("family", ["llama", "tied", "gpt2", "bert"])
def test_transformers_shrink(family: str, transformer: Transformer, outputs: Outputs, calibrated: Calibrated) -> None:
    graph, feeds = transformer(family)
    before = _weights(graph)
    outcome = PruneStructures(ratio=0.15, multiple=1).run(graph, calibrated(graph, feeds))
    verify(graph)
    assert 0.7 * before < _weights(graph) < 0.9 * before
    assert [a.shape for a in outputs(graph, feeds)]
    last = outcome.remarks[-1]
    assert last.kind == "applied" and last.values["share"] >= 0.15
    assert any("heads" in remark.reason or "channels" in remark.reason for remark in outcome.remarks)
    assert not any("mask" in node.name for node in graph.graph)


def _deviation(
    graph: onnx_ir.Model, options: dict[str, Any], feeds: Feeds, outputs: Outputs, make: Calibrated
) -> float:
    want = outputs(graph, feeds)[0]
    copy = graph.clone()
    PruneStructures(**options).run(copy, make(copy, feeds))
    return float(np.linalg.norm(outputs(copy, feeds)[0] - want) / np.linalg.norm(want))


def _dependent(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Feeds]:
    """Inner channels that are nearly copies of each other, some large and of no effect."""
    generator = np.random.default_rng(0)
    half = generator.standard_normal((16, 16))
    w1 = np.concatenate([half, half + 0.01 * generator.standard_normal((16, 16))], axis=1).astype(np.float32)
    graph = parse(MLP, w1=w1, b1=np.zeros(32, np.float32), w2=(32, 24), w3=(24, 8))
    return graph, {"x": generator.standard_normal((256, 16)).astype(np.float32)}


def test_reconstruction_and_compensation_beat_magnitude(
    parse: Callable[..., onnx_ir.Model], outputs: Outputs, calibrated: Calibrated
) -> None:
    graph, feeds = _dependent(parse)
    share = {"ratio": 0.2, "multiple": 1, "distribution": "uniform"}
    magnitude = _deviation(graph, {**share, "metric": "magnitude", "compensate": "off"}, feeds, outputs, calibrated)
    bias = _deviation(graph, {**share, "metric": "flap", "compensate": "bias"}, feeds, outputs, calibrated)
    obs = _deviation(graph, {**share, "metric": "obs"}, feeds, outputs, calibrated)
    assert bias < magnitude and obs < 0.5 * bias


def test_a_bias_makes_up_for_the_mean(
    parse: Callable[..., onnx_ir.Model], outputs: Outputs, calibrated: Calibrated
) -> None:
    graph = parse(MLP, w1=(16, 32), b1=np.full(32, 3, np.float32), w2=(32, 24), w3=(24, 8))
    feeds = {"x": 0.2 * np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)}
    share = {"ratio": 0.2, "multiple": 1, "metric": "flap", "distribution": "uniform"}
    off = _deviation(graph, {**share, "compensate": "off"}, feeds, outputs, calibrated)
    assert _deviation(graph, {**share, "compensate": "bias"}, feeds, outputs, calibrated) < 0.3 * off


def test_standardized_scores_are_compared_across_places(
    parse: Callable[..., onnx_ir.Model], calibrated: Calibrated
) -> None:
    """FLAP removes the units of least standardized score, however many of each place that are."""
    generator = np.random.default_rng(1)
    scale = np.exp(generator.standard_normal(32)).astype(np.float32)
    graph = parse(MLP, w1=(scale * generator.standard_normal((16, 32))).astype(np.float32), b1=np.zeros(32, np.float32),
                  w2=(32, 24), w3=(24, 8))  # fmt: skip
    feeds = {"x": generator.standard_normal((256, 16)).astype(np.float32)}
    constants = graph.graph.initializers
    w1, w2, w3 = (constants[name].const_value.numpy().astype(np.float64) for name in ("w1", "w2", "w3"))  # type: ignore[union-attr]
    r = np.maximum(feeds["x"] @ w1, 0)
    scores = [flap(w.T, x.mean(axis=0), np.square(x).mean(axis=0)) for w, x in ((w2, r), (w3, np.maximum(r @ w2, 0)))]
    ranked = sorted((z, place) for place, found in enumerate(scores) for z in standardized(found))
    outcome = PruneStructures(ratio=0.3, metric="flap", distribution="standardized", multiple=1).run(
        graph, calibrated(graph, feeds)
    )
    removed = [r.values["removed"] for r in outcome.remarks if "removed" in r.values]
    places = [place for _, place in ranked[: sum(removed)]]
    assert removed == [places.count(0), places.count(1)] and removed[0] != removed[1]


def test_shares_of_selected_places(transformer: Transformer) -> None:
    graph, _ = transformer("bert")
    outcome = PruneStructures(ratio=0, ratios={"*.1.intermediate*": 0.5}, multiple=1, what="channels").run(
        graph, Context()
    )
    removed = {r.node: r.values["removed"] for r in outcome.remarks if "removed" in r.values}
    assert removed == {"encoder.layer.1.intermediate.dense": 24}
    assert any("only channels go" in remark.reason for remark in outcome.remarks)


def test_flops_weigh_large_images_more(parse: Callable[..., onnx_ir.Model]) -> None:
    text = """g (float[1, 8, 32, 32] x) => (float[1, 4] y) {
        a = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x, w1) b = Relu(a)
        c = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[4, 4]>(b, w2) d = Relu(c)
        e = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(d, w3) p = GlobalAveragePool(e) f = Flatten(p)
        y = MatMul(f, w4)
    }"""
    shares = {}
    for of in ("parameters", "flops"):
        graph = parse(text, w1=(16, 8, 3, 3), w2=(16, 16, 3, 3), w3=(64, 16, 3, 3), w4=(64, 4))
        outcome = PruneStructures(ratio=0.3, of=of, multiple=1, distribution="global").run(graph, Context())
        verify(graph)
        shares[of] = {r.node: r.values["removed"] for r in outcome.remarks if "removed" in r.values}
        assert f"of the {of} removed" in outcome.remarks[-1].reason
    assert shares["parameters"] != shares["flops"]


def test_too_much_to_ask(transformer: Transformer) -> None:
    graph, _ = transformer("bert")
    outcome = PruneStructures(ratio=0.95).run(graph, Context())
    assert outcome.remarks[-1].kind == "missed" and "no more can go" in outcome.remarks[-1].reason


def test_nothing_to_remove(parse: Callable[..., onnx_ir.Model]) -> None:
    graph = parse("g (float[T, 8] x) => (float[T, 6] y) { y = MatMul(x, w) }", w=(8, 6))
    outcome = PruneStructures().run(graph, Context())
    assert outcome.remarks[-1].kind == "missed" and "nothing can be removed" in outcome.remarks[-1].reason


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 1.0},
        {"metric": "gradient"},
        {"of": "bytes"},
        {"multiple": 0},
        {"most": 1.5},
        {"what": "layers"},
        {"metric": "obs", "distribution": "standardized"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        PruneStructures(**options)


def test_data_asked_for_and_none_there(transformer: Transformer) -> None:
    graph, _ = transformer("bert")
    for options in (
        {"metric": "flap"},
        {"metric": "fisher"},
        {"metric": "taylor"},
        {"metric": "magnitude", "compensate": "bias"},
    ):
        with pytest.raises(CalibrationError):
            PruneStructures(**options).run(graph.clone(), Context())
    with pytest.raises(SelectorError):
        PruneStructures(include="nothing.here").run(graph, Context())
