"""Activations."""

from __future__ import annotations

import onnx_ir
from onnx_ir import Value

from ..builder import Builder, Number, dims, fixed, rank
from ..registry import rule
from .logic import compare
from .operands import binary


@rule("aten.relu.default")
def relu(b: Builder, x: Value) -> Value:
    return b.op("Relu", x)


@rule("aten.gelu.default")
def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    return b.op("Gelu", x, approximate=None if approximate == "none" else approximate)


@rule("aten.silu.default")
def silu(b: Builder, x: Value) -> Value:
    # ONNX has Swish from opset 24 on; ONNX Runtime's own fusion finds this form.
    return b.op("Mul", x, b.op("Sigmoid", x))


@rule("aten.mish.default")
def mish(b: Builder, x: Value) -> Value:
    return b.op("Mish", x)


@rule("aten.leaky_relu.default")
def leaky_relu(b: Builder, x: Value, negative_slope: float = 0.01) -> Value:
    return b.op("LeakyRelu", x, alpha=float(negative_slope))


@rule("aten.elu.default")
def elu(b: Builder, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if input_scale != 1:
        x = binary(b, "Mul", x, input_scale)
    y = b.op("Elu", x, alpha=float(alpha))
    return y if scale == 1 else binary(b, "Mul", y, scale)


@rule("aten.selu.default")
def selu(b: Builder, x: Value) -> Value:
    return b.op("Selu", x)


@rule("aten.celu.default")
def celu(b: Builder, x: Value, alpha: float = 1.0) -> Value:
    return b.op("Celu", x, alpha=float(alpha))


@rule("aten.hardswish.default")
def hardswish(b: Builder, x: Value) -> Value:
    return b.op("HardSwish", x)


@rule("aten.hardsigmoid.default")
def hardsigmoid(b: Builder, x: Value) -> Value:
    return b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@rule("aten.log_sigmoid.default")
def log_sigmoid(b: Builder, x: Value) -> Value:
    return b.op("Neg", b.op("Softplus", b.op("Neg", x)))


@rule("aten.softplus.default")
def softplus(b: Builder, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    scaled = x if beta == 1 else binary(b, "Mul", x, beta)
    y = b.op("Softplus", scaled)
    y = y if beta == 1 else binary(b, "Div", y, beta)
    # Above the usual threshold float32 cannot tell the two apart.
    return y if threshold >= 20 else b.op("Where", compare(b, "Greater", scaled, threshold), x, y)


@rule("aten.softsign.default")
def softsign(b: Builder, x: Value) -> Value:
    return b.op("Softsign", x)


@rule("aten.prelu.default")
def prelu(b: Builder, x: Value, weight: Value) -> Value:
    if rank(weight) == 1 and dims(weight)[0] != 1 and rank(x) > 2:
        shape = [fixed(dims(weight)[0]), *[1] * (rank(x) - 2)]
        weight = b.op("Reshape", weight, b.ints(shape), shape=shape)
    return b.op("PRelu", x, weight)


@rule("aten.threshold.default")
def threshold(b: Builder, x: Value, threshold: Number, value: Number) -> Value:
    return b.op("Where", compare(b, "Greater", x, threshold), x, b.scalar(value, x.dtype))


@rule("aten.glu.default")
def glu(b: Builder, x: Value, dim: int = -1) -> Value:
    first, gate = b.ops("Split", [x], 2, {"axis": dim, "num_outputs": 2})
    for part in (first, gate):
        part.type, part.shape = onnx_ir.TensorType(b.dtype), onnx_ir.Shape(b.shape)
    return b.op("Mul", first, b.op("Sigmoid", gate))


@rule("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(b: Builder, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise b.unsupported("dropout is active: the result would be random; call model.eval() before compiling")
    return x
