"""What stands beside a rounded product: kept columns (OWQ), products of low rank (LoRC); and searched ranges (AWQ)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import CalibrationError, OptionError
from burnish.passes import CompensateLowRank, Quantize
from burnish.passes.base import Context, Outcome
from burnish.passes.quantize.methods import columns, gptq, lowrank, ranges, rtn
from burnish.passes.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Calibrated = Callable[[onnx_ir.Model, Feeds], Context]
Outputs = Callable[[onnx_ir.Model, Feeds], list[Array]]

TEXT = """g (float[B, 64] x) => (float[B, 48] y, float[B, 80] z) {
    y = MatMul(x, w1)
    turned = Transpose(w2)
    z = Gemm<alpha = 0.5>(x, turned, bias)
}"""
SCHEME = Scheme(4, 32, symmetric=False)


def correlated(count: int, k: int, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((k, k)) * np.arange(1, k + 1) ** -0.7
    return (random.standard_normal((count, k)) @ mixing.T).astype(np.float32)


@pytest.fixture
def network(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Feeds]:
    """Inputs of which two channels are 20 times the others: their columns are the sensitive ones."""
    x = np.random.default_rng(1).standard_normal((400, 64)).astype(np.float32)
    x[:, [7, 40]] *= 20
    return parse(TEXT, w1=(64, 48), w2=(80, 64), bias=(80,)), {"x": x}


def errors(
    graph: onnx_ir.Model, feeds: Feeds, calibrated: Calibrated, outputs: Outputs, *passes: Any
) -> tuple[list[float], list[Outcome]]:
    """Relative squared error of each output after the passes."""
    before = outputs(graph, feeds)
    outcomes = [item.run(graph, calibrated(graph, feeds)) for item in passes]
    after = outputs(graph, feeds)
    return [float(np.square(a - b).sum() / np.square(b).sum()) for a, b in zip(after, before, strict=True)], outcomes


def test_kept_columns_beat_plain_rounding(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    plain, _ = errors(graph.clone(), feeds, calibrated, outputs, Quantize(group_size=32, method="rtn"))
    second, _ = errors(graph.clone(), feeds, calibrated, outputs, Quantize(group_size=32))
    kept, outcomes = errors(graph, feeds, calibrated, outputs, Quantize(group_size=32, keep_columns=2))
    # The two columns carry 800 of 862 parts of the inputs' power.
    assert all(a < b / 4 for a, b in zip(kept, plain, strict=True))
    assert all(a < b / 2 for a, b in zip(kept, second, strict=True))
    figures = [r.values for r in outcomes[0].remarks if "kept_columns" in r.values]
    assert [f["kept_columns"] for f in figures] == [2, 2]
    for remark, error in zip(figures, kept, strict=True):
        assert remark["output_error"] < remark["output_error_rtn"] / 4
        assert remark["bits_per_weight"] == pytest.approx(4 + 36 / 32 + 2 * 16 / 64)
        if remark["weight"] == "w1":
            assert remark["output_error"] == pytest.approx(error, rel=0.05)
    chosen = [node for node in graph.graph if node.op_type == "Gather"]
    assert [node.inputs[1].const_value.numpy().tolist() for node in chosen] == [[7, 40]] * 2  # type: ignore[union-attr]


def test_only_selected_products_keep_columns(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    for node in graph.graph:
        node.metadata_props["burnish.module"] = f"block.{node.op_type}"
    _, outcomes = errors(graph, feeds, calibrated, outputs, Quantize(keep_columns=2, keep_in="*.Gemm"))
    assert ["kept_columns" in r.values for r in outcomes[0].remarks if "weight" in r.values] == [False, True]


def test_kept_columns_make_up_for_the_others() -> None:
    """The closed form is the least squares solution, and its error is that on the Schur complement."""
    x = correlated(500, 24)
    hessian, random = x.T @ x / len(x), np.random.default_rng(2)
    error, which = random.standard_normal((6, 24)).astype(np.float32), np.array([3, 11])
    found = columns.kept(error, hessian, which)
    wanted = np.linalg.lstsq(x[:, which], x @ error.T, rcond=None)[0].T
    assert np.allclose(found, wanted, atol=1e-3)  # a ridge of 1e-6 of the mean diagonal
    left = error.copy()
    left[:, which] -= found
    assert gptq.output_error(left, hessian) == pytest.approx(
        gptq.output_error(error, columns.without(hessian, which)), rel=1e-3
    )
    difference = np.ones((2, 24), np.float32)
    assert columns.most_sensitive(difference, np.diag(np.arange(24.0)), 2).tolist() == [22, 23]


def test_low_rank_beats_plain_rounding(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    plain, _ = errors(graph.clone(), feeds, calibrated, outputs, Quantize(method="rtn"))
    both = [Quantize(method="rtn"), CompensateLowRank(rank=4)]
    better, outcomes = errors(graph, feeds, calibrated, outputs, *both)
    assert all(a < b / 3 for a, b in zip(better, plain, strict=True))
    assert all(0 < r.values["error_left"] < 1 / 3 for r in outcomes[1].remarks)


def test_low_rank_of_all_ranks_restores_the_weights() -> None:
    random = np.random.default_rng(0)
    error, x = random.standard_normal((20, 12)).astype(np.float32), correlated(300, 12)
    hessian = x.T @ x / len(x)
    for h in (None, hessian):
        first, second = lowrank.factors(error, h, 12)
        assert np.abs(first @ second - error.T).max() < 1e-4
    lost = []
    for h in (None, hessian):
        first, second = lowrank.factors(error, h, 3)
        lost.append(gptq.output_error(error - (first @ second).T, hessian))
    assert lost[1] < lost[0]


def test_searched_ranges_beat_plain_rounding(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    """Channels that carry little hold the largest weights: they are clipped for the sake of the others."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((40, 64)).astype(np.float32)
    power = np.ones(64, np.float32)
    weights[:, ::16] *= 4
    power[::16] = 1e-4
    clipped, nearest = ranges.quantize(weights, power, SCHEME), rtn.quantize(weights, SCHEME)
    lost = [np.square(rtn.dequantize(c, SCHEME, 64) - weights).sum(axis=0) @ power for c in (clipped, nearest)]
    assert lost[0] < lost[1] / 1.5
    graph, feeds = network
    found, outcomes = errors(graph, feeds, calibrated, outputs, Quantize(method="clip"))
    assert all(r.values["method"] == "clip" for r in outcomes[0].remarks if "method" in r.values)
    for r in outcomes[0].remarks[:2]:
        assert r.values["output_error"] < r.values["output_error_rtn"]
    assert max(found) < 0.01


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("symmetric", [False, True])
def test_few_bits_are_stored_in_four(
    bits: int, symmetric: bool, network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, outputs: Outputs
) -> None:
    graph, feeds = network
    found, outcomes = errors(graph, feeds, calibrated, outputs, Quantize(bits=bits, symmetric=symmetric, group_size=32))
    for r in outcomes[0].remarks[:2]:
        assert "stored in 4: no kernel takes fewer" in r.reason and r.values["bits_per_weight"] > 4
    assert max(found) < (0.3 if bits == 2 else 0.06)
    codes = [v.const_value for v in graph.graph.initializers.values() if (v.name or "").endswith(".codes")]
    assert codes and all(c is not None and c.numpy().astype(np.uint8).max() < 2**bits for c in codes)


def test_what_cannot_be_done_is_told(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Calibrated, parse: Callable[..., onnx_ir.Model]
) -> None:
    graph, feeds = network
    with pytest.raises(CalibrationError, match="calibration="):
        Quantize(keep_columns=2).run(graph, Context())
    with pytest.raises(CalibrationError, match="calibration="):
        Quantize(method="clip").run(graph, Context())
    with pytest.raises(OptionError, match="takes none"):
        Quantize(method="rtn", keep_columns=2)
    with pytest.raises(OptionError, match="negative"):
        Quantize(keep_columns=-1)
    with pytest.raises(OptionError, match="positive"):
        CompensateLowRank(rank=0)
    outcome = CompensateLowRank().run(graph, calibrated(graph, feeds))
    assert [r.kind for r in outcome.remarks] == ["skipped"] and "put quantize before it" in outcome.remarks[0].reason
    Quantize().run(graph, Context())
    again = onnx_ir.from_proto(onnx_ir.to_proto(graph))
    outcome = CompensateLowRank().run(again, Context())
    assert {r.reason for r in outcome.remarks if r.kind == "missed"} == {
        "what its weight was before rounding is not known"
    }
