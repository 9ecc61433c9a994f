"""What a Reshape does to a grid: which stretches of axes become which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir

from ...ir.symbolic import same
from .grids import LARGEST_GRID, Array, Grid

Dim = int | onnx_ir.SymbolicDim
Stretch = tuple[tuple[int, int], tuple[int, int]]
"""Axes [a, b) of the input hold the same elements in the same order as axes [c, d) of the output."""


def stretches(before: Sequence[Dim], after: Sequence[Dim]) -> list[Stretch]:
    """Divide both shapes into the shortest stretches of equal size that can be told, in order.

    What cannot be told, because its sizes are not known, is one stretch.
    """
    front: list[Stretch] = []
    a, c = 0, 0
    while (step := _match(before[a:], after[c:])) is not None:
        front.append(((a, a + step[0]), (c, c + step[1])))
        a, c = a + step[0], c + step[1]
    back: list[Stretch] = []
    b, d = len(before), len(after)
    while (step := _match(before[a:b][::-1], after[c:d][::-1])) is not None:
        back.append(((b - step[0], b), (d - step[1], d)))
        b, d = b - step[0], d - step[1]
    middle = [((a, b), (c, d))] if a < b or c < d else []
    return [*front, *middle, *back[::-1]]


def _match(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[int, int] | None:
    """How many dimensions of each, from the start, hold equally many elements: the fewest that can be told."""
    if not before or not after:
        return None
    if same(before[0], after[0]):
        return 1, 1
    i, j, left, right = 0, 0, 1, 1
    while True:
        if left == right and i and j:
            return i, j
        if left <= right and i < len(before) and isinstance(size := before[i], int):
            left, i = left * size, i + 1
        elif (right < left and j < len(after) and isinstance(size := after[j], int)) or (
            left == right and j < len(after) and isinstance(size := after[j], int)
        ):
            right, j = right * size, j + 1
        else:
            return None


def regrid(grid: Grid, before: Sequence[Dim], after: Sequence[Dim]) -> Grid | None:
    """The grid of a value after a Reshape, or None if it cannot be told."""
    order = list(grid.axes)
    wide: list[tuple[int, int]] = []  # axes of the input, and how many places of each, in the order of the stretches
    out: list[tuple[int, int]] = []  # the same of the output
    for (a, b), (c, d) in stretches(before, after):
        mine = [axis for axis in order if a <= axis < b]
        if not mine:
            continue
        found = _stretch(grid, before, after, (a, b), (c, d))
        if found is None:
            return None
        wide += found[0]
        out += found[1]
    shape = [size for _, size in wide]
    if math.prod(shape) > LARGEST_GRID:
        return None
    # Axes of a stretch along which nothing differs are spread out, so that its elements lie in order.
    own = [grid.labels.shape[order.index(axis)] if axis in order else 1 for axis, _ in wide]
    spread: Array = np.broadcast_to(grid.labels.reshape(own), shape)
    labels = np.ascontiguousarray(spread).reshape([size for _, size in out])
    keep = [at for at, (_, size) in enumerate(out) if size > 1 or len(out) == 1]
    return Grid(tuple(out[at][0] for at in keep), labels.reshape([out[at][1] for at in keep]))


def _stretch(
    grid: Grid, before: Sequence[Dim], after: Sequence[Dim], mine: tuple[int, int], theirs: tuple[int, int]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]] | None:
    """(axis, places) of both sides of a stretch, of equal products."""
    (a, b), (c, d) = mine, theirs
    sizes = {axis: int(size) for axis, size in zip(grid.axes, grid.labels.shape, strict=True)}
    if (b - a, d - c) == (1, 1):
        return [(a, sizes[a])], [(c, sizes[a])]
    # Only what comes first may be of unknown size: a batch, whose places do not differ, or which labels repeat along.
    first = next((axis for axis in range(a, b) if axis in sizes or isinstance(before[axis], int)), b)
    inner = [(axis, sizes.get(axis, before[axis])) for axis in range(first, b)]
    outer = max((axis for axis in range(c, d) if not isinstance(after[axis], int)), default=c - 1)
    places = [(axis, size) for axis, size in inner if isinstance(size, int)]
    if len(places) < len(inner) or any(axis in sizes for axis in range(a, first)):
        return None
    last = [(axis, int(after[axis])) for axis in range(outer + 1, d)]  # type: ignore[arg-type]
    have, want = math.prod(size for _, size in places), math.prod(size for _, size in last)
    if outer < c:
        return (places, last) if have == want and first == a and _whole(before, a, b) else None
    if not want or have % want:
        return None
    return places, [(outer, have // want), *last] if have > want else last


def _whole(before: Sequence[Dim], a: int, b: int) -> bool:
    return all(isinstance(size, int) for size in before[a:b])
