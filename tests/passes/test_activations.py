"""Inputs of products in 8 bits: where they are quantized, and where not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir.errors import OptionError
from burnish.ir.graph import Graph
from burnish.ir.rewrite import Editor
from burnish.passes.base import Context, Outcome
from burnish.passes.quantize import Quantize, Scheme
from burnish.passes.quantize.inputs.activations import SMALLEST_PRODUCT
from burnish.passes.quantize.scheme import Activations, resolve
from burnish.passes.statistics import HISTOGRAM_BINS, Observer

WIDTH = 192
W8A8 = Quantize("w8a8")


class Builder:
    """A graph with one input ``x`` [tokens, WIDTH]."""

    def __init__(self, kind: Any = np.float32, width: int = WIDTH) -> None:
        self.model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
        dtype = onnx_ir.DataType.from_numpy(np.dtype(kind))
        self.x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(["tokens", width]))
        self.model.graph.inputs.append(self.x)
        self.edit = Editor(self.model, "test")
        self.kind, self.width = kind, width

    def product(self, x: onnx_ir.Value, n: int, name: str = "product") -> onnx_ir.Value:
        weight = np.random.default_rng(n).standard_normal((self.width, n)).astype(self.kind)
        return self.edit.op("MatMul", [x, self.edit.initializer(weight, "w")], hint=name)

    def run(self, *outputs: onnx_ir.Value, quantize: Quantize = W8A8) -> Outcome:
        self.model.graph.outputs.extend(outputs)
        outcome = quantize.run(self.model, Context())
        onnx.checker.check_model(onnx_ir.to_proto(self.model), full_check=True)
        return outcome

    @property
    def ops(self) -> Counter[str]:
        return Counter(node.op_type for node in self.model.graph)


def skipped(outcome: Outcome) -> list[str]:
    return [remark.reason for remark in outcome.remarks if remark.kind == "skipped"]


def test_one_quantization_for_all_that_read_a_value() -> None:
    b = Builder()
    outcome = b.run(b.product(b.x, 192), b.product(b.x, 256), b.product(b.edit.op("Relu", [b.x]), 256))
    assert outcome.rewrites == {"quantize weights": 3, "quantize activations": 2}
    assert (b.ops["QuantizeLinear"], b.ops["DequantizeLinear"], b.ops["ReduceMax"], b.ops["ReduceMin"]) == (2, 5, 2, 2)
    assert any("once for 2 products" in remark.reason for remark in outcome.remarks)


def test_other_readers_of_the_input_see_it_in_full() -> None:
    b = Builder()
    b.run(b.product(b.x, 192), b.edit.op("Relu", [b.x]))
    relu = next(node for node in b.model.graph if node.op_type == "Relu")
    assert relu.inputs[0] is b.x


def test_small_products_stay_as_they_are() -> None:
    n = SMALLEST_PRODUCT // WIDTH
    b = Builder()
    outcome = b.run(b.product(b.x, n - 1), b.product(b.x, n))
    assert outcome.rewrites == {"quantize weights": 1, "quantize activations": 1}
    (reason,) = skipped(outcome)
    assert reason.startswith(f"too small to pay in int8: {WIDTH * (n - 1)} weights")
    assert b.ops["MatMul"] == 2 and b.ops["QuantizeLinear"] == 1


def test_other_types_and_vectors_stay_as_they_are() -> None:
    half = Builder(np.float16)
    outcome = half.run(half.product(half.x, 256))
    assert not outcome.changed and "no kernel quantizes activations of FLOAT16" in skipped(outcome)
    b = Builder()
    row = b.edit.op("Reshape", [b.edit.op("Slice", [b.x, b.edit.ints([0]), b.edit.ints([1])]), b.edit.ints([WIDTH])])
    outcome = b.run(b.product(row, 256))
    assert not outcome.changed and "its input is a vector or of unknown rank" in skipped(outcome)


def test_products_choose_one_by_one() -> None:
    b = Builder()
    mixed = Quantize("w8a8", overrides={"name:four*": "w4a16"}, exclude="name:float*")
    outcome = b.run(
        b.product(b.x, 256, "eight"), b.product(b.x, 257, "four"), b.product(b.x, 258, "float"), quantize=mixed
    )
    assert outcome.rewrites == {"quantize weights": 2, "quantize activations": 1}
    readers = {node.name: node.inputs[0] for node in b.model.graph if node.op_type == "MatMul"}
    assert readers["four"] is b.x and readers["float"] is b.x and readers["eight"] is not b.x
    other = Builder()
    outcome = other.run(other.product(other.x, 256), quantize=Quantize("w4a16", overrides={"*": "w8a8"}))
    assert outcome.rewrites == {"quantize weights": 1, "quantize activations": 1}


def test_what_no_kernel_takes_is_refused() -> None:
    for options in ({"bits": 4}, {"bits": 3, "group_size": 64}, {"symmetric": False}):
        with pytest.raises(OptionError, match="no kernel multiplies int8 activations by weights in"):
            Quantize("w8a8", **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="static activations with one scale per token are not supported"):
        Activations("token", dynamic=False)
    with pytest.raises(OptionError, match="no kernel multiplies"):
        Scheme(4, 0, True, Activations())


def test_the_scheme_says_what_it_is() -> None:
    assert str(resolve("w8a8")) == (
        "8-bit symmetric, one scale per channel, activations in 8 bits, one scale per token"
    )
    assert resolve("w8a8", bits=8) == resolve("w8a8")


@pytest.mark.parametrize(("target", "asked"), [("onnxruntime", True), ("triton", False)])
def test_kernels_for_triton_quantize_token_by_token(parse: Callable[..., Graph], target: str, asked: bool) -> None:
    graph = parse(
        "g (float[T, 256] x, float[256] s) => (float[T, 256] y) { n = RMSNormalization(x, s) y = MatMul(n, w) }",
        w=(256, 256),
    )
    seen: list[str] = []

    def observe(values: Sequence[onnx_ir.Value], observer: Observer) -> dict[str, np.ndarray]:
        seen.append(type(observer).__name__)
        kind = {"Hessian": np.eye(256), "TokenSpan": np.ones(1)}.get(seen[-1], np.ones(2 + 2 * HISTOGRAM_BINS))
        return {value.name or "": kind.astype(np.float32) for value in values}

    Quantize("w8a8").run(graph, Context(target=target, observe=observe))
    assert ("TokenSpan" in seen) == asked and "Hessian" in seen
