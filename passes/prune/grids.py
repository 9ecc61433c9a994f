"""What is known of the places of a value, and what must change with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.symbolic import exact_div, known

Array = np.ndarray[Any, Any]

LARGEST_GRID = 1 << 22
"""Places of a grid; a value of more along its axes is not followed."""


@dataclass(frozen=True)
class Grid:
    """The atom of each place of a value along some axes; along the others places do not differ.

    An axis of symbolic size ``batch * heads`` has labels for the heads only: they repeat.

    Attributes:
        axes: ascending.
        labels: int64 of the sizes of these axes.
    """

    axes: tuple[int, ...]
    labels: Array

    def along(self, axis: int) -> Array | None:
        """The labels if this is the only axis."""
        return self.labels if self.axes == (axis,) else None


@dataclass(frozen=True)
class Cut:
    """A constant of one reader that loses what its grid loses.

    Attributes:
        node: the reader.
        index: which of its inputs.
        axes: pairs of an axis of the constant and the position of that axis in the grid.
        grid: of a value that the constant goes with.
    """

    node: onnx_ir.Node
    index: int
    axes: tuple[tuple[int, int], ...]
    grid: Grid


Keeps = tuple[Array, ...]
"""For each axis of a grid, which places stay: bool."""


@dataclass(frozen=True)
class Fix:
    """Something else of a node that must change with a grid: an attribute, a target shape.

    Attributes:
        node: to change.
        grid: that decides.
        change: called with what stays along each axis of the grid.
    """

    node: onnx_ir.Node
    grid: Grid
    change: Callable[[Any, Keeps], None]


@dataclass(frozen=True)
class Balance:
    """Heads of queries that share heads of keys and values: each of these must keep as many.

    Attributes:
        node: the attention.
        queries: an atom of each head of queries, ``[heads of keys, queries of each]``.
        keys: an atom of each head of keys.
    """

    node: onnx_ir.Node
    queries: Array
    keys: Array


@dataclass
class Axis:
    """An axis of a constant weight.

    Attributes:
        atoms: of its places.
        reads: whether it is summed over: a product's input channels.
    """

    atoms: Array
    reads: bool


def fits(dim: int | onnx_ir.SymbolicDim, size: int) -> bool:
    """Whether labels of ``size`` places go with a dimension: it has as many, or they repeat along it."""
    return dim == size if isinstance(dim, int) else known(exact_div(dim, size))
