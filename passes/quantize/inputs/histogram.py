"""The range of a static quantization of activations, chosen from the histogram of a tensor.

Survey, section 3.1: a range [alpha, beta] gives the scale (beta - alpha) / (2^b - 1) (equation 6); a range narrower
than the least and largest number clips few numbers and rounds all others more finely. Four ways to choose it: the full
range, a percentile, the least mean square error, and the least divergence of the distributions (Migacz, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...statistics import HISTOGRAM_BINS, HISTOGRAM_LEAST, HISTOGRAM_STEPS, Array

METHODS = ("mse", "minmax", "percentile", "kl")
_SHARES = np.exp2(-np.arange(0, 49) / 8)
"""Ends of ranges that are tried, as shares of the full one: down to 1/64 in steps of 9 %."""

_KEPT = 0.99
"""Share of the numbers that a threshold of least divergence keeps: of hardly any, nothing would diverge."""


@dataclass(frozen=True)
class Range:
    """A range and what stands for it in 8 bits.

    Attributes:
        low: what the least code stands for, at most 0.
        high: what the largest code stands for, at least 0.
    """

    low: float
    high: float

    @property
    def scale(self) -> np.float32:
        """Step between two codes; 1 for a tensor of zeros."""
        step = np.float32((self.high - self.low) / 255)
        return step if step >= np.finfo(np.float32).tiny else np.float32(1)

    @property
    def zero_point(self) -> np.uint8:
        """The code of zero."""
        return np.uint8(np.clip(np.rint(-self.low / self.scale), 0, 255))


@dataclass(frozen=True)
class Bins:
    """A histogram as :class:`~...statistics.Histogram` gives it.

    Attributes:
        low: least number, or 0 if that is above 0.
        high: largest number, or 0 if that is below 0.
        centers: of the bins that hold numbers, ascending, float64.
        widths: of these bins.
        counts: numbers in them.
    """

    low: float
    high: float
    centers: Array
    widths: Array
    counts: Array

    @classmethod
    def read(cls, observed: Array) -> Bins:
        """Take apart what the observer returned."""
        least, largest, counts = float(observed[0]), float(observed[1]), np.asarray(observed[2:], np.float64)
        at = np.arange(HISTOGRAM_BINS)
        edges = np.exp2(np.arange(HISTOGRAM_BINS + 1) / HISTOGRAM_STEPS + HISTOGRAM_LEAST)
        centers, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        centers[0], widths[0] = 0, 2 * edges[1]
        order = np.concatenate([HISTOGRAM_BINS + at[::-1], at])
        signed = np.concatenate([-centers[::-1], centers])
        counts, wide = counts[order], np.concatenate([widths[::-1], widths])
        held = counts > 0
        # A bin reaches beyond the numbers in it: no center lies outside the range.
        return cls(min(least, 0.0), max(largest, 0.0), np.clip(signed[held], least, largest), wide[held], counts[held])


def choose(observed: Array, method: str = "mse", *, percentile: float = 99.99) -> Range:
    """The range for 8-bit codes with a zero point; it always holds zero.

    Args:
        observed: what the observer returned, ``[2 + 2 B]``.
        method: ``"mse"``, ``"minmax"``, ``"percentile"`` or ``"kl"``.
        percentile: share of the numbers, in percent, that is below the upper end, and above the lower end.
    """
    bins = Bins.read(observed)
    if not len(bins.counts) or bins.low == bins.high:
        return Range(0.0, 0.0)
    if method == "percentile":
        return _percentile(bins, percentile)
    if method == "mse":
        return _least_square(bins)
    if method == "kl":
        return _least_divergence(bins)
    return Range(bins.low, bins.high)


def expected_error(observed: Array, span: Range) -> float:
    """Mean square error of the numbers of a histogram by the codes of a range."""
    bins = Bins.read(observed)
    if not len(bins.counts):
        return 0.0
    inside = np.clip(bins.centers, span.low, span.high)
    rounding = np.minimum(bins.centers**2, float(span.scale) ** 2 / 12)
    return float((bins.counts * (rounding + (bins.centers - inside) ** 2)).sum() / bins.counts.sum())


def _percentile(bins: Bins, percentile: float) -> Range:
    below = np.cumsum(bins.counts) / bins.counts.sum()
    high = bins.centers[min(int(np.searchsorted(below, percentile / 100)), len(below) - 1)]
    low = bins.centers[int(np.searchsorted(below, 1 - percentile / 100))]
    return Range(min(float(low), 0.0), max(float(high), 0.0))


def _least_square(bins: Bins) -> Range:
    """Numbers outside are clipped; inside, the error is that of uniform rounding, and never more than the number."""
    x, counts = bins.centers, bins.counts
    lows = np.unique(bins.low * _SHARES) if bins.low < 0 else np.zeros(1)
    highs = np.unique(bins.high * _SHARES) if bins.high > 0 else np.zeros(1)
    clipped_low = (counts * np.maximum(lows[:, None] - x, 0) ** 2).sum(axis=1)
    clipped_high = (counts * np.maximum(x - highs[:, None], 0) ** 2).sum(axis=1)
    # What rounding costs depends on the step alone, but for the numbers outside, which are few: one curve over steps.
    steps = np.exp2(np.arange(-8 * 40, 8 * 24) / 8)
    rounding = (counts * np.minimum(x * x, steps[:, None] ** 2 / 12)).sum(axis=1)
    step = (highs[None] - lows[:, None]) / 255
    cost = clipped_low[:, None] + clipped_high[None]
    cost = cost + np.interp(np.log2(np.maximum(step, steps[0])), np.log2(steps), rounding)
    a, b = np.unravel_index(int(cost.argmin()), cost.shape)
    return Range(float(lows[a]), float(highs[b]))


def _least_divergence(bins: Bins) -> Range:
    """KL(P || Q) for one threshold on |x|: P counts what is clipped to the outer codes, Q does not know of it."""
    found, least = Range(bins.low, bins.high), np.inf
    for share in _SHARES:
        threshold = max(-bins.low, bins.high) * share
        low, high = max(bins.low, -threshold), min(bins.high, threshold)
        step = (high - low) / 255
        inside = (bins.centers >= low) & (bins.centers <= high)
        if bins.counts[inside].sum() < _KEPT * bins.counts.sum():
            break
        counts, widths = bins.counts[inside], np.minimum(bins.widths[inside], step)
        codes = np.rint((bins.centers[inside] - low) / step).astype(int)
        # The numbers of one code are spread over it as widely as the bins in it reach.
        q = np.bincount(codes, counts, 256)[codes] * widths / np.bincount(codes, widths, 256)[codes]
        p = counts.copy()
        p[0] += bins.counts[bins.centers < low].sum()
        p[-1] += bins.counts[bins.centers > high].sum()
        p, q = p / p.sum(), q / q.sum()
        cost = float((p * np.log(p / q)).sum())
        if cost < least:
            found, least = Range(float(low), float(high)), cost
    return found
