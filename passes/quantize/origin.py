"""Weights that some tool has rounded before: they lie on a grid, and the scheme with that grid loses nothing.

Checkpoints are published that were restored from files of 4 or 8 bits, or trained for such a format. Nothing in them
says so, and another grid (other groups, an integer zero point) rounds them a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...ir.graph import tensor_of
from ..base import Outcome
from .methods.rtn import Array, as_float32
from .replace import where
from .scheme import Scheme
from .targets import Weight

FORMATS = (
    (Scheme(4, 32, symmetric=True), "llama.cpp's Q4_0"),
    (Scheme(4, 32, symmetric=True, offsets=True), "llama.cpp's Q4_1"),
)
"""Grids that are looked for, and who has them. Rounding to nearest finds their codes again, for each group of theirs
has the end of its range among its weights."""
_WEIGHTS = 3
"""Matrices that are looked at; one that lies on no grid is enough to know."""
_ROWS = 16
_NEAR = 0.05
"""Largest root of the mean square distance from the grid, in steps; other weights have 0.29, files in bfloat16 0.03."""


def tell(outcome: Outcome, chosen: Sequence[tuple[Weight, Scheme]]) -> None:
    """Remark that weights lie on the grid of a known format, if they do and their schemes have another one."""
    products = [(weight, scheme) for weight, scheme in chosen if weight.products and not weight.tables]
    if not products:
        return
    some = [products[at] for at in sorted({round(at) for at in np.linspace(0, len(products) - 1, _WEIGHTS)})]
    found = None
    for weight, _ in some:
        here = found_in(_rows(weight))
        if here is None or found not in (None, here):
            return
        found = here
    if found is None:
        return
    scheme, name = found
    if all(_same(scheme, other) for _, other in products):
        outcome.applied("", f"the weights were rounded before, to a grid as {name} has it, and get these codes again")
        return
    options = [f"bits={scheme.bits}", f"group_size={scheme.group_size}"]
    options.append("offsets=true" if scheme.offsets else "symmetric=true")
    outcome.missed(
        where(some[0][0]),
        f"the weights were rounded before, to a grid as {name} has it: quantize({','.join(options)},method=rtn) finds "
        "these codes again and loses nothing, and any other grid rounds a second time",
        looked_at=len(some),
    )


def found_in(rows: Array) -> tuple[Scheme, str] | None:
    """The grid that some output channels of a weight lie on, float32 ``[rows, k]``."""
    for scheme, name in FORMATS:
        n, k = rows.shape
        if k % scheme.group_size:
            continue
        groups = rows.reshape(n, -1, scheme.group_size)
        low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
        if scheme.offsets:
            start, step = low, (high - low) / (scheme.levels - 1)
        else:
            start, step = np.zeros_like(low), np.maximum(high, -low) / (scheme.levels // 2)
        flat = step <= 0
        if flat.all():
            return None
        with np.errstate(invalid="ignore"):  # weights that are no numbers are found when they are rounded
            steps = (groups - start) / np.where(flat, 1, step)
            away = np.where(flat, 0, steps - np.rint(steps))
        if float(np.sqrt((away**2).sum() / (away.size - scheme.group_size * flat.sum()))) < _NEAR:
            return scheme, name
    return None


def _same(grid: Scheme, other: Scheme) -> bool:
    """Whether a scheme has the levels of a grid."""
    return (grid.bits, grid.group_size, grid.offsets, grid.symmetric) == (
        other.bits, other.group_size, other.offsets, other.symmetric,
    )  # fmt: skip


def _rows(weight: Weight) -> Array:
    tensor = tensor_of(weight.value)
    assert tensor is not None
    array = tensor.numpy()
    n = weight.channels[0]
    at = np.linspace(0, n - 1, min(n, _ROWS)).astype(int)
    return as_float32(array[:, at].T if weight.layout == "kn" else array[at])
