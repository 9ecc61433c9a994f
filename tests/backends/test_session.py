from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from burnish.backends.onnxruntime import saturation
from burnish.backends.onnxruntime.session import Session
from burnish.backends.onnxruntime.writer import to_bytes, write
from burnish.ir.errors import ArtifactError, BurnishError, InputError, ModelError, OptionError, UnsupportedError
from burnish.ir.rewrite import Editor

Make = Callable[..., onnx_ir.Model]
IDENTITIES = [
    (torch.float32, onnx_ir.DataType.FLOAT),
    (torch.float64, onnx_ir.DataType.DOUBLE),
    (torch.float16, onnx_ir.DataType.FLOAT16),
    (torch.bfloat16, onnx_ir.DataType.BFLOAT16),
    (torch.int64, onnx_ir.DataType.INT64),
    (torch.int32, onnx_ir.DataType.INT32),
    (torch.int8, onnx_ir.DataType.INT8),
    (torch.uint8, onnx_ir.DataType.UINT8),
    (torch.bool, onnx_ir.DataType.BOOL),
]


def flatten(dtype: onnx_ir.DataType, rank: int = 2) -> bytes:
    """``y = reshape(x, [-1])``"""
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    shape = onnx_ir.Shape(["a", "b", "c"][:rank])
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(dtype), shape=shape)
    model.graph.inputs.append(x)
    edit = Editor(model, "test")
    y = edit.op("Reshape", [x, edit.ints([-1])], dtype=dtype, shape=["n"])
    y.name = "y"
    model.graph.outputs.append(y)
    return to_bytes(model)


@pytest.mark.parametrize(("torch_type", "dtype"), IDENTITIES, ids=lambda v: str(getattr(v, "name", v)))
def test_types_come_back_as_they_went(torch_type: torch.dtype, dtype: onnx_ir.DataType) -> None:
    session = Session(flatten(dtype), threads=1)
    assert session.inputs[0].dtype == dtype.name and session.outputs[0].dtype == dtype.name
    tensor = torch.arange(6).reshape(2, 3).to(torch_type)
    (have,) = session.run({"x": tensor})
    assert isinstance(have, torch.Tensor) and have.dtype == torch_type
    assert torch.equal(have, tensor.reshape(-1))
    array = np.arange(6).reshape(2, 3).astype(dtype.numpy())
    (have,) = session.run({"x": array})
    assert isinstance(have, np.ndarray) and have.dtype == array.dtype
    np.testing.assert_array_equal(have, array.reshape(-1))
    have[:] = 0  # the caller owns the output


def test_layouts_of_memory() -> None:
    session = Session(flatten(onnx_ir.DataType.FLOAT), threads=1)
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for odd in (array.T, array[::2], array[:, ::-1], np.asfortranarray(array), array[:0]):
        np.testing.assert_array_equal(session.run({"x": odd})[0], odd.reshape(-1))
        tensor = torch.from_numpy(array).t()[1:]
        assert torch.equal(session.run({"x": tensor})[0], tensor.reshape(-1))
    frozen = array.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(session.run({"x": frozen})[0], array.reshape(-1))
    needs_grad = torch.ones(2, 2, requires_grad=True)
    assert not session.run({"x": needs_grad})[0].requires_grad


def test_scalars() -> None:
    session = Session(flatten(onnx_ir.DataType.FLOAT, rank=0), threads=1)
    assert session.run({"x": np.array(2.5, np.float32)})[0].tolist() == [2.5]
    assert session.run({"x": torch.tensor(2.5)})[0].tolist() == [2.5]


def test_values_go_round_without_a_copy() -> None:
    session = Session(flatten(onnx_ir.DataType.FLOAT, rank=1), threads=1)
    array = np.arange(4, dtype=np.float32)
    (value,) = session.run_values({"x": array})
    assert isinstance(value, onnxruntime.OrtValue)
    (again,) = session.run({"x": value})
    np.testing.assert_array_equal(again, array)


def test_outputs_outlive_the_session_and_each_other() -> None:
    session = Session(flatten(onnx_ir.DataType.FLOAT), threads=1)
    first = session.run({"x": np.zeros((200, 300), np.float32)})[0]
    second = session.run({"x": np.ones((200, 300), np.float32)})[0]
    assert not np.shares_memory(first, second)
    del session
    assert first.sum() == 0 and second.sum() == 60_000


def test_strings() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.STRING, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    session = Session(model.SerializeToString())
    assert session.inputs[0].dtype == "STRING"
    assert session.run({"x": np.array(["a", "bc"], dtype=object)})[0].tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 1), np.float32), "z": np.ones(1, np.float32)}, "the model has no input 'z'"),
        ({"x": np.ones((1, 1), np.float64)}, "the inputs do not fit the model"),
        ({"x": np.ones(3, np.float32)}, "the inputs do not fit the model"),
        ({"x": [object()]}, "is no tensor"),
        ({"x": torch.ones(1, 1, device="meta")}, "is on device 'meta'"),
    ],
)
def test_bad_inputs(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Session(flatten(onnx_ir.DataType.FLOAT), threads=1).run(feeds)


def test_failure_inside_a_node_is_ours(tiny_lm: Make) -> None:
    with pytest.raises(BurnishError, match="indices element out of data bounds"):
        Session(to_bytes(tiny_lm())).run({"ids": np.array([[10**6]])})


def model_of(op: str, domain: str = "", opset: int = 23, dtype: int = 1, ir: int = 10) -> bytes:
    x = onnx.helper.make_tensor_value_info("x", dtype, [2, 2])
    y = onnx.helper.make_tensor_value_info("y", dtype, [2, 2])
    inputs = ["x", "x"] if op == "MatMul" else ["x"]
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, inputs, ["y"], domain=domain)], "g", [x], [y])
    imports = [onnx.helper.make_opsetid("", opset)] + ([onnx.helper.make_opsetid(domain, 1)] if domain else [])
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=ir).SerializeToString()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (b"not a model", (ArtifactError, ModelError), "model"),
        (model_of("Relu", opset=99), ArtifactError, "newer runtime"),
        (model_of("Relu", ir=99), ArtifactError, "newer runtime"),
        (model_of("MatMul", dtype=onnx.TensorProto.BFLOAT16), UnsupportedError, "no kernel for a node"),
        (model_of("Frobnicate", domain="elsewhere"), UnsupportedError, "does not know an operator"),
    ],
)
def test_models_that_do_not_load(model: bytes, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        Session(model)


def test_files_that_do_not_load(tiny_lm: Make, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such model file"):
        Session(tmp_path / "none.onnx")
    path = tmp_path / "m.onnx"
    write(tiny_lm(), path, external=True)
    (tmp_path / "m.onnx.data").rename(tmp_path / "other")
    with pytest.raises(ArtifactError, match="damaged or incomplete"):
        Session(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises((ArtifactError, ModelError)):
        Session(path)


def test_threads() -> None:
    with pytest.raises(OptionError, match="threads=0"):
        Session(flatten(onnx_ir.DataType.FLOAT), threads=0)


def test_products_of_8_bits_are_exact_on_every_processor() -> None:
    """Two products of 255 by 127 do not fit into the 16 bits in which processors without VNNI add them."""
    weight = onnx.numpy_helper.from_array(np.full((64, 8), 127, np.int8), "w")
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [4, 64])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [4, 8])
    graph = onnx.helper.make_graph([node], "product", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    (product,) = Session(model.SerializeToString()).run({"x": np.full((4, 64), 255, np.uint8)})
    assert (product == 64 * 255 * 127).all()


def test_exact_kernels_are_asked_for_where_the_others_overflow_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are slower, and the runtime takes them on some processors that do not need them."""
    inputs = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [4, 64]),
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.INT8, [64, 8]),
    ]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [4, 8])
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10)
    model.ClearField("producer_name")
    assert onnx.load_from_string(saturation._PROBE) == model
    for overflow in (True, False):
        monkeypatch.setattr("burnish.backends.onnxruntime.session.products_overflow", lambda told=overflow: told)
        options = Session(saturation._PROBE)._session.get_session_options()
        entry = "session.x64quantprecision"
        assert options.get_session_config_entry(entry) == "1" if overflow else not _has(options, entry)


def _has(options: Any, entry: str) -> bool:
    try:
        options.get_session_config_entry(entry)
    except RuntimeError:
        return False
    return True


def test_bfloat16_arrays_are_ml_dtypes() -> None:
    session = Session(flatten(onnx_ir.DataType.BFLOAT16), threads=1)
    array = np.ones((2, 2), ml_dtypes.bfloat16)
    assert session.run({"x": array})[0].dtype == ml_dtypes.bfloat16


def test_running_needs_neither_torch_nor_onnx(tiny_lm: Make, tmp_path: Path) -> None:
    write(tiny_lm({}), tmp_path / "m.onnx")
    code = f"""
import sys, numpy as np
from burnish.backends.onnxruntime import saturation
from burnish.backends.onnxruntime.session import Session
print(Session({str(tmp_path / "m.onnx")!r}).run({{"ids": np.array([[1, 2]])}})[0].shape)
print([name for name in ("torch", "onnx", "onnx_ir", "sympy", "transformers", "onnxscript") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["(1, 2, 4096)", "[]"]
