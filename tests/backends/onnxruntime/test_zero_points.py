"""Weights dequantized by channel that no kernel takes, where the runtime makes weights unsigned."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes
from burnish.backends.onnxruntime.zero_points import write_zero_points
from burnish.ir.errors import BurnishError

TEXT = """
g (float[1, 8, 5, 5] x) => (float[1, 8, 3, 3] y) {
  wide = DequantizeLinear <axis = 0> (w, s)
  y1 = Conv <group = 8> (x, wide)
  other = DequantizeLinear <axis = 0> (v, s)
  y2 = Conv <group = 8> (x, other)
  y = Add(y1, y2)
}"""


def graph() -> onnx_ir.Model:
    proto = onnx.helper.make_model(
        onnx.parser.parse_graph(TEXT), opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
    )
    random = np.random.default_rng(0)
    codes, others = (random.integers(-127, 128, (8, 1, 3, 3)).astype(np.int8) for _ in range(2))
    for name, array in (("w", codes), ("v", others), ("s", random.uniform(0.1, 1, 8).astype(np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return onnx_ir.from_proto(proto)


def test_what_the_runtime_refuses_runs_with_zero_points(monkeypatch: pytest.MonkeyPatch) -> None:
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 8, 5, 5)).astype(np.float32)}
    want = Session(to_bytes(graph())).run(feeds)
    monkeypatch.setattr("burnish.backends.onnxruntime.session.products_overflow", lambda: True)
    with pytest.raises(BurnishError, match="x_zero_point must be null or 1D"):
        Session(to_bytes(graph())).run(feeds)
    lowered = graph()
    lower(lowered)
    np.testing.assert_allclose(Session(to_bytes(lowered)).run(feeds)[0], want[0], rtol=1e-5, atol=1e-5)


def test_zero_points_that_are_there_stay() -> None:
    once = graph()
    write_zero_points(once)
    nodes = [n for n in once.graph if n.op_type == "DequantizeLinear"]
    zeros = [n.inputs[2] for n in nodes]
    write_zero_points(once)
    assert [n.inputs[2] for n in nodes] == zeros and all(z is not None and z.shape == (8,) for z in zeros)
