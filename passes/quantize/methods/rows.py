"""Output channels are problems of their own: a matrix is rounded so many at a time, which bounds memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..scheme import Scheme
from .rtn import Codes

ROWS = 2048
"""At a time: a block of columns of them stays in the second-level cache."""


def by_rows(n: int, k: int, scheme: Scheme, work: Callable[[slice], Codes]) -> Codes:
    """Unpacked codes of a matrix ``[n, k]`` out of those of its rows.

    Args:
        n: rows.
        k: columns.
        scheme: bits, group size, symmetry.
        work: the codes of some rows.
    """
    codes, scales = np.empty((n, k), np.uint8), np.empty((n, scheme.groups(k)), np.float32)
    zeros = None if scheme.symmetric else np.empty((n, scheme.groups(k)), np.uint8)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        part = work(rows)
        codes[rows], scales[rows] = part.codes, part.scales
        if zeros is not None and part.zero_points is not None:
            zeros[rows] = part.zero_points
    return Codes(codes, scales, zeros)


def rows_of(codes: Codes, rows: slice) -> Codes:
    """Some rows of unpacked codes."""
    zeros = None if codes.zero_points is None else codes.zero_points[rows]
    return Codes(codes.codes[rows], codes.scales[rows], zeros)
