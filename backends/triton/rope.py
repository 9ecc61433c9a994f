"""Rotary positions and the write to the cache of keys and values: checks and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.errors import InputError
from .fused import FLOATS, power_of_two


@dataclass(frozen=True)
class Cache:
    """Keys and values of past tokens.

    Attributes:
        k, v: [batch, shared heads, capacity, d], of the activations' type or int8.
        k_scales, v_scales: float32 [batch, shared heads, capacity] of int8 caches.
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None


def new_cache(
    batch: int, shared: int, capacity: int, d: int, *, dtype: torch.dtype, device: torch.device | str
) -> Cache:  # fmt: skip
    """An empty cache; with dtype int8 it has scales."""
    k, v = (torch.zeros(batch, shared, capacity, d, dtype=dtype, device=device) for _ in range(2))
    if dtype != torch.int8:
        return Cache(k, v)
    scales = [torch.ones(batch, shared, capacity, dtype=torch.float32, device=device) for _ in range(2)]
    return Cache(k, v, *scales)


def rope_to_cache(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, cache: Cache, *, heads: int,
    slots: Tensor | None = None, first_slot: int = 0, pairs: bool = False,
) -> Tensor:  # fmt: skip
    """Rotate queries and keys, and put keys and values where they belong in the cache.

    Args:
        qkv: [batch, length, (heads + 2 shared) d]: queries, keys, values.
        cos, sin: [places, rotary / 2]; numbers of a head past ``rotary`` stay as they are.
        positions: integers [batch, length], rows of cos and sin; None if these have a row for each token, and tokens go
            to the slots from ``first_slot`` on.
        cache: where keys and values go.
        heads: of the queries.
        slots: integers [batch, length], places in the cache; the positions if None.
        pairs: whether neighbours are rotated together, instead of numbers half of ``rotary`` apart.

    Returns:
        The rotated queries [batch, heads, length, d].

    Raises:
        InputError: shapes, types or devices do not fit.
    """
    from .kernels.rope import rope_cache_kernel

    batch, length, wide = qkv.shape
    shared, capacity, d = cache.k.shape[1:]
    integers = cache.k.dtype == torch.int8
    slots = positions if slots is None else slots
    in_order = positions is None
    problem = None
    if wide != (heads + 2 * shared) * d or cache.k.shape[0] != batch or cache.v.shape != cache.k.shape:
        problem = f"{wide} numbers to a token are not {heads} + 2 · {shared} heads of {d} for a batch of {batch}"
    elif cos.shape != sin.shape or 2 * cos.shape[1] > d:
        problem = f"tables of shapes {list(cos.shape)} and {list(sin.shape)} do not fit heads of {d}"
    elif positions is None or slots is None:
        if slots is not None or len(cos) != batch * length or first_slot + length > capacity:
            problem = f"without positions, {len(cos)} rows of tables and a cache of {capacity} do not fit"
    elif positions.shape != (batch, length) or slots.shape != (batch, length):
        problem = f"positions of shape {list(positions.shape)} are not [{batch}, {length}]"
    if qkv.dtype not in FLOATS or (not integers and cache.k.dtype != qkv.dtype):
        problem = f"activations are {qkv.dtype}, the cache {cache.k.dtype}"
    elif not (cache.k.is_contiguous() and cache.v.is_contiguous()):
        problem = "the cache is not contiguous"
    elif integers and (cache.k_scales is None or cache.v_scales is None):
        problem = "an int8 cache has no scales"
    if problem is not None:
        raise InputError(problem, where="rope_to_cache", fix="make shapes and types agree")
    q = torch.empty(batch, heads, length, d, dtype=qkv.dtype, device=qkv.device)
    if not qkv.numel():
        return q
    rotary = 2 * cos.shape[1]
    k_scales, v_scales = (q if s is None else s for s in (cache.k_scales, cache.v_scales))
    places = [q if t is None else t.to(torch.int64).contiguous() for t in (positions, slots)]
    rope_cache_kernel[(batch * length, heads + 2 * shared)](
        qkv.contiguous(), cos.contiguous(), sin.contiguous(), *places, q, cache.k, cache.v, k_scales, v_scales,
        heads, shared, length, d, rotary, wide, capacity, first_slot,
        BLOCK=max(16, power_of_two(d) // 2), PAIRS=pairs, INTEGERS=integers, IN_ORDER=in_order, num_warps=1,
    )  # fmt: skip
    return q
