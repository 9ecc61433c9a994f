"""Products by weights with the pattern 2:4: checks, block sizes, and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fused import checked, exact
from .packing import Sparse24, Sparse24Codes


@dataclass(frozen=True)
class Blocks:
    """Block sizes of a launch.

    Attributes:
        m, n: rows of activations and of weights of a program.
        quads: of 4 columns that a program takes at a time (of a group, where weights are codes).
        splits: programs that share a row's columns; their parts are added afterwards.
        warps: of a program.
        stages: of the loop's pipeline.
    """

    m: int
    n: int
    quads: int
    splits: int
    warps: int
    stages: int


BLOCKS = (Blocks(16, 32, 32, 4, 4, 3), Blocks(16, 32, 32, 1, 4, 3), Blocks(32, 64, 32, 1, 8, 2))
"""Few rows of few channels, few rows, many rows. Bounded on purpose: each is compiled ahead of time and checked."""
BLOCKS_FLOAT32 = (Blocks(16, 32, 16, 4, 8, 2), Blocks(16, 32, 16, 1, 8, 2), Blocks(32, 32, 16, 1, 8, 2))
"""The same for float32, whose products take many registers."""
_FEW_CHANNELS = 8192


def blocks_for(rows: int, n: int, dtype: torch.dtype = torch.bfloat16) -> Blocks:
    """The block sizes for some rows of activations and n output channels."""
    table = BLOCKS_FLOAT32 if dtype == torch.float32 else BLOCKS
    if rows > table[0].m:
        return table[2]
    # A GPU of 132 multiprocessors wants several programs on each: few channels are shared out along the columns.
    return table[0] if n <= _FEW_CHANNELS else table[1]


def sparse24(x: Tensor, weights: Sparse24, bias: Tensor | None = None, *, blocks: Blocks | None = None) -> Tensor:
    """``x Wᵀ + bias`` for weights with the pattern 2:4.

    Args:
        x: [..., K], float16, bfloat16 or float32, of the weights' type and on their device.
        weights: packed.
        bias: [N] or None.
        blocks: instead of those chosen by size.

    Returns:
        [..., N] of the type of x.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.products import sparse24_kernel

    n, k = weights.shape
    flat = checked(x, weights.columns, n, weights.values, bias, same=True)
    planes = _planes(flat, k)
    rows, quads = flat.shape[0], k // 4
    b = blocks or blocks_for(rows, n, x.dtype)
    y = _output(flat, rows, n, b)
    sparse24_kernel[_grid(rows, n, b)](
        planes, weights.values, weights.places, _bias(bias, b, y), y, rows, n, quads, weights.places.shape[1],
        BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_Q=b.quads, SPLITS=b.splits, HAS_BIAS=bias is not None and b.splits == 1,
        PRECISION=_precision(x), EXACT=exact(x), num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return _finished(y, x, bias, b, n)


def sparse24_w4(
    x: Tensor, weights: Sparse24Codes, bias: Tensor | None = None, *, blocks: Blocks | None = None
) -> Tensor:
    """``x Wᵀ + bias`` for weights with the pattern 2:4 in 4-bit codes; see :func:`sparse24`."""
    from .kernels.products import sparse24_w4_kernel

    n, quads = weights.codes.shape
    flat = checked(x, 4 * quads, n, weights.scales, bias, same=True)
    planes, rows = _planes(flat, 4 * quads), flat.shape[0]
    b = blocks or blocks_for(rows, n, x.dtype)
    y = _output(flat, rows, n, b)
    sparse24_w4_kernel[_grid(rows, n, b)](
        planes, weights.codes, weights.places, weights.scales, _bias(bias, b, y), y, rows, n, quads,
        weights.places.shape[1], weights.scales.shape[1],
        BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_Q=weights.group // 4, SPLITS=b.splits,
        HAS_BIAS=bias is not None and b.splits == 1, PRECISION=_precision(x), EXACT=exact(x), num_warps=b.warps,
        num_stages=b.stages,
    )  # fmt: skip
    return _finished(y, x, bias, b, n)


def _planes(x: Tensor, k: int) -> Tensor:
    """[rows, K] as [4, rows, K / 4], padded."""
    if x.shape[1] < k:
        x = torch.nn.functional.pad(x, (0, k - x.shape[1]))
    return x.reshape(len(x), k // 4, 4).permute(2, 0, 1).contiguous()


def _grid(rows: int, n: int, b: Blocks) -> tuple[int, int, int]:
    return -(-n // b.n), max(1, -(-rows // b.m)), b.splits


def _output(x: Tensor, rows: int, n: int, b: Blocks) -> Tensor:
    dtype = torch.float32 if b.splits > 1 else x.dtype
    return torch.empty(b.splits, rows, n, dtype=dtype, device=x.device)


def _bias(bias: Tensor | None, b: Blocks, y: Tensor) -> Tensor:
    return bias if bias is not None and b.splits == 1 else y


def _finished(y: Tensor, x: Tensor, bias: Tensor | None, b: Blocks, n: int) -> Tensor:
    result = y[0]
    if b.splits > 1:
        result = y.sum(0)
        if bias is not None:
            result = result + bias
    return result.to(x.dtype).reshape(*x.shape[:-1], n)


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"
