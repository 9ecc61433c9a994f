"""GPTQ: the mathematics of ``passes/quantize/methods/gptq.py``."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from burnish.passes.quantize.methods import gptq, rtn
from burnish.passes.quantize.methods.ranges import search
from burnish.passes.quantize.scheme import Scheme

SCHEMES = [Scheme(4, 32, False), Scheme(4, 32, True), Scheme(4, 0, False), Scheme(8, 64, True)]


def correlated(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the Hessian of inputs most of whose power lies in few directions."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((k, k)) * np.arange(1, k + 1) ** -0.7
    x = random.standard_normal((4 * k, k)) @ mix.T
    return random.standard_normal((n, k)).astype(np.float32), x.T @ x


def error(codes: rtn.Codes, weights: np.ndarray, hessian: np.ndarray, scheme: Scheme) -> float:
    return gptq.output_error(rtn.dequantize(codes, scheme, weights.shape[1]) - weights, hessian)


def textbook(weights: np.ndarray, hessian: np.ndarray, scheme: Scheme, scales: np.ndarray, zeros: np.ndarray | None,
             order: np.ndarray, damping: float) -> np.ndarray:  # fmt: skip
    """Algorithm 1 of Frantar et al., column by column, with the inverse, in float64."""
    k = weights.shape[1]
    h = hessian.astype(np.float64) + damping * hessian.diagonal().mean() * np.eye(k)
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left = weights.astype(np.float64)[:, order]
    codes = np.empty(weights.shape, np.uint8)
    for j in range(k):
        g = order[j] // scheme.group(k)
        zero = scheme.levels // 2 if zeros is None else zeros[:, g].astype(np.float64)
        code = np.clip(np.rint(left[:, j] / scales[:, g]) + zero, 0, scheme.levels - 1)
        codes[:, order[j]] = code
        off = (left[:, j] - (code - zero) * scales[:, g]) / upper[j, j]
        left[:, j + 1 :] -= off[:, None] * upper[j, j + 1 :]
    return codes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("order", gptq.ORDERS)
def test_it_is_the_algorithm_of_the_paper(scheme: Scheme, order: gptq.Order) -> None:
    weights, hessian = correlated(40, 150)
    feedback = gptq.decompose(hessian, order=order)
    ours = gptq.quantize(weights, feedback, scheme)
    theirs = textbook(weights, hessian, scheme, ours.scales, ours.zero_points, feedback.order, 0.01)
    # float32 against float64: a weight halfway between two codes may fall on the other side, and moves those after it.
    assert (ours.codes == theirs).mean() > 0.99


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_beats_rounding_to_nearest_where_inputs_correlate(scheme: Scheme) -> None:
    """By a factor of 5 on data of which a tenth of the directions hold nearly all power (measured: 10 to 14)."""
    weights, hessian = correlated(64, 512)
    nearest = error(rtn.quantize(weights, scheme), weights, hessian, scheme)
    errors = {o: error(gptq.quantize(weights, gptq.decompose(hessian, order=o), scheme), weights, hessian, scheme)
              for o in gptq.ORDERS}  # fmt: skip
    assert errors["activation"] * 5 < nearest
    assert errors["none"] * 4 < nearest


def test_columns_of_large_inputs_go_first() -> None:
    """The first columns have all others to make up for them: with one channel 100 times the rest it pays."""
    weights, hessian = correlated(64, 256)
    size = np.ones(256)
    size[-8:] = 100
    hessian = hessian * size[:, None] * size
    scheme = Scheme(4, 64, False)
    by_order = [
        error(gptq.quantize(weights, gptq.decompose(hessian, order=order), scheme), weights, hessian, scheme)
        for order in gptq.ORDERS
    ]
    assert by_order[0] < 0.7 * by_order[1]
    np.testing.assert_array_equal(np.sort(gptq.decompose(hessian).order[:8]), np.arange(248, 256))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_without_correlation_it_rounds_to_nearest(scheme: Scheme) -> None:
    weights = np.random.default_rng(0).standard_normal((16, 100)).astype(np.float32)
    size = np.random.default_rng(1).uniform(0.1, 10, 100)
    for order in gptq.ORDERS:
        result = gptq.quantize(weights, gptq.decompose(np.diag(size), order=order), scheme)
        scales, zeros = search(weights, (size + 0.01 * size.mean()).astype(np.float32), scheme)
        np.testing.assert_array_equal(result.scales, scales)
        middle = scheme.levels // 2 if zeros is None else np.repeat(zeros, scheme.group(100), axis=1)[:, :100]
        step = np.repeat(scales, scheme.group(100), axis=1)[:, :100]
        # Codes by a multiplication with 1 / scale.
        nearest = np.clip(np.rint(weights * (1 / step)) + middle, 0, scheme.levels - 1)
        np.testing.assert_array_equal(result.codes, nearest)


def test_inputs_that_are_always_zero() -> None:
    """Their weights are rounded to nearest and move no other; the rest is as if they were not there."""
    weights, hessian = correlated(16, 96)
    dead = [0, 40, 95]
    hessian[dead], hessian[:, dead] = 0, 0
    scheme = Scheme(4, 16, False)
    feedback = gptq.decompose(hessian)
    result = gptq.quantize(weights, feedback, scheme)
    assert set(feedback.order[-3:]) == set(dead)
    assert (feedback.feedback[:, -3:] == 0).all() and feedback.damping == 0.01
    step = np.repeat(np.abs(result.scales), 16, axis=1)[:, dead]
    off = np.abs(rtn.dequantize(result, scheme, 96) - weights)[:, dead]
    # NARROWEST = 0.6 may clip by up to 0.4 of a range of 15 steps; the middle of the weights is within half a step.
    assert (off <= 6.5 * step).all() and (off <= 0.5001 * step).mean() > 0.8


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_fewer_inputs_than_channels(rank: int) -> None:
    """A singular Hessian is factored with the damping asked for; one of zeros means rounding to nearest."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rank, 64))
    weights = random.standard_normal((8, 64)).astype(np.float32)
    scheme = Scheme(4, 32, False)
    feedback = gptq.decompose(x.T @ x)
    result = gptq.quantize(weights, feedback, scheme)
    assert np.isfinite(result.scales).all() and feedback.damping == 0.01
    nearest = error(rtn.quantize(weights, scheme), weights, x.T @ x, scheme)
    assert error(result, weights, x.T @ x, scheme) <= 0.1 * nearest


def test_damping_is_raised_until_the_hessian_can_be_factored() -> None:
    _, hessian = correlated(1, 48)
    values, vectors = np.linalg.eigh(hessian)
    values[:5] = -0.05 * values.mean()  # as rounding errors leave it, and worse
    bent = vectors * values @ vectors.T
    feedback = gptq.decompose(bent, damping=0.001)
    assert feedback.damping == pytest.approx(0.1)
    assert gptq.decompose(np.ones((8, 8)), damping=0.0).damping == pytest.approx(1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(bad: float) -> None:
    weights, hessian = correlated(4, 64)
    feedback = gptq.decompose(hessian)
    weights[2, 40] = bad
    with pytest.raises(FloatingPointError, match="weight"):
        gptq.quantize(weights, feedback, Scheme(4, 32, False))
    hessian[3, 3] = bad
    with pytest.raises(FloatingPointError, match="Hessian"):
        gptq.decompose(hessian)


@pytest.mark.parametrize("k", [33, 64, 65, 200])
@pytest.mark.parametrize("group", [0, 16, 64])
def test_last_group_is_shorter(k: int, group: int) -> None:
    weights, hessian = correlated(9, k)
    scheme = Scheme(4, group, False)
    result = gptq.quantize(weights, gptq.decompose(hessian), scheme)
    assert result.codes.shape == (9, k) and result.scales.shape == (9, scheme.groups(k))
    assert result.codes.max() < 16
    nearest = error(rtn.quantize(weights, scheme), weights, hessian, scheme)
    assert error(result, weights, hessian, scheme) < 0.6 * nearest


def test_rows_do_not_depend_on_each_other_and_runs_agree() -> None:
    """More rows than are worked on at a time."""
    weights, hessian = correlated(gptq.ROWS + 100, 96)
    scheme = Scheme(4, 32, False)
    feedback = gptq.decompose(hessian)
    first = gptq.quantize(weights, feedback, scheme)
    again = gptq.quantize(weights, gptq.decompose(hessian), scheme)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.scales, again.scales)
    for row in (0, gptq.ROWS - 1, gptq.ROWS, gptq.ROWS + 99):
        one = gptq.quantize(weights[row : row + 1], feedback, scheme)
        np.testing.assert_array_equal(one.scales, first.scales[row : row + 1])
        # A matrix-vector product may sum in another order than a matrix product.
        assert (one.codes == first.codes[row : row + 1]).mean() > 0.95


def test_narrow_weights_and_scales() -> None:
    weights, hessian = correlated(5, 96)
    kind = ml_dtypes.bfloat16
    scheme = Scheme(4, 32, False)
    result = gptq.quantize(weights.astype(kind), gptq.decompose(hessian), scheme, precision=kind)
    np.testing.assert_array_equal(result.scales, result.scales.astype(kind).astype(np.float32))


def test_output_error_is_that_of_the_outputs() -> None:
    random = np.random.default_rng(0)
    x, difference = random.standard_normal((30, 20)), random.standard_normal((3000, 20))
    want = np.square(x @ difference.T).sum()
    assert gptq.output_error(difference.astype(np.float32), x.T @ x) == pytest.approx(want, rel=1e-4)
