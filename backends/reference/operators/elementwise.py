"""Operators that compute place by place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from ..registry import Call, Result, Tensor, dtype_of, rule

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal, "Relu": torch.relu,
    "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh, "Mish": functional.mish, "HardSwish": functional.hardswish, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def _register() -> None:
    for name, one in _UNARY.items():
        rule(name)(lambda call, one=one: one(call[0]))  # type: ignore[misc]
    for name, two in _BINARY.items():
        rule(name)(lambda call, two=two: two(call[0], call[1]))  # type: ignore[misc]


_register()


@rule("Div")
def _div(call: Call) -> Result:
    if call[0].is_floating_point():
        return call[0] / call[1]
    return torch.div(call[0], call[1], rounding_mode="trunc")


@rule("Pow")
def _pow(call: Call) -> Result:
    return torch.pow(call[0], call[1]).to(call[0].dtype)


@rule("Mod")
def _mod(call: Call) -> Result:
    return torch.fmod(call[0], call[1]) if call.attr("fmod", 0) else torch.remainder(call[0], call[1])


@rule("BitShift")
def _shift(call: Call) -> Result:
    left = call.attr("direction") == "LEFT"
    return torch.bitwise_left_shift(call[0], call[1]) if left else torch.bitwise_right_shift(call[0], call[1])


@rule("Max", "Min", "Sum", "Mean")
def _several(call: Call) -> Result:
    combine = {"Max": torch.maximum, "Min": torch.minimum}.get(call.node.op_type, torch.add)
    total = call[0]
    for index in range(1, len(call.x)):
        total = combine(total, call[index])
    return total / len(call.x) if call.node.op_type == "Mean" else total


@rule("Where")
def _where(call: Call) -> Result:
    return torch.where(call[0], call[1], call[2])


@rule("Clip")
def _clip(call: Call) -> Result:
    x, low, high = call[0], call.get(1), call.get(2)
    low = low if low is not None else call.attr("min")
    high = high if high is not None else call.attr("max")
    if low is not None:
        x = torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
    return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))


@rule("Cast")
def _cast(call: Call) -> Result:
    to = dtype_of(call.attr("to"))
    return call[0].to(to)


@rule("CastLike")
def _cast_like(call: Call) -> Result:
    return call[0].to(call[1].dtype)


@rule("IsInf")
def _is_inf(call: Call) -> Result:
    found = torch.zeros_like(call[0], dtype=torch.bool)
    if call.attr("detect_positive", 1):
        found = found | torch.isposinf(call[0])
    return found | torch.isneginf(call[0]) if call.attr("detect_negative", 1) else found


@rule("Gelu")
@rule("Gelu", domain="com.microsoft")
def _gelu(call: Call) -> Result:
    return functional.gelu(call[0], approximate=call.attr("approximate", "none"))


@rule("Swish")
def _swish(call: Call) -> Result:
    return call[0] * torch.sigmoid(call.attr("alpha", 1.0) * call[0])


@rule("LeakyRelu")
def _leaky(call: Call) -> Result:
    return functional.leaky_relu(call[0], call.attr("alpha", 0.01))


@rule("PRelu")
def _prelu(call: Call) -> Result:
    return torch.where(call[0] < 0, call[0] * call[1], call[0])


@rule("Elu", "Celu", "Selu")
def _elu(call: Call) -> Result:
    x, kind = call[0], call.node.op_type
    if kind == "Celu":
        return functional.celu(x, call.attr("alpha", 1.0))
    if kind == "Elu":
        return functional.elu(x, call.attr("alpha", 1.0))
    gamma, alpha = call.attr("gamma", 1.0507009873554805), call.attr("alpha", 1.6732632423543772)
    y: Tensor = gamma * torch.where(x > 0, x, alpha * (torch.exp(torch.clamp(x, max=0)) - 1))
    return y


@rule("ThresholdedRelu")
def _thresholded(call: Call) -> Result:
    return torch.where(call[0] > call.attr("alpha", 1.0), call[0], torch.zeros_like(call[0]))


@rule("HardSigmoid")
def _hard_sigmoid(call: Call) -> Result:
    return torch.clamp(call.attr("alpha", 0.2) * call[0] + call.attr("beta", 0.5), 0, 1)


@rule("Shrink")
def _shrink(call: Call) -> Result:
    x, bias, limit = call[0], call.attr("bias", 0.0), call.attr("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@rule("Dropout")
def _dropout(call: Call) -> Result:
    return [call[0], torch.ones_like(call[0], dtype=torch.bool)]


@rule("BatchNormalization")
def _batch_norm(call: Call) -> Result:
    return functional.batch_norm(
        call[0], call[3].to(call[0].dtype), call[4].to(call[0].dtype), call[1], call[2], eps=call.attr("epsilon", 1e-5)
    )


@rule("Trilu")
def _trilu(call: Call) -> Result:
    k = call.get(1)
    diagonal = 0 if k is None else int(k)
    return torch.triu(call[0], diagonal) if call.attr("upper", 1) else torch.tril(call[0], diagonal)


@rule("RotaryEmbedding")
def _rotary(call: Call) -> Result:
    x, cos, sin, positions = call[0], call[1], call[2], call.get(3)
    flat = x.dim() == 3
    if flat:
        x = x.reshape(*x.shape[:-1], call.attr("num_heads"), -1).transpose(1, 2)
    width = call.attr("rotary_embedding_dim", 0) or x.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos.unsqueeze(1)[..., : width // 2], sin.unsqueeze(1)[..., : width // 2]
    if call.attr("interleaved", 0):
        a, b = turned[..., 0::2], turned[..., 1::2]
        made = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        made = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    result = torch.cat([made, rest], -1) if rest.shape[-1] else made
    return result.transpose(1, 2).flatten(-2) if flat else result
