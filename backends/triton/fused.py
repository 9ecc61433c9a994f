"""What a caller may have done to a product's operand and result, and how a result in parts becomes one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import InputError, OptionError

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS = ("none", "relu", "sigmoid", "silu", "gelu", "gelu_tanh")
_MOST_TENSORS = 4


@dataclass(frozen=True)
class Epilogue:
    """What happens to a product in registers: ``function(activation(x Wᵀ + bias))``.

    Attributes:
        activation: a name in :data:`ACTIVATIONS`.
        gated: the weights hold the gate's channels and then as many of the other factor (SwiGLU and its kin): the
            result is ``activation(gate) up`` and half as wide.
        function: a function in the form that ``kernels/epilogues.py`` says, or None.
        tensors: up to four that it reads, contiguous.
        paired: with a gate: whether the function takes the gate and the other factor, which are not multiplied before.
    """

    activation: str = "none"
    gated: bool = False
    function: Any = None
    tensors: tuple[Tensor, ...] = ()
    paired: bool = False


@dataclass(frozen=True)
class Prologue:
    """What happens to the first operand while it is loaded.

    Attributes:
        function: a function in the form that ``kernels/epilogues.py`` says.
        tensors: up to four that it reads, contiguous.
    """

    function: Any = None
    tensors: tuple[Tensor, ...] = ()


PLAIN = Epilogue()
AS_IT_IS = Prologue()


def residual(tensor: Tensor, activation: str = "none") -> Epilogue:
    """Add a tensor of the result's shape after the activation."""
    from .kernels.epilogues import add

    return Epilogue(activation, function=add, tensors=(tensor.contiguous(),))


def multiplied(tensor: Tensor, activation: str = "none") -> Epilogue:
    """Multiply the activation by a tensor of the result's shape."""
    from .kernels.epilogues import multiply

    return Epilogue(activation, function=multiply, tensors=(tensor.contiguous(),))


def gate_prologue(gate_up: Tensor) -> Prologue:
    """Multiply silu of the operand by a tensor of its shape."""
    from .kernels.epilogues import silu_gate

    return Prologue(silu_gate, (gate_up.contiguous(),))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Prologue:
    """RMS normalization of x [..., K] over its last axis, as the prologue of a product of x."""
    from .kernels.epilogues import rms_scale

    return Prologue(rms_scale, (_statistics(x, epsilon, centred=False)[1], weight))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Prologue:
    """Layer normalization of x [..., K] over its last axis, as the prologue of a product of x."""
    from .kernels.epilogues import layer_scale

    return Prologue(layer_scale, (*_statistics(x, epsilon, centred=True), weight, bias))


def _statistics(x: Tensor, epsilon: float, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Mean (of what is centred) and reciprocal deviation of each row, float32 [rows]."""
    from .kernels.rows import statistics_kernel

    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows, k = flat.shape
    mean = torch.empty(rows, dtype=torch.float32, device=x.device)
    scale = torch.empty_like(mean)
    if rows:
        statistics_kernel[(rows,)](
            flat, mean, scale, k, epsilon, CENTRED=centred, BLOCK=min(1024, power_of_two(k)), num_warps=4
        )
    return mean, scale


def power_of_two(size: int) -> int:
    """The least power of two that is not less than a size, and at least 1."""
    return 1 << max(0, size - 1).bit_length()


def four(tensors: tuple[Tensor, ...], other: Tensor) -> tuple[Tensor, ...]:
    """The tensors, and another in the place of those missing of four.

    Raises:
        InputError: they are more than four, or one is not contiguous or lies on another device.
    """
    for i, tensor in enumerate(tensors):
        if i == _MOST_TENSORS or not tensor.is_contiguous() or tensor.device != other.device:
            raise InputError(
                f"tensor {i} of an epilogue or prologue is not contiguous, not on {other.device}, or past the fourth",
                where="a fused product", fix="make it contiguous, and fuse less",
            )  # fmt: skip
    return (*tensors, *[other] * (_MOST_TENSORS - len(tensors)))


def activation_of(epilogue: Epilogue) -> Any:
    """The function of an activation.

    Raises:
        OptionError: there is none of that name.
    """
    from .kernels.epilogues import ACTIVATIONS as FUNCTIONS

    if epilogue.activation not in FUNCTIONS:
        raise OptionError(f"no activation is named {epilogue.activation!r}", fix=f"use one of {', '.join(FUNCTIONS)}")
    return FUNCTIONS[epilogue.activation]


@dataclass(frozen=True)
class Product:
    """One product on its way: sizes, where its result goes, and what fuses with it.

    Attributes:
        like: the first operand; its device.
        batches, rows, n: of the result.
        splits: programs that share the columns.
        bias: of all channels, or None.
        epilogue: of the result.
        dtype: of the result.
    """

    like: Tensor
    batches: int
    rows: int
    n: int
    splits: int
    bias: Tensor | None
    epilogue: Epilogue
    dtype: torch.dtype
    result: Tensor = field(init=False)
    buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        result = torch.empty(self.batches, self.rows, self.n, dtype=self.dtype, device=self.like.device)
        buffer = result
        if self.splits > 1:
            halves = 2 if self.epilogue.gated else 1
            shape = (self.splits, halves, self.batches, self.rows, self.n)
            buffer = torch.empty(shape, dtype=torch.float32, device=self.like.device)
        object.__setattr__(self, "result", result)
        object.__setattr__(self, "buffer", buffer)

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        """bias, y, e0 to e3 of a kernel."""
        bias = self.buffer if self.bias is None else self.bias
        return (bias, self.buffer, *four(self.epilogue.tensors, self.buffer))

    @property
    def constants(self) -> dict[str, Any]:
        """The constexpr arguments that concern the result."""
        return {"SPLITS": self.splits, **self._finish}

    @property
    def _finish(self) -> dict[str, Any]:
        from .kernels.epilogues import nothing

        return {
            "GATED": 2 if self.epilogue.paired else self.epilogue.gated, "HAS_BIAS": self.bias is not None,
            "ACTIVATION": activation_of(self.epilogue), "EPILOGUE": self.epilogue.function or nothing,
        }  # fmt: skip

    def finished(self) -> Tensor:
        """The result [batches, rows, n], its parts added where there are several."""
        if self.splits > 1:
            from .kernels.epilogues import reduce_kernel

            rows, wide = self.batches * self.rows, 256
            bias = self.result if self.bias is None else self.bias
            reduce_kernel[(-(-self.n // wide), rows)](
                self.buffer, bias, self.result, *four(self.epilogue.tensors, self.result), rows, self.n,
                SPLITS=self.splits, BLOCK_M=1, BLOCK_N=wide, **self._finish, num_warps=2,
            )  # fmt: skip
        return self.result


def gate(both: Tensor, epilogue: Epilogue) -> Tensor:
    """The end of a product with a gate whose channels are in memory: [..., 2 n] becomes [..., n].

    Raises:
        InputError: the channels cannot be halved, or a tensor of the epilogue does not fit.
    """
    from .kernels.epilogues import gate_kernel

    flat = both.reshape(-1, both.shape[-1]).contiguous()
    product = Product(flat, 1, len(flat), halved(flat.shape[1], epilogue), 1, None, epilogue, both.dtype)
    constants = product.constants
    del constants["SPLITS"], constants["HAS_BIAS"]
    if product.result.numel():
        gate_kernel[(-(-product.n // 1024), product.rows)](
            flat, *product.pointers[1:], product.rows, product.n, BLOCK_N=1024, **constants, num_warps=4
        )
    return product.result.reshape(*both.shape[:-1], product.n)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def exact(x: Tensor) -> bool:
    """Whether to multiply in float32: the interpreter cannot in bfloat16."""
    return x.dtype == torch.bfloat16 and interpreted()


def checked(x: Tensor, k: int, n: int, weights: Tensor, bias: Tensor | None, *, same: bool) -> Tensor:
    """Activations [..., k] as [rows, k], contiguous.

    Args:
        x: activations.
        k, n: channels of the weights.
        weights: what must be on x's device, and of its type if ``same``.
        bias: [n] or None.
        same: whether the type of the weights is that of x.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    problem = None
    if x.shape[-1:] != (k,):
        problem = f"activations of shape {list(x.shape)} do not end in the {k} input channels of the weights"
    elif x.dtype not in FLOATS or (same and x.dtype != weights.dtype):
        problem = f"activations are {x.dtype}, weights {weights.dtype}"
    elif x.device != weights.device:
        problem = f"activations are on {x.device}, weights on {weights.device}"
    elif bias is not None and (bias.shape != (n,) or bias.device != x.device):
        problem = f"a bias of shape {list(bias.shape)} on {bias.device} is not [{n}] on {x.device}"
    if problem is not None:
        raise InputError(problem, where="a product on compressed weights", fix="make shapes, types and devices agree")
    return x.reshape(-1, k).contiguous()


def halved(n: int, epilogue: Epilogue) -> int:
    """Channels of the result of a product with n channels of weights.

    Raises:
        InputError: they cannot be halved for a gate.
    """
    if epilogue.gated and n % 2:
        raise InputError(f"{n} output channels are no gate and as many factors", where="a gated product",
                         fix="stack gate and factor, or use an epilogue without a gate")  # fmt: skip
    return n // 2 if epilogue.gated else n
