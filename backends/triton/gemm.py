"""Products of dense matrices with what fuses with them: checks, block sizes, and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.errors import InputError
from .fused import AS_IT_IS, FLOATS, PLAIN, Epilogue, Product, Prologue, exact, four, halved


@dataclass(frozen=True)
class Tiles:
    """Block sizes of a launch.

    Attributes:
        m, n, k: rows, channels and columns that a program takes at a time.
        splits: programs that share the columns.
        warps: of a program.
        stages: of the loop's pipeline.
        group: tiles of rows that go through the channels together.
        tma: whether Hopper's copy engine fetches the operands.
    """

    m: int
    n: int
    k: int
    splits: int
    warps: int
    stages: int
    group: int = 8
    tma: bool = False


HALF = (
    Tiles(16, 64, 128, 4, 4, 4), Tiles(16, 64, 128, 1, 4, 4), Tiles(64, 128, 64, 1, 4, 3), Tiles(128, 128, 64, 1, 8, 3),
)  # fmt: skip
"""16-bit types: few rows of few channels, few rows, some rows, many rows. Bounded on purpose: each is compiled ahead of
time and checked."""
TMA = (Tiles(128, 128, 64, 1, 8, 4, tma=True), Tiles(128, 256, 64, 1, 8, 3, tma=True))
"""Many rows and very many with the copy engine."""
SINGLE = (
    Tiles(16, 64, 32, 4, 4, 2), Tiles(16, 64, 32, 1, 4, 2), Tiles(64, 64, 32, 1, 8, 2), Tiles(128, 64, 32, 1, 8, 2),
)  # fmt: skip
"""The same for float32."""
ONE_ROW = (Tiles(1, 4, 1024, 1, 4, 1), Tiles(1, 2, 1024, 4, 4, 1))
"""For one row: many channels, few channels with many columns."""
_MULTIPROCESSORS = 132
"""Of an H100 or H200: fewer programs than a few for each leave it idle."""


def tiles_for(rows: int, n: int, k: int, dtype: torch.dtype, *, tma: bool = False) -> Tiles:
    """The block sizes for a product of a size."""
    table = SINGLE if dtype == torch.float32 else HALF
    if rows <= 16:
        return table[0] if n <= 64 * 2 * _MULTIPROCESSORS and k >= 1024 else table[1]
    small = -(-rows // 128) * -(-n // 128) < _MULTIPROCESSORS
    if rows <= 64 or small:
        return table[2]
    if tma and dtype != torch.float32:
        return TMA[-(-rows // 128) * -(-n // 256) >= 2 * _MULTIPROCESSORS]
    return table[3]


def gemm(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *, transposed: bool = True, epilogue: Epilogue = PLAIN,
    prologue: Prologue = AS_IT_IS, dtype: torch.dtype | None = None, precision: str = "ieee",
    tiles: Tiles | None = None,
) -> Tensor:  # fmt: skip
    """``epilogue(prologue(x) Wᵀ + bias)``, or ``x W`` if not transposed.

    Args:
        x: [..., M, K] float16, bfloat16 or float32.
        w: [N, K], or [K, N] if not transposed; or with the batch axes of x before.
        bias: [N] or None.
        transposed: whether K is the last axis of w.
        epilogue: what happens to the result in registers.
        prologue: what happens to x in registers.
        dtype: of the result; that of x if None.
        precision: of products in float32: "ieee", "tf32" or "tf32x3".
        tiles: instead of those chosen by size.

    Returns:
        [..., M, N], or half as wide with a gate.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.epilogues import nothing
    from .kernels.gemm import gemm_kernel

    batched = w.dim() > 2
    _check(x, w, bias, transposed)
    k = x.shape[-1]
    channels = w.shape[-2] if transposed else w.shape[-1]
    n = halved(channels, epilogue)
    x3 = (x.reshape(-1, *x.shape[-2:]) if batched else x.reshape(1, -1, k)).contiguous()
    w3 = w.reshape(-1, *w.shape[-2:]).contiguous()
    batches, rows = x3.shape[:2]
    if not batched and rows == 1 and transposed and x.dtype != torch.float32 and tiles is None:
        return _gemv(x3[0], w3[0], bias, n, epilogue, prologue, dtype or x.dtype).reshape(*x.shape[:-1], n)
    t = tiles or tiles_for(rows, n, k, x.dtype, tma=_has_tma(x3, w3, transposed, batched, epilogue, prologue))
    product = Product(x3, batches, rows, n, t.splits, bias, epilogue, dtype or x.dtype)
    if not product.result.numel():
        return product.result.reshape(*x.shape[:-1], n)
    programs = -(-rows // t.m) * -(-n // t.n)
    if t.tma:
        _launch_tma(x3[0], w3[0], product, t, k)
    else:
        gemm_kernel[(programs, t.splits, batches)](
            x3, w3, *product.pointers, *four(prologue.tensors, x3), batches, rows, n, k, rows * k, k,
            w3[0].numel() if batched else 0, w3.shape[2],
            W_NK=transposed, BLOCK_M=t.m, BLOCK_N=t.n, BLOCK_K=t.k, GROUP=t.group,
            HAS_PROLOGUE=prologue.function is not None, PROLOGUE=prologue.function or nothing,
            PRECISION=precision if x.dtype == torch.float32 else "tf32", EXACT=exact(x), **product.constants,
            num_warps=t.warps, num_stages=t.stages,
        )  # fmt: skip
    return product.finished().reshape(*x.shape[:-1], n)


def _gemv(
    x: Tensor, w: Tensor, bias: Tensor | None, n: int, epilogue: Epilogue, prologue: Prologue, dtype: torch.dtype
) -> Tensor:
    from .kernels.epilogues import nothing
    from .kernels.gemm import gemv_kernel

    rows, k = x.shape
    t = ONE_ROW[n <= 2048 and k >= 4096]
    product = Product(x, 1, rows, n, t.splits, bias, epilogue, dtype)
    gemv_kernel[(-(-n // t.n), t.splits, rows)](
        x, w, *product.pointers, *four(prologue.tensors, x), rows, n, k, BLOCK_N=t.n, BLOCK_K=t.k,
        HAS_PROLOGUE=prologue.function is not None, PROLOGUE=prologue.function or nothing, **product.constants,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip
    return product.finished()


def _launch_tma(x: Tensor, w: Tensor, product: Product, t: Tiles, k: int) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    from .kernels.gemm import gemm_tma_kernel

    constants = product.constants
    del constants["SPLITS"], constants["GATED"]
    gemm_tma_kernel[(-(-product.rows // t.m) * -(-product.n // t.n), 1, 1)](
        TensorDescriptor.from_tensor(x, [t.m, t.k]), TensorDescriptor.from_tensor(w, [t.n, t.k]), *product.pointers,
        product.rows, product.n, k, BLOCK_M=t.m, BLOCK_N=t.n, BLOCK_K=t.k, GROUP=t.group, EXACT=exact(x), **constants,
        num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip


def _has_tma(x: Tensor, w: Tensor, transposed: bool, batched: bool, epilogue: Epilogue, prologue: Prologue) -> bool:
    """Whether the copy engine can fetch both operands: a Hopper GPU, rows of whole 16 bytes, no prologue."""
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] != 9:
        return False
    plain = transposed and not batched and not epilogue.gated and prologue.function is None
    return plain and x.dtype != torch.float32 and x.shape[-1] * x.element_size() % 16 == 0


def _check(x: Tensor, w: Tensor, bias: Tensor | None, transposed: bool) -> None:
    problem = None
    k = w.shape[-1] if transposed else w.shape[-2] if w.dim() > 1 else -1
    n = w.shape[-2] if transposed and w.dim() > 1 else w.shape[-1]
    if w.dim() < 2 or x.dim() < 1 or x.shape[-1] != k or (w.dim() > 2 and x.shape[:-2] != w.shape[:-2]):
        problem = f"operands of shapes {list(x.shape)} and {list(w.shape)} have no product"
    elif x.dtype not in FLOATS or x.dtype != w.dtype:
        problem = f"operands are {x.dtype} and {w.dtype}"
    elif x.device != w.device or (bias is not None and bias.device != x.device):
        problem = f"operands are on {x.device} and {w.device}"
    elif bias is not None and bias.shape != (n,):
        problem = f"a bias of shape {list(bias.shape)} is not [{n}]"
    if problem is not None:
        raise InputError(problem, where="a product of dense matrices", fix="make shapes, types and devices agree")
