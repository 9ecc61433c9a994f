"""Outlier Suppression's mathematics: the weight of a normalization, thresholds and middles of channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .products import Array

THRESHOLDS = tuple(0.9**i for i in range(30))
"""Thresholds tried, as shares of the largest activation."""


def gamma(weight: Array) -> Array:
    """``s = |γ|``: the weight of a normalization makes outliers larger; behind it, in the products, it does not.

    Args:
        weight: γ, [channels].

    Returns:
        Float32 [channels], what activations are divided by (Wei et al. 2022, eq. 3; survey, eq. 11); 1 where γ is zero.
    """
    absolute = np.abs(np.asarray(weight, np.float32))
    return np.where(absolute > 0, absolute, np.float32(1))


def middles(low: Array, high: Array) -> Array:
    """``z_j = (max X_j + min X_j) / 2`` of each channel (Wei et al. 2023, eq. 4; survey, eq. 13).

    Args:
        low: min X_j, [channels].
        high: max X_j, [channels].
    """
    middle: Array = (np.asarray(low, np.float32) + np.asarray(high, np.float32)) / 2
    return middle


def scales(largest: Array, threshold: float) -> Array:
    """``s_j = max(1, max|X_j| / t)``: channels above a threshold come down to it (Wei et al. 2023, eq. 7).

    Args:
        largest: max|X_j|, [channels].
        threshold: t, positive.
    """
    return np.maximum(largest / np.float32(threshold), 1).astype(np.float32)


def search(largest: Array, loss: Callable[[Array], float]) -> tuple[float, Array]:
    """The threshold of least loss and its scales.

    Args:
        largest: max|X_j|, [channels].
        loss: of scales.
    """
    top = float(largest.max(initial=0)) or 1.0
    best = min(THRESHOLDS, key=lambda share: loss(scales(largest, share * top)))
    return best * top, scales(largest, best * top)
