"""Attention: checks, block sizes, and the launch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import InputError
from .fused import FLOATS, exact, power_of_two

WIDEST = 256
"""Numbers of a head, at most."""


@dataclass(frozen=True)
class Blocks:
    """Block sizes of a launch.

    Attributes:
        m, n: queries and keys that a program takes at a time.
        warps: of a program.
        stages: of the loop's pipeline.
    """

    m: int
    n: int
    warps: int
    stages: int


MANY = {64: Blocks(128, 64, 8, 3), 128: Blocks(128, 64, 8, 2), 256: Blocks(64, 32, 8, 2)}
"""16-bit types, by the width of a head that is not exceeded. Each is compiled ahead of time."""
HOPPER = {64: Blocks(128, 128, 8, 3), 128: Blocks(128, 128, 8, 2), 256: Blocks(64, 32, 8, 2)}
"""The same on Hopper GPUs, where nothing but the causal rule is applied to the scores."""
BIASED = Blocks(64, 32, 4, 2)
"""With a bias or a mask, for heads of up to 128."""
MANY_FLOAT32 = {64: Blocks(64, 32, 8, 2), 128: Blocks(32, 16, 8, 2), 256: Blocks(16, 32, 8, 1)}
FEW = {64: Blocks(16, 64, 4, 3), 128: Blocks(16, 64, 4, 3), 256: Blocks(16, 32, 4, 2)}
"""For few queries."""
FEW_FLOAT32 = {64: Blocks(16, 32, 4, 2), 128: Blocks(16, 32, 8, 1), 256: Blocks(16, 16, 8, 2)}
_PROGRAMS = 2 * 132
"""Programs that fill a GPU of 132 multiprocessors."""
_MOST_SPLITS = 32
_LONG = 128
"""Keys from which on sharing them among programs pays for the launch that adds the parts."""


def blocks_for(
    width: int,
    dtype: torch.dtype,
    *,
    few: bool = False,
    hopper: bool = False,
    biased: bool = False,
    integers: bool = False,
) -> Blocks:
    """The block sizes for heads of a width."""
    if dtype == torch.float32:
        table = FEW_FLOAT32 if few else MANY_FLOAT32
    else:
        table = FEW if few else HOPPER if hopper else MANY
    b = next(table[limit] for limit in sorted(table) if width <= limit)
    if integers and dtype == torch.float32:
        return Blocks(b.m, b.n, b.warps, 1)  # what is expanded from 8 bits on its way takes registers
    if biased and b.n > 32:
        # A tile of the bias takes as many registers as one of scores.
        return BIASED if b is MANY[128] else Blocks(b.m, 32, b.warps, min(b.stages, 2))
    return b


@dataclass(frozen=True)
class BlockMask:
    """Blocks of queries and keys that are read; all others count as not seen.

    Attributes:
        blocks: bool or uint8 [queries / rows, keys / columns], rounded up.
        rows, columns: of a block.
    """

    blocks: Tensor
    rows: int
    columns: int


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, window: int | None = None, bias: Tensor | None = None,
    block_mask: BlockMask | None = None, lengths_q: Tensor | None = None, lengths_k: Tensor | None = None,
    scale: float | None = None, soft_cap: float | None = None, blocks: Blocks | None = None, precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """``softmax(scale q kᵀ + bias) v``, without the matrix of scores.

    Args:
        q: [batch, heads, queries, d], the last axis dense.
        k, v: [batch, shared heads, keys, d and d_v]; heads are a multiple of the shared.
        causal: a query sees the keys up to its own place; the last query's is the last key's.
        window: with causal, only so many of them, its own included.
        bias: broadcast to [batch, heads, queries, keys], added to the scores; -inf hides; of bools False hides.
        block_mask: which blocks are read.
        lengths_q, lengths_k: int32 [batch], tokens in use of each sequence, or both None.
        scale: 1 / sqrt(d) if None.
        soft_cap: scores go through ``cap tanh(score / cap)``.
        blocks: instead of the block sizes chosen by width.
        precision: of products in float32.

    Returns:
        [batch, heads, queries, d_v] of the type of q. A query that sees nothing has 0.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.attention import attention_kernel

    batch, heads, queries, keys, d, d_v = _sizes(q, k, v)
    if window is not None and (not causal or window < 1):
        raise InputError(f"a window of {window} keys without causal", where="attention", fix="pass causal=True")
    plain = window is None and bias is None and block_mask is None and lengths_q is None and soft_cap is None
    hopper = plain and q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9
    b = blocks or blocks_for(max(d, d_v), q.dtype, hopper=hopper, biased=bias is not None)
    if block_mask is not None:
        b = _fitting(b, block_mask, queries, keys)
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    y = torch.empty(batch, heads, queries, d_v, dtype=q.dtype, device=q.device)
    if not y.numel():
        return y
    lengths = _lengths(lengths_q, lengths_k, batch, q)
    spread = q if bias is None else _spread(bias, (batch, heads, queries, keys))
    mask = q if block_mask is None else block_mask.blocks.to(torch.uint8).contiguous()
    attention_kernel[(-(-queries // b.m), batch * heads)](
        q, k, v, y, spread, mask, *(lengths or (q, q)),
        heads, heads // k.shape[1], queries, keys, d, d_v, _scale(scale, d), window or 0, soft_cap or 0.0,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3],
        *((0, 0, 0, 0) if bias is None else spread.stride()),
        BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_D=max(16, power_of_two(d)), BLOCK_V=max(16, power_of_two(d_v)), CAUSAL=causal,
        WINDOWED=window is not None, HAS_BIAS=bias is not None, HAS_BLOCKS=block_mask is not None,
        HAS_LENGTHS=lengths is not None, SOFT_CAP=soft_cap is not None,
        PRECISION=precision if q.dtype == torch.float32 else "tf32", EXACT=exact(q),
        num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return y


def decode(
    q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor | None = None, window: int | None = None,
    bias: Tensor | None = None, scale: float | None = None, soft_cap: float | None = None,
    k_scales: Tensor | None = None, v_scales: Tensor | None = None, splits: int | None = None,
    blocks: Blocks | None = None, precision: str = "ieee",
) -> Tensor:  # fmt: skip
    """Attention of few queries, causal, whose keys are shared out among programs (flash decoding, Dao et al. 2023).

    Args:
        q: [batch, heads, queries, d].
        k, v: caches [batch, shared heads, keys, d and d_v]; int8 with scales.
        lengths: int32 [batch], keys in use, the queries' own included; all if None.
        window: keys that a query sees, its own included.
        bias: broadcast to [batch, heads, queries, keys], as in :func:`attention`.
        scale: 1 / sqrt(d) if None.
        soft_cap: scores go through ``cap tanh(score / cap)``.
        k_scales, v_scales: [batch, shared heads, keys] of int8 caches.
        splits: parts of the keys, a power of two; chosen to fill a GPU if None.
        blocks: instead of the block sizes chosen by width.
        precision: of products in float32.

    Returns:
        [batch, heads, queries, d_v] of the type of q.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.attention import combine_kernel, decoding_kernel

    integers = k.dtype == torch.int8
    if integers != (k_scales is not None and v_scales is not None):
        raise InputError("int8 caches need scales, others have none", where="decode", fix="pass k_scales and v_scales")
    batch, heads, queries, keys, d, d_v = _sizes(q, k, v, integers=integers)
    shared = k.shape[1]
    group = heads // shared
    rows = group * queries
    b = blocks or blocks_for(max(d, d_v), q.dtype, few=True, integers=integers)
    parts_of_rows = -(-rows // b.m)
    if splits is None:
        wanted = -(-_PROGRAMS // max(1, batch * shared * parts_of_rows))
        splits = min(_MOST_SPLITS, power_of_two(min(wanted, max(1, -(-keys // b.n)))))
    grouped = q.reshape(batch, shared, rows, d).contiguous()
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    y = torch.empty(batch, shared, rows, d_v, dtype=q.dtype, device=q.device)
    if not y.numel():
        return y.reshape(batch, heads, queries, d_v)
    parts = torch.empty(batch * shared, splits, rows, d_v, dtype=torch.float32, device=q.device)
    sums = torch.empty(batch * shared, splits, rows, 2, dtype=torch.float32, device=q.device)
    spread = q if bias is None else _spread(bias, (batch, heads, queries, keys))
    if lengths is not None:
        lengths = _int32(lengths, batch, q)
    scales = [s.contiguous() if s is not None else q for s in (k_scales, v_scales)]
    block_v = max(16, power_of_two(d_v))
    decoding_kernel[(splits, batch * shared, parts_of_rows)](
        grouped, k, v, parts, sums, spread, q if lengths is None else lengths, *scales,
        shared, group, queries, keys, d, d_v, _scale(scale, d), window or 0, soft_cap or 0.0,
        *k.stride()[:3], *v.stride()[:3], *((0, 0, 0, 0) if bias is None else spread.stride()),
        BLOCK_M=b.m, BLOCK_N=b.n, BLOCK_D=max(16, power_of_two(d)), BLOCK_V=block_v, SPLITS=splits,
        WINDOWED=window is not None, HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None,
        SOFT_CAP=soft_cap is not None, INTEGERS=integers,
        PRECISION=precision if q.dtype == torch.float32 else "tf32", EXACT=exact(q),
        num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    combine_kernel[(rows, batch * shared)](parts, sums, y, rows, d_v, SPLITS=splits, BLOCK_V=block_v, num_warps=2)
    return y.reshape(batch, heads, queries, d_v)


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, bias: Tensor | None = None, scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:  # fmt: skip
    """:func:`attention`, or :func:`decode` where few queries meet many keys; what generated files call.

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    queries = q.shape[2]
    few = queries * (q.shape[1] // max(1, k.shape[1])) <= FEW[64].m
    if few and k.shape[2] > _LONG and (causal or queries == 1):
        return decode(q, k, v, bias=bias, scale=scale, soft_cap=soft_cap)
    return attention(q, k, v, causal=causal, bias=bias, scale=scale, soft_cap=soft_cap)


def _sizes(q: Tensor, k: Tensor, v: Tensor, *, integers: bool = False) -> tuple[int, int, int, int, int, int]:
    problem = None
    if not q.dim() == k.dim() == v.dim() == 4:
        problem = "queries, keys and values need the axes batch, heads, tokens, numbers"
    elif k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        problem = f"shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)} do not fit"
    elif not k.shape[1] or q.shape[1] % k.shape[1]:
        problem = f"{q.shape[1]} heads are no multiple of {k.shape[1]} heads of keys"
    elif max(q.shape[3], v.shape[3]) > WIDEST:
        problem = f"heads of {max(q.shape[3], v.shape[3])} numbers are wider than {WIDEST}"
    elif q.dtype not in FLOATS or k.dtype != v.dtype or (not integers and k.dtype != q.dtype):
        problem = f"types {q.dtype}, {k.dtype}, {v.dtype} do not fit"
    elif not q.device == k.device == v.device:
        problem = "operands are on several devices"
    if problem is not None:
        raise InputError(problem, where="attention", fix="make shapes, types and devices agree")
    return q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]


def _fitting(b: Blocks, mask: BlockMask, queries: int, keys: int) -> Blocks:
    want = (-(-queries // mask.rows), -(-keys // mask.columns))
    if tuple(mask.blocks.shape) != want or any(s < 16 or s > 128 or s & (s - 1) for s in (mask.rows, mask.columns)):
        raise InputError(
            f"a mask of {list(mask.blocks.shape)} blocks of {mask.rows} by {mask.columns} does not cover {queries} by "
            f"{keys}", where="attention", fix="use blocks of 16, 32, 64 or 128, rounded up",
        )  # fmt: skip
    return Blocks(mask.rows, mask.columns, b.warps if mask.rows > 32 else 4, 2)


def _lengths(lengths_q: Tensor | None, lengths_k: Tensor | None, batch: int, q: Tensor) -> tuple[Tensor, Tensor] | None:
    if (lengths_q is None) != (lengths_k is None):
        raise InputError("lengths of queries and keys go together", where="attention", fix="pass both")
    if lengths_q is None or lengths_k is None:
        return None
    return _int32(lengths_q, batch, q), _int32(lengths_k, batch, q)


def _int32(lengths: Tensor, batch: int, q: Tensor) -> Tensor:
    if lengths.shape != (batch,) or lengths.device != q.device:
        raise InputError(f"lengths of shape {list(lengths.shape)} are not [{batch}] on {q.device}", where="attention",
                         fix="give one to a sequence")  # fmt: skip
    return lengths.to(torch.int32)


def _spread(bias: Tensor, shape: tuple[int, ...]) -> Tensor:
    if bias.dtype == torch.bool:
        bias = bias.view(torch.uint8)
    try:
        return bias.expand(shape)
    except RuntimeError:
        raise InputError(f"a bias of shape {list(bias.shape)} does not broadcast to {list(shape)}", where="attention",
                         fix="give it batch, heads, queries and keys, or ones") from None  # fmt: skip


def _scale(scale: float | None, d: int) -> Any:
    return 1 / math.sqrt(d) if scale is None else scale
