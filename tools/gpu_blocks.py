"""Twelve blocks that memory bounds: generated kernels beside Inductor and beside a copy of as many bytes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gpu_timings import copy_bandwidth, median_seconds

ROWS, WIDE = 16384, 4096
"""Of the activations: 128 MiB in bfloat16."""
TOLERANCE = 3e-2


class Block(nn.Module):
    """A function of tensors with weights of its own.

    Args:
        function: of the inputs, then the weights.
        weights: kept as parameters.
    """

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(w, requires_grad=False) for w in weights])

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function of the inputs and the weights."""
        return self.function(*inputs, *self.weights)


def _rms(x: Tensor, w: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5)


def _layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def blocks(rows: int = ROWS, wide: int = WIDE, device: str = "cuda") -> Iterator[tuple[str, Block, tuple[Tensor, ...]]]:
    """Name, module and inputs of each."""

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    x, y, w, b = new(rows, wide), new(rows, wide), new(wide), new(wide)
    yield "bias, gelu", Block(lambda x, b: F.gelu(x + b), b), (x,)
    yield "silu, product", Block(lambda x, y: F.silu(x) * y), (x, y)
    yield "gated halves", Block(lambda x: F.silu(x[:, : wide // 2]) * x[:, wide // 2 :]), (x,)
    yield "scale, shift, relu", Block(lambda x, w, b: torch.relu(x * w + b), w, b), (x,)
    yield "residual, RMS norm", Block(lambda x, y, w: _rms(x + y, w), w), (x, y)
    yield "layer norm", Block(_layer, w, b), (x,)
    yield "bias, residual, layer norm", Block(lambda x, y, c, w, b: _layer(x + c + y, w, b), b, w, b), (x, y)
    yield "softmax", Block(lambda x: torch.softmax(x * 0.125, -1)), (x,)
    mask = torch.zeros(1, wide, device=device, dtype=torch.bfloat16)
    yield "masked softmax", Block(lambda x, m: torch.softmax(x * 0.125 + m, -1)), (x, mask)
    yield "sum of squares", Block(lambda x: (x * x).sum(-1)), (x,)
    heads = new(rows, wide // 128, 128)
    cos, sin = new(rows, 1, 128), new(rows, 1, 128)
    yield "rotary positions", Block(
        lambda x, c, s: x * c + torch.cat([-x[..., 64:], x[..., :64]], -1) * s), (heads, cos, sin)  # fmt: skip
    yield "transposed heads, scale", Block(lambda x, w: (x * w).transpose(0, 1).contiguous(), new(128)), (heads,)


def moved(inputs: tuple[Tensor, ...], result: Tensor) -> int:
    """Bytes of the inputs and the result."""
    return sum(t.numel() * t.element_size() for t in (*inputs, result))


def compiled_by_burnish(module: Block, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """The module by generated kernels."""
    from ..compiler.api import compile as compile_model

    # A model is imported from the CPU, and runs where its inputs are. The session's call leaves out the checks.
    example = tuple(t.cpu() for t in inputs)
    compiled = compile_model(copy.deepcopy(module).cpu().eval(), example_inputs=example, backend="triton")
    compiled(*inputs)
    return partial(compiled, *inputs)


def against_inductor(deadline: float) -> list[dict[str, Any]]:
    """Times of both, the part of a copy's bandwidth, and the ratio; a block that fails says why."""
    bound = copy_bandwidth()
    found: list[dict[str, Any]] = []
    with torch.no_grad():
        for name, module, inputs in blocks():
            if time.monotonic() > deadline:
                found.append({"block": name, "left_out": "the time is over"})
                continue
            try:
                ours = compiled_by_burnish(module, inputs)
                want = module(*inputs)
                error = float((ours().float() - want.float()).abs().max() / want.float().abs().max())
                seconds, spread = median_seconds([ours])
                torch._dynamo.reset()
                function = torch.compile(module.function, dynamic=False)
                other, _ = median_seconds([partial(function, *inputs, *module.weights)])
            except Exception as problem:
                found.append({"block": name, "left_out": f"{type(problem).__name__}: {str(problem).strip()[:300]}"})
                continue
            found.append({
                "block": name, "right": error <= TOLERANCE, "error": error, "microseconds": seconds * 1e6,
                "spread": spread * 1e6, "of_copy_bandwidth": moved(inputs, want) / seconds / bound,
                "times_inductor": other / seconds,
            })  # fmt: skip
    return found
