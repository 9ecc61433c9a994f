"""Products by weights with the pattern 2:4: checks, block sizes, and the launch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import unpacking
from .fused import PLAIN, Epilogue, Product, checked, exact, gate, halved, interpreted
from .gemm import gemm
from .pattern24 import BLOCK, Sparse24, Sparse24Codes
from .quantized import FEW as FEW_ROWS
from .quantized import Shares, row_of

FEW = (Shares(16, 16, 4, 4, 3), Shares(16, 32, 4, 4, 3))
"""For values and for codes. Bounded on purpose: each is compiled ahead of time and checked."""
ROW = (Shares(1, 4, 32, 8, 1), Shares(1, 4, 32, 2, 1), Shares(1, 4, 16, 2, 1))
"""For one row, by ``kernels/one_row.py``: for values, codes in groups of 64, and of 128; parts are blocks of quads."""
MANY = (Shares(64, 32, 1, 4, 2), Shares(32, 32, 1, 4, 2))
"""The same for 17 to 64 rows, in 16 bits."""
MOST_ROWS = 64
"""With more rows than these weights are expanded in memory first. Expanded in registers, once for every 64 rows, 4,096
rows took an H100 16 times as long as the dense product; to write and read dense weights is a tenth of that."""
_EXPANDED = 32
"""Blocks of quads that a program expands."""
FEW_FLOAT32 = (Shares(16, 16, 2, 4, 2), Shares(16, 16, 2, 4, 2))


def sparse24(
    x: Tensor, weights: Sparse24 | Sparse24Codes, bias: Tensor | None = None, *, epilogue: Epilogue = PLAIN,
    shares: Shares | None = None,
) -> Tensor:  # fmt: skip
    """``epilogue(x Wᵀ + bias)`` for weights with the pattern 2:4, as values or in 4-bit codes.

    Args:
        x: [..., K], float16, bfloat16 or float32, of the weights' type and on their device.
        weights: packed.
        bias: [N] or None.
        epilogue: what happens to the result in registers; a gate is a launch of its own.
        shares: instead of the blocks chosen by type.

    Returns:
        [..., N] of the type of x.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.sparse import sparse24_kernel

    if epilogue.gated:
        halved(weights.shape[0], epilogue)
        return gate(sparse24(x, weights, bias, shares=shares), epilogue)
    n, k = weights.shape
    values, scales, groups = _stored(weights)
    flat = checked(x, weights.columns, n, scales, bias, same=True)
    rows, blocks = len(flat), k // (4 * BLOCK)
    if rows > MOST_ROWS and shares is None:
        wide = torch.nn.functional.pad(flat, (0, k - flat.shape[1]))
        return gemm(wide, expand24(weights), bias, epilogue=epilogue).reshape(*x.shape[:-1], n)
    product = Product(flat, 1, rows, n, 1, bias, epilogue, x.dtype)
    # A row of whole blocks needs no padding.
    if row_of(flat, weights.masks, shares) and flat.shape[1] == k:
        _row(flat, weights, product, shares or row_shares(weights))
    elif product.result.numel():
        s = shares or shares_for(rows, x.dtype, coded=isinstance(weights, Sparse24Codes))
        sparse24_kernel[(-(-n // s.n), -(-rows // s.m))](
            _planes(flat, k), values, weights.masks, scales, *product.pointers, rows, n, blocks, groups,
            BLOCK_M=s.m, BLOCK_N=s.n, PARTS=s.parts, **constants(x.dtype, weights),
            EXACT=exact(x), **_finish(product), num_warps=s.warps, num_stages=s.stages,
        )  # fmt: skip
    return product.result.reshape(*x.shape[:-1], n)


def expand24(weights: Sparse24 | Sparse24Codes) -> Tensor:
    """The dense weights [N, K], K padded, of the type of the values or scales."""
    from .kernels.sparse import expand24_kernel

    n, k = weights.shape
    values, scales, groups = _stored(weights)
    dense = torch.empty(n, k, dtype=scales.dtype, device=scales.device)
    blocks = k // (4 * BLOCK)
    if dense.numel():
        expand24_kernel[(n, -(-blocks // _EXPANDED))](
            values, weights.masks, scales, dense, n, blocks, groups, PARTS=_EXPANDED,
            CODES=isinstance(weights, Sparse24Codes), HALVES=_halves(weights), num_warps=4,
        )  # fmt: skip
    return dense


def _row(x: Tensor, weights: Sparse24 | Sparse24Codes, product: Product, s: Shares) -> None:
    from .kernels.one_row import sparse24_row_kernel

    n, k = weights.shape
    values, scales, groups = _stored(weights)
    sparse24_row_kernel[(-(-n // 4), product.rows)](
        x.view(torch.int64), values, weights.masks, scales, *product.pointers, product.rows, n, k // (4 * BLOCK),
        groups, PARTS=s.parts, **row_constants(x.dtype, weights), **_finish(product), num_warps=s.warps,
        num_stages=s.stages,
    )  # fmt: skip


def row_shares(weights: Sparse24 | Sparse24Codes) -> Shares:
    """The block sizes for one row."""
    return ROW[_halves(weights) if isinstance(weights, Sparse24Codes) else 0]


def row_constants(dtype: torch.dtype, weights: Sparse24 | Sparse24Codes) -> dict[str, Any]:
    """The constexpr arguments of a product of one row that concern the weights."""
    coded = isinstance(weights, Sparse24Codes)
    choose, registers = ("", "") if interpreted() else unpacking.choose24(dtype, coded=coded)
    return {"CODES": coded, "HALVES": _halves(weights), "CHOOSE": choose, "REGISTERS": registers}


def shares_for(rows: int, dtype: torch.dtype, *, coded: bool) -> Shares:
    """The block sizes for a number of rows, for values or for codes."""
    if dtype == torch.float32:
        return FEW_FLOAT32[coded]
    return (MANY if rows > FEW_ROWS else FEW)[coded]


def constants(dtype: torch.dtype, weights: Sparse24 | Sparse24Codes) -> dict[str, Any]:
    """The constexpr arguments that concern the weights."""
    coded = isinstance(weights, Sparse24Codes)
    plain = interpreted() or dtype == torch.float32
    expand = ["" if plain else unpacking.expand24(half, dtype if coded else None) for half in (0, 1)]
    return {"CODES": coded, "HALVES": _halves(weights), "EXPAND": expand[0], "EXPAND_HIGH": expand[1],
            "PRECISION": "ieee" if dtype == torch.float32 else "tf32"}  # fmt: skip


def _stored(weights: Sparse24 | Sparse24Codes) -> tuple[Tensor, Tensor, int]:
    """What a kernel reads as values and as scales (anything of their type where there are none), scales a channel."""
    if isinstance(weights, Sparse24Codes):
        return weights.codes, weights.scales, weights.scales.shape[1]
    return weights.values, weights.values, 0


def _halves(weights: Sparse24 | Sparse24Codes) -> int:
    """Half blocks that share a scale."""
    return weights.group // (2 * BLOCK) if isinstance(weights, Sparse24Codes) else 1


def _finish(product: Product) -> dict[str, Any]:
    found = product.constants
    del found["SPLITS"], found["GATED"]
    return found


def _planes(x: Tensor, k: int) -> Tensor:
    """[rows, K] as [4, rows, K / 4], padded."""
    if x.shape[1] < k:
        x = torch.nn.functional.pad(x, (0, k - x.shape[1]))
    return x.reshape(len(x), k // 4, 4).permute(2, 0, 1).contiguous()
