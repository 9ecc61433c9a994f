"""SparseGPT: the weights that stay make up for those that go (Frantar and Alistarh 2023).

Columns are taken one after the other; what a column loses moves all later ones by the factors of the inverse Hessian
(algorithm 1). With ``H = (U + I) D (U + I)ᵀ`` as in :mod:`~burnish.passes.quantize.methods.gptq` no inverse is needed,
and the score of a weight, ``w² / [H⁻¹]_jj`` of the Hessian of the columns not yet taken, is ``w² D_j``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..quantize.methods.gptq import Feedback
from .pattern import Pattern, select

Array = np.ndarray[Any, Any]

BLOCK = 128
"""Columns whose mask is chosen together (section 3.3: adaptive mask selection)."""


def prune(
    weights: Array,
    feedback: Feedback,
    pattern: Pattern,
    sparsity: float,
    *,
    keep: Array | None = None,
) -> Array:
    """Prune a matrix for the inputs that a Hessian stands for.

    Args:
        weights: float32 ``[n, k]``.
        feedback: of the Hessian ``[k, k]``; with groups of columns, in the order ``"none"``.
        pattern: of the zeros; blocks need ``keep``.
        sparsity: share of zeros where the pattern prescribes none.
        keep: which weights stay, bool ``[n, k]``, if that is decided already.

    Returns:
        The weights that stay, moved, and zeros: float32 ``[n, k]``.
    """
    n, k = weights.shape
    left = np.ascontiguousarray(weights.T[feedback.order])
    importance = feedback.importance[feedback.order]
    given = None if keep is None else keep.T[feedback.order]
    error = np.zeros((k, n), np.float32)
    result = np.empty((k, n), np.float32)
    width = BLOCK if not pattern.group else pattern.group * max(1, BLOCK // pattern.group)
    for start in range(0, k, width):
        stop = min(start + width, k)
        block = left[start:stop]
        if start:
            block = block + feedback.feedback[:start, start:stop].T @ error[:start]
        mask = None if given is None else given[start:stop]
        if mask is None and not pattern.group:
            scores = block**2 * importance[start:stop, None]
            mask = select(scores.T, pattern, sparsity, "matrix").T
        chosen = np.empty(block.shape, bool) if mask is None else mask
        for j in range(start, stop):
            if mask is None and (j - start) % pattern.group == 0:
                ahead = slice(j, j + pattern.group)
                now = block[j - start : j - start + pattern.group]
                if j > start:
                    now = now + feedback.feedback[start:j, ahead].T @ error[start:j]
                scores = now**2 * importance[ahead, None]
                chosen[j - start : j - start + pattern.group] = select(scores.T, pattern, 0).T
            wanted = block[j - start]
            if j > start:
                wanted = wanted + feedback.feedback[start:j, j] @ error[start:j]
            result[feedback.order[j]] = np.where(chosen[j - start], wanted, 0)
            np.subtract(left[j], result[feedback.order[j]], out=error[j])
    return np.ascontiguousarray(result.T)
