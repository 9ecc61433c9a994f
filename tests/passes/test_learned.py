"""Learned rounding and learned ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.passes.quantize.methods import gptq, learned, ranges, rtn
from burnish.passes.quantize.scheme import Scheme

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
N, K = 48, 96
MIX = RANDOM.standard_normal((K, K)) * np.arange(1, K + 1) ** -0.8
TOKENS = RANDOM.standard_normal((2000, K)) @ MIX.T
HESSIAN = (TOKENS.T @ TOKENS / len(TOKENS)).astype(np.float32)
WEIGHTS = RANDOM.standard_normal((N, K)).astype(np.float32)
SCHEMES = [Scheme(4, 32, False), Scheme(4, 32, True), Scheme(3, 64, False), Scheme(2, 32, True), Scheme(4, 0, False)]


def error(codes: rtn.Codes, scheme: Scheme, weights: Array = WEIGHTS) -> float:
    return gptq.output_error(rtn.dequantize(codes, scheme, K) - weights, HESSIAN)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_signround_beats_rounding_to_nearest(scheme: Scheme) -> None:
    plain = error(rtn.quantize(WEIGHTS, scheme), scheme)
    assert error(learned.learn(WEIGHTS, HESSIAN, scheme), scheme) < 0.75 * plain


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_learned_ranges_are_not_worse_than_full_ones(scheme: Scheme) -> None:
    plain = error(rtn.quantize(WEIGHTS, scheme), scheme)
    assert error(learned.learn(WEIGHTS, HESSIAN, scheme, shifts=False), scheme) <= 1.001 * plain


def test_learned_ranges_clip_an_outlier_that_costs_more_than_it_is_worth() -> None:
    scheme = Scheme(3, 32, False)
    weights = WEIGHTS * 0.3
    weights[:, ::32] = 2.0
    h = np.diag(np.where(np.arange(K) % 32 == 0, 0.01, 1.0)).astype(np.float32)
    before = gptq.output_error(rtn.dequantize(rtn.quantize(weights, scheme), scheme, K) - weights, h)
    found = learned.learn(weights, h, scheme, shifts=False)
    searched = ranges.quantize(weights, h.diagonal(), scheme)
    after = gptq.output_error(rtn.dequantize(found, scheme, K) - weights, h)
    assert after < 0.8 * before
    assert after < 1.5 * gptq.output_error(rtn.dequantize(searched, scheme, K) - weights, h)


def test_the_same_twice_and_codes_in_range() -> None:
    scheme = Scheme(3, 64, False)
    one, two = learned.learn(WEIGHTS, HESSIAN, scheme), learned.learn(WEIGHTS, HESSIAN, scheme)
    assert np.array_equal(one.codes, two.codes) and np.array_equal(one.scales, two.scales)
    assert one.codes.max() < 8 and one.zero_points is not None and one.zero_points.max() < 8


def test_zero_channels_and_no_inputs() -> None:
    scheme = Scheme(4, 32, False)
    weights = WEIGHTS.copy()
    weights[3] = 0
    found = learned.learn(weights, np.zeros((K, K), np.float32), scheme)
    assert (rtn.dequantize(found, scheme, K)[3] == 0).all()


def test_bad_weights() -> None:
    weights = WEIGHTS.copy()
    weights[0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        learned.learn(weights, HESSIAN, SCHEMES[0])
