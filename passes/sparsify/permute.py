"""Which input channels share the groups of an N:M pattern: dealt out by importance, then assigned at best.

RIA (Zhang et al. 2024, section 4.2): channels in the order of what they matter are dealt out to the groups, so that no
group has to give up two important ones; then, slot by slot, the channels of that slot are assigned anew to the groups,
which is a linear assignment problem.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .pattern import Pattern, select

Array = np.ndarray[Any, Any]

_ROUNDS = 2


def retained(scores: Array, pattern: Pattern) -> float:
    """The sum of the scores that an N:M pattern keeps."""
    return float(np.where(select(scores, pattern, 0), scores, 0).sum(dtype=np.float64))


def permutation(scores: Array, pattern: Pattern, rounds: int = _ROUNDS) -> Array:
    """An order of the columns in which the pattern keeps more: int64 ``[k]``, new from old places.

    Args:
        scores: ``[n, k]``; those of several matrices on the same channels lie above each other.
        pattern: N:M.
        rounds: how often all slots are assigned.

    Returns:
        Never worse than the order that was.
    """
    from scipy.optimize import linear_sum_assignment

    scores = np.asarray(scores, np.float32)
    _, k = scores.shape
    size, kept = pattern.group, pattern.kept
    groups = k // size
    best = np.arange(k)
    if groups < 2:
        return best
    most = retained(scores, pattern)
    # Dealt like cards, back and forth: the first slot gets the most important channels.
    dealt = np.argsort(-scores.sum(axis=0), kind="stable").reshape(size, groups)
    dealt[1::2] = dealt[1::2, ::-1]
    places = dealt.T.copy()
    for _ in range(rounds):
        for slot in range(size):
            others = np.delete(places, slot, axis=1)
            moving = scores[:, places[:, slot]]
            # With x beside it a group keeps its best N-1 and the larger of its N-th and x.
            ranked = np.sort(scores[:, others], axis=-1)[..., ::-1]
            bound = ranked[..., kept - 1]
            gain = np.empty((groups, groups), np.float64)
            for g in range(groups):
                gain[g] = np.maximum(bound[:, g : g + 1], moving).sum(axis=0, dtype=np.float64)
            _, chosen = linear_sum_assignment(gain, maximize=True)
            places[:, slot] = places[chosen, slot]
        order = places.reshape(-1)
        now = retained(scores[:, order], pattern)
        if now > most:
            best, most = order.copy(), now
        else:
            break
    return best
