"""Rounding and ranges learned by gradient descent on the error of a product's outputs.

SignRound (Cheng et al. 2023) learns for each weight a shift V in [-1/2, 1/2] before it is rounded, and for each group
how much of its range is kept (their equations 3 to 5), by the signs of the gradients; in the derivative rounding counts
as the identity. OmniQuant's learnable weight clipping (Shao et al. 2023, equation 2) is the same without the shifts.
Their loss is that of a block's outputs; here it is that of each product's outputs on the calibration inputs,
``tr((Q - W) H (Q - W)ᵀ)``, whose gradient needs no pass through the model: each row of a matrix is a problem of its
own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..scheme import Scheme
from .gptq import DAMPING
from .rows import by_rows
from .rtn import Array, Codes, as_float32, rounded

STEPS = 100
"""Steps of descent; SignRound takes 200 on blocks."""


def learn(
    weights: Array,
    hessian: Array,
    scheme: Scheme,
    *,
    shifts: bool = True,
    steps: int = STEPS,
    precision: Any = np.float32,
) -> Codes:
    """Codes of a matrix, each row as good as the best step left it.

    Args:
        weights: ``[n, k]``, any float type.
        hessian: ``[k, k]``, mean of ``xᵀx``.
        scheme: bits, group size, symmetry.
        shifts: learn V, too (SignRound); else ranges alone (OmniQuant).
        steps: of descent.
        precision: element type that the scales will be stored in.

    Returns:
        Unpacked codes; the first step is rounding to nearest in the full range, so the error on the damped Hessian is
        that of nearest or less.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    weights = as_float32(weights)
    n, k = weights.shape
    if not np.isfinite(weights).all():
        raise FloatingPointError("a weight is infinite or not a number")
    h = np.array(hessian, np.float32)
    at = np.arange(k)
    h[at, at] += max(DAMPING, 1e-6) * (float(h[at, at].mean()) or 1.0)
    return by_rows(n, k, scheme, lambda rows: _Problem(weights[rows], h, scheme, precision).solve(shifts, steps))


class _Problem:
    """Some rows of a matrix, in groups filled up with columns that cost nothing."""

    def __init__(self, weights: Array, hessian: Array, scheme: Scheme, precision: Any) -> None:
        n, k = weights.shape
        self._k, self._h, self._scheme, self._precision = k, hessian, scheme, precision
        group, groups = scheme.group(k), scheme.groups(k)
        # Repeating the last weight of a channel changes no group's range.
        self._w = np.pad(weights, ((0, 0), (0, groups * group - k)), mode="edge").reshape(n, groups, group)
        self._top = scheme.levels - 1
        low, high = self._w.min(axis=2), self._w.max(axis=2)
        if scheme.symmetric:
            # One end: the weight of largest magnitude, which gets the code that has no opposite.
            self._low, self._high = np.zeros_like(low), np.where(-low > high, low, high)
        else:
            self._low, self._high = np.minimum(low, 0), np.maximum(high, 0)

    def solve(self, shifts: bool, steps: int) -> Codes:
        shape = self._low.shape
        keep_low, keep_high = np.ones(shape, np.float32), np.ones(shape, np.float32)
        shift = np.zeros_like(self._w) if shifts else None
        best: Array = np.full(shape[0], np.inf)
        found: Codes | None = None
        for step in range(steps + 1):
            codes, scales, zeros = self._round(keep_low, keep_high, shift)
            error = (codes - zeros[..., None]) * scales[..., None] - self._w
            flat = error.reshape(shape[0], -1)[:, : self._k]
            pull = flat @ self._h
            loss = np.einsum("nk,nk->n", pull, flat, dtype=np.float64)
            better = loss < best
            best = np.where(better, loss, best)
            now = Codes(codes.astype(np.uint8), scales, zeros.astype(np.uint8))
            found = now if found is None else _choose(better, now, found)
            if step == steps:
                break
            rate = np.float32((1 - step / steps) / steps * 2)
            gradient = np.pad(pull, ((0, 0), (0, self._w.shape[1] * self._w.shape[2] - self._k))).reshape(self._w.shape)
            self._descend(codes, scales, zeros, gradient, rate, keep_low, keep_high, shift)
        assert found is not None and found.zero_points is not None
        flat_codes = np.ascontiguousarray(found.codes.reshape(shape[0], -1)[:, : self._k])
        return Codes(flat_codes, found.scales, None if self._scheme.symmetric else found.zero_points)

    def _round(self, keep_low: Array, keep_high: Array, shift: Array | None) -> tuple[Array, Array, Array]:
        if self._scheme.symmetric:
            middle = self._scheme.levels // 2
            scales = rounded(self._high * keep_high / np.float32(-middle), self._precision)
            zeros = np.full(scales.shape, middle, np.float32)
        else:
            span = self._high * keep_high - self._low * keep_low
            scales = rounded(span / np.float32(self._top), self._precision)
            zeros = np.clip(np.rint(-self._low * keep_low / scales), 0, self._top)
        codes = self._w * (1 / scales)[..., None]
        if shift is not None:
            codes += shift
        np.rint(codes, out=codes)
        codes += zeros[..., None]
        return np.clip(codes, 0, self._top), scales, zeros

    def _descend(
        self,
        codes: Array,
        scales: Array,
        zeros: Array,
        gradient: Array,
        rate: np.float32,
        keep_low: Array,
        keep_high: Array,
        shift: Array | None,
    ) -> None:
        inside = (codes > 0) & (codes < self._top)
        steps = codes - zeros[..., None] - self._w * (1 / scales)[..., None]
        along = np.einsum("ngk,ngk->ng", gradient, np.where(inside, steps, 0))
        at_low = np.einsum("ngk,ngk->ng", gradient, (codes == 0).astype(np.float32))
        at_high = np.einsum("ngk,ngk->ng", gradient, (codes == self._top).astype(np.float32))
        if self._scheme.symmetric:
            # s = -high / middle; the codes at both ends move with it.
            middle = np.float32(self._scheme.levels // 2)
            ends = at_low + at_high * (1 - self._top / middle)
            keep_high -= rate * np.sign((ends - along / middle) * self._high)
        else:
            keep_high -= rate * np.sign((at_high + along / self._top) * self._high)
            keep_low -= rate * np.sign((at_low - along / self._top) * self._low)
        np.clip(keep_high, 0.3, 1, out=keep_high)
        np.clip(keep_low, 0.3, 1, out=keep_low)
        if shift is not None:
            shift -= rate * np.sign(gradient * scales[..., None])
            np.clip(shift, -0.5, 0.5, out=shift)


def _choose(better: Array, now: Codes, before: Codes) -> Codes:
    assert now.zero_points is not None and before.zero_points is not None
    return Codes(
        np.where(better[:, None, None], now.codes, before.codes),
        np.where(better[:, None], now.scales, before.scales),
        np.where(better[:, None], now.zero_points, before.zero_points),
    )
