"""Ranges of activations out of histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.passes.quantize.inputs.histogram import METHODS, Range, choose
from burnish.passes.statistics import HISTOGRAM_BINS, HISTOGRAM_LEAST, HISTOGRAM_STEPS

Array = np.ndarray[Any, Any]


def histogram(x: Array) -> Array:
    """What the observer gives, by NumPy."""
    place = np.log2(np.maximum(np.abs(x), 2.0**HISTOGRAM_LEAST)) * HISTOGRAM_STEPS - HISTOGRAM_STEPS * HISTOGRAM_LEAST
    place = np.clip(np.floor(place), 0, HISTOGRAM_BINS - 1).astype(int) + np.where(x < 0, HISTOGRAM_BINS, 0)
    return np.concatenate([[x.min(), x.max()], np.bincount(place, minlength=2 * HISTOGRAM_BINS)]).astype(np.float32)


def rounded(x: Array, span: Range) -> Array:
    zero = float(span.zero_point)
    codes = np.clip(np.rint(x / span.scale) + zero, 0, 255)
    return (codes - zero) * span.scale


def loss(x: Array, span: Range) -> float:
    return float(((x - rounded(x, span)) ** 2).mean())


NORMAL = np.random.default_rng(0).standard_normal(200_000)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [-3.0, 0.0, 5.0])
def test_a_range_holds_zero_and_stays_inside(method: str, shift: float) -> None:
    x = NORMAL + shift
    span = choose(histogram(x), method)
    assert min(x.min(), 0) - 1e-6 <= span.low <= 0 <= span.high <= max(x.max(), 0) + 1e-6
    assert span.high - span.low > 0.5


def test_the_full_range_is_kept_by_minmax_alone() -> None:
    x = np.concatenate([NORMAL, [80.0]])
    assert choose(histogram(x), "minmax") == Range(pytest.approx(x.min()), 80.0)
    assert choose(histogram(x), "percentile").high < 6


def test_least_square_beats_the_others_in_squares() -> None:
    x = np.concatenate([NORMAL, np.random.default_rng(1).laplace(size=2000) * 8])
    found = histogram(x)
    losses = {method: loss(x, choose(found, method)) for method in METHODS}
    assert losses["mse"] <= 1.02 * min(losses.values())
    assert losses["mse"] < 0.75 * losses["minmax"]


def test_least_square_is_near_the_best_of_all_ranges() -> None:
    x = np.concatenate([NORMAL[:20_000], [30.0, -45.0]])
    best = min(loss(x, Range(-low, high)) for low in np.geomspace(1, 45, 40) for high in np.geomspace(1, 30, 40))
    assert loss(x, choose(histogram(x), "mse")) <= 1.1 * best


def test_divergence_keeps_the_bulk_and_drops_a_lone_outlier() -> None:
    span = choose(histogram(np.concatenate([NORMAL, [300.0]])), "kl")
    assert 2.5 < span.high < 60


def test_a_percentile_cuts_what_it_says() -> None:
    span = choose(histogram(NORMAL), "percentile", percentile=99.0)
    assert span.high == pytest.approx(np.percentile(NORMAL, 99), rel=0.03)
    assert span.low == pytest.approx(np.percentile(NORMAL, 1), rel=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_have_a_scale(method: str) -> None:
    span = choose(histogram(np.zeros(10)), method)
    assert span == Range(0.0, 0.0) and span.scale == 1 and span.zero_point == 0


@pytest.mark.parametrize("method", METHODS)
def test_one_sided_numbers_waste_no_code(method: str) -> None:
    span = choose(histogram(np.abs(NORMAL)), method)
    assert span.low == 0 and span.zero_point == 0
