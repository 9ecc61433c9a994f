"""The best weights for a given mask: least squares on the outputs, by conjugate gradients.

For each row, ``(v - w) H (v - w)ᵀ`` over all v that are zero where the mask says so has its minimum where the gradient
``(v - w) H`` is zero on the weights that stay. All rows take their steps together: each step is one product by H.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STEPS = 40
DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it, as for rounding: trust in few tokens ends somewhere."""
_ROWS = 2048


def fit(weights: Array, start: Array, keep: Array, hessian: Array, *, steps: int = STEPS) -> Array:
    """The weights on a mask whose outputs are nearest to those of ``weights``.

    Args:
        weights: float32 ``[n, k]``, whose outputs are wanted.
        start: float32 ``[n, k]``, zero off the mask.
        keep: the mask, bool ``[n, k]``.
        hessian: ``[k, k]``, mean of ``xᵀx``.
        steps: of conjugate gradients, with the diagonal as preconditioner.

    Returns:
        float32 ``[n, k]``; no row's error on the damped Hessian is above that of ``start``.
    """
    h = np.array(hessian, np.float32)
    at = np.arange(len(h))
    h[at, at] += DAMPING * (float(h[at, at].mean()) or 1.0)
    inverse = 1 / h[at, at]
    result = np.empty(weights.shape, np.float32)
    for begin in range(0, len(weights), _ROWS):
        rows = slice(begin, begin + _ROWS)
        result[rows] = _descend(weights[rows], start[rows], keep[rows], h, inverse, steps)
    return result


def _descend(weights: Array, start: Array, keep: Array, h: Array, inverse: Array, steps: int) -> Array:
    found = start * keep
    residual = ((weights - found) @ h) * keep
    scaled = residual * inverse
    direction = scaled
    power = np.einsum("nk,nk->n", residual, scaled)
    least = 1e-10 * power
    for _ in range(steps):
        along = (direction @ h) * keep
        curve = np.einsum("nk,nk->n", direction, along)
        going = (power > least) & (curve > 0)
        if not going.any():
            break
        length = np.where(going, power / np.where(going, curve, 1), 0).astype(np.float32)[:, None]
        found = found + length * direction
        residual = residual - length * along
        scaled = residual * inverse
        after = np.einsum("nk,nk->n", residual, scaled)
        direction = (
            scaled + np.where(going, after / np.where(going, power, 1), 0).astype(np.float32)[:, None] * direction
        )
        power = after
    return found
