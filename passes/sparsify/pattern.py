"""Patterns of zeros in a matrix, and the mask of the weights that stay."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...ir.errors import OptionError

Array = np.ndarray[Any, Any]
Compare = Literal["row", "matrix"]

UNSTRUCTURED = "unstructured"


@dataclass(frozen=True)
class Pattern:
    """Where zeros may be in a matrix of N output channels (rows) and K input channels (columns).

    Attributes:
        kept: of ``group`` neighbouring columns so many stay in each row; 0 where the pattern is another one.
        group: columns of a group.
        block: rows and columns of a block that stays or goes as a whole; (1, 1) for single weights.
    """

    kept: int = 0
    group: int = 0
    block: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        if self.group:
            return f"{self.kept}:{self.group}"
        return UNSTRUCTURED if self.block == (1, 1) else f"{self.block[0]}x{self.block[1]}"

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that the pattern prescribes, or None if it prescribes none."""
        return 1 - self.kept / self.group if self.group else None

    def obstacle(self, n: int, k: int) -> str | None:
        """Why a matrix [n, k] cannot have this pattern, or None."""
        if self.group and k % self.group:
            return f"its {k} input channels are no multiple of {self.group}"
        if n % self.block[0] or k % self.block[1]:
            return f"a matrix of {n} x {k} has no whole blocks of {self}"
        return None


def parse(text: str) -> Pattern:
    """Read ``"unstructured"``, ``"2:4"`` (2 of 4 neighbours stay) or ``"16x16"`` (blocks of rows x columns).

    Raises:
        OptionError: it is none of these.
    """
    if text == UNSTRUCTURED:
        return Pattern()
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        kept, group = map(int, found.groups())
        if 0 < kept < group:
            return Pattern(kept, group)
    if found := re.fullmatch(r"(\d+)x(\d+)", text):
        rows, columns = map(int, found.groups())
        if rows * columns > 1:
            return Pattern(block=(rows, columns))
    raise OptionError(
        f"pattern={text!r} is no pattern of zeros",
        where="Prune",
        fix='use "unstructured", "2:4" (2 of 4 neighbours stay) or blocks such as "16x16"',
    )


def select(scores: Array, pattern: Pattern, sparsity: float, compare: Compare = "row") -> Array:
    """Which weights stay: those of the highest scores, bool ``[n, k]``.

    Args:
        scores: ``[n, k]``, importance of each weight.
        pattern: of the zeros.
        sparsity: share of weights that become zero; a pattern N:M has its own.
        compare: weights with which others: those of the same row (output channel) or of the whole matrix. Groups of N:M
            compare their own, blocks those of the whole matrix.
    """
    n, k = scores.shape
    if pattern.group:
        groups = scores.reshape(n, k // pattern.group, pattern.group)
        order = np.argsort(-groups, axis=-1, kind="stable")
        keep = np.zeros(groups.shape, bool)
        np.put_along_axis(keep, order[..., : pattern.kept], True, axis=-1)
        return keep.reshape(n, k)
    rows, columns = pattern.block
    if rows * columns > 1:
        blocks = scores.reshape(n // rows, rows, k // columns, columns).sum(axis=(1, 3), dtype=np.float64)
        return np.repeat(
            np.repeat(_largest(blocks.reshape(1, -1), sparsity).reshape(blocks.shape), rows, 0), columns, 1
        )
    return _largest(scores if compare == "row" else scores.reshape(1, -1), sparsity).reshape(n, k)


def _largest(scores: Array, sparsity: float) -> Array:
    """In each row, all but the ``sparsity`` share of least scores."""
    gone = round(sparsity * scores.shape[1])
    keep = np.ones(scores.shape, bool)
    if gone:
        # Exactly so many, whatever scores are equal.
        np.put_along_axis(keep, np.argpartition(scores, gone - 1, axis=1)[:, :gone], False, axis=1)
    return keep


def follows(weights: Array, pattern: Pattern) -> bool:
    """Whether the zeros of ``[n, k]`` weights are at least those of an N:M pattern."""
    n, k = weights.shape
    if not pattern.group or k % pattern.group:
        return False
    nonzero = (weights.reshape(n, -1, pattern.group) != 0).sum(axis=-1)
    return bool((nonzero <= pattern.kept).all())
