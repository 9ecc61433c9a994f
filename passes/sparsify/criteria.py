"""How much a weight matters: scores of the weights of a product, from the weights and what is multiplied by them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

OUTLIER = 5.0
"""OWL's M: a score that exceeds the mean of its layer so many times is an outlier (Yin et al. 2024, section 3)."""


def magnitude(weights: Array) -> Array:
    """``|W|`` (Han et al. 2015): float32 ``[n, k]``."""
    return np.abs(np.asarray(weights, np.float32))


def wanda(weights: Array, norms: Array) -> Array:
    """``|W_ij| ‖X_j‖₂`` (Wanda, Sun et al. 2024, equation 1; survey, equation 22).

    Args:
        weights: ``[n, k]``.
        norms: ``[k]``, Euclidean norm of each input channel over all calibration tokens, or anything proportional.
    """
    return magnitude(weights) * np.asarray(norms, np.float32)


def ria(weights: Array, norms: Array, power: float = 0.5) -> Array:
    """``(|W_ij| / Σ|W_*j| + |W_ij| / Σ|W_i*|) ‖X_j‖₂^a`` (RIA, Zhang et al. 2024, equation 4, which takes a = 0.5).

    Args:
        weights: ``[n, k]``.
        norms: ``[k]`` as for :func:`wanda`.
        power: a.
    """
    absolute = magnitude(weights)
    columns, rows = absolute.sum(axis=0, keepdims=True), absolute.sum(axis=1, keepdims=True)
    relative = absolute / np.maximum(columns, 1e-30) + absolute / np.maximum(rows, 1e-30)
    scored: Array = relative * np.asarray(norms, np.float32) ** power
    return scored


def outlier_share(scores: Array, threshold: float = OUTLIER) -> float:
    """The share of scores above ``threshold`` times their mean (OWL's layerwise outlier distribution, equation 2)."""
    return float(np.mean(scores > threshold * scores.mean(dtype=np.float64)))
