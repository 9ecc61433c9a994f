"""The range of each group that loses least: a search over narrower ranges, weights weighted by what their error costs.

The least and largest weight of a group (equation 6 of the survey) waste codes on few weights; a narrower range clips
those and rounds the others more finely. The search is that of AWQ and OmniQuant for a clipping threshold, with the
curvature of the loss as importance, and ends with the scale that fits the chosen codes best (least squares).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..scheme import Scheme
from .rtn import Array, Codes, as_float32, rounded

NARROWEST = 0.6
"""The narrowest range tried, as a share of the full one."""
STEPS = 17
"""Ranges tried, the full one included."""
# Rows are worked on in blocks that stay in the second-level cache.
_BLOCK = 1 << 16


def search(
    weights: Array, importance: Array, scheme: Scheme, *, precision: Any = np.float32
) -> tuple[Array, Array | None]:
    """Scales and zero points with the least weighted squared error of rounding to nearest.

    Args:
        weights: ``[n, k]``, any float type.
        importance: ``[k]``, what a squared error of a weight of each column costs; not negative.
        scheme: bits, group size, symmetry.
        precision: element type that the scales will be stored in.

    Returns:
        Scales, float32 ``[n, groups]``, and zero points, uint8 ``[n, groups]`` or None if symmetric.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    n, k = weights.shape
    group, groups = scheme.group(k), scheme.groups(k)
    short = groups * group - k
    cost = np.pad(np.asarray(importance, np.float32), (0, short)).reshape(groups, group)
    scales = np.empty((n, groups), np.float32)
    zeros = None if scheme.symmetric else np.empty((n, groups), np.uint8)
    rows = max(1, _BLOCK // max(k, 1))

    def block(start: int) -> None:
        stop = min(start + rows, n)
        part = as_float32(weights[start:stop])
        if short:
            # Repeating the last weight of a channel changes no group's range, and costs nothing.
            part = np.pad(part, ((0, 0), (0, short)), mode="edge")
        scale, zero = _best(part.reshape(stop - start, groups, group), cost, scheme, precision)
        scales[start:stop] = scale
        if zeros is not None:
            zeros[start:stop] = zero

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(block, range(0, n, rows)))
    if not np.isfinite(scales).all():
        raise FloatingPointError("a weight is infinite or not a number")
    return scales, zeros


def quantize(weights: Array, importance: Array, scheme: Scheme, *, precision: Any = np.float32) -> Codes:
    """Round to nearest in the ranges that :func:`search` finds: AWQ's clipping (Lin et al. 2024, section 3.3).

    Args:
        weights: ``[n, k]``, any float type.
        importance: ``[k]``, the mean square of each input channel.
        scheme: bits, group size, symmetry.
        precision: element type that the scales will be stored in.

    Returns:
        Unpacked codes.
    """
    weights = as_float32(weights)
    k = weights.shape[1]
    scales, zeros = search(weights, importance, scheme, precision=precision)
    group = scheme.group(k)
    zero = np.float32(scheme.levels // 2) if zeros is None else np.repeat(zeros, group, axis=1)[:, :k]
    codes = np.rint(weights * (1 / np.repeat(scales, group, axis=1)[:, :k])) + zero
    return Codes(np.clip(codes, 0, scheme.levels - 1).astype(np.uint8), scales, zeros)


def _best(part: Array, cost: Array, scheme: Scheme, precision: Any) -> tuple[Array, Array]:
    """Scales and zero points of a block of groups ``[rows, groups, group]``."""
    low, high = part.min(axis=2), part.max(axis=2)
    top = scheme.levels - 1
    with np.errstate(invalid="ignore", over="ignore"):
        if scheme.symmetric:
            full = np.where(np.isnan(low) | (-low > high), low, high) / np.float32(-(scheme.levels // 2))
            zero = np.full(full.shape, scheme.levels // 2, np.float32)
        else:
            # Zero stays exactly representable.
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            full = (high - low) / np.float32(top)
            zero = np.clip(np.rint(-low / rounded(full.copy(), precision)), 0, top)
        best = np.full(full.shape, np.inf, np.float32)
        scale = rounded(full.copy(), precision)
        chosen = scale.copy()
        for share in np.linspace(1, NARROWEST, STEPS, dtype=np.float32):
            candidate = rounded(full * share, precision)
            loss, fitted = _loss(part, cost, candidate, zero, top)
            better = loss < best
            best[better], chosen[better], scale[better] = loss[better], candidate[better], fitted[better]
        # The fitted scale is taken where, rounded anew and as it will be stored, it loses less.
        fitted = rounded(scale, precision)
        loss, _ = _loss(part, cost, fitted, zero, top)
        better = loss < best
        chosen[better] = fitted[better]
    bad = ~np.isfinite(low + high)
    chosen[bad], zero[bad] = np.nan, 0
    return chosen, zero


def _loss(part: Array, cost: Array, scale: Array, zero: Array, top: int) -> tuple[Array, Array]:
    """Weighted squared error of each group, less what does not depend on scales; the scale that fits its codes best."""
    codes = part * (1 / scale)[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, -zero[..., None], (top - zero)[..., None], out=codes)
    weighted = codes * cost
    square = np.einsum("rgk,rgk->rg", weighted, codes)
    mixed = np.einsum("rgk,rgk->rg", weighted, part)
    fitted = np.where(square > 0, mixed / np.maximum(square, 1e-30), scale)
    return scale * (scale * square - 2 * mixed), fitted
