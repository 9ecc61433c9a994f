"""A small language model built by hand: tied embedding and head, feed-forward layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir
import pytest
from burnish.ir.graph import MODULE
from burnish.ir.rewrite import Editor
from burnish.passes.base import Context
from burnish.passes.quantize import Quantize

Make = Callable[..., onnx_ir.Model]


def _tiny_lm(
    vocabulary: int = 4096, hidden: int = 96, inner: int = 160, layers: int = 2, tied: bool = True, seed: int = 0
) -> onnx_ir.Model:
    random = np.random.default_rng(seed)
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    ids = onnx_ir.Value(
        name="ids", type=onnx_ir.TensorType(onnx_ir.DataType.INT64), shape=onnx_ir.Shape(["batch", "sequence"])
    )
    model.graph.inputs.append(ids)
    edit = Editor(model, "test")

    def weight(n: int, k: int, name: str) -> onnx_ir.Value:
        return edit.initializer((random.standard_normal((n, k)) / np.sqrt(k)).astype(np.float32), name)

    def linear(x: onnx_ir.Value, w: onnx_ir.Value, module: str) -> onnx_ir.Value:
        y = edit.op("MatMul", [x, edit.op("Transpose", [w], {"perm": [1, 0]})], hint=module)
        node = y.producer()
        assert node is not None
        node.metadata_props[MODULE] = module
        return y

    table = weight(vocabulary, hidden, "embed.weight")
    x = edit.op("Gather", [table, ids], hint="embed")
    for i in range(layers):
        up = linear(x, weight(inner, hidden, f"{i}.up"), f"layers.{i}.up")
        up = edit.op("Mul", [up, edit.op("Sigmoid", [up])])
        x = edit.op("Add", [x, linear(up, weight(hidden, inner, f"{i}.down"), f"layers.{i}.down")])
    head = table if tied else weight(vocabulary, hidden, "head.weight")
    logits = linear(x, head, "lm_head")
    logits.name = "logits"
    model.graph.outputs.append(logits)
    return model


@pytest.fixture(scope="session")
def tiny_lm() -> Make:
    """Builds a language model ``ids`` [batch, sequence] -> ``logits``, quantized if options of Quantize are given."""

    def make(quantize: dict[str, object] | None = None, **sizes: int) -> onnx_ir.Model:
        model = _tiny_lm(**sizes)  # type: ignore[arg-type]
        if quantize is not None:
            Quantize(**quantize).run(model, Context())  # type: ignore[arg-type]
        return model

    return make
