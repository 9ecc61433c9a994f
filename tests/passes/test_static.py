"""Static activations: what runs on codes, and how close it stays."""

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
from burnish.passes.quantize import Quantize

Array = np.ndarray[Any, Any]
Parse = Callable[..., onnx_ir.Model]
Calibrated = Callable[[onnx_ir.Model, Any], Context]
Outputs = Callable[[onnx_ir.Model, Any], list[Array]]

STATIC = Quantize("w8a8_static", method="rtn")
BLOCK = """
g (float[b, 8, h, h] x) => (float[b, 16, h, h] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  s = Sigmoid(a)
  silu = Mul(a, s)
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (silu, w2, b2)
  r = Relu(c)
  sum = Add(r, silu)
  y = Conv <kernel_shape = [1, 1]> (sum, w3)
}"""
WEIGHTS: dict[str, Any] = {"w1": [16, 8, 3, 3], "b1": [16], "w2": [16, 16, 3, 3], "b2": [16], "w3": [16, 16, 1, 1]}
FEEDS = {"x": np.random.default_rng(3).standard_normal((2, 8, 9, 9)).astype(np.float32)}


def ops(graph: onnx_ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


def relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_convolutions_and_what_is_between_run_on_codes(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    graph = parse(BLOCK, **WEIGHTS)
    (before,) = outputs(graph, FEEDS)
    outcome = STATIC.run(graph, calibrated(graph, FEEDS))
    # x, a, s, silu, r (the range of the codes does the work of Relu), sum, y
    assert outcome.rewrites == {"quantize activations": 7, "quantize weights": 3}
    assert ops(graph)["QuantizeLinear"] == 7
    assert any("Add × 1, Mul × 1, Sigmoid × 1" in remark.reason for remark in outcome.remarks)
    (after,) = outputs(graph, FEEDS)
    assert 1e-4 < relative(before, after) < 0.03


@pytest.mark.parametrize("form", ["MatMul", "Gemm", "scaled Gemm"])
def test_the_kernel_of_products_adds_their_bias(
    parse: Parse, calibrated: Calibrated, outputs: Outputs, form: str
) -> None:
    """But not where a factor stands before it."""
    products = {
        "MatMul": "p = MatMul(x, w)\n y = Add(b, p)", "Gemm": "y = Gemm(x, w, b)",
        "scaled Gemm": "y = Gemm <beta = 0.5> (x, w, b)",
    }  # fmt: skip
    graph = parse(f"g (float[t, 256] x) => (float[t, 192] y) {{ {products[form]} }}", w=[256, 192], b=[192])
    feeds = {"x": np.random.default_rng(4).standard_normal((6, 256)).astype(np.float32)}
    STATIC.run(graph, calibrated(graph, feeds))
    (before,) = outputs(graph, feeds)
    lower(graph)
    assert ops(graph)["Add"] == (form == "scaled Gemm")
    (product,) = (n for n in graph.graph if n.op_type == "MatMulIntegerToFloat")
    assert len(product.inputs) == (5 if form == "scaled Gemm" else 7)
    (after,) = outputs(graph, feeds)
    assert relative(before, after) < 1e-5


def test_the_runtime_fuses_them(parse: Parse, calibrated: Calibrated, tmp_path: Any) -> None:
    from burnish.backends.onnxruntime.check import asked, running
    from burnish.backends.onnxruntime.writer import write

    graph = parse(BLOCK, **WEIGHTS)
    STATIC.run(graph, calibrated(graph, FEEDS))
    lower(graph)
    assert asked(graph)["QLinearConv"] == 3
    write(graph, tmp_path / "m.onnx")
    found = running(tmp_path / "m.onnx")
    assert found["QLinearConv"] == 3 and "Conv" not in found and "Relu" not in found


def test_an_operator_without_an_int8_kernel_ends_the_region(
    parse: Parse, calibrated: Calibrated, outputs: Outputs
) -> None:
    text = BLOCK.replace("s = Sigmoid(a)", "s = Softplus(a)")
    graph = parse(text, **WEIGHTS)
    (before,) = outputs(graph, FEEDS)
    STATIC.run(graph, calibrated(graph, FEEDS))
    softplus = next(node for node in graph.graph if node.op_type == "Softplus")
    mul = next(node for node in graph.graph if node.op_type == "Mul")
    assert softplus.inputs[0] is not None and softplus.inputs[0].producer().op_type == "DequantizeLinear"
    assert mul.inputs[1] is softplus.outputs[0]
    assert relative(before, outputs(graph, FEEDS)[0]) < 0.03


def test_what_leads_to_no_further_convolution_stays_float(parse: Parse, calibrated: Calibrated) -> None:
    graph = parse(
        "g (float[b, 8, h, h] x) => (float[b, 16, h, h] y)"
        "{ a = Conv <kernel_shape = [3, 3]> (x, w1, b1) s = Sigmoid(a) y = Mul(a, s) }",
        w1=[16, 8, 3, 3], b1=[16],
    )  # fmt: skip
    outcome = STATIC.run(graph, calibrated(graph, FEEDS))
    assert outcome.rewrites["quantize activations"] == 2  # x and a
    assert not any("runs on codes between" in remark.reason for remark in outcome.remarks)


def test_moved_numbers_keep_their_range(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    graph = parse(
        "g (float[b, 8, h, h] x) => (float[b, 16, k, k] y)"
        "{ a = Conv <kernel_shape = [3, 3]> (x, w1, b1) p = MaxPool <kernel_shape = [2, 2]> (a)"
        " q = Conv <kernel_shape = [1, 1]> (p, w3) y = Conv <kernel_shape = [1, 1]> (q, w3) }",
        **{name: WEIGHTS[name] for name in ("w1", "b1", "w3")},
    )
    (before,) = outputs(graph, FEEDS)
    STATIC.run(graph, calibrated(graph, FEEDS))
    scales = [
        (node.inputs[0].producer().op_type, float(node.inputs[1].const_value.numpy()))
        for node in graph.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0].producer() is not None
    ]
    assert [op for op, _ in scales] == ["Conv", "MaxPool", "Conv", "Conv"]
    assert scales[0][1] == scales[1][1] != scales[2][1]
    assert relative(before, outputs(graph, FEEDS)[0]) < 0.03


def test_products_read_codes_of_one_scale(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    text = "g (float[b, 192] x) => (float[b, 256] y, float[b, 192] z) { y = MatMul(x, w) z = Relu(x) }"
    feeds = {"x": np.random.default_rng(0).standard_normal((40, 192)).astype(np.float32)}
    graph = parse(text, w=[192, 256])
    (before, _) = outputs(graph, feeds)
    STATIC.run(graph, calibrated(graph, feeds))
    assert next(node for node in graph.graph if node.op_type == "Relu").inputs[0].is_graph_input()
    after, z = outputs(graph, feeds)
    assert relative(before, after) < 0.02 and np.array_equal(z, np.maximum(feeds["x"], 0))
    lower(graph)
    product = next(node for node in graph.graph if node.op_type == "MatMulIntegerToFloat")
    assert ops(graph) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Relu": 1}
    assert product.inputs[2].const_value.size == 1 and product.inputs[4].dtype == onnx_ir.DataType.UINT8


def test_outliers_are_clipped_where_that_is_better(parse: Parse, calibrated: Calibrated, outputs: Outputs) -> None:
    x = np.random.default_rng(0).standard_normal((400, 192)).astype(np.float32)
    x[0, 0] = 300
    text = "g (float[b, 192] x) => (float[b, 256] y) { y = MatMul(x, w) }"
    rest = {"x": x[1:]}
    errors = {}
    for ranges in ("minmax", "mse", "kl", "percentile"):
        graph = parse(text, w=[192, 256])
        (before,) = outputs(graph, rest)
        Quantize("w8a8_static", method="rtn", ranges=ranges).run(graph, calibrated(graph, {"x": x}))
        errors[ranges] = relative(before, outputs(graph, rest)[0])
    # One number of 300 outweighs the squares of all others: least square keeps it.
    assert max(errors["kl"], errors["percentile"]) < 0.3 * errors["minmax"] and errors["mse"] <= errors["minmax"]


def test_without_data_there_is_nothing_to_choose_from(parse: Parse) -> None:
    graph = parse(BLOCK, **WEIGHTS)
    with pytest.raises(CalibrationError, match="calibration inputs are needed"):
        STATIC.run(graph, Context())


def test_a_convolution_can_be_left_out(parse: Parse, calibrated: Calibrated) -> None:
    graph = parse(BLOCK, **WEIGHTS)
    second = [node for node in graph.graph if node.op_type == "Conv"][1]
    second.name = "second"
    outcome = Quantize("w8a8_static", exclude="second").run(graph, calibrated(graph, FEEDS))
    assert outcome.rewrites["quantize weights"] == 2
    assert ("second", "not selected") in [(remark.node, remark.reason) for remark in outcome.remarks]


@pytest.mark.parametrize("options", [{"ranges": "median"}, {"percentile": 20.0}, {"percentile": 101.0}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Quantize("w8a8_static", **options)
