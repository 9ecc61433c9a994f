"""Attention and masks as the graph wants them, registered with transformers under a name of their own.

What transformers does by default for ``sdpa`` repeats the key/value heads and asks about sizes while it is traced; this
form keeps one ``scaled_dot_product_attention`` with fewer key/value heads, and one mask for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import UnsupportedError

NAME = "burnish"

_LIBRARY: Any = torch.library.Library("burnish", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask, bool is_causal, float? scale, bool enable_gqa)"
    " -> Tensor"
)


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _shape(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


_LIBRARY.impl("attention", _run, "CPU")
_LIBRARY.impl("attention", _shape, "Meta")


def as_standard_operator(program: torch.export.ExportedProgram) -> None:
    """Turn the attention that was traced into ``scaled_dot_product_attention``, in place.

    Tracing that operator itself runs its decomposition to find a shape that is known, half of all tracing time.
    """
    standard = torch.ops.aten.scaled_dot_product_attention.default
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.burnish.attention.default:
            query, key, value, mask, is_causal, scale, enable_gqa = node.args
            node.target = standard
            node.args = (query, key, value, mask, 0.0, is_causal)
            node.kwargs = {"scale": scale, "enable_gqa": enable_gqa}


def register() -> None:
    """Make the attention implementation known to transformers (again is harmless)."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` [batch, heads, queries, size] over ``key``, ``value`` [batch, kv heads, keys, size].

    Returns:
        [batch, queries, heads, size], and no weights.

    Raises:
        UnsupportedError: the model uses attention sinks.
    """
    if kwargs.get("s_aux") is not None:
        raise UnsupportedError("attention sinks have no operator in the graph", where=type(module).__name__)
    if attention_mask is not None and attention_mask.dtype == torch.bool and position_bias is not None:
        position_bias = torch.where(attention_mask, position_bias, torch.finfo(query.dtype).min)
        attention_mask = None
    if position_bias is not None:
        attention_mask = position_bias if attention_mask is None else attention_mask + position_bias
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else bool(is_causal))
    if softcap is not None:
        return _capped(query, key, value, attention_mask, scaling, softcap), None
    grouped = query.shape[1] != key.shape[1]
    result: Tensor = torch.ops.burnish.attention(query, key, value, attention_mask, causal, scaling, grouped)
    return result.transpose(1, 2), None


def _capped(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:
    """Attention whose scores are bounded by ``softcap * tanh(scores / softcap)`` (Gemma 2)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = torch.where(attention_mask, scores, torch.finfo(query.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """A boolean mask, true where a query attends: [batch or 1, 1, queries or 1, keys]; None if everything is seen.

    Args:
        batch_size: rows.
        q_length: queries.
        kv_length: keys.
        q_offset: position of the first query among the keys.
        kv_offset: position of the first key.
        mask_function: says of broadcast indices of (row, head, query, key) whether they are seen.
        attention_mask: [batch, keys], true for tokens and false for padding.
        device: where to make it.
        kwargs: what other implementations want to know.
    """
    from transformers.masking_utils import bidirectional_mask_function

    padding = None if attention_mask is None else attention_mask[:, None, None, :]
    if mask_function is None or mask_function is bidirectional_mask_function:
        return padding
    queries, keys = torch.arange(q_length, device=device), torch.arange(kv_length, device=device)
    queries = queries + q_offset if not isinstance(q_offset, int) or q_offset else queries
    keys = keys + kv_offset if not isinstance(kv_offset, int) or kv_offset else keys
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
    seen: Tensor = mask_function(rows, heads, queries[None, None, :, None], keys[None, None, None, :])
    return seen if padding is None else seen & padding
