"""The formulas of SmoothQuant and AWQ, and that each wins on data made for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.passes.quantize.scheme import Scheme
from burnish.passes.smooth import migration, saliency

Array = np.ndarray[Any, Any]
W4 = Scheme(4, 32, symmetric=False)


def outliers(tokens: int = 256, channels: int = 128, factor: float = 50) -> tuple[Array, Array]:
    """Activations [T, K] with six channels ``factor`` times the others, and weights [N, K]."""
    random = np.random.default_rng(0)
    x = random.standard_normal((tokens, channels))
    x[:, random.choice(channels, 6, replace=False)] *= factor
    return x.astype(np.float32), random.standard_normal((96, channels)).astype(np.float32)


def w8a8(x: Array, w: Array, *, per_token: bool) -> Array:
    """Both rounded to 8 bits: activations with one scale a token or one for all, weights one an output channel."""

    def rounded(a: Array, axis: int | None) -> Array:
        step = np.abs(a).max(axis=axis, keepdims=True) * 2 / 255
        result: Array = np.rint(a / step) * step
        return result

    result: Array = rounded(x, 1 if per_token else None) @ rounded(w, 1).T
    return result


def relative(a: Array, b: Array) -> float:
    return float(np.square(a - b).sum() / np.square(b).sum())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_migration_is_equation_4(alpha: float) -> None:
    x, w = np.array([4.0, 9.0, 0.25]), np.array([1.0, 0.25, 4.0])
    expected = [4**alpha / 1, 9**alpha / 0.25 ** (1 - alpha), 0.25**alpha / 4 ** (1 - alpha)]
    assert migration.scales(x, w, alpha) == pytest.approx(expected, rel=1e-6)


def test_half_migration_balances_activations_and_weights() -> None:
    x, w = np.array([4.0, 100.0, 0.25]), np.array([1.0, 0.25, 4.0])
    s = migration.scales(x, w, 0.5)
    assert x / s == pytest.approx(w * s, rel=1e-6)


def test_equalized_activations_reach_to_their_logarithm() -> None:
    x = np.array([0.5, 14.0, 1022.0, 0.0])
    s = migration.logarithmic(x)
    assert (x / s).tolist() == pytest.approx([np.log2(2.5), 4, 10, 0], rel=1e-6)
    assert s[3] == 1


def test_channels_of_zeros_stay() -> None:
    assert migration.scales(np.array([0.0, 4.0, 4.0]), np.array([1.0, 0.0, 1.0]), 0.5).tolist() == [1, 1, 2]
    assert saliency.scales(np.array([0.0, 4.0, 1.0]), 0.5).tolist() == pytest.approx([1, 2**0.5, 0.5**0.5])
    assert saliency.scales(np.zeros(3), 0.5).tolist() == [1, 1, 1]
    zeros = np.zeros((4, 32), np.float32)
    ones = np.ones(32, np.float32)
    assert saliency.output_error(zeros, ones, ones, W4) == 0
    assert migration.output_error(zeros, ones, ones, ones) == 0


@pytest.mark.parametrize(("per_token", "factor"), [(True, 5), (False, 10)])
def test_smoothing_reduces_the_error_of_w8a8(per_token: bool, factor: float) -> None:
    x, w = outliers()
    s = migration.scales(np.abs(x).max(axis=0), np.abs(w).max(axis=0), 0.5)
    plain = relative(w8a8(x, w, per_token=per_token), x @ w.T)
    smooth = relative(w8a8(x / s, w * s, per_token=per_token), x @ w.T)
    assert smooth < plain / factor, (plain, smooth)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_expected_error_is_that_of_rounding(alpha: float) -> None:
    x, w = outliers()
    largest, square = np.abs(x).max(axis=0), np.square(x).mean(axis=0)
    s = migration.scales(largest, np.abs(w).max(axis=0), alpha)
    expected = migration.output_error(w, s, largest, square)
    assert expected == pytest.approx(relative(w8a8(x / s, w * s, per_token=False), x @ w.T), rel=0.1)


def test_saliency_is_equation_5() -> None:
    s = saliency.scales(np.array([1.0, 4.0, 16.0]), 0.5)
    assert s == pytest.approx([0.5, 1.0, 2.0])
    assert saliency.scales(np.array([1.0, 4.0, 16.0]), 0).tolist() == [1, 1, 1]


def test_awq_reduces_the_error_of_four_bits() -> None:
    x, w = outliers()
    mean_abs, power = np.abs(x).mean(axis=0), np.square(x).mean(axis=0)
    errors = {r: saliency.output_error(w, saliency.scales(mean_abs, r), power, W4) for r in saliency.RATIOS}
    best = min(errors, key=errors.__getitem__)
    assert best > 0
    assert errors[best] < errors[0.0] / 3


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_weighted_error_is_that_of_the_outputs(ratio: float) -> None:
    from burnish.passes.quantize.methods import rtn

    x, w = outliers(tokens=4096)
    s = saliency.scales(np.abs(x).mean(axis=0), ratio)
    rounded = rtn.dequantize(rtn.quantize(w * s, W4), W4, w.shape[1])
    expected = saliency.output_error(w, s, np.square(x).mean(axis=0), W4)
    assert expected == pytest.approx(relative((x / s) @ rounded.T, x @ w.T), rel=0.1)
