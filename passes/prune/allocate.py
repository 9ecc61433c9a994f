"""How many units of each group go, so that the model loses least for what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .importance import Array, Order

Steps = list[int]
"""How many steps of each group's order are taken."""


def globally(orders: Sequence[Order], savings: Sequence[float], saved: Callable[[Steps], float], goal: float) -> Steps:
    """Steps of the least loss for what they save, until the goal is reached.

    A group's losses are made convex first: steps that only pay together are taken together.

    Args:
        orders: of the groups.
        savings: what a unit of each group saves, roughly.
        saved: what some steps save, exactly.
        goal: to save.

    Returns:
        All steps there are, if these do not reach the goal.
    """
    pieces: list[tuple[float, int, int]] = []
    for number, (order, saving) in enumerate(zip(orders, savings, strict=True)):
        for end, slope in _hull(order, saving):
            pieces.append((slope, number, end))
    pieces.sort(key=lambda piece: piece[0])
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high) // 2
        if saved(_taken(pieces[:middle], len(orders))) >= goal:
            high = middle
        else:
            low = middle + 1
    return _taken(pieces[:low], len(orders))


def _taken(pieces: Sequence[tuple[float, int, int]], groups: int) -> Steps:
    steps = [0] * groups
    for _, number, end in pieces:
        steps[number] = max(steps[number], end)
    return steps


def _hull(order: Order, saving: float) -> list[tuple[int, float]]:
    """Corners of the lower convex hull of loss against savings: (steps, slope up to there), slopes growing."""
    points = [(0.0, 0.0, 0)]
    gone = 0
    for at, (step, loss) in enumerate(zip(order.steps, order.losses, strict=True)):
        gone += len(step)
        point = (gone * saving, float(loss), at + 1)
        while len(points) > 1 and _slope(points[-1], point) < _slope(points[-2], points[-1]):
            points.pop()
        points.append(point)
    return [(points[i][2], _slope(points[i - 1], points[i])) for i in range(1, len(points))]


def _slope(a: tuple[float, float, int], b: tuple[float, float, int]) -> float:
    return (b[1] - a[1]) / max(b[0] - a[0], 1e-300)


def uniformly(orders: Sequence[Order], counts: Sequence[int], saved: Callable[[Steps], float], goal: float) -> Steps:
    """The same share of every group, as small as reaches the goal.

    Args:
        orders: of the groups.
        counts: units of each group.
        saved: what some steps save.
        goal: to save.
    """
    nothing = [0] * len(orders)
    if saved(nothing) >= goal:
        return nothing
    gone = [np.cumsum([len(step) for step in order.steps]) for order in orders]

    def taken(share: float) -> Steps:
        return [
            min(int(np.searchsorted(sums, share * count - 1e-9)) + 1, len(sums)) if share > 0 and len(sums) else 0
            for sums, count in zip(gone, counts, strict=True)
        ]

    shares: Array = np.unique(np.concatenate([sums / count for sums, count in zip(gone, counts, strict=True)]))
    low, high = 0, len(shares)
    while low < high:
        middle = (low + high) // 2
        if saved(taken(float(shares[middle]))) >= goal:
            high = middle
        else:
            low = middle + 1
    return taken(float(shares[low]) if low < len(shares) else 1.0)


def share_of(order: Order, count: int, share: float) -> int:
    """Steps of one group that take at least a share of its units, or all there are."""
    sums = np.cumsum([len(step) for step in order.steps])
    return min(int(np.searchsorted(sums, share * count - 1e-9)) + 1, len(sums)) if share > 0 and len(sums) else 0
