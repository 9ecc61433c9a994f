"""OWQ: the few input channels whose rounding costs most stay in floating point (Lee et al. 2024).

A column's sensitivity is what rounding it alone costs, ``λ_j = H_jj ‖W_:j − Q(W_:j)‖²`` (equation 5). Kept columns are
free to make up for the rounding of all others. For fixed codes their best values are ``W_c + E_r H_rc H_cc⁻¹``, and
what is lost then is the error on the Schur complement ``H_rr − H_rc H_cc⁻¹ H_cr``: it is that Hessian which the others
have to be rounded for.
"""

from __future__ import annotations

import numpy as np

from .rtn import Array

_RIDGE = 1e-6


def most_sensitive(difference: Array, hessian: Array, count: int) -> Array:
    """The ``count`` columns that rounding to nearest hurts most, ascending: int64.

    Args:
        difference: ``[n, k]``, rounded minus original weights.
        hessian: ``[k, k]``.
        count: at most k.
    """
    cost = np.square(difference).sum(axis=0, dtype=np.float64) * hessian.diagonal()
    columns: Array = np.sort(np.argsort(-cost, kind="stable")[:count])
    return columns


def without(hessian: Array, columns: Array) -> Array:
    """The Hessian for the other columns once these make up for them: ``[k, k]``, zero for ``columns``."""
    h = np.asarray(hessian, np.float64)
    rest = h - h[:, columns] @ np.linalg.solve(_regular(h, columns), h[columns])
    rest[columns], rest[:, columns] = 0, 0
    # Rounding must not leave a diagonal below zero.
    at = np.arange(len(rest))
    rest[at, at] = np.maximum(rest[at, at], 0)
    return rest.astype(np.float32)


def kept(error: Array, hessian: Array, columns: Array) -> Array:
    """What to add in ``columns``, float32 ``[n, count]``, so that the outputs change least.

    Args:
        error: ``[n, k]``, original minus rounded weights.
        hessian: ``[k, k]``.
        columns: of k.
    """
    h = np.asarray(hessian, np.float64)
    best: Array = np.linalg.solve(_regular(h, columns), h[columns] @ error.T.astype(np.float64)).T
    return best.astype(np.float32)


def _regular(h: Array, columns: Array) -> Array:
    inner: Array = h[np.ix_(columns, columns)].copy()
    at = np.arange(len(columns))
    inner[at, at] += _RIDGE * (float(h.diagonal().mean()) or 1.0)
    return inner
