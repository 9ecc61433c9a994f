from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from burnish.passes.quantize.methods import rtn
from burnish.passes.quantize.scheme import Scheme
from hypothesis import given, settings
from hypothesis import strategies as st

schemes = st.builds(
    Scheme, bits=st.sampled_from([4, 8]), group_size=st.sampled_from([0, 16, 32, 64, 128]), symmetric=st.booleans()
)


def unpacked(packed: np.ndarray, k: int) -> np.ndarray:
    both = np.stack([packed & 15, packed >> 4], axis=-1)
    return both.reshape(len(packed), -1)[:, :k]


@settings(max_examples=60, deadline=None)
@given(schemes, st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 300.0]))
def test_error_is_at_most_one_step(scheme: Scheme, n: int, k: int, seed: int, size: float) -> None:
    weights = (np.random.default_rng(seed).standard_normal((n, k)) * size).astype(np.float32)
    result = rtn.quantize(weights, scheme)
    assert result.codes.max() < scheme.levels
    assert result.scales.shape == (n, scheme.groups(k))
    step = np.repeat(np.abs(result.scales), scheme.group(k), axis=1)[:, :k]
    error = np.abs(rtn.dequantize(result, scheme, k) - weights)
    # Half a step by rounding; asymmetric: another half where the rounded zero point clips an end of the range;
    # symmetric: one step where the positive end has one code less.
    assert (error <= step * (1.0 + 1e-5)).all()
    assert np.mean(error <= step * 0.5001) > 0.5


@settings(max_examples=30, deadline=None)
@given(schemes, st.integers(1, 9), st.integers(1, 100), st.integers(0, 2**31))
def test_layouts_agree(scheme: Scheme, n: int, k: int, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    plain = rtn.quantize(weights, scheme)
    turned = rtn.quantize(np.ascontiguousarray(weights.T), scheme, transposed=True)
    packed = rtn.quantize(weights, scheme, packed=True)
    np.testing.assert_array_equal(plain.codes, turned.codes)
    np.testing.assert_array_equal(plain.scales, turned.scales)
    codes = packed.codes if scheme.bits == 8 else unpacked(packed.codes, k)
    np.testing.assert_array_equal(plain.codes, codes)


def test_blocks_of_rows_give_what_one_row_gives() -> None:
    """Large enough to be cut into blocks and shared between threads."""
    scheme = Scheme(4, 64, False)
    weights = np.random.default_rng(0).standard_normal((3000, 400)).astype(np.float32)
    whole = rtn.quantize(weights, scheme)
    for row in (0, 326, 327, 1500, 2999):
        one = rtn.quantize(weights[row : row + 1], scheme)
        np.testing.assert_array_equal(whole.codes[row], one.codes[0])
        assert whole.zero_points is not None and one.zero_points is not None
        np.testing.assert_array_equal(whole.zero_points[row], one.zero_points[0])


def test_formula_by_hand() -> None:
    """Equations 3, 4 and 6: range [-1, 2], 15 steps of 0.2, zero point 5."""
    weights = np.array([[-1.0, 2.0, 0.0, 0.55]], np.float32)
    result = rtn.quantize(weights, Scheme(4, 0, False))
    np.testing.assert_allclose(result.scales, [[0.2]], rtol=1e-6)
    assert result.zero_points is not None
    np.testing.assert_array_equal(result.zero_points, [[5]])
    np.testing.assert_array_equal(result.codes, [[0, 15, 5, 8]])
    symmetric = rtn.quantize(weights, Scheme(4, 0, True))
    np.testing.assert_allclose(symmetric.scales, [[-0.25]])
    assert symmetric.zero_points is None
    np.testing.assert_array_equal(symmetric.codes, [[12, 0, 8, 6]])


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    scheme = Scheme(4, 16, symmetric)
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32) + 3
    weights[:, ::2] = 0
    weights[0] = 0
    restored = rtn.dequantize(rtn.quantize(weights, scheme), scheme, 64)
    assert (restored[weights == 0] == 0).all()


def test_smaller_groups_lose_less_where_there_are_outliers() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    weights[:, 7] *= 30
    errors = []
    for group in (32, 128, 0):
        scheme = Scheme(4, group, False)
        restored = rtn.dequantize(rtn.quantize(weights, scheme), scheme, 512)
        errors.append(float(np.square(restored - weights).mean()))
    assert errors[0] * 3 < errors[1] and errors[1] * 3 < errors[2]


def test_signed_scale_beats_the_shorter_range() -> None:
    """Using all 16 codes (scale of the sign of the largest weight) loses less than codes from -7 to 7."""
    weights = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    scheme = Scheme(4, 32, True)
    ours = np.square(rtn.dequantize(rtn.quantize(weights, scheme), scheme, 64) - weights).mean()
    groups = weights.reshape(256, 2, 32)
    scale = np.abs(groups).max(axis=2, keepdims=True) / 7
    shorter = np.square(np.rint(groups / scale) * scale - groups).mean()
    assert ours < 0.95 * shorter


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_narrow_weights(name: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, name, None) or name)
    weights = np.random.default_rng(0).standard_normal((5, 96)).astype(kind)
    scheme = Scheme(8, 32, False)
    np.testing.assert_array_equal(rtn.as_float32(weights), weights.astype(np.float32))
    same = rtn.quantize(weights.astype(np.float32), scheme)
    np.testing.assert_array_equal(rtn.quantize(weights, scheme).codes, same.codes)
    stored = rtn.quantize(weights, scheme, precision=kind)
    np.testing.assert_array_equal(stored.scales, stored.scales.astype(kind).astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("symmetric", [False, True])
def test_not_finite(bad: float, symmetric: bool) -> None:
    weights = np.ones((4, 64), np.float32)
    weights[2, 40] = bad
    with pytest.raises(FloatingPointError):
        rtn.quantize(weights, Scheme(4, 32, symmetric))


def test_subnormal_groups_do_not_overflow() -> None:
    weights = np.full((2, 32), 1e-42, np.float32)
    result = rtn.quantize(weights, Scheme(4, 32, False))
    assert np.isfinite(result.scales).all()
    assert (rtn.dequantize(result, Scheme(4, 32, False), 32) == 0).all()
