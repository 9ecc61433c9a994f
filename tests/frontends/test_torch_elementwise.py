"""Rules of element-wise operators, type promotion included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

X = torch.tensor([[-2.5, -1.0, -0.5], [0.0, 0.75, 3.0]])
P = X.abs() + 0.5
I = torch.tensor([[-7, -3, 0], [2, 5, 9]])
J = torch.tensor([[2, -2, 3], [-4, 4, 5]])
M = X > 0

UNARY: dict[str, Callable[[torch.Tensor], Any]] = {
    name: getattr(torch, name)
    for name in [
        "abs", "neg", "sign", "ceil", "floor", "round", "trunc", "frac", "exp", "expm1", "sigmoid", "sin", "cos", "tan",
        "sinh", "cosh", "tanh", "atan", "asinh", "erf", "square", "relu", "isnan", "isinf", "isfinite", "exp2",
    ]
} | {
    name: getattr(F, name)
    for name in [
        "gelu", "silu", "mish", "leaky_relu", "elu", "selu", "celu", "hardswish", "hardsigmoid", "logsigmoid",
        "softplus", "softsign", "relu6", "hardtanh",
    ]
} | {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu_alpha": lambda x: F.elu(x, alpha=0.5),
    "softplus_beta": lambda x: F.softplus(x, beta=2.0),
    "threshold": lambda x: F.threshold(x, 0.1, -9.0),
    "glu": lambda x: F.glu(x.T, 1),
    "clamp_both": lambda x: x.clamp(-1, 1),
    "clamp_min": lambda x: x.clamp(min=0.25),
    "clamp_max": lambda x: torch.clamp_max(x, 0.25),
    "pow2": lambda x: x**2,
    "pow3": lambda x: x**3,
    "two_pow": lambda x: 2**x,
    "add_alpha": lambda x: torch.add(x, x, alpha=3),
    "rsub": lambda x: 1 - x,
    "half": lambda x: x.to(torch.float16) * 2,
    "to_int": lambda x: x.to(torch.int32) + 1,
    "nan_to_num": lambda x: torch.nan_to_num(x / 0 * M),
    "round_decimals": lambda x: torch.round(x * 1.2345, decimals=2),
    "lerp": lambda x: torch.lerp(x, x * 2, 0.25),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, P, value=0.5),
    "masked_fill": lambda x: x.masked_fill(M, float("-inf")),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.0),
    "atan2": lambda x: torch.atan2(x, x.flip(0) - 0.3),
    "double": lambda x: x.double() * 1e-9 + 1,
    "remainder": lambda x: x % 2,
    "fmod": lambda x: torch.fmod(x, 2),
    "floor_divide": lambda x: x // 0.7,
    "div_trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
}  # fmt: skip

POSITIVE = ["log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal"]


@pytest.mark.parametrize("name", UNARY)
def test_one_operand(name: str, agrees: Any) -> None:
    agrees(UNARY[name], X)


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_operand(name: str, agrees: Any) -> None:
    agrees(getattr(torch, name), P)


@pytest.mark.parametrize("name", ["acos", "asin", "atanh"])
def test_operand_within_one(name: str, agrees: Any) -> None:
    agrees(getattr(torch, name), X / 4)


BINARY: dict[str, tuple[Callable[..., Any], torch.Tensor, Any]] = {
    "add": (torch.add, X, P),
    "add_int_float": (torch.add, I, P),
    "add_int_scalar_float": (torch.add, I, 0.5),
    "add_bool": (torch.add, M, ~M),
    "mul_bool_float": (torch.mul, M, P),
    "mul_bool_bool": (torch.mul, M, ~M),
    "mul_int32_int64": (torch.mul, I.int(), J),
    "mul_zero_dim": (torch.mul, X.half(), torch.tensor(2.0)),
    "div_int": (torch.true_divide, I, J),
    "floor_divide_int": (torch.floor_divide, I, J),
    "remainder_int": (torch.remainder, I, J),
    "remainder_float": (torch.remainder, X, -P),
    "div_trunc_int": (lambda a, b: torch.div(a, b, rounding_mode="trunc"), I, J),
    "div_floor_float": (lambda a, b: torch.div(a, b, rounding_mode="floor"), X, P),
    "pow_tensor": (torch.pow, P, X),
    "maximum": (torch.maximum, X, P - 1),
    "minimum_int": (torch.minimum, I, J),
    "maximum_bool": (torch.maximum, M, ~M),
    "eq_bool": (torch.eq, M, ~M),
    "eq_int_float": (torch.eq, I, 2.0),
    "ne": (torch.ne, I, J),
    "lt_int_float": (torch.lt, I, X),
    "le_bool": (torch.le, M, ~M),
    "gt": (torch.gt, X, 0.5),
    "ge_int_scalar": (torch.ge, I, 2),
    "and_bool": (torch.bitwise_and, M, ~M),
    "and_int": (torch.bitwise_and, I, J),
    "or_int": (torch.bitwise_or, I, J),
    "xor_bool": (torch.bitwise_xor, M, ~M),
    "xor_int": (torch.bitwise_xor, I, 3),
    "logical_and_float": (torch.logical_and, X, P),
    "logical_or_int": (torch.logical_or, I, J),
    "logical_xor": (torch.logical_xor, I, M),
    "broadcast": (torch.sub, X, P[:, :1]),
}


@pytest.mark.parametrize("name", BINARY)
def test_two_operands(name: str, agrees: Any) -> None:
    function, x, y = BINARY[name]
    if isinstance(y, torch.Tensor):
        agrees(function, x, y)
    else:
        agrees(lambda a: function(a, y), x)


def test_not(agrees: Any) -> None:
    agrees(lambda m, i: (~m, ~i, torch.logical_not(i)), M, I)


def test_number_of_a_size(agrees: Any) -> None:
    agrees(
        lambda x: x * x.shape[0] + x.shape[0] / 2 + x.shape[0] ** 0.5,
        X,
        dynamic=({0: "batch"},),
        others=[(P.repeat(3, 1),)],
    )


def test_silu_is_two_nodes(agrees: Any) -> None:
    imported = agrees(F.silu, X)
    assert [node.op_type for node in imported.graph.graph] == ["Sigmoid", "Mul"]


def test_identities_make_no_nodes(agrees: Any) -> None:
    imported = agrees(lambda x: F.dropout(x.contiguous().detach().clone().float(), 0.5, training=False) + 1, X)
    assert [node.op_type for node in imported.graph.graph] == ["Add"]
