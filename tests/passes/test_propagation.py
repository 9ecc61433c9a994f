"""Weights that make up for the errors of their inputs."""

from __future__ import annotations

import numpy as np
from burnish.passes.propagation import correction, propagated
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), noise=st.floats(0.05, 1.0))
def test_nearer_to_the_float_outputs(seed: int, noise: float) -> None:
    """Of all linear products of the inputs at hand, next to the best: nearer than the weights as they were."""
    generator = np.random.default_rng(seed)
    f = generator.standard_normal((400, 12)) @ generator.standard_normal((12, 12))
    x = f + noise * generator.standard_normal(f.shape)
    matrix = generator.standard_normal((5, 12)).astype(np.float32)
    found = propagated(matrix, correction((x.T @ x / 400).astype(np.float32), (x.T @ f / 400).astype(np.float32)))
    want = f @ matrix.T
    best = np.linalg.lstsq(x, want, rcond=None)[0]
    errors = [np.square(x @ w - want).sum() for w in (best, found.T, matrix.T)]
    assert errors[0] <= errors[1] * 1.0001
    assert errors[1] < errors[2]


def test_nothing_to_make_up_for() -> None:
    """Also where the Hessian is singular."""
    matrix = np.ones((2, 4), np.float32)
    hessian = np.diag([1.0, 2.0, 0.0, 0.0]).astype(np.float32)
    assert np.array_equal(propagated(matrix, correction(hessian, hessian)), matrix)
    nothing = np.zeros((4, 4), np.float32)
    assert np.array_equal(propagated(matrix, correction(nothing, nothing)), matrix)
