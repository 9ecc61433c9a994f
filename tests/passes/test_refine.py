"""Codes and scales improved after GPTQ: never worse, clearly better where channels correlate."""

from __future__ import annotations

import numpy as np
import pytest
from burnish.passes.quantize.methods import gptq, refine, rtn
from burnish.passes.quantize.scheme import Scheme
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMES = [Scheme(4, 32, True), Scheme(4, 64, False), Scheme(3, 128, False), Scheme(2, 16, False), Scheme(4, 0, True)]


def data(n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the Hessian of inputs whose channels correlate."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((k, k)) * np.arange(1, k + 1) ** -0.7
    inputs = random.standard_normal((4 * k, k)) @ mixing.T
    return random.standard_normal((n, k)).astype(np.float32), (inputs.T @ inputs / len(inputs)).astype(np.float32)


def error(weights: np.ndarray, codes: rtn.Codes, hessian: np.ndarray, scheme: Scheme) -> float:
    return gptq.output_error(rtn.dequantize(codes, scheme, weights.shape[1]) - weights, hessian)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_error_falls_by_a_share(scheme: Scheme) -> None:
    weights, hessian = data(200, 160, 0)
    start = gptq.quantize(weights, gptq.decompose(hessian), scheme)
    refined = refine.refine(weights, start, hessian, scheme)
    assert error(weights, refined, hessian, scheme) < 0.97 * error(weights, start, hessian, scheme)
    assert refined.codes.max() < scheme.levels
    again = refine.refine(weights, start, hessian, scheme)
    assert np.array_equal(refined.codes, again.codes) and np.array_equal(refined.scales, again.scales)


@settings(max_examples=20, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES), k=st.sampled_from([16, 40, 130]), n=st.integers(1, 9), seed=st.integers(0, 999),
    precision=st.sampled_from([np.float32, np.float16]),
)  # fmt: skip
def test_no_step_raises_the_error(scheme: Scheme, k: int, n: int, seed: int, precision: type) -> None:
    weights, hessian = data(n, k, seed)
    hessian[0], hessian[:, 0] = 0, 0  # an input that is always zero
    damped = hessian + np.float32(0.01 * hessian.diagonal().mean()) * np.eye(k, dtype=np.float32)
    codes = rtn.quantize(weights, scheme, precision=precision)
    last = error(weights, codes, damped, scheme)
    for _ in range(2):
        for step in (
            lambda c: refine.descend(weights, c, damped, scheme),
            lambda c: refine.fit_scales(weights, c, damped, scheme, precision=precision),
        ):
            codes = step(codes)
            now = error(weights, codes, damped, scheme)
            assert now <= last * (1 + 1e-4)  # float32 sums
            last = now


def test_scales_are_the_least_squares_solution() -> None:
    """With one group a row: s = c H w / c H c."""
    weights, hessian = data(5, 32, 1)
    scheme = Scheme(4, 0, True)
    start = rtn.quantize(weights, scheme)
    steps = start.codes.astype(np.float64) - 8
    wanted = np.einsum("nk,kl,nl->n", steps, hessian, weights) / np.einsum("nk,kl,nl->n", steps, hessian, steps)
    fitted = refine.fit_scales(weights, start, hessian, scheme)
    assert np.allclose(fitted.scales[:, 0], wanted, rtol=1e-4)  # float32 sums, and a ridge of 1e-6


def test_zero_weights_and_zero_inputs_stay() -> None:
    weights, hessian = data(4, 32, 2)
    weights[1] = 0
    scheme = Scheme(4, 16, False)
    for h in (hessian, np.zeros_like(hessian)):
        start = rtn.quantize(weights, scheme)
        refined = refine.refine(weights, start, h, scheme)
        assert np.isfinite(refined.scales).all()
        assert not rtn.dequantize(refined, scheme, 32)[1].any()
