"""``SliceHidden``: a stream in few principal components loses nothing; others lose what their spectrum says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError
from burnish.ir.verify import verify
from burnish.passes import SliceHidden
from burnish.passes.base import Context

Array = np.ndarray[Any, Any]
Calibrated = Callable[[onnx_ir.Model, Mapping[str, Array]], Context]

BLOCK = """g (int64[T] ids) => (float[T, 11] y) {
    x = Gather(table, ids) a = RMSNormalization(x, g1) u = MatMul(a, w1) r = Relu(u) d = MatMul(r, w2)
    z = Add(x, d) b = RMSNormalization(z, g2) y = MatMul(b, w3)
}"""


def _block(parse: Any, rank: int) -> tuple[onnx_ir.Model, Mapping[str, Array]]:
    """A stream of 32 channels that all lies in a space of ``rank`` dimensions."""
    generator = np.random.default_rng(0)
    space = np.linalg.qr(generator.standard_normal((32, 32)))[0][:rank]
    table = (generator.standard_normal((20, rank)) @ space).astype(np.float32)
    w2 = (generator.standard_normal((24, rank)) @ space).astype(np.float32)
    graph = parse(BLOCK, table=table, g1=np.ones(32, np.float32), g2=(32,), w1=(32, 24), w2=w2, w3=(32, 11))
    return graph, {"ids": generator.integers(0, 20, 64)}


def test_a_flat_stream_loses_nothing(parse: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = _block(parse, 16)
    want = outputs(graph, feeds)[0]
    outcome = SliceHidden(ratio=0.5).run(graph, calibrated(graph, feeds))
    verify(graph)
    assert outcome.remarks[-1].values["after"] == 16 and outcome.remarks[-1].values["kept"] > 0.9999
    # float32 sums in another basis.
    assert np.abs(outputs(graph, feeds)[0] - want).max() < 1e-3 * np.abs(want).max()
    shapes = {value.name: tuple(value.shape.numpy()) for value in graph.graph.initializers.values()}
    assert not any(32 in shape for shape in shapes.values())


def test_principal_components_beat_any_channels(parse: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = _block(parse, 28)
    want = outputs(graph, feeds)[0]
    errors = []
    for ratio in (0.25, 0.5):
        copy = graph.clone()
        SliceHidden(ratio=ratio).run(copy, calibrated(copy, feeds))
        errors.append(float(np.linalg.norm(outputs(copy, feeds)[0] - want) / np.linalg.norm(want)))
    assert errors[0] < 0.25 < errors[1] < 1


@pytest.mark.parametrize("family", ["llama", "tied"])
def test_transformers(family: str, transformer: Any, calibrated: Calibrated, outputs: Any) -> None:
    graph, feeds = transformer(family)
    want = outputs(graph, feeds)[0]
    outcome = SliceHidden(ratio=0.25).run(graph, calibrated(graph, feeds))
    verify(graph)
    assert outcome.rewrites == {"slice the hidden size": 1}
    got = outputs(graph, feeds)[0]
    assert got.shape == want.shape and np.linalg.norm(got - want) < np.linalg.norm(want)


def test_a_layer_norm_is_told(parse: Any, calibrated: Calibrated) -> None:
    text = BLOCK.replace("RMSNormalization", "LayerNormalization")
    graph = parse(text, table=(20, 32), g1=(32,), g2=(32,), w1=(32, 24), w2=(24, 32), w3=(32, 11))
    outcome = SliceHidden().run(graph, calibrated(graph, {"ids": np.arange(20)}))
    assert not outcome.changed and any("LayerNormalization" in remark.reason for remark in outcome.remarks)


def test_refusals(parse: Any) -> None:
    graph, _ = _block(parse, 8)
    with pytest.raises(CalibrationError):
        SliceHidden().run(graph, Context())
    for options in ({"ratio": 0.0}, {"ratio": 1.0}, {"multiple": 0}):
        with pytest.raises(OptionError):
            SliceHidden(**options)
