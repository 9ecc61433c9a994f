"""``DropLayers``: the branch that does least goes, and the graph stays valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError
from burnish.ir.verify import verify
from burnish.passes import DropLayers
from burnish.passes.base import Context, Outcome
from burnish.passes.prune.layers import branches, similarities

Array = np.ndarray[Any, Any]
Calibrated = Callable[[onnx_ir.Model, Mapping[str, Array]], Context]

TWO = """g (float[T, 8] x) => (float[T, 8] y) {
    a = MatMul(x, w1) b = Relu(a) c = Add(x, b) d = MatMul(c, w2) e = Tanh(d) y = Add(e, c)
}"""


def _two(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Mapping[str, Array]]:
    generator = np.random.default_rng(0)
    small = 0.01 * generator.standard_normal((8, 8)).astype(np.float32)
    return parse(TWO, w1=(8, 8), w2=small), {"x": generator.standard_normal((32, 8)).astype(np.float32)}


def test_similarities_are_cosines(parse: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = _two(parse)
    found = branches(graph, Outcome())
    scores = similarities(found, calibrated(graph, feeds))
    x = feeds["x"]
    c = x + np.maximum(x @ graph.graph.initializers["w1"].const_value.numpy(), 0)  # type: ignore[union-attr]
    assert scores[0] == pytest.approx(1 - float((x * c).sum() / np.linalg.norm(x) / np.linalg.norm(c)), abs=1e-4)
    assert scores[1] < 0.01 < scores[0]


def test_the_least_goes(parse: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = _two(parse)
    want = outputs(graph, feeds)[0]
    outcome = DropLayers().run(graph, calibrated(graph, feeds))
    verify(graph)
    assert [node.op_type for node in graph.graph] == ["MatMul", "Relu", "Add"]
    assert np.abs(outputs(graph, feeds)[0] - want).max() < 0.3
    assert outcome.remarks[0].values["weights"] == 64


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_transformers(family: str, transformer: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = transformer(family)
    found = branches(graph, Outcome())
    # Of each of two layers the attention and the feed-forward.
    assert len(found) == 4
    outcome = DropLayers(count=2).run(graph, calibrated(graph, feeds))
    verify(graph)
    assert outcome.rewrites == {"drop layers": 2} and len(outputs(graph, feeds))


def test_more_than_there_are(parse: Any, calibrated: Calibrated) -> None:
    graph, feeds = _two(parse)
    outcome = DropLayers(count=5).run(graph, calibrated(graph, feeds))
    assert "5 layers were to go, there are 2" in outcome.remarks[-1].reason


def test_refusals(parse: Any) -> None:
    graph, _ = _two(parse)
    with pytest.raises(CalibrationError):
        DropLayers().run(graph, Context())
    with pytest.raises(OptionError):
        DropLayers(count=0)
    with pytest.raises(OptionError):
        DropLayers(metric="cosine")
    plain = parse("g (float[T, 8] x) => (float[T, 8] y) { y = MatMul(x, w) }", w=(8, 8))
    assert "no residual branch" in DropLayers().run(plain, Context()).remarks[-1].reason
