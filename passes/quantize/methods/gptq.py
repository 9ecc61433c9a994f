"""GPTQ: weights still to be rounded make up for the error of those that are (Frantar et al. 2022).

The error of a product's outputs on the calibration data is ``tr(dW H dWᵀ)`` with ``H = XᵀX``. Algorithm 1 of the paper
takes the columns one after the other, rounds each, and moves the others by the Cholesky factor of the inverse of H.
With ``H = (U + I) D (U + I)ᵀ``, U strictly upper triangular, the very same weights come out of LDLQ (Chee et al. 2023,
theorem 6), which needs no inverse: column j is rounded as ``w_j + sum over i < j of (w_i - q_i) U_ij``, and the error
is ``sum over j of D_j (rounding error of column j)²``.

Scales and zero points are those of the original groups and are fixed before, so columns can be taken in any order
without a permutation in the file. They are searched for with D as importance: that is what an error of a column costs
after the columns that follow have made up for it, unlike the diagonal of H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..scheme import Scheme
from .ranges import search
from .rows import ROWS, by_rows
from .rtn import Array, Codes, as_float32

Order = Literal["activation", "none"]
ORDERS: tuple[Order, ...] = ("activation", "none")

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it."""
_MOST_DAMPING = 1e3
_BLOCK = 64


@dataclass(frozen=True)
class Feedback:
    """How the error of a rounded column moves the columns after it; one serves all products of the same input.

    Attributes:
        order: int64 ``[k]``, the columns as they are rounded.
        feedback: float32 ``[k, k]``, U above, columns and rows in ``order``.
        importance: float32 ``[k]``, D in the original order of columns: what a squared rounding error costs.
        damping: the share of the mean diagonal that was added to it.
    """

    order: Array
    feedback: Array
    importance: Array
    damping: float


def decompose(hessian: Array, *, damping: float = DAMPING, order: Order = "activation") -> Feedback:
    """Factor a Hessian.

    Args:
        hessian: ``[k, k]``, sum or mean of ``xᵀx`` over the rows x of the calibration inputs.
        damping: share of the mean of the diagonal to add to it (section 3.3, step 3); raised tenfold until the matrix
            can be factored.
        order: ``activation`` takes columns of large inputs first, while there are many others to make up for them;
            ``none`` takes them as they lie.

    Raises:
        FloatingPointError: the Hessian is infinite or not a number.
    """
    k = len(hessian)
    h = np.array(hessian, np.float64)
    if not np.isfinite(h).all():
        raise FloatingPointError("a Hessian is infinite or not a number")
    diagonal = h.diagonal().copy()
    mean = float(diagonal.mean()) or 1.0
    # An input that was always zero moves nothing and is moved by nothing: its column is rounded to nearest.
    dead = np.flatnonzero(diagonal <= 0)
    h[dead, dead] = mean
    columns = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(k)
    h = h[np.ix_(columns, columns)]
    at = np.arange(k)
    clean = h[at, at].copy()
    while True:
        h[at, at] = clean + damping * mean
        try:
            # H = F Fᵀ with F upper triangular: the Cholesky factor of H with rows and columns in reverse.
            factor = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
            break
        except np.linalg.LinAlgError:
            damping = max(10 * damping, 1e-6)
            if damping > _MOST_DAMPING:
                raise FloatingPointError("a Hessian is not positive semidefinite") from None
    pivots = factor.diagonal().copy()
    importance = np.empty(k, np.float32)
    importance[columns] = pivots**2
    feedback = np.empty((k, k), np.float32)
    np.divide(factor, pivots, out=feedback, casting="same_kind")
    feedback = np.triu(feedback, 1)
    return Feedback(columns, feedback, importance, damping)


def quantize(
    weights: Array, feedback: Feedback, scheme: Scheme, *, precision: Any = np.float32, pruned: Array | None = None
) -> Codes:
    """Quantize a matrix for the inputs that a Hessian stands for.

    Args:
        weights: ``[n, k]``, any float type.
        feedback: of the Hessian ``[k, k]``.
        scheme: bits, group size, symmetry.
        precision: element type that the scales will be stored in.
        pruned: bool ``[n, k]``, weights that are zero and stay so; the others make up for nothing in them.

    Returns:
        Unpacked codes in the original order of columns.

    Raises:
        FloatingPointError: a weight is infinite or not a number.
    """
    weights = as_float32(weights)
    n, k = weights.shape
    scales, zeros = search(weights, feedback.importance, scheme, precision=precision)

    def descend(rows: slice) -> Codes:
        zero = None if zeros is None else zeros[rows]
        gone = None if pruned is None else pruned[rows]
        codes = _rows(weights[rows], feedback, scheme, scales[rows], zero, gone)
        return Codes(codes, scales[rows], zero)

    return by_rows(n, k, scheme, descend)


def _rows(
    weights: Array, feedback: Feedback, scheme: Scheme, scales: Array, zeros: Array | None, pruned: Array | None
) -> Array:
    n, k = weights.shape
    gone = None if pruned is None else np.ascontiguousarray(pruned.T)
    group = scheme.group(k)
    # Columns become rows, so that each is one stretch of memory.
    left = np.ascontiguousarray(weights.T[feedback.order])
    step = np.ascontiguousarray(scales.T)
    inverse = 1 / step
    middle = np.full((1, n), scheme.levels // 2, np.float32)
    zero = middle if zeros is None else zeros.T.astype(np.float32, order="C")
    error = np.zeros((k, n), np.float32)
    codes = np.empty((k, n), np.uint8)
    for start in range(0, k, _BLOCK):
        stop = min(start + _BLOCK, k)
        block = left[start:stop]
        if start:
            # The errors of all earlier blocks at once (section 3.3, step 2: lazy batch updates).
            block = block + feedback.feedback[:start, start:stop].T @ error[:start]
        for j in range(start, stop):
            column = int(feedback.order[j])
            g = column // group
            z = zero[0 if zeros is None else g]
            wanted = block[j - start]
            if j > start:
                wanted = wanted + feedback.feedback[start:j, j] @ error[start:j]
            code = wanted * inverse[g]
            np.rint(code, out=code)
            code += z
            np.clip(code, 0, scheme.levels - 1, out=code)
            if gone is not None:
                np.copyto(code, z, where=gone[column])
            codes[column] = code
            code -= z
            code *= step[g]
            np.subtract(left[j], code, out=error[j])
    return np.ascontiguousarray(codes.T)


def output_error(difference: Array, hessian: Array) -> float:
    """``tr(dW H dWᵀ)``: the squared error of the outputs on the calibration data.

    Args:
        difference: ``[n, k]``, quantized minus original weights.
        hessian: ``[k, k]``.
    """
    hessian = np.asarray(hessian, np.float32)
    total = 0.0
    for start in range(0, len(difference), ROWS):
        part = difference[start : start + ROWS]
        total += float(np.einsum("nk,nk->", part @ hessian, part, dtype=np.float64))
    return total
