"""Products by weights in codes: checks, block sizes, and the launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import InputError
from . import unpacking
from .codes import Codes4, Codes8, Rows8
from .fused import PLAIN, Epilogue, Product, checked, exact, gate, halved, interpreted
from .gemm import Tiles

FEW = 16
"""Rows up to which a product is bound by the bytes of the weights."""


@dataclass(frozen=True)
class Shares:
    """Block sizes of a launch whose warps share out the columns.

    Attributes:
        m, n: rows and channels of a program.
        parts: blocks of columns that a program takes at a time, one to a warp.
        warps: of a program.
        stages: of the loop's pipeline.
    """

    m: int
    n: int
    parts: int
    warps: int
    stages: int


FOUR_ROW = (Shares(1, 4, 32, 2, 1), Shares(1, 4, 16, 2, 1))
"""For 4 bits and one row, by ``kernels/one_row.py``: few channels, and many; parts are groups of 128."""
FOUR_FEW = (Shares(16, 32, 8, 4, 3), Shares(16, 32, 4, 4, 3))
"""For 4 bits and few rows: few channels, which make few programs, and many. Each is compiled ahead of time."""
FOUR_FEW_FLOAT32 = (Shares(16, 16, 1, 8, 1), Shares(16, 16, 1, 8, 1))
FOUR_MANY = (Tiles(64, 128, 0, 1, 8, 3), Tiles(128, 128, 0, 1, 8, 3))
"""For 4 bits and many rows: some, and many."""
FOUR_MANY_FLOAT32 = (Tiles(16, 64, 0, 1, 8, 2), Tiles(32, 64, 0, 1, 8, 2))
"""The same for float32, where registers decide: groups of 256, and smaller ones."""
EIGHT_FEW = (Shares(16, 32, 8, 4, 4), Shares(16, 32, 4, 4, 4))
"""For 8 bits and few rows: few channels, and many."""
EIGHT_ROW = Shares(1, 4, 32, 4, 1)
"""For 8 bits and one row; parts are blocks of 64."""
EIGHT_FEW_FLOAT32 = (Shares(16, 16, 2, 4, 2), Shares(16, 16, 2, 4, 2))
EIGHT_MANY = (Tiles(64, 64, 64, 1, 4, 3), Tiles(128, 128, 64, 1, 8, 3))
"""For 8 bits: some rows, and many."""
EIGHT_MANY_FLOAT32 = (Tiles(32, 32, 64, 1, 8, 2), Tiles(32, 32, 64, 1, 8, 2))
SCALED = (Tiles(16, 64, 128, 4, 4, 4), Tiles(16, 64, 256, 1, 4, 3), Tiles(64, 128, 128, 1, 4, 3),
          Tiles(128, 128, 128, 1, 8, 3))  # fmt: skip
"""For 8 bits by 8 bits: few rows of few channels, few rows, some rows, many rows."""
_FEW_CHANNELS = 8192


def w4a16(
    x: Tensor, weights: Codes4, bias: Tensor | None = None, *, epilogue: Epilogue = PLAIN,
    shares: Shares | None = None,
) -> Tensor:  # fmt: skip
    """``epilogue(x Wᵀ + bias)`` for weights in 4-bit codes.

    Args:
        x: [..., K], float16, bfloat16 or float32, of the scales' type and on their device.
        weights: packed.
        bias: [N] or None.
        epilogue: what happens to the result in registers.
        shares: instead of the blocks chosen by size, for few rows.

    Returns:
        [..., N] of the type of x, or half as wide with a gate.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.four_bits import four_bits_few_kernel

    channels, k = weights.shape
    flat = checked(x, k, channels, weights.scales, bias, same=True)
    rows, n = len(flat), halved(channels, epilogue)
    product = Product(flat, 1, rows, n, 1, bias, epilogue, x.dtype)
    if rows > FEW and shares is None:
        if epilogue.gated:
            return gate(w4a16(x, weights, bias), epilogue)
        _w4a16_many(flat, weights, product)
        return product.result.reshape(*x.shape[:-1], n)
    if row_of(flat, weights.codes, shares):
        in_memory = weights.table is not None and not weights.baked
        _w4a16_row(flat, weights, product, shares or FOUR_ROW[n > _FEW_CHANNELS or in_memory])
        return product.result.reshape(*x.shape[:-1], n)
    table = FOUR_FEW_FLOAT32 if x.dtype == torch.float32 else FOUR_FEW
    # Looking values up takes buffers or registers, zero points and a second factor registers: the smaller blocks.
    heavy = weights.zeros is not None or weights.table is not None or epilogue.gated
    s = shares or table[n > _FEW_CHANNELS or heavy]
    if product.result.numel():
        four_bits_few_kernel[(-(-n // s.n), -(-rows // s.m))](
            flat, *_operands4(weights), *product.pointers, rows, n, k // weights.group,
            BLOCK_M=s.m, BLOCK_N=s.n, PARTS=parts_of(s, weights.group), GATED=product.constants["GATED"],
            **_constants4(flat, weights, product), num_warps=s.warps, num_stages=s.stages,
        )  # fmt: skip
    return product.result.reshape(*x.shape[:-1], n)


def row_of(x: Tensor, codes: Tensor, shares: Shares | None) -> bool:
    """Whether a kernel for one row takes a product: 16-bit numbers, at places where words can be read."""
    wanted = len(x) == 1 if shares is None else shares.m == 1
    return wanted and x.dtype != torch.float32 and x.data_ptr() % 8 == 0 and codes.data_ptr() % 4 == 0


def row_parts(shares: Shares, group: int) -> int:
    """Groups that a step of a product of one row takes."""
    return shares.parts * 128 // group


def _w4a16_row(flat: Tensor, weights: Codes4, product: Product, s: Shares) -> None:
    from .kernels.one_row import four_bits_row_kernel

    gated = product.constants["GATED"]
    codes, *others = _operands4(weights)
    constants = _constants4(flat, weights, product)
    del constants["PRECISION"], constants["EXACT"]
    if weights.table is None and not interpreted():
        constants["UNPACK"] = unpacking.SIXTEEN
    four_bits_row_kernel[(-(-product.n // (2 if gated else 4)), product.rows)](
        flat.view(torch.int64), codes.view(torch.int32), *others, *product.pointers, product.rows, product.n,
        weights.shape[1] // weights.group, PARTS=row_parts(s, weights.group), GATED=gated, **constants,
        num_warps=s.warps, num_stages=s.stages,
    )  # fmt: skip


def parts_of(shares: Shares, group: int) -> int:
    """Groups that a step takes: fewer where they are wide, for the sake of shared memory."""
    return max(1, shares.parts * 128 // max(128, group))


def _w4a16_many(flat: Tensor, weights: Codes4, product: Product) -> None:
    from .kernels.four_bits import four_bits_many_kernel

    t = tiles4(product.rows, weights.group, flat.dtype)
    four_bits_many_kernel[(-(-product.rows // t.m) * -(-product.n // t.n),)](
        flat, *_operands4(weights), *product.pointers, product.rows, product.n, weights.shape[1] // weights.group,
        BLOCK_M=t.m, BLOCK_N=t.n, GROUP=t.group, **_constants4(flat, weights, product), num_warps=t.warps,
        num_stages=t.stages,
    )  # fmt: skip


def tiles4(rows: int, group: int, dtype: torch.dtype) -> Tiles:
    """The block sizes for 4 bits and many rows."""
    # Groups of 256 fill registers and shared memory with fewer rows.
    narrow = group <= 128
    return FOUR_MANY_FLOAT32[narrow] if dtype == torch.float32 else FOUR_MANY[rows > 128 and narrow]


def _operands4(weights: Codes4) -> tuple[Tensor, ...]:
    """codes, scales, zeros, table of a kernel."""
    zeros = weights.codes if weights.zeros is None else weights.zeros
    table = weights.scales
    if weights.table is not None:
        table = _table(weights.table, weights.codes.device)
    return weights.codes, weights.scales, zeros, table


@lru_cache(maxsize=64)
def _table(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _constants4(x: Tensor, weights: Codes4, product: Product) -> dict[str, Any]:
    constants = product.constants
    del constants["SPLITS"], constants["GATED"]
    return constants | {
        "HALF": weights.group // 2, "HAS_ZEROS": weights.zeros is not None, "TABLE": weights.table is not None,
        "UNPACK": "" if interpreted() else assembly(x.dtype, weights.table if weights.baked else None,
                                                    weights.table is not None),
        "PRECISION": "ieee" if x.dtype == torch.float32 else "tf32", "EXACT": exact(x),
    }  # fmt: skip


@lru_cache(maxsize=64)
def assembly(dtype: torch.dtype, table: tuple[float, ...] | None, tabulated: bool) -> str:
    """The assembly that expands codes; "" where plain operations have to do: float32, tables that are not baked."""
    if dtype == torch.float32 or (tabulated and table is None):
        return ""
    return unpacking.integers(dtype) if table is None else unpacking.table(table, dtype)


def w8a16(
    x: Tensor, weights: Codes8, bias: Tensor | None = None, *, epilogue: Epilogue = PLAIN,
    shares: Shares | None = None,
) -> Tensor:  # fmt: skip
    """``epilogue(x Wᵀ + bias)`` for weights in 8-bit codes; see :func:`w4a16`. A gate is a launch of its own.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    n, k = weights.shape
    if epilogue.gated:
        halved(n, epilogue)
        return gate(w8a16(x, weights, bias, shares=shares), epilogue)
    flat = checked(x, k, n, weights.scales, bias, same=True)
    rows = len(flat)
    product = Product(flat, 1, rows, n, 1, bias, epilogue, x.dtype)
    if k % 4 == 0 and row_of(flat, weights.codes, shares):
        _w8a16_row(flat, weights, product, shares or EIGHT_ROW)
        return product.result.reshape(*x.shape[:-1], n)
    if product.result.numel():
        _w8a16(flat, weights, product, shares)
    return product.result.reshape(*x.shape[:-1], n)


def _w8a16(flat: Tensor, weights: Codes8, product: Product, shares: Shares | None) -> None:
    from .kernels.eight_bits import eight_bits_few_kernel, eight_bits_many_kernel

    rows, n, single = product.rows, product.n, flat.dtype == torch.float32
    step = min(64, weights.group or 64)
    operands = (
        flat, weights.codes, *_operands8(weights), *product.pointers, rows, n, weights.shape[1], weights.scales.shape[1]
    )  # fmt: skip
    constants = product.constants
    del constants["SPLITS"], constants["GATED"]
    constants |= {
        "BLOCK_K": step, "KIND": weights.kind, "GROUP": 8, "PER": (weights.group or step) // step,
        "HAS_ZEROS": weights.zeros is not None, "GROUPED": weights.group is not None,
        "PRECISION": "ieee" if single else "tf32", "EXACT": exact(flat),
    }  # fmt: skip
    if rows <= FEW or shares is not None:
        s = shares or (EIGHT_FEW_FLOAT32 if single else EIGHT_FEW)[n > _FEW_CHANNELS]
        eight_bits_few_kernel[(-(-rows // s.m) * -(-n // s.n),)](
            *operands, BLOCK_M=s.m, BLOCK_N=s.n, PARTS=s.parts, **constants, num_warps=s.warps, num_stages=s.stages
        )
    else:
        # Scales and zero points of groups take registers: the smaller blocks.
        light = weights.zeros is None or weights.group is None
        t = (EIGHT_MANY_FLOAT32 if single else EIGHT_MANY)[rows > 128 and light]
        eight_bits_many_kernel[(-(-rows // t.m) * -(-n // t.n),)](
            *operands, BLOCK_M=t.m, BLOCK_N=t.n, **constants, num_warps=t.warps, num_stages=t.stages
        )


def _operands8(weights: Codes8) -> tuple[Tensor, Tensor, Tensor]:
    """scales, zeros, table of a kernel."""
    zeros = weights.codes if weights.zeros is None else weights.zeros
    return weights.scales, zeros, weights.scales if weights.table is None else weights.table


def _w8a16_row(flat: Tensor, weights: Codes8, product: Product, s: Shares) -> None:
    from .kernels.one_row import eight_bits_row_kernel

    constants = product.constants
    del constants["SPLITS"], constants["GATED"]
    eight_bits_row_kernel[(-(-product.n // 4), product.rows)](
        flat.view(torch.int64), weights.codes.view(torch.int32), *_operands8(weights), *product.pointers, product.rows,
        product.n, weights.shape[1], weights.scales.shape[1], PARTS=s.parts, HAS_ZEROS=weights.zeros is not None,
        **row_constants8(weights), **constants, num_warps=s.warps, num_stages=s.stages,
    )  # fmt: skip


def row_constants8(weights: Codes8) -> dict[str, Any]:
    """The constexpr arguments of a product of one row that concern codes of 8 bits."""
    step = min(64, weights.group or 64)
    unpack = "" if interpreted() or weights.kind != "integer" else unpacking.TWO_HUNDRED_AND_FIFTY_SIX
    return {"WORDS": step // 4, "KIND": weights.kind, "GROUPED": weights.group is not None,
            "PER": (weights.group or step) // step, "UNPACK": unpack}  # fmt: skip


def quantize_rows(x: Tensor, kind: str = "integer") -> tuple[Tensor, Tensor]:
    """Round rows of x [..., K] to int8, or to float8 e4m3 for kind "float": codes and float32 scales [rows]."""
    from .kernels.rows import quantize_rows_kernel

    flat = x.reshape(-1, x.shape[-1]).contiguous()
    rows, k = flat.shape
    whole = kind == "integer"
    codes = torch.empty(rows, k, dtype=torch.int8 if whole else torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    # Neither the interpreter nor GPUs before Ada round to float8.
    if not whole and not _has_float8(x):
        scales.copy_(flat.abs().amax(-1).float() / 448)
        scales[scales == 0] = 1
        codes.copy_((flat.float() / scales[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn))
    elif rows:
        block = 1 << min(11, max(0, k - 1).bit_length())
        quantize_rows_kernel[(rows,)](
            flat, codes, scales, k, TOP=127.0 if whole else 448.0, WHOLE=whole, BLOCK=block, num_warps=4
        )
    return codes, scales


def _has_float8(x: Tensor) -> bool:
    return x.is_cuda and not interpreted() and torch.cuda.get_device_capability(x.device) >= (8, 9)


def scaled(
    x: Tensor, row_scales: Tensor, w: Tensor, channel_scales: Tensor, bias: Tensor | None = None, *,
    zeros: tuple[Tensor, Tensor] | None = None, dtype: torch.dtype = torch.bfloat16, epilogue: Epilogue = PLAIN,
    tiles: Tiles | None = None,
) -> Tensor:  # fmt: skip
    """``epilogue(s_row s_channel (x Wᵀ) + bias)`` for codes of 8 bits on both sides (W8A8, fp8).

    Args:
        x: codes [..., K], int8 or float8_e4m3fn.
        row_scales: float32 [rows], see :func:`quantize_rows`.
        w: codes [N, K] of the type of x.
        channel_scales: [N].
        bias: [N] or None.
        zeros: zero points [rows] of int8 rows, and int32 [N], the sum of all codes of each channel of w.
        dtype: of the result.
        epilogue: what happens to the result in registers.
        tiles: instead of the blocks chosen by size.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.eight_bits import scaled_kernel

    channels, k = w.shape
    flat = x.reshape(-1, x.shape[-1])
    rows, n = len(flat), halved(channels, epilogue)
    problem = None
    if x.shape[-1] != k or row_scales.numel() != rows or channel_scales.numel() != channels:
        problem = (f"codes of shapes {list(x.shape)} and {list(w.shape)} with {row_scales.numel()} and "
                   f"{channel_scales.numel()} scales have no product")  # fmt: skip
    elif x.dtype != w.dtype or x.dtype not in (torch.int8, torch.float8_e4m3fn):
        problem = f"codes are {x.dtype} and {w.dtype}"
    elif bias is not None and bias.shape != (channels,):
        problem = f"a bias of shape {list(bias.shape)} is not [{channels}]"
    elif zeros is not None and (
        x.dtype != torch.int8 or zeros[0].numel() != rows or zeros[1].numel() != channels
        or zeros[1].dtype != torch.int32
    ):  # fmt: skip
        problem = f"{zeros[0].numel()} zero points and {zeros[1].numel()} sums do not fit int8 codes of {rows} rows"
    elif len({t.device for t in (x, row_scales, w, channel_scales, *(zeros or ()))}) > 1:
        problem = "operands are on several devices"
    if problem is not None:
        raise InputError(problem, where="a product of 8-bit codes", fix="make shapes, types and devices agree")
    t = tiles or SCALED[int(n > _FEW_CHANNELS) if rows <= FEW else 2 + int(rows > 128)]
    kind = "integer" if x.dtype == torch.int8 else "float" if _has_float8(x) else "bytes"
    left, right = flat.contiguous(), w.contiguous()
    if kind == "bytes":
        left, right = left.view(torch.uint8), right.view(torch.uint8)
    product = Product(left, 1, rows, n, t.splits, bias, epilogue, dtype)
    if product.result.numel():
        scaled_kernel[(-(-rows // t.m) * -(-n // t.n), t.splits)](
            left, right, row_scales.contiguous(), channel_scales.contiguous(),
            *((left, left) if zeros is None else (zeros[0].contiguous(), zeros[1].contiguous())), *product.pointers,
            rows, n, k, BLOCK_M=t.m, BLOCK_N=t.n, BLOCK_K=t.k, GROUP=t.group, KIND=kind, HAS_ZEROS=zeros is not None,
            **product.constants,
            num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
    return product.finished().reshape(*x.shape[:-1], n)


def w8a8(
    x: Tensor, row_scales: Tensor, row_zeros: Tensor | None, weights: Rows8, *, dtype: torch.dtype,
    epilogue: Epilogue = PLAIN,
) -> Tensor:  # fmt: skip
    """:func:`scaled` for rows with zero points, or with one scale for all rows; what generated files call.

    Args:
        x: codes [..., K] of the type of the weights' codes.
        row_scales: [..., 1], or one.
        row_zeros: like the scales, or None.
        weights: packed.
        dtype: of the result.
        epilogue: what happens to the result in registers.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    rows = x.numel() // max(1, x.shape[-1])
    scales = row_scales.reshape(-1).expand(rows)
    zeros = None
    if row_zeros is not None and weights.sums is not None:
        zeros = row_zeros.reshape(-1).expand(rows), weights.sums
    return scaled(x, scales, weights.codes, weights.scales, zeros=zeros, dtype=dtype, epilogue=epilogue)
