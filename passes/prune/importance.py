"""What a model loses with each unit: scores of channels, and the order in which units go, as pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to a Hessian."""


def wanda(weights: Array, square: Array) -> Array:
    """``‖W_:j‖² E[x_j²]``: what a product loses with an input channel (Wanda's score, summed over a column).

    Args:
        weights: ``[n, k]``.
        square: ``[k]``, mean square of each input channel.
    """
    found: Array = np.square(weights, dtype=np.float64).sum(axis=0) * square
    return found


def flap(weights: Array, mean: Array, square: Array) -> Array:
    """``‖W_:j‖² Var[x_j]``: what is lost with an input channel beyond its mean (FLAP, An et al. 2024, equation 5).

    Args:
        weights: ``[n, k]``.
        mean: ``[k]``, of each input channel.
        square: ``[k]``, mean square of each input channel.
    """
    return wanda(weights, np.maximum(square - np.square(mean, dtype=np.float64), 0))


def standardized(scores: Array) -> Array:
    """Standard deviations off the mean (FLAP, section 4.2); zeros if all scores are equal."""
    spread = float(scores.std())
    found: Array = (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
    return found


@dataclass(frozen=True)
class Order:
    """In which order the units of a group go.

    Attributes:
        steps: numbers of the units that go together.
        losses: after each step, what all that went has cost; growing.
    """

    steps: list[list[int]]
    losses: Array


def batches(count: int, multiple: int, most: float) -> list[int]:
    """How many units go in each step, so that what is left is a multiple where it can be.

    Args:
        count: of units.
        multiple: of what is left.
        most: share that may go.
    """
    limit = min(int(count * most), count - 1)
    sizes: list[int] = []
    left = count
    while True:
        size = left % multiple or multiple
        if sum(sizes) + size > limit or left - size < min(multiple, count):
            return sizes
        sizes.append(size)
        left -= size


def by_score(scores: Array, sizes: Sequence[int], balance: Array | None) -> Order:
    """Units of least score first.

    Args:
        scores: ``[units]``, additive.
        sizes: units of each step; not used with ``balance``.
        balance: ``[rows, columns]`` of units; a step takes one of each row.
    """
    if balance is not None:
        ranked = np.take_along_axis(balance, np.argsort(scores[balance], axis=1, kind="stable"), axis=1)
        steps = [[int(unit) for unit in ranked[:, at]] for at in range(ranked.shape[1] - 1)]
    else:
        order = np.argsort(scores, kind="stable")
        bounds = np.cumsum([0, *sizes])
        steps = [[int(unit) for unit in order[a:b]] for a, b in itertools.pairwise(bounds)]
    return Order(steps, np.cumsum([float(scores[step].sum()) for step in steps]))


def by_reconstruction(
    weights: Sequence[Array],
    hessians: Sequence[Array],
    places: Sequence[Array],
    sizes: Sequence[int],
    balance: Array | None,
) -> Order:
    """Units whose loss the others can make up for go first (Optimal Brain Surgeon for structures; ZipLM, Kurtic et al.
    2023, algorithm 1).

    What a unit with input channels S costs after all others have been fitted anew is ``tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ)``, with
    W already fitted and H⁻¹ of what is left.

    Args:
        weights: ``[n, k]`` of each product that reads the units.
        hessians: ``[k, k]`` of the input of each.
        places: ``[units, channels of a unit]`` in each.
        sizes: units of each step; not used with ``balance``.
        balance: ``[rows, columns]`` of units; a step takes one of each row.

    Returns:
        The losses are shares of the squared outputs, summed over the products.
    """
    states = [_State(w, h, p) for w, h, p in zip(weights, hessians, places, strict=True)]
    units = len(places[0])
    left = np.ones(units, bool)
    steps: list[list[int]] = []
    losses: list[float] = []
    total = 0.0
    counts = list(sizes) if balance is None else [len(balance)] * (balance.shape[1] - 1)
    for count in counts:
        scores = np.where(left, sum(state.scores() for state in states), np.inf)
        if balance is None:
            step = [int(unit) for unit in np.argpartition(scores, count - 1)[:count]]
        else:
            step = [int(row[np.argmin(scores[row])]) for row in balance]
        for state in states:
            total += state.remove(step)
        left[step] = False
        steps.append(step)
        losses.append(total)
    return Order(steps, np.asarray(losses))


class _State:
    """One product whose input channels go."""

    def __init__(self, weights: Array, hessian: Array, places: Array) -> None:
        h = np.array(hessian, np.float64)
        at = np.arange(len(h))
        power = float(np.einsum("nk,kj,nj->", weights, h, weights, optimize=True))
        self._scale = 1 / power if power > 0 else 0.0
        h[at, at] += DAMPING * (float(h[at, at].mean()) or 1.0)
        self._inverse = np.linalg.inv(h)
        self._weights = np.array(weights, np.float64)
        self._places = places

    def scores(self) -> Array:
        """What each unit costs now: ``[units]``."""
        if self._places.shape[1] == 1:
            flat = self._places[:, 0]
            diagonal = np.maximum(self._inverse[flat, flat], 1e-300)
            single: Array = np.square(self._weights[:, flat]).sum(axis=0) / diagonal * self._scale
            return single
        return np.asarray([self._cost(rows) for rows in self._places]) * self._scale

    def _cost(self, rows: Array) -> float:
        inner = self._inverse[np.ix_(rows, rows)]
        part = self._weights[:, rows]
        try:
            return float(np.einsum("nk,nk->", part, np.linalg.solve(inner, part.T).T))
        except np.linalg.LinAlgError:
            return 0.0  # gone already

    def remove(self, units: Sequence[int]) -> float:
        """Take units out, fit what is left; what that cost."""
        rows = self._places[list(units)].reshape(-1)
        across = np.linalg.solve(self._inverse[np.ix_(rows, rows)], self._inverse[rows])
        part = self._weights[:, rows]
        lost = float(np.einsum("nk,nk->", part, np.linalg.solve(self._inverse[np.ix_(rows, rows)], part.T).T))
        self._weights -= part @ across
        self._weights[:, rows] = 0
        self._inverse -= self._inverse[:, rows] @ across
        self._inverse[rows], self._inverse[:, rows] = 0, 0
        # A unit that is gone is never looked at again; one on its diagonal keeps blocks of it invertible.
        self._inverse[rows, rows] = 1
        return lost * self._scale


def fitted(weights: Array, hessian: Array, keep: Array) -> Array:
    """The columns that stay, moved so that the outputs change least: ``W_s + W_r H_rs H_ss⁻¹``.

    Args:
        weights: ``[n, k]``.
        hessian: ``[k, k]``.
        keep: bool ``[k]``.

    Returns:
        float32 ``[n, k]``; what goes is zero.
    """
    stay, gone = np.flatnonzero(keep), np.flatnonzero(~keep)
    h = np.asarray(hessian, np.float64)
    inner = h[np.ix_(stay, stay)]
    at = np.arange(len(stay))
    inner[at, at] += DAMPING * (float(inner[at, at].mean()) or 1.0)
    moved = np.linalg.solve(inner, h[np.ix_(stay, gone)] @ np.asarray(weights, np.float64)[:, gone].T).T
    result = np.zeros(weights.shape, np.float32)
    result[:, stay] = weights[:, stay] + moved
    return result
