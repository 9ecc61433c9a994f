from __future__ import annotations

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from burnish.backends.onnxruntime import kernels
from burnish.backends.onnxruntime.kernels import Kernel
from burnish.backends.onnxruntime.legality import check
from burnish.ir.errors import UnsupportedError
from burnish.ir.graph import MODULE
from burnish.ir.rewrite import Editor

F, H, B, I64 = "tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int64)"


@pytest.mark.parametrize(
    ("domain", "op", "opset", "types", "expected"),
    [
        ("", "MatMul", 23, [F, F], True),
        ("", "MatMul", 23, [B, B], False),
        ("", "Attention", 23, [F, F, F], True),
        ("", "Attention", 22, [F, F, F], False),
        ("", "Gather", 23, [F, I64], True),
        ("", "Gather", 23, [F, F], False),
        ("", "Concat", 23, [F, F, F, F], True),
        ("", "Relu", 23, [F, F], False),
        ("", "NoSuch", 23, [], False),
        ("com.microsoft", "MatMulNBits", 1, [F, "tensor(uint8)", F], True),
        ("com.microsoft", "MatMulNBits", 1, [B, "tensor(uint8)", B], False),
        ("com.microsoft", "MatMulNBitsMlp", 1, [], False),
    ],
)
def test_has(domain: str, op: str, opset: int, types: list[str], expected: bool) -> None:
    assert kernels.has(domain, op, opset, types) is expected


def test_attributes() -> None:
    assert kernels.has("com.microsoft", "MatMulNBits", 1, [], ["accuracy_level", "bits"])
    assert not kernels.has("com.microsoft", "MatMulNBits", 1, [], ["accuracy"])


def test_versions() -> None:
    assert kernels.version() == onnxruntime.__version__
    assert kernels.newest_opset() >= 23
    forever = 2**31 - 1
    assert Kernel(13, forever, {}).runs(13)
    assert not Kernel(13, forever, {}).runs(14)  # the build does not promise what it has not seen
    assert Kernel(13, 18, {}).runs(16) and not Kernel(13, 18, {}).runs(19)


def one(op: str, dtype: onnx_ir.DataType, module: str | None, domain: str = "") -> onnx_ir.Model:
    model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": 23}, name="g"), ir_version=10)
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape([2, 2]))
    model.graph.inputs.append(x)
    inputs = [x, x] if op == "MatMul" else [x]
    y = Editor(model, "test").op(op, inputs, domain=domain, dtype=dtype, shape=[2, 2])
    node = y.producer()
    assert node is not None
    node.metadata_props.clear()
    if module:
        node.metadata_props[MODULE] = module
    model.graph.outputs.append(y)
    return model


def test_a_node_without_a_kernel_is_an_error_that_names_it() -> None:
    with pytest.raises(UnsupportedError, match=r"no CPU kernel for MatMul\(tensor\(bfloat16\)") as caught:
        check(one("MatMul", onnx_ir.DataType.BFLOAT16, "layers.0.proj"))
    assert "layers.0.proj" in str(caught.value) and "float32" in str(caught.value)


def test_what_came_in_a_file_is_left_to_the_runtime() -> None:
    (remark,) = check(one("MatMul", onnx_ir.DataType.BFLOAT16, None))
    assert remark.kind == "missed" and "left for the runtime to judge" in remark.reason
    assert len(check(one("Frobnicate", onnx_ir.DataType.FLOAT, None, "elsewhere"))) == 1


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        ("MatMul", onnx_ir.DataType.FLOAT),
        ("MatMul", onnx_ir.DataType.FLOAT16),  # the session casts around it
        ("Relu", onnx_ir.DataType.FLOAT),
        ("Swish", onnx_ir.DataType.FLOAT),  # a function of the standard
    ],
)
def test_what_runs_passes(op: str, dtype: onnx_ir.DataType) -> None:
    model = one(op, dtype, "m")
    model.opset_imports[""] = 24
    assert check(model) == []


def test_an_opset_from_the_future() -> None:
    model = one("Relu", onnx_ir.DataType.FLOAT, None)
    model.opset_imports[""] = 999
    with pytest.raises(UnsupportedError, match="needs opset 999"):
        check(model)


def test_every_kernel_has_a_schema() -> None:
    """The table that answers is of the build itself; a few spot checks that it is not empty."""
    assert np.sum([kernels.schema("", op, 23) is not None for op in ("Add", "Attention", "RMSNormalization")]) == 3
