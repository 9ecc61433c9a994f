"""Reshapes of grids: labels must be where the elements went."""

from __future__ import annotations

import numpy as np
import onnx_ir
from burnish.passes.prune.grids import Grid
from burnish.passes.prune.regrid import regrid, stretches
from hypothesis import given
from hypothesis import strategies as st

BATCH = onnx_ir.SymbolicDim("batch")


def test_heads_are_split_and_joined() -> None:
    grid = regrid(Grid((2,), np.arange(12)), [BATCH, 7, 12], [BATCH, 7, 3, 4])
    assert grid is not None and grid.axes == (2, 3) and np.array_equal(grid.labels, np.arange(12).reshape(3, 4))
    back = regrid(grid, [BATCH, 7, 3, 4], [BATCH, 7, 12])
    assert back is not None and back.axes == (2,) and np.array_equal(back.labels, np.arange(12))


def test_heads_that_join_the_batch_repeat_along_it() -> None:
    both = onnx_ir.SymbolicDim("3*batch")
    grid = regrid(Grid((1, 3), np.arange(12).reshape(3, 4)), [BATCH, 3, 7, 4], [both, 7, 4])
    assert grid is not None and grid.axes == (0, 2) and grid.labels.shape == (3, 4)
    back = regrid(grid, [both, 7, 4], [BATCH, 3, 7, 4])
    assert back is not None and back.axes == (1, 3) and np.array_equal(back.labels, np.arange(12).reshape(3, 4))
    joined = regrid(Grid((2,), np.arange(12)), [7, BATCH, 12], [7, both, 4])
    assert joined is not None and joined.axes == (1, 2) and np.array_equal(joined.labels, np.arange(12).reshape(3, 4))


def test_channels_before_an_unknown_axis_cannot_be_told() -> None:
    length = onnx_ir.SymbolicDim("length")
    assert regrid(Grid((1,), np.arange(4)), [BATCH, 4, length], [BATCH, onnx_ir.SymbolicDim("4*length")]) is None


def test_unknown_sizes_are_one_stretch() -> None:
    assert stretches([BATCH, 6, 5], [onnx_ir.SymbolicDim("other"), 30]) == [((0, 1), (0, 1)), ((1, 3), (1, 2))]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 9))
def test_static_reshapes_move_labels_as_elements(shape: list[int], axis: int, seed: int) -> None:
    """Labels of one axis, spread over all elements and reshaped, are the grid's labels spread over the new shape."""
    axis %= len(shape)
    generator = np.random.default_rng(seed)
    factors = [f for size in shape for f in ([2, 2] if size == 4 else [size])]
    cuts = sorted(generator.integers(0, len(factors) + 1, 2).tolist())
    parts = [factors[: cuts[0]], factors[cuts[0] : cuts[1]], factors[cuts[1] :]]
    after = [int(np.prod(part)) for part in parts if part]
    labels = generator.integers(0, 3, shape[axis])
    spread = np.broadcast_to(labels.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)
    grid = regrid(Grid((axis,), labels), shape, after)
    assert grid is not None
    found = grid.labels.reshape(
        [grid.labels.shape[grid.axes.index(a)] if a in grid.axes else 1 for a in range(len(after))]
    )
    assert np.array_equal(np.broadcast_to(found, after), spread.reshape(after))
