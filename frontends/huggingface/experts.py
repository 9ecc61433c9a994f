"""Mixtures of experts without data-dependent control flow, registered with transformers under a name of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .attention import NAME


def register() -> None:
    """Make the form of the experts known to transformers (again is harmless)."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)


def experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Every expert on every token, weighted by the router: a plain sum of products that any backend can run.

    Args:
        self: the module that holds the experts' weights.
        hidden_states: [tokens, hidden].
        top_k_index: [tokens, k] experts chosen for each token.
        top_k_weights: [tokens, k] their weights.

    Returns:
        [tokens, hidden].
    """
    name = "gate_up_proj" if self.has_gate else "up_proj"
    up, down = getattr(self, name), self.down_proj
    up_bias, down_bias = (getattr(self, f"{name}_bias"), self.down_proj_bias) if self.has_bias else (None, None)
    result = torch.zeros_like(hidden_states)
    for index in range(up.shape[0]):
        inner = _linear(self, hidden_states, up, up_bias, index)
        inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
        outer = _linear(self, inner, down, down_bias, index)
        if self.has_post_expert_norm:
            outer = self.post_expert_norm(outer)
        share = torch.where(top_k_index == index, top_k_weights, torch.zeros_like(top_k_weights))
        result = result + outer * share.sum(dim=-1, keepdim=True).to(outer.dtype)
    return result


def _linear(self: Any, value: Tensor, weight: Tensor, bias: Tensor | None, index: int) -> Tensor:
    if self.is_transposed:
        product = value @ weight[index]
        return product if bias is None else product + bias[index]
    return torch.nn.functional.linear(value, weight[index], None if bias is None else bias[index])
