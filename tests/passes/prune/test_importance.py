"""Orders of removal and fits: what is predicted is what happens, and reconstruction beats scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.passes.prune.allocate import globally, share_of, uniformly
from burnish.passes.prune.importance import (
    Order,
    batches,
    by_reconstruction,
    by_score,
    fitted,
    flap,
    standardized,
    wanda,
)

Array = np.ndarray[Any, Any]


def _correlated(seed: int = 0, k: int = 24) -> tuple[Array, Array]:
    """Weights, and a Hessian of inputs that depend on each other: half of the channels are mixtures of the others."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((400, k // 2)) @ generator.standard_normal((k // 2, k))
    x += 0.05 * generator.standard_normal(x.shape)
    return generator.standard_normal((10, k)).astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def _error(weights: Array, result: Array, hessian: Array) -> float:
    d = (result - weights).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", d, hessian, d))


def test_scores() -> None:
    weights = np.asarray([[1.0, 2.0], [3.0, 0.0]])
    assert np.allclose(wanda(weights, np.asarray([2.0, 3.0])), [20, 12])
    assert np.allclose(flap(weights, np.asarray([1.0, 0.0]), np.asarray([2.0, 3.0])), [10, 12])


def test_standardized_scores() -> None:
    found = standardized(np.asarray([1.0, 3.0, 5.0, 7.0]))
    assert found.mean() == pytest.approx(0) and found.std() == pytest.approx(1) and (np.diff(found) > 0).all()
    assert not standardized(np.full(3, 2.0)).any()


def test_fit_is_the_least_squares_solution() -> None:
    weights, hessian = _correlated()
    keep = np.arange(24) % 3 != 0
    best = fitted(weights, hessian, keep)
    assert not best[:, ~keep].any()
    plain = np.where(keep, weights, 0)
    assert _error(weights, best, hessian) < 0.2 * _error(weights, plain, hessian)
    for column in np.flatnonzero(keep)[:3]:
        moved = best.copy()
        moved[:, column] += 0.1
        assert _error(weights, moved, hessian) > _error(weights, best, hessian)


def test_reconstruction_beats_scores_on_dependent_inputs() -> None:
    weights, hessian = _correlated()
    places = [np.arange(24)[:, None]]
    obs = by_reconstruction([weights], [hessian], places, [4, 4, 4], None)
    scored = by_score(wanda(weights, hessian.diagonal()), [4, 4, 4], None)
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(24, dtype=np.float32)
    losses = []
    for order in (obs, scored):
        keep = np.ones(24, bool)
        keep[[unit for step in order.steps for unit in step]] = False
        losses.append(_error(weights, fitted(weights, hessian, keep), damped))
    assert losses[0] < 0.7 * losses[1]
    power = float(np.einsum("nk,kj,nj->", weights, hessian, weights))
    # The fit is damped by the mean of what is left only.
    assert obs.losses[-1] == pytest.approx(losses[0] / power, rel=0.05)
    assert (np.diff(obs.losses) >= 0).all()


def test_heads_go_evenly() -> None:
    weights, hessian = _correlated()
    places = [np.arange(24).reshape(6, 4)]
    balance = np.asarray([[0, 1, 2], [3, 4, 5]])
    for order in (by_reconstruction([weights], [hessian], places, [], balance), by_score(np.arange(6.0), [], balance)):
        assert len(order.steps) == 2
        for step in order.steps:
            assert len(step) == 2 and step[0] in balance[0] and step[1] in balance[1]


def test_batches_leave_multiples() -> None:
    assert batches(30, 8, 0.8) == [6, 8, 8]
    assert batches(32, 8, 0.5) == [8, 8]
    assert batches(3, 1, 0.9) == [1, 1]
    assert batches(4, 8, 0.9) == []


def test_the_cheapest_units_go_first() -> None:
    cheap = Order([[0], [1], [2]], np.asarray([0.1, 0.2, 0.3]))
    dear = Order([[0], [1], [2]], np.asarray([1.0, 2.0, 3.0]))
    jump = Order([[0], [1], [2]], np.asarray([5.0, 5.01, 5.02]))

    def saved(steps: list[int]) -> float:
        return sum(steps) / 9

    assert globally([cheap, dear, jump], [1, 1, 1], saved, 3 / 9) == [3, 0, 0]
    assert globally([cheap, dear, jump], [1, 1, 1], saved, 4 / 9) == [3, 1, 0]
    # Steps that pay together only are taken together.
    assert globally([cheap, dear, jump], [1, 1, 1], saved, 7 / 9) == [3, 3, 3]
    assert uniformly([cheap, dear, jump], [3, 3, 3], saved, 3 / 9) == [1, 1, 1]
    assert globally([cheap], [1], saved, 0.9) == [3]
    assert share_of(cheap, 4, 0.5) == 2
