"""``CompactZeros``: fewer, smaller products where blocks are zero and it pays, with the outputs that were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.compiler.timing.costs import Costs
from burnish.ir.errors import OptionError, SelectorError
from burnish.ir.verify import verify
from burnish.passes import CompactZeros, Prune
from burnish.passes.base import Context, Panels
from burnish.passes.sparsify.compact import used, widths
from hypothesis import given
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Outputs = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]
Parse = Callable[..., onnx_ir.Model]


def _cost(m: int, k: int, n: int, scheme: Any) -> float:
    """As if choosing and joining were nearly free."""
    return 0.01 * k * n + (scheme.kept * n if isinstance(scheme, Panels) else k * n)


CONTEXT = Context(cost=_cost)


def _blocked(k: int = 64, n: int = 128, width: int = 64, share: float = 0.5, seed: int = 0) -> Array:
    """[k, n] weights of which each panel does without some input channels."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((k, n)).astype(np.float32)
    for start in range(0, n, width):
        weights[generator.permutation(k)[: round(share * k)], start : start + width] = 0
    return weights


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_panels_compute_the_product(k: int, count: int, width: int, share: float, seed: int) -> None:
    weights = _blocked(k, count * width, width, share, seed)
    x = np.random.default_rng(seed).standard_normal((3, k)).astype(np.float32)
    channels = used(weights, width)
    assert all(len(kept) for kept in channels)
    parts = np.split(weights, count, axis=1)
    found = np.concatenate([x[:, kept] @ part[kept] for kept, part in zip(channels, parts, strict=True)], axis=1)
    assert np.allclose(found, x @ weights, atol=1e-5)


def test_the_widest_panels_that_save_most() -> None:
    assert widths(_blocked(), 0.05)[0] == 64
    dead = np.random.default_rng(0).standard_normal((64, 128))
    dead[::2] = 0
    assert widths(dead, 0.05) == [128]
    scattered = np.random.default_rng(0).standard_normal((64, 128))
    assert widths(scattered * (scattered > 0), 0.05) == []


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("y = MatMul(x, w)", lambda w: w),
        ("t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t)", lambda w: np.ascontiguousarray(w.T)),
        ("y = Gemm<transB=1>(x, w, b)", lambda w: np.ascontiguousarray(w.T)),
    ],
)
def test_a_product_becomes_two(parse: Parse, outputs: Outputs, text: str, weight: Callable[[Array], Array]) -> None:
    graph = parse(f"g (float[T, 64] x) => (float[T, 128] y) {{ {text} }}", w=weight(_blocked()), b=(128,))
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    want = outputs(graph, feeds)[0]
    outcome = CompactZeros().run(graph, CONTEXT)
    verify(graph)
    assert outcome.rewrites == {"compact zeros": 1}
    assert [node.op_type for node in graph.graph].count("MatMul") == 2
    sizes = sorted(tuple(v.shape.numpy()) for v in graph.graph.initializers.values() if v.shape and len(v.shape) == 2)
    assert sizes == [(32, 64), (32, 64)]
    assert np.allclose(outputs(graph, feeds)[0], want, atol=1e-4)
    assert outcome.remarks[0].values == {"panels": 2, "work": 0.5, "time_ratio": pytest.approx(0.505, abs=0.01)}


def test_dead_channels_are_a_slice_away(parse: Parse, outputs: Outputs) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    weights[48:] = 0
    graph = parse("g (float[T, 64] x) => (float[T, 128] y) { y = MatMul(x, w) }", w=weights)
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    want = outputs(graph, feeds)[0]
    CompactZeros().run(graph, CONTEXT)
    verify(graph)
    assert [node.op_type for node in graph.graph] == ["Slice", "MatMul"]
    assert np.allclose(outputs(graph, feeds)[0], want, atol=1e-4)


def test_what_is_pruned_in_panels_is_compacted(parse: Parse, outputs: Outputs) -> None:
    graph = parse("g (float[T, 64] x) => (float[T, 128] y) { y = MatMul(x, w) }", w=(64, 128))
    Prune(pattern="64x1", sparsity=0.5, metric="magnitude").run(graph, Context())
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)}
    want = outputs(graph, feeds)[0]
    outcome = CompactZeros().run(graph, CONTEXT)
    assert outcome.remarks[0].values["work"] == pytest.approx(0.5, abs=0.01)
    assert np.allclose(outputs(graph, feeds)[0], want, atol=1e-4)


def test_what_does_not_pay_stays(parse: Parse) -> None:
    text = "g (float[T, 64] x) => (float[T, 128] y) { y = MatMul(x, w) }"

    def slow(m: int, k: int, n: int, scheme: Any) -> float:
        return 1.2 if isinstance(scheme, Panels) else 1.0

    for weights, context, reason in (
        (_blocked(), Context(cost=slow), "it takes 1.20 times the dense product's time"),
        (_blocked(), Context(), "no times can be measured here"),
        (_blocked(share=0), CONTEXT, "none of its inputs is useless"),
    ):
        graph = parse(text, w=weights)
        outcome = CompactZeros().run(graph, context)
        assert not outcome.changed and [node.op_type for node in graph.graph] == ["MatMul"]
        assert any(reason in remark.reason for remark in outcome.remarks)
        assert outcome.remarks[-1].kind == "missed"


def test_bad_options(parse: Parse) -> None:
    for options in ({"rows": 0}, {"gain": 1.0}):
        with pytest.raises(OptionError):
            CompactZeros(**options)
    graph = parse("g (float[T, 64] x) => (float[T, 128] y) { y = MatMul(x, w) }", w=(64, 128))
    with pytest.raises(SelectorError):
        CompactZeros(include="nowhere").run(graph, CONTEXT)


def test_panels_are_measured(tmp_path: Path) -> None:
    """A time of its own for each way to divide; how large it is depends on what else the machine does."""
    costs = Costs(tmp_path)
    assert costs(16, 64, 64, None) > 0 and costs(16, 64, 64, Panels(2, 32)) > 0
    assert [key.partition(": ")[2] for key in json.loads((tmp_path / "costs.json").read_text())] == [
        "16 x 64 x 64, float32", "16 x 64 x 64, float32 in 2 panels of 32 channels",
    ]  # fmt: skip
