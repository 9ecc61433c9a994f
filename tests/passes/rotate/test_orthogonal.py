"""Rotations: orthogonal, seeded, flat; and that they make few bits lose less on weights with outliers."""

from __future__ import annotations

import numpy as np
import pytest
from burnish.passes.quantize.methods import gptq, rtn
from burnish.passes.quantize.scheme import Scheme
from burnish.passes.rotate.orthogonal import hadamard, rotation, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 48, 64, 576])
@pytest.mark.parametrize("keep_mean", [False, True])
def test_orthogonal_and_seeded(size: int, keep_mean: bool) -> None:
    q = rotation(size, 3, keep_mean=keep_mean)
    assert np.abs(q @ q.T - np.eye(size)).max() < 1e-12  # float64, at most 576 terms
    assert np.array_equal(q, rotation(size, 3, keep_mean=keep_mean))
    if size > 2:
        assert not np.allclose(q, rotation(size, 4, keep_mean=keep_mean))
    if keep_mean:
        assert np.abs(q.sum(axis=0) - 1).max() < 1e-12 and np.abs(q.sum(axis=1) - 1).max() < 1e-12


def test_hadamard_entries_have_one_magnitude() -> None:
    assert np.allclose(np.abs(hadamard(64)), 1 / 8)
    assert np.abs(uniform(9, np.random.default_rng(0))).max() < 1


def test_rotated_weights_with_outliers_lose_less() -> None:
    """Outlier channels as in language models: a few are 30 times the others, and decide the scales of their groups."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((256, 192)).astype(np.float32)
    weights[:, [5, 70, 180]] *= 30
    inputs = random.standard_normal((2000, 192)).astype(np.float32)
    scheme = Scheme(4, 64, symmetric=False)
    q = rotation(192, 0)
    errors = {}
    for name, turn in (("plain", np.eye(192)), ("rotated", q)):
        w, x = (weights @ turn).astype(np.float32), (inputs @ turn).astype(np.float32)
        hessian = x.T @ x / len(x)
        for method, codes in (
            ("rtn", rtn.quantize(w, scheme)),
            ("gptq", gptq.quantize(w, gptq.decompose(hessian), scheme)),
        ):
            errors[name, method] = gptq.output_error(rtn.dequantize(codes, scheme, 192) - w, hessian)
    assert errors["rotated", "rtn"] < errors["plain", "rtn"] / 2
    assert errors["rotated", "gptq"] < errors["plain", "gptq"] / 1.5
