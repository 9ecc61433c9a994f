"""Caches of keys and values that grow in place.

A graph with a cache gives ``present = concat(past, new)``. Written as it stands that copies the whole past for each
token. Here the past lies in a buffer with room behind it, of which it is a view: new tokens are written behind the old
ones, and the present is a longer view of the same buffer. How much of a buffer is in use is kept beside it, so that a
past which was continued once is copied when it is continued again (a beam, a second try): no tensor ever changes under
its owner. Room is made where a cache begins, with no past; one that comes from elsewhere is copied as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from . import rope

_LEAST = 64
"""Tokens of room behind a new buffer, at least; half of the past where that is more."""


@dataclass
class _Buffer:
    """[batch, heads, capacity, d] in a storage of its own, which it does not keep alive."""

    storage: StorageWeakRef
    shape: torch.Size
    dtype: torch.dtype
    used: int


_BUFFERS: dict[int, _Buffer] = {}
"""By the address of the storage, which is nobody else's as long as there is a weak reference to it."""


def grown(past: Tensor, more: int) -> Tensor:
    """A buffer [batch, heads, capacity, d] that starts with ``past`` and has room for ``more`` tokens.

    Args:
        past: [batch, heads, tokens, d]. If it is a view of a buffer of this module whose rest is free, that is taken,
            else it is copied into a new one.
        more: tokens that will be written behind it.
    """
    batch, heads, tokens, d = past.shape
    known = _BUFFERS.get(past.untyped_storage()._cdata)
    if known is not None and _continues(known, past) and known.used == tokens and known.shape[2] >= tokens + more:
        known.used = tokens + more
        return past.as_strided(known.shape, past.stride(), 0)
    ours = known is not None and _continues(known, past)
    room = max(_LEAST, (tokens + more) // 2) if ours or not tokens else 0
    buffer = torch.empty(batch, heads, tokens + more + room, d, dtype=past.dtype, device=past.device)
    buffer[:, :, :tokens].copy_(past)
    if room and buffer.numel():
        for address in [address for address, other in _BUFFERS.items() if _gone(other)]:
            del _BUFFERS[address]
        storage = buffer.untyped_storage()
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        _BUFFERS[storage._cdata] = _Buffer(weak, buffer.shape, buffer.dtype, tokens + more)
    return buffer


def _gone(buffer: _Buffer) -> bool:
    return bool(buffer.storage.expired())  # type: ignore[no-untyped-call]


def _continues(buffer: _Buffer, past: Tensor) -> bool:
    """Whether a tensor is the beginning of a buffer."""
    batch, heads, capacity, d = buffer.shape
    dense = (heads * capacity * d, capacity * d, d, 1)
    whole = (past.shape[0], past.shape[1], past.shape[3]) == (batch, heads, d)
    return whole and past.stride() == dense and past.storage_offset() == 0 and past.dtype == buffer.dtype


def append(past: Tensor, new: Tensor) -> Tensor:
    """``past`` [batch, heads, tokens, d] with ``new`` behind it: a view of a buffer."""
    tokens, more = past.shape[2], new.shape[2]
    buffer = grown(past, more)
    buffer[:, :, tokens : tokens + more].copy_(new)
    return buffer[:, :, : tokens + more]


def rotate_and_append(
    qkv: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor, *, heads: int, pairs: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, and keys (rotated) and values behind those of the past, in one launch.

    Args:
        qkv: [batch, length, (heads + 2 shared) d], queries, keys and values.
        cos, sin: [batch or 1, length, rotary / 2] of each token.
        past_k, past_v: [batch, shared, past, d].
        heads: of the queries.
        pairs: see :func:`~burnish.backends.triton.rope.rope_to_cache`.

    Returns:
        [batch, heads, length, d], and twice [batch, shared, past + length, d].

    Raises:
        InputError: shapes or types do not fit.
    """
    batch, length = qkv.shape[:2]
    tokens = past_k.shape[2]
    k, v = grown(past_k, length), grown(past_v, length)
    if k.shape != v.shape:  # one was continued before, the other not
        k, v = (torch.cat([t, t.new_empty(*t.shape[:2], length, t.shape[3])], 2) for t in (past_k, past_v))
    cos, sin = (t.expand(batch, length, t.shape[-1]).reshape(batch * length, t.shape[-1]) for t in (cos, sin))
    cache = rope.Cache(k, v)
    q = rope.rope_to_cache(qkv, cos, sin, None, cache, heads=heads, first_slot=tokens, pairs=pairs)
    return q, k[:, :, : tokens + length], v[:, :, : tokens + length]
