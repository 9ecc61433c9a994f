"""How sparse each layer becomes, so that all of them together are as sparse as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SPREAD = 0.08
"""How far OWL lets the sparsity of a layer be from the mean (Yin et al. 2024, section 4.1: lambda)."""
_STEPS = 60


def owl(outliers: Sequence[float], sizes: Sequence[int], sparsity: float, spread: float = SPREAD) -> list[float]:
    """Less sparsity where a layer has many outliers (OWL, Yin et al. 2024, section 3).

    Args:
        outliers: share of outliers of each layer.
        sizes: weights of each layer.
        sparsity: of all of them together.
        spread: most that a layer may differ.

    Returns:
        The sparsity of each layer; weighted by size its mean is ``sparsity``.
    """
    shares = np.asarray(outliers, np.float64)
    weights = np.asarray(sizes, np.float64) / sum(sizes)
    width = shares.max() - shares.min()
    if width <= 0:
        return [sparsity] * len(shares)
    # As the authors compute it: scaled to 2 lambda, then moved so that the mean is right.
    dense = (shares - shares.min()) / width * 2 * spread
    found = sparsity - (dense - float(weights @ dense))
    return [float(value) for value in _in_bounds(found, weights, sparsity, spread)]


def _in_bounds(found: Array, weights: Array, sparsity: float, spread: float) -> Array:
    """Moved and clipped, so that all are within ``spread`` of the mean, and within 0 and 1."""
    low, high = max(0.0, sparsity - spread), min(1.0, sparsity + spread)
    least, most = -1.0, 1.0
    for _ in range(_STEPS):
        shift = (least + most) / 2
        if float(weights @ np.clip(found + shift, low, high)) < sparsity:
            least = shift
        else:
            most = shift
    return np.asarray(np.clip(found + most, low, high))


def threshold(samples: Sequence[Array], sizes: Sequence[int], sparsity: float) -> float:
    """The score below which ``sparsity`` of all weights are, from a sample of each layer's scores.

    Args:
        samples: some scores of each layer.
        sizes: weights of each layer.
        sparsity: share of weights to be below.
    """
    values = np.concatenate([np.asarray(sample, np.float64).reshape(-1) for sample in samples])
    shares = np.concatenate([np.full(s.size, size / s.size) for s, size in zip(samples, sizes, strict=True)])
    order = np.argsort(values, kind="stable")
    below = np.cumsum(shares[order])
    at = int(np.searchsorted(below, sparsity * below[-1]))
    return float(values[order[min(at, len(order) - 1)]])
