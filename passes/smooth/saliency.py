"""AWQ's mathematics: input channels with large activations are scaled up before rounding, so that they lose less."""

from __future__ import annotations

import numpy as np

from ..quantize.methods import rtn
from ..quantize.scheme import Scheme
from .products import Array

RATIOS = tuple(i / 20 for i in range(20))
"""Exponents tried (Lin et al. 2023, section 3.2: a grid over [0, 1])."""


def scales(mean_abs: Array, ratio: float) -> Array:
    """``s_j = (mean|X_j|)^ratio`` (Lin et al. 2023, eq. 5), divided by the geometric mean of the largest and smallest.

    Args:
        mean_abs: mean|X_j| over tokens, [channels].
        ratio: the exponent; 0 leaves the weights as they are.

    Returns:
        Float32 [channels]; 1 for channels that are all zero.
    """
    alive = mean_abs > 0
    if not alive.any():
        return np.ones(mean_abs.shape, np.float32)
    raised = np.where(alive, mean_abs, 1).astype(np.float64) ** ratio
    raised /= np.sqrt(raised[alive].max() * raised[alive].min())
    return np.where(alive, raised, 1).astype(np.float32)


def output_error(weights: Array, scale: Array, power: Array, scheme: Scheme) -> float:
    """``Σ_j E[X_j²] Σ_i (Q(W s) / s − W)_ij²``, relative to the same sum of ``W``: the objective of Lin et al., eq. 4.

    Rounding errors of different channels are taken as independent, so that second moments of channels suffice.

    Args:
        weights: [n, k].
        scale: s, [k].
        power: E[X_j²], [k].
        scheme: what the weights are rounded to.
    """
    total = np.square(weights).sum(axis=0) @ power
    if not total > 0:
        return 0.0
    rounded = rtn.dequantize(rtn.quantize(weights * scale, scheme), scheme, weights.shape[1])
    return float(np.square(rounded / scale - weights).sum(axis=0) @ power / total)
