"""After GPTQ: every code once more given all others, and the scales that fit the codes best.

GPTQ rounds each column once, and only columns after it make up for the error. Coordinate descent (QuantEase, Behdin et
al. 2023, equation 10) goes over the columns again: with the error ``E = W - Q`` of the weights, the best value of
column j for fixed others is ``q_j + (E H)_j / H_jj``, which is rounded. For fixed codes the error is a quadratic
function of the scales of a row, whose minimum is the solution of one small linear system: with ``C_a`` the codes less
the zero point in group a and zero elsewhere, ``sum over b of (C_a H C_bᵀ) s_b = C_a H wᵀ``. Neither step can raise
``tr(E H Eᵀ)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..scheme import Scheme
from .gptq import DAMPING
from .rows import by_rows, rows_of
from .rtn import Array, Codes, as_float32, dequantize, rounded

ROUNDS = 2
"""Times that codes and scales are improved in turn."""
_BLOCK = 64


def refine(
    weights: Array,
    start: Codes,
    hessian: Array,
    scheme: Scheme,
    *,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
    precision: Any = np.float32,
    pruned: Array | None = None,
) -> Codes:
    """Improve codes and scales of a matrix for the inputs that a Hessian stands for.

    Args:
        weights: ``[n, k]``, any float type.
        start: unpacked codes to begin with.
        hessian: ``[k, k]``, mean of ``xᵀx``.
        scheme: bits, group size, symmetry; zero points stay what they are.
        damping: share of the mean of the diagonal that is added to it, against trust in few tokens.
        rounds: how often both steps are taken.
        precision: element type that the scales will be stored in.
        pruned: bool ``[n, k]``, weights whose codes stay what they are.

    Returns:
        Unpacked codes; the error on the damped Hessian is that of ``start`` or less.
    """
    weights = as_float32(weights)
    n, k = weights.shape
    h = np.array(hessian, np.float32)
    at = np.arange(k)
    mean = float(h[at, at].mean()) or 1.0
    # A column that meets no input costs nothing: it is held where it is by the damping alone.
    h[at, at] += max(damping, 1e-6) * mean

    def improve(rows: slice) -> Codes:
        part, target = rows_of(start, rows), weights[rows] @ h
        for _ in range(rounds):
            part = descend(weights[rows], part, h, scheme, None if pruned is None else pruned[rows])
            part = fit_scales(weights[rows], part, h, scheme, precision=precision, target=target)
        return part

    return by_rows(n, k, scheme, improve)


def descend(weights: Array, start: Codes, hessian: Array, scheme: Scheme, pruned: Array | None = None) -> Codes:
    """One sweep over the columns, each rounded to its best value given the others.

    Args:
        weights: float32 ``[n, k]``.
        start: unpacked codes.
        hessian: ``[k, k]`` with a positive diagonal.
        scheme: bits, group size, symmetry.
        pruned: bool ``[n, k]``, weights whose codes stay what they are.
    """
    k, group = weights.shape[1], scheme.group(weights.shape[1])
    # Columns become rows, so that each is one stretch of memory.
    step = np.ascontiguousarray(start.scales.T)
    codes = np.ascontiguousarray(start.codes.T).astype(np.float32)
    error = weights.T - dequantize(start, scheme, k).T
    pull = hessian @ error
    diagonal = hessian.diagonal()
    for begin in range(0, k, _BLOCK):
        end = min(begin + _BLOCK, k)
        moved = np.zeros((end - begin, len(weights)), np.float32)
        for j in range(begin, end):
            wanted = pull[j]
            if j > begin:
                wanted = wanted - hessian[j, begin:j] @ moved[: j - begin]
            s = step[j // group]
            code = np.rint(codes[j] + wanted / (diagonal[j] * s))
            np.clip(code, 0, scheme.levels - 1, out=code)
            if pruned is not None:
                np.copyto(code, codes[j], where=pruned[:, j])
            np.multiply(code - codes[j], s, out=moved[j - begin])
            codes[j] = code
        # What is behind is not asked again.
        pull[end:] -= hessian[end:, begin:end] @ moved
    return Codes(np.ascontiguousarray(codes.T).astype(np.uint8), start.scales, start.zero_points)


def fit_scales(
    weights: Array,
    start: Codes,
    hessian: Array,
    scheme: Scheme,
    *,
    precision: Any = np.float32,
    target: Array | None = None,
) -> Codes:
    """The scales of least error for the codes that are there; rows that would lose by their rounding stay.

    Args:
        weights: float32 ``[n, k]``.
        start: unpacked codes.
        hessian: ``[k, k]``.
        scheme: bits, group size, symmetry.
        precision: element type that the scales will be stored in.
        target: ``weights @ hessian``, where it is known.
    """
    n, k = weights.shape
    group, groups = scheme.group(k), scheme.groups(k)
    steps = start.codes.astype(np.float32) - np.repeat(_zeros(start, scheme).T, group, axis=1)[:, :k]
    target = weights @ hessian if target is None else target
    matrix = np.empty((n, groups, groups), np.float64)
    right = np.empty((n, groups), np.float64)
    for a in range(groups):
        begin = a * group
        mine = slice(begin, min(begin + group, k))
        right[:, a] = np.einsum("nk,nk->n", steps[:, mine], target[:, mine])
        # The matrix of a row is symmetric: what is left of the diagonal is known.
        along = steps[:, mine] @ hessian[mine, begin:]
        along *= steps[:, begin:]
        found = np.add.reduceat(along, np.arange(0, k - begin, group), axis=1)
        matrix[:, a, a:] = found
        matrix[:, a:, a] = found

    # A group whose codes are all zero has no say; the others hardly feel the little that keeps the system regular.
    at = np.arange(groups)
    diagonal = matrix[:, at, at]
    empty = diagonal <= 0
    ridge = np.where(empty, 1, 1e-6 * diagonal.mean(axis=1, keepdims=True) + 1e-30)
    matrix[:, at, at] += ridge

    def error(scales: Array) -> Array:
        """Of each row by these scales, less what no scale changes: ``sᵀ M s - 2 rᵀ s``."""
        found: Array = ((matrix @ scales[..., None])[..., 0] - ridge * scales - 2 * right) * scales
        each: Array = found.sum(axis=1)
        return each

    try:
        solved = np.linalg.solve(matrix, (right + ridge * start.scales)[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return start
    scales = np.where(empty | ~np.isfinite(solved) | (solved * start.scales <= 0), start.scales, solved)
    fitted = rounded(scales.astype(np.float32), precision)
    better = error(fitted.astype(np.float64)) < error(start.scales.astype(np.float64))
    return Codes(start.codes, np.where(better[:, None], fitted, start.scales), start.zero_points)


def _zeros(codes: Codes, scheme: Scheme) -> Array:
    """Zero points, float32 ``[groups, n]``."""
    if codes.zero_points is None:
        return np.full(codes.scales.T.shape, scheme.levels // 2, np.float32)
    return np.ascontiguousarray(codes.zero_points.T).astype(np.float32)
