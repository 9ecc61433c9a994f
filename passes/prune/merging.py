"""Which experts become one: those whose weights differ least for how much they are used, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_COLUMNS = 1 << 20
STRANGERS = 0.3
"""Share of the weights' squares that merging changes: more than this, and experts have little in common. The mean of
two that have nothing in common, equally large and used, changes 0.5."""


def gram(stacks: Iterable[Array]) -> Array:
    """Inner products of experts' weights, each stack counting as much as the others: float64 ``[experts, experts]``.

    Args:
        stacks: each ``[experts, ...]``; read one by one.
    """
    total: Array = np.zeros(())
    for stack in stacks:
        rows = stack.reshape(len(stack), -1)
        found = np.zeros((len(rows),) * 2)
        for start in range(0, rows.shape[1], _COLUMNS):
            part = rows[:, start : start + _COLUMNS].astype(np.float32)
            found += part @ part.T
        total = total + found / max(float(found.diagonal().mean()), 1e-30)
    return total


def groups(products: Array, usage: Array, count: int) -> list[list[int]]:
    """Divide experts so that replacing each by its group's mean by usage changes weights least, in proportion to usage.

    Two groups become one at a time, those for which that changes least (Ward's linkage, as HC-SMoE, Chen et al. 2024,
    does with experts' outputs; means by usage are M-SMoE's, Li et al. 2024, section 3.2).

    Args:
        products: what :func:`gram` returns.
        usage: ``[experts]``, positive.
        count: groups that are left.
    """
    found = [[expert] for expert in range(len(usage))]
    while len(found) > count:
        shares = mixture(found, usage)
        inner = shares @ products @ shares.T
        square = inner.diagonal()
        weight = np.asarray([usage[group].sum() for group in found])
        cost = np.outer(weight, weight) / np.add.outer(weight, weight)
        cost = cost * np.maximum(np.add.outer(square, square) - 2 * inner, 0)
        cost[np.tril_indices(len(found))] = np.inf
        one, other = np.unravel_index(int(cost.argmin()), cost.shape)
        found[one] = sorted(found[one] + found.pop(other))
    return found


def mixture(found: Sequence[Sequence[int]], usage: Array) -> Array:
    """How much of each expert is in the mean of each group: ``[groups, experts]``, rows sum to 1."""
    shares = np.zeros((len(found), len(usage)))
    for row, group in zip(shares, found, strict=True):
        row[group] = usage[group] / usage[group].sum()
    return shares


def change(products: Array, shares: Array, usage: Array) -> float:
    """The share of the weights' squares, by usage, that becomes other when experts are replaced by their means."""
    power = float(usage @ products.diagonal())
    mean = shares @ products @ shares.T
    left = sum(float(usage[row > 0].sum()) * float(mean[at, at]) for at, row in enumerate(shares))
    return 1 - left / power if power > 0 else 0.0
