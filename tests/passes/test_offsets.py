"""Float offsets of groups, weights that come from a grid, and inputs left as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import burnish
import numpy as np
import onnx_ir
import pytest
import torch
from burnish.ir.errors import OptionError
from burnish.ir.graph import FLOAT_INPUTS, SPARSITY
from burnish.ir.graph import tensor_of as held
from burnish.passes import CompensateLowRank, Quantize
from burnish.passes.base import Context, Outcome
from burnish.passes.quantize import offsets, origin
from burnish.passes.quantize.methods import rtn
from burnish.passes.quantize.scheme import NAMED, Scheme, override, resolve
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
TEXT = """g (float[B, T, 64] x) => (float[B, T, 48] y, float[R, 80] z) {
    y = MatMul(x, w1)
    shape = Constant<value_ints = [-1, 64]>()
    rows = Reshape(x, shape)
    turned = Transpose(w2)
    z = Gemm<alpha = 0.5>(rows, turned, bias)
}"""
Q4_1 = Scheme(4, 32, symmetric=True, offsets=True)
Q4_0 = Scheme(4, 32, symmetric=True)


def on_grid(weights: Array, scheme: Scheme, dtype: Any = np.float16) -> Array:
    """``weights`` [n, k] as a file with 16-bit scales and offsets gives them back."""
    n, k = weights.shape
    groups = weights.reshape(n, -1, scheme.group_size)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    largest = np.where(-low > high, low, high)
    step = (high - low) / 15 if scheme.offsets else largest / -8
    start = low if scheme.offsets else -8 * step
    codes = np.clip(np.rint((groups - start) / step), 0, 15)
    step, start = (part.astype(dtype).astype(np.float32) for part in (step, start))
    start = start if scheme.offsets else -8 * step
    return (start + codes * step).reshape(n, k).astype(np.float32)


def random_weights(n: int = 24, k: int = 64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32) + 0.3


@pytest.fixture
def network(parse: Callable[..., onnx_ir.Model]) -> tuple[onnx_ir.Model, Feeds]:
    """Two products of one input by weights in both layouts, from a grid with offsets."""
    graph = parse(TEXT, w1=(64, 48), w2=(80, 64), bias=(80,))
    for name, turned in (("w1", True), ("w2", False)):
        value = graph.graph.initializers[name]
        array = on_grid(random_weights(48 if turned else 80), Q4_1)
        value.const_value = onnx_ir.Tensor(np.ascontiguousarray(array.T if turned else array), name=name)
    return graph, {"x": np.random.default_rng(1).standard_normal((3, 40, 64)).astype(np.float32)}


def change(before: list[Array], after: list[Array]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("method", ["rtn", "gptq", "clip"])
def test_weights_from_a_grid_lose_nothing(
    network: tuple[onnx_ir.Model, Feeds], calibrated: Any, outputs: Any, method: str
) -> None:
    graph, feeds = network
    before = outputs(graph, feeds)
    plain = graph.clone()
    Quantize(group_size=32, method=method).run(plain, calibrated(plain, feeds))
    assert change(before, outputs(plain, feeds)) > 0.02
    outcome = Quantize(group_size=32, method=method, offsets=True).run(graph, calibrated(graph, feeds))
    assert change(before, outputs(graph, feeds)) < 1e-5
    figures = [remark.values for remark in outcome.remarks if "weight" in remark.values]
    assert [f["bits_per_weight"] for f in figures] == [6.0, 6.0]
    assert all("one scale and one offset per group of 32" in r.reason for r in outcome.remarks if "weight" in r.values)
    if method != "rtn":
        assert all(f["output_error"] < 1e-8 for f in figures)


def test_products_of_one_input_share_the_sums(parse: Callable[..., onnx_ir.Model]) -> None:
    text = "g (float[B, 64] x) => (float[B, 48] y, float[B, 80] z) { y = MatMul(x, w1)\n z = MatMul(x, w2) }"
    graph = parse(text, w1=(64, 48), w2=(64, 80))
    Quantize(group_size=32, method="rtn", offsets=True).run(graph, Context())
    assert [node.op_type for node in graph.graph].count("ReduceSum") == 1


def test_any_weights_lose_less_than_with_zero_points(
    parse: Callable[..., onnx_ir.Model], calibrated: Any, outputs: Any
) -> None:
    """Groups whose weights lie away from zero waste codes on a range that has to include it."""
    graph = parse(TEXT, w1=(64, 48), w2=(80, 64), bias=(80,))
    for name in ("w1", "w2"):
        value = graph.graph.initializers[name]
        tensor = held(value)
        assert tensor is not None
        value.const_value = onnx_ir.Tensor(tensor.numpy() + 8, name=name)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 40, 64)).astype(np.float32)}
    before, errors = outputs(graph, feeds), []
    for options in ({}, {"offsets": True}):
        made = graph.clone()
        Quantize(group_size=32, method="rtn", **options).run(made, Context())
        errors.append(change(before, outputs(made, feeds)))
    assert errors[1] < 0.6 * errors[0]


def test_low_rank_and_kept_columns_stand_beside_offsets(
    parse: Callable[..., onnx_ir.Model], calibrated: Any, outputs: Any
) -> None:
    graph = parse(TEXT, w1=(64, 48), w2=(80, 64), bias=(80,))
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 200, 64)).astype(np.float32)}
    feeds["x"][..., [3, 50]] *= 20
    before, errors = outputs(graph, feeds), []
    how = {"group_size": 32, "offsets": True}
    for passes in ([Quantize(**how)], [Quantize(**how, keep_columns=2)], [Quantize(**how), CompensateLowRank(rank=48)]):
        made = graph.clone()
        for one in passes:
            one.run(made, calibrated(made, feeds))
        errors.append(change(before, outputs(made, feeds)))
    assert errors[1] < errors[0] / 2 and errors[2] < errors[0] / 2


def test_why_there_are_none(parse: Callable[..., onnx_ir.Model], outputs: Any) -> None:
    def reasons(outcome: Outcome) -> list[str]:
        return [remark.reason for remark in outcome.remarks if remark.reason.startswith("no offsets")]

    graph = parse("g (float[B, 48] x) => (float[B, 64] y) { y = MatMul(x, w) }", w=(48, 64))
    (reason,) = reasons(Quantize(group_size=32, offsets=True).run(graph, Context()))
    assert reason == (
        "no offsets, 4-bit asymmetric, one scale per group of 32: groups of 32 do not divide its 48 input channels"
    )
    outputs(graph, {"x": np.ones((2, 48), np.float32)})

    graph = parse("g (float[B, 64] x) => (float[B, 64] y) { y = MatMul(x, w) }", w=(64, 64))
    next(iter(graph.graph)).metadata_props[SPARSITY] = "2:4 0.5"
    assert "zeros of a pattern would move" in reasons(Quantize(group_size=32, offsets=True).run(graph, Context()))[0]

    text = """g (int64[B] ids) => (float[B, 4096] y) {
        rows = Gather(w, ids)
        turned = Transpose(w)
        y = MatMul(rows, turned)
    }"""
    graph = parse(text, w=(4096, 64))
    assert "an embedding reads the weight" in reasons(Quantize(group_size=32, offsets=True).run(graph, Context()))[0]


def test_options() -> None:
    assert resolve("w4a16", offsets=True, group_size=32) == Q4_1
    assert override(Q4_1, {"offsets": False}) == Scheme(4, 32, symmetric=False)
    assert override(NAMED["w4a16"], {"offsets": True}) == Scheme(4, 64, symmetric=True, offsets=True)
    assert str(resolve("w4a16", float_inputs=True)) == "4-bit asymmetric, one scale per group of 64, inputs as they are"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"offsets": True, "symmetric": False}, "offsets take the place of zero points"),
        ({"scheme": "w8a8", "offsets": True}, "offsets take the place of zero points"),
        ({"scheme": "nf4", "offsets": True}, "offsets take the place of zero points"),
        ({"bits": 8, "float_inputs": True}, "no kernel takes inputs in floating point and weights in 8-bit"),
        ({"scheme": "w4a8", "float_inputs": True}, "contradicts activations in 8 bits"),
        ({"scheme": "auto", "budget": 0.1, "offsets": True}, "chooses bits and groups itself"),
    ]
    for options, message in cases:
        with pytest.raises(OptionError, match=message):
            Quantize(**options)


def test_inputs_as_they_are() -> None:
    """The fast kernel rounds inputs; what the exact one makes is the product by the restored weights."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128).eval()
    x = torch.randn(8, 256)
    errors = []
    for exact in (False, True):
        model = burnish.compile(layer, (x,), passes=[Quantize(group_size=32, float_inputs=exact)])
        weights = rtn.quantize(layer.weight.detach().numpy(), scheme := resolve("w4a16", group_size=32))
        wanted = x.numpy() @ rtn.dequantize(weights, scheme, 256).T + layer.bias.detach().numpy()
        errors.append(float(np.abs(np.asarray(model(x)) - wanted).max() / np.abs(wanted).max()))
    assert errors[1] < 1e-5 < 1e-3 < errors[0]


def test_the_mark_of_float_inputs(parse: Callable[..., onnx_ir.Model]) -> None:
    graph = parse("g (float[B, 64] x) => (float[B, 64] y) { y = MatMul(x, w) }", w=(64, 64))
    Quantize(float_inputs=True).run(graph, Context())
    (node,) = [node for node in graph.graph if node.op_type == "DequantizeLinear"]
    assert FLOAT_INPUTS in node.metadata_props


@pytest.mark.parametrize(("scheme", "name"), [(Q4_0, "llama.cpp's Q4_0"), (Q4_1, "llama.cpp's Q4_1")])
def test_a_grid_is_found(scheme: Scheme, name: str) -> None:
    import ml_dtypes

    rows = on_grid(random_weights(), scheme)
    assert origin.found_in(rows) == (scheme, name)
    assert origin.found_in(rows.astype(ml_dtypes.bfloat16).astype(np.float32)) == (scheme, name)
    assert origin.found_in(random_weights()) is None
    assert origin.found_in(on_grid(random_weights(), Scheme(4, 64, True, offsets=scheme.offsets))) is None
    assert origin.found_in(rows[:, :48]) is None and origin.found_in(np.zeros((4, 64), np.float32)) is None
    assert origin.found_in(np.full((4, 64), np.nan, np.float32)) is None
    codes = rtn.quantize(
        offsets.without(rows, found) if (found := offsets.find(rows, scheme) * scheme.offsets).any() else rows, scheme
    )
    restored = rtn.dequantize(codes, scheme, 64) + offsets.spread(found, 64)
    assert np.abs(restored - rows).max() < 1e-5


def test_a_grid_is_told(network: tuple[onnx_ir.Model, Feeds]) -> None:
    graph, _ = network
    outcome = Quantize().run(graph.clone(), Context())
    (told,) = [r for r in outcome.remarks if "rounded before" in r.reason]
    assert told.kind == "missed" and "quantize(bits=4,group_size=32,offsets=true,method=rtn)" in told.reason
    outcome = Quantize(group_size=32, offsets=True, method="rtn").run(graph.clone(), Context())
    (told,) = [r for r in outcome.remarks if "rounded before" in r.reason]
    assert told.kind == "applied" and "get these codes again" in told.reason
    other = graph.clone()
    tensor = held(other.graph.initializers["w2"])
    assert tensor is not None
    other.graph.initializers["w2"].const_value = onnx_ir.Tensor(random_weights(80), name="w2")
    assert not [r for r in Quantize().run(other, Context()).remarks if "rounded before" in r.reason]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 9), groups=st.integers(1, 4), size=st.sampled_from([16, 32, 64]), seed=st.integers(0, 99),
    scale=st.sampled_from([1e-4, 1.0, 1e3]), shift=st.sampled_from([-2.0, 0.0, 10.0]),
)  # fmt: skip
def test_every_weight_is_within_half_a_step(
    n: int, groups: int, size: int, seed: int, scale: float, shift: float
) -> None:
    scheme = Scheme(4, size, symmetric=True, offsets=True)
    matrix = (np.random.default_rng(seed).standard_normal((n, groups * size)) + shift).astype(np.float32) * scale
    found = offsets.find(matrix, scheme)
    codes = rtn.quantize(offsets.without(matrix, found), scheme)
    restored = rtn.dequantize(codes, scheme, groups * size) + offsets.spread(found, groups * size)
    parts = matrix.reshape(n, groups, size)
    step = (parts.max(axis=2) - parts.min(axis=2)) / 15
    assert (np.abs(restored - matrix) <= offsets.spread(step, groups * size) * 0.5001 + 1e-6 * np.abs(matrix)).all()
