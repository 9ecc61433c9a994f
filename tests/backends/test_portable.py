"""target="onnx": standard operators only, in the layout that runtimes fuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import pytest
from burnish.backends.onnxruntime.check import running
from burnish.backends.onnxruntime.lower import lower
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes, write
from burnish.ir.errors import UnsupportedError
from burnish.ir.rewrite import Editor

Make = Callable[..., onnx_ir.Model]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "w8a16"},
        {"group_size": 32, "symmetric": True},
        {"group_size": 0},
        {"bits": 8, "group_size": 0, "symmetric": True},
        {"group_size": 128},
    ],
)
@pytest.mark.parametrize("sizes", [{}, {"vocabulary": 4095}, {"tied": False, "hidden": 128}])
def test_runs_everywhere(tiny_lm: Make, options: dict[str, Any], sizes: dict[str, Any], tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 4000, (2, 7))
    ids[0, 0] = -3  # counted from the end
    want = Session(to_bytes(tiny_lm(options, **sizes)), optimize=False).run({"ids": ids})[0]
    model = tiny_lm(options, **sizes)
    lower(model, "onnx")
    assert {node.domain for node in model.graph} == {""}
    path = tmp_path / "m.onnx"
    write(model, path, external=True)
    onnx.checker.check_model(str(path), full_check=True)
    reference = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"ids": ids})[0]
    assert np.abs(reference - want).max() <= 2e-6 * np.abs(want).max()
    # ONNX Runtime fuses every product, the tied head included, and computes them in int8 (level 4).
    assert running(path)["MatMulNBits"] == 5
    assert np.abs(Session(path).run({"ids": ids})[0] - want).max() <= 2e-2 * np.abs(want).max()


def test_tied_table_is_stored_once(tiny_lm: Make, tmp_path: Path) -> None:
    sizes = []
    for tied in (True, False):
        model = tiny_lm({}, vocabulary=8192, tied=tied, hidden=128)
        lower(model, "onnx")
        sizes.append(write(model, tmp_path / f"{tied}.onnx", external=True))
    table = 8192 * 128 // 2
    assert sizes[1] - sizes[0] > table


def test_embedding_dequantizes_only_the_rows_asked_for(tiny_lm: Make) -> None:
    model = tiny_lm({}, vocabulary=8192)
    lower(model, "onnx")
    gathers = [node for node in model.graph if node.op_type == "Gather"]
    assert len(gathers) == 3  # codes, scales, zero points
    for node in gathers:
        assert node.inputs[0] is not None and node.inputs[0].is_initializer()
    assert Counter(n.op_type for n in model.graph)["DequantizeLinear"] == 6


def test_functions_are_written_out() -> None:
    model = onnx_ir.Model(
        onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23, "burnish": 1}, name="g"), ir_version=10
    )
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([2]))
    model.graph.inputs.append(x)
    a = onnx_ir.Value(name="a")
    body = onnx_ir.Graph([a], [], nodes=[], opset_imports={"": 23}, name="body")
    node = onnx_ir.Node("", "Neg", [a], num_outputs=1)
    body.append(node)
    body.outputs.append(node.outputs[0])
    function = onnx_ir.Function("burnish", "Minus", graph=body, attributes=[])
    model.functions[function.identifier()] = function
    edit = Editor(model, "test")
    y = edit.op("Minus", [x], domain="burnish", dtype=onnx_ir.DataType.FLOAT, shape=[2])
    model.graph.outputs.append(y)
    (remark,) = lower(model, "onnx")
    assert "burnish.Minus" in remark.reason
    assert [n.op_type for n in model.graph] == ["Neg"] and not model.functions
    assert set(model.opset_imports) == {""}
    np.testing.assert_array_equal(Session(to_bytes(model)).run({"x": np.ones(2, np.float32)})[0], [-1, -1])


def test_foreign_operator_is_refused() -> None:
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape([2]))
    model.graph.inputs.append(x)
    y = Editor(model, "test").op("QuickGelu", [x], domain="com.microsoft", dtype=onnx_ir.DataType.FLOAT, shape=[2])
    model.graph.outputs.append(y)
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.QuickGelu is not a standard"):
        lower(model, "onnx")
