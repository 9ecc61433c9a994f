"""SmoothQuant's mathematics: how much of the activations' range the weights take over."""

from __future__ import annotations

import numpy as np

from .products import Array

_SMALLEST = 1e-5
_CODES = 255
"""Steps of an 8-bit grid."""


def scales(activations: Array, weights: Array, alpha: float) -> Array:
    """``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` (Xiao et al. 2023, eq. 4; survey, eq. 10).

    Activations are divided by it, the weights' input channels multiplied.

    Args:
        activations: max|X_j|, [channels].
        weights: max|W_j| over the output channels of all products that read the activations, [channels].
        alpha: migration strength, 0 to 1: how much of the difficulty goes to the weights.

    Returns:
        Float32 [channels]; 1 where activations or weights are all zero, which leaves nothing to balance.
    """
    dead = (activations <= 0) | (weights <= 0)
    x, w = np.where(dead, 1, activations).astype(np.float64), np.where(dead, 1, weights).astype(np.float64)
    migrated = np.maximum(x**alpha / w ** (1 - alpha), _SMALLEST)
    return np.where(dead, 1, migrated).astype(np.float32)


def logarithmic(activations: Array) -> Array:
    """``s_j = max|X_j| / log2(2 + max|X_j|)`` (FPTQ, Li et al. 2023; survey, eq. 12): divided activations reach to
    ``log2(2 + max|X_j|)``.

    Args:
        activations: max|X_j|, [channels].

    Returns:
        Float32 [channels]; 1 for channels that are all zero.
    """
    dead = activations <= 0
    x = np.where(dead, 1, activations).astype(np.float64)
    return np.where(dead, 1, x / np.log2(2 + x)).astype(np.float32)


def output_error(weights: Array, scale: Array, largest: Array, mean_square: Array) -> float:
    """Expected squared error, a token, of ``Q(X / s) Q(W s)`` with 8 bits each, relative to the squared output.

    Weights are really rounded, one scale per output channel. Activations are known by their statistics alone: their
    step is that of the largest activation, their rounding error is uniform (a twelfth of the squared step) but no
    larger than what is rounded. Errors of different channels are taken as independent.

    Args:
        weights: [n, k].
        scale: s, [k].
        largest: max|X_j|, [k].
        mean_square: E[X_j²], [k].
    """
    scaled = weights * scale
    step = np.abs(scaled).max(axis=1, keepdims=True, initial=0) * 2 / _CODES
    step[step == 0] = 1
    power = mean_square / scale**2
    lost = np.square(np.rint(scaled / step) * step - scaled).sum(axis=0) @ power
    noise = np.minimum(np.square(2 * np.max(largest / scale, initial=0) / _CODES) / 12, power)
    lost += np.square(scaled).sum(axis=0) @ noise
    total = np.square(scaled).sum(axis=0) @ power
    return float(lost / total) if total > 0 else 0.0
