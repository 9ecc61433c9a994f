"""LoRC: a product of low rank beside a rounded one takes back most of what rounding lost (Yao et al. 2024).

The paper takes the singular vectors of the error ``E = W − Q(W)``. Here those of ``E L`` with ``H = L Lᵀ``: of all
corrections of that rank this one leaves the least error of the outputs on the calibration inputs.
"""

from __future__ import annotations

import numpy as np

from .rtn import Array

_RIDGE = 1e-3


def factors(error: Array, hessian: Array | None, rank: int) -> tuple[Array, Array]:
    """Two matrices A, float32 ``[k, rank]``, and B, ``[rank, n]``, with ``x A B ≈ x Eᵀ``.

    Args:
        error: ``[n, k]``, original minus rounded weights.
        hessian: mean of ``xᵀx``, ``[k, k]``; None counts all inputs alike.
        rank: at most k.
    """
    k = error.shape[1]
    if hessian is None:
        root: Array = np.eye(k)
    else:
        h = np.asarray(hessian, np.float64)
        root = np.linalg.cholesky(h + _RIDGE * (float(h.diagonal().mean()) or 1.0) * np.eye(k))
    weighted = error @ root.astype(np.float32)
    # Right singular vectors from the small Gram matrix: there may be far more rows than columns.
    _, vectors = np.linalg.eigh((weighted.T @ weighted).astype(np.float64))
    top = vectors[:, ::-1][:, :rank]
    first = np.linalg.solve(root.T, top).astype(np.float32)
    second = np.ascontiguousarray((weighted @ top.astype(np.float32)).T)
    return first, second
