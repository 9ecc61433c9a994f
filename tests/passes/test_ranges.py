"""The search for the range of a group: ``passes/quantize/methods/ranges.py``."""

from __future__ import annotations

import numpy as np
import pytest
from burnish.passes.quantize.methods import rtn
from burnish.passes.quantize.methods.ranges import search
from burnish.passes.quantize.scheme import Scheme
from hypothesis import given, settings
from hypothesis import strategies as st


def loss(weights: np.ndarray, importance: np.ndarray, scheme: Scheme, scales: np.ndarray, zeros: np.ndarray | None,
         ) -> np.ndarray:  # fmt: skip
    """Weighted squared error of each row, rounded to nearest with these scales."""
    k = weights.shape[1]
    step = np.repeat(scales, scheme.group(k), axis=1)[:, :k]
    middle = scheme.levels // 2 if zeros is None else np.repeat(zeros, scheme.group(k), axis=1)[:, :k].astype(float)
    codes = np.clip(np.rint(weights / step) + middle, 0, scheme.levels - 1) - middle
    result: np.ndarray = (np.square(codes * step - weights) * importance).sum(axis=1)
    return result


schemes = st.builds(
    Scheme, bits=st.sampled_from([4, 8]), group_size=st.sampled_from([0, 16, 32, 64]), symmetric=st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(schemes, st.integers(1, 9), st.integers(1, 150), st.integers(0, 2**31))
def test_never_worse_than_the_full_range(scheme: Scheme, n: int, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((n, k)).astype(np.float32)
    importance = random.uniform(0, 2, k).astype(np.float32)
    full = rtn.quantize(weights, scheme)
    scales, zeros = search(weights, importance, scheme)
    assert scales.shape == (n, scheme.groups(k)) and (zeros is None) == scheme.symmetric
    least = loss(weights, importance, scheme, full.scales, full.zero_points)
    # The search compares in float32 sums that are 2^2b times what it compares.
    slack = 1e-6 * (importance * np.square(weights)).sum(axis=1)
    assert (loss(weights, importance, scheme, scales, zeros) <= least * 1.001 + slack).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_wins_where_one_weight_is_large(symmetric: bool) -> None:
    """One weight of a group at 6 sigma (measured: 0.81 of the loss if asymmetric, 0.65 if symmetric)."""
    weights = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    weights[:, 5] = 6
    scheme = Scheme(4, 64, symmetric)
    importance = np.ones(64, np.float32)
    importance[5] = 0.1
    full = rtn.quantize(weights, scheme)
    scales, zeros = search(weights, importance, scheme)
    before = loss(weights, importance, scheme, full.scales, full.zero_points).sum()
    assert loss(weights, importance, scheme, scales, zeros).sum() < 0.85 * before


def test_importance_decides() -> None:
    """A large weight that matters is not clipped; one that does not is."""
    weights = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    weights[:, 0] = 5
    scheme = Scheme(4, 32, False)
    widths = []
    for share in (100.0, 0.0):
        importance = np.ones(32, np.float32)
        importance[0] = share
        scales, _ = search(weights, importance, scheme)
        widths.append(float(scales.mean()))
    assert widths[0] > 1.1 * widths[1]


@pytest.mark.parametrize("symmetric", [False, True])
def test_degenerate_groups(symmetric: bool) -> None:
    weights = np.zeros((3, 48), np.float32)
    weights[1] = 2.5
    weights[2, :16] = 1e-42
    scheme = Scheme(4, 16, symmetric)
    for importance in (np.ones(48, np.float32), np.zeros(48, np.float32)):
        scales, zeros = search(weights, importance, scheme)
        assert np.isfinite(scales).all()
        assert loss(weights, np.ones(48), scheme, scales, zeros).max() < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    weights = np.ones((4, 64), np.float32)
    weights[2, 40] = bad
    for symmetric in (False, True):
        with pytest.raises(FloatingPointError):
            search(weights, np.ones(64, np.float32), Scheme(4, 32, symmetric))
