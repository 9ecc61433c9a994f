"""The reference backend as a session: its inputs and outputs, its errors, one node alone."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
import torch
from burnish.backends.reference import Reference
from burnish.backends.reference.session import Session
from burnish.ir.errors import InputError, UnsupportedError

TEXT = """<ir_version: 10, opset_import: ["" : 23, "burnish" : 1]>
g (float[n, 3] x, float[n, 3] y) => (float[n, 3] z) {
    s = burnish.twice (x, y)
    z = Relu (s)
}
<domain: "burnish", opset_import: ["" : 23]>
twice (a, b) => (c) {
    d = Add (a, b)
    c = Add (d, d)
}"""


def test_arrays_give_arrays_and_tensors_tensors() -> None:
    session = Session(onnx_ir.from_onnx_text(TEXT))
    assert [spec.name for spec in session.inputs] == ["x", "y"] and session.outputs[0].shape == ("n", 3)
    x, y = np.ones((2, 3), np.float32), -2 * np.ones((2, 3), np.float32)
    (z,) = session.run({"x": x, "y": x})
    assert isinstance(z, np.ndarray) and (z == 4).all()
    (z,) = session.run({"x": torch.as_tensor(x), "y": y})
    assert isinstance(z, torch.Tensor) and (z == 0).all()


def test_inputs_that_do_not_fit_are_refused() -> None:
    session = Session(onnx_ir.from_onnx_text(TEXT))
    x = np.ones((2, 3), np.float32)
    for feeds, what in (
        ({"x": x}, "'y' is missing"), ({"x": x, "y": x, "w": x}, "no input 'w'"),
        ({"x": x, "y": x[:1]}, "must be equal"),
        ({"x": x, "y": x.astype(np.float64)}, "DOUBLE"), ({"x": x, "y": x[0]}, "1 dimensions"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            session.run(feeds)


def test_an_operator_without_a_rule_is_named_at_once() -> None:
    model = onnx_ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = NoSuchOperator (x) }"""
    )
    with pytest.raises(UnsupportedError, match="NoSuchOperator"):
        Session(model)


def test_a_node_alone() -> None:
    graph = onnx_ir.from_onnx_text(TEXT)
    call = next(iter(graph.graph))
    (made,) = Reference(graph).node(call, dict(zip(call.inputs, (torch.ones(1, 3), torch.ones(1, 3)), strict=True)))
    assert made is not None and (made == 4).all()
