"""Masks and what is done about them, as pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from burnish.ir.errors import OptionError
from burnish.passes.quantize.methods import gptq, refine, rtn
from burnish.passes.quantize.scheme import Scheme
from burnish.passes.sparsify import criteria, dsnot, least_squares, ratios, sparsegpt
from burnish.passes.sparsify.pattern import Pattern, follows, parse, select
from burnish.passes.sparsify.permute import permutation, retained
from hypothesis import given
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]


def _layer(seed: int = 0, n: int = 32, k: int = 64) -> tuple[Array, Array, Array]:
    """Weights, inputs with a few large and many dependent channels, and their Hessian."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((512, k // 2)) @ generator.standard_normal((k // 2, k))
    x = x * np.exp(generator.standard_normal(k)) + 0.1 * generator.standard_normal((512, k))
    weights = generator.standard_normal((n, k)).astype(np.float32)
    return weights, x.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def _error(weights: Array, result: Array, hessian: Array) -> float:
    return gptq.output_error(result - weights, hessian)


def test_patterns() -> None:
    assert parse("2:4") == Pattern(2, 4) and parse("2:4").sparsity == 0.5
    assert str(parse("16x8")) == "16x8" and parse("unstructured").sparsity is None
    for text in ("4:2", "0:4", "2-4", "1x1", ""):
        with pytest.raises(OptionError, match="no pattern"):
            parse(text)
    assert parse("2:4").obstacle(8, 6) is not None and parse("4x4").obstacle(6, 8) is not None


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.95), st.integers(0, 99))
def test_select_keeps_exactly_the_best(n: int, groups: int, sparsity: float, seed: int) -> None:
    k = 4 * groups
    # Equal scores, too.
    scores = np.random.default_rng(seed).integers(0, 5, (n, k)).astype(np.float32)
    rows = select(scores, Pattern(), sparsity, "row")
    assert (rows.sum(axis=1) == k - round(sparsity * k)).all()
    for score, keep in zip(scores, rows, strict=True):
        if keep.any() and not keep.all():
            assert score[keep].min() >= score[~keep].max()
    assert select(scores, Pattern(), sparsity, "matrix").sum() == n * k - round(sparsity * n * k)
    grouped = select(scores, Pattern(2, 4), 0)
    assert (grouped.reshape(n, groups, 4).sum(axis=2) == 2).all() and follows(scores * grouped, Pattern(2, 4))
    assert permutation(scores, Pattern(2, 4)).tolist() != [] if groups else True
    assert retained(scores[:, permutation(scores, Pattern(2, 4))], Pattern(2, 4)) >= retained(scores, Pattern(2, 4))


def test_blocks_go_as_a_whole() -> None:
    scores = np.arange(64, dtype=np.float32).reshape(8, 8)
    keep = select(scores, Pattern(block=(4, 4)), 0.5)
    assert np.array_equal(keep, np.repeat([False, True], 4)[:, None] & np.ones(8, bool))


def test_criteria() -> None:
    weights = np.asarray([[1.0, -2.0], [3.0, 0.5]])
    assert np.allclose(criteria.wanda(weights, np.asarray([2.0, 1.0])), [[2, 2], [6, 0.5]])
    expected = np.abs(weights) / np.asarray([[4.0, 2.5]]) + np.abs(weights) / np.asarray([[3.0], [3.5]])
    assert np.allclose(criteria.ria(weights, np.asarray([4.0, 9.0])), expected * [[2, 3]])
    scores = np.ones((10, 10))
    scores[0, 0] = 900
    assert criteria.outlier_share(scores) == 0.01


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(2, 4), Pattern(4, 8)])
def test_the_order_of_methods(pattern: Pattern) -> None:
    """Magnitude far behind Wanda, SparseGPT ahead of it, the best fit for a mask ahead of all."""
    weights, _, hessian = _layer()
    norms = np.sqrt(hessian.diagonal())
    masks = {
        "magnitude": select(criteria.magnitude(weights), pattern, 0.5),
        "wanda": select(criteria.wanda(weights, norms), pattern, 0.5),
    }
    errors = {name: _error(weights, weights * mask, hessian) for name, mask in masks.items()}
    feedback = gptq.decompose(hessian, order="none")
    result = sparsegpt.prune(weights, feedback, pattern, 0.5)
    errors["sparsegpt"] = _error(weights, result, hessian)
    same_mask = sparsegpt.prune(weights, feedback, pattern, 0.5, keep=masks["wanda"])
    errors["wanda + obs"] = _error(weights, same_mask, hessian)
    fit = least_squares.fit(weights, weights * masks["wanda"], masks["wanda"], hessian)
    errors["wanda + fit"] = _error(weights, fit, hessian)
    assert errors["wanda"] < 0.6 * errors["magnitude"]
    assert errors["sparsegpt"] < 0.75 * errors["wanda"]
    assert errors["wanda + fit"] <= 1.02 * errors["wanda + obs"] < 0.8 * errors["wanda"]
    assert abs(float((result == 0).mean()) - 0.5) < 0.01
    if pattern.group:
        assert follows(result, pattern) and follows(fit, pattern)


def test_the_fit_is_the_best_on_its_mask() -> None:
    weights, _, hessian = _layer(n=3, k=16)
    keep = select(criteria.magnitude(weights), Pattern(), 0.5)
    found = least_squares.fit(weights, weights * keep, keep, hessian, steps=200)
    h = hessian.astype(np.float64)
    h[np.diag_indices(16)] += least_squares.DAMPING * h.diagonal().mean()
    for row, mask, result in zip(weights, keep, found, strict=True):
        exact = np.linalg.solve(h[np.ix_(mask, mask)], (h @ row)[mask])
        assert np.allclose(result[mask], exact, rtol=2e-2, atol=2e-3)


def test_exchanges_lessen_the_expected_error() -> None:
    weights, x, _ = _layer()
    x = x + 2.0
    mean, square = x.mean(axis=0), np.square(x).mean(axis=0)
    for pattern in (Pattern(), Pattern(2, 4)):
        keep = select(criteria.wanda(weights, np.sqrt(square)), pattern, 0.5)
        refined = dsnot.refine(weights, keep, mean, square, pattern)
        before, after = (np.abs((weights * mean * ~mask).sum(axis=1)) for mask in (keep, refined))
        assert (after <= before + 1e-5).all() and after.mean() < 0.7 * before.mean()
        assert (refined.sum(axis=1) == keep.sum(axis=1)).all()
        if pattern.group:
            assert follows(weights * refined, pattern)


@given(st.lists(st.floats(0, 0.2), min_size=2, max_size=20), st.floats(0.1, 0.9))
def test_owl_keeps_the_mean(shares: list[float], sparsity: float) -> None:
    sizes = [100 + 7 * i for i in range(len(shares))]
    found = ratios.owl(shares, sizes, sparsity)
    assert np.average(found, weights=sizes) == pytest.approx(sparsity, abs=1e-6)
    assert max(found) <= sparsity + ratios.SPREAD + 1e-9 and min(found) >= sparsity - ratios.SPREAD - 1e-9
    assert found[int(np.argmax(shares))] == min(found)


def test_a_global_threshold() -> None:
    samples = [np.arange(10.0), np.arange(10.0) + 10]
    assert ratios.threshold(samples, [10, 30], 0.5) == pytest.approx(13, abs=1)


def test_permutation_keeps_more() -> None:
    """Important channels side by side: dealt out, twice as many of them stay."""
    scores = np.ones((16, 32), np.float32)
    scores[:, :8] = 10
    before = retained(scores, Pattern(2, 4))
    order = permutation(scores, Pattern(2, 4))
    assert sorted(order.tolist()) == list(range(32))
    assert retained(scores[:, order], Pattern(2, 4)) > 1.4 * before


def test_rounding_leaves_zeros_alone() -> None:
    weights, _, hessian = _layer()
    pruned = sparsegpt.prune(weights, gptq.decompose(hessian, order="none"), Pattern(2, 4), 0.5)
    scheme = Scheme(bits=4, group_size=32, symmetric=False)
    codes = gptq.quantize(pruned, gptq.decompose(hessian), scheme, pruned=pruned == 0)
    improved = refine.refine(pruned, codes, hessian, scheme, pruned=pruned == 0)
    for found in (codes, improved):
        values = rtn.dequantize(found, scheme, 64)
        assert not values[pruned == 0].any()
    plain = rtn.dequantize(rtn.quantize(pruned, scheme), scheme, 64)
    assert _error(pruned, rtn.dequantize(improved, scheme, 64), hessian) < _error(pruned, plain, hessian)


@pytest.mark.parametrize("pattern", [Pattern(), Pattern(2, 4)])
def test_pruned_then_rounded_is_not_behind_both_at_once(pattern: Pattern) -> None:
    """SparseGPT, section 3.5, prunes and rounds in one sweep over the columns, with the scales of the dense weights.

    That is GPTQ of the weights as they came with the mask given. Scales of what is left fit better, and the fit on the
    mask can be the best there is: one after the other wins.
    """
    weights, _, hessian = _layer()
    feedback = gptq.decompose(hessian, order="none")
    pruned = sparsegpt.prune(weights, feedback, pattern, 0.5)
    scheme = Scheme(bits=4, group_size=32, symmetric=False)
    zero = pruned == 0
    joint = rtn.dequantize(gptq.quantize(weights, feedback, scheme, pruned=zero), scheme, 64)
    assert not joint[zero].any()
    after = rtn.dequantize(gptq.quantize(pruned, gptq.decompose(hessian), scheme, pruned=zero), scheme, 64)
    fit = least_squares.fit(weights, pruned, ~zero, hessian)
    best = rtn.dequantize(gptq.quantize(fit, gptq.decompose(hessian), scheme, pruned=zero), scheme, 64)
    errors = [_error(weights, found, hessian) for found in (best, after, joint)]
    assert errors[0] < errors[1] < errors[2]
    # Rounding costs little beside pruning: nothing of the mask is lost on the way.
    assert errors[1] < 2 * _error(weights, pruned, hessian)
