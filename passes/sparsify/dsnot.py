"""DSnoT: a mask grows where it lost too much and is pruned where that costs least, without training (Zhang et al.
2024).

The expected output of a row changes by ``ε = -Σ over pruned j of W_j E[x_j]``. In turn the pruned weight comes back
that brings ε nearest to zero for what its input varies, and the weight goes whose Wanda score is least among those that
move ε the right way (sections 3.2 and 3.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .criteria import wanda
from .pattern import Pattern

Array = np.ndarray[Any, Any]

CYCLES = 50
ENOUGH = 0.1
"""A row is left alone where |ε| is below this (the authors' update threshold)."""


def refine(weights: Array, keep: Array, mean: Array, square: Array, pattern: Pattern, *, cycles: int = CYCLES) -> Array:
    """A better mask with as many weights in each row, and in each group of a pattern N:M.

    Args:
        weights: ``[n, k]``.
        keep: the mask to begin with, bool ``[n, k]``.
        mean: ``[k]``, mean of each input channel.
        square: ``[k]``, mean of the square of each input channel.
        pattern: unstructured, or N:M.
        cycles: most exchanges in a row.
    """
    k = weights.shape[1]
    keep = keep.copy()
    expected = np.asarray(weights, np.float32) * mean
    variance = np.maximum(square - mean**2, 1e-12)
    scores = wanda(weights, np.sqrt(square))
    error = -(expected * ~keep).sum(axis=1)
    # An exchange must lessen |ε|: one that does not ends its row.
    active = np.flatnonzero(np.abs(error) > ENOUGH)
    group = pattern.group or k
    for _ in range(cycles):
        if not len(active):
            break
        sign = np.sign(error[active])[:, None]
        part, mask = expected[active], keep[active]
        # Growing j adds expected_j to ε: wanted of the opposite sign.
        gain = np.where(~mask, -sign * part / variance, -np.inf)
        grown = gain.argmax(axis=1)
        rows = np.arange(len(active))
        # Pruning j takes expected_j off ε: wanted of the same sign, in the same group of a pattern.
        allowed = mask & (sign * part > 0)
        if pattern.group:
            allowed &= (np.arange(k) // group)[None] == (grown // group)[:, None]
        cost = np.where(allowed, scores[active], np.inf)
        pruned = cost.argmin(axis=1)
        possible = np.isfinite(gain[rows, grown]) & (gain[rows, grown] > 0) & np.isfinite(cost[rows, pruned])
        after = error[active] + part[rows, grown] - part[rows, pruned]
        better = possible & (np.abs(after) < np.abs(error[active]))
        chosen = active[better]
        keep[chosen, grown[better]] = True
        keep[chosen, pruned[better]] = False
        error[chosen] = after[better]
        active = chosen[np.abs(error[chosen]) > ENOUGH]
    return keep
