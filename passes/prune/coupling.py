"""Which channels of which tensors must go together, found by data flow alone.

Every output channel of a constant weight is an *atom*. A value carries a :class:`Grid`: which atom each place along
some
of its axes belongs to. Operators unite atoms: an addition those of its operands, a depthwise convolution those of its
input and output, attention those of a head in queries, keys and values. What is united can only be removed together.
An atom that something stands in the way of (an output of the model, an operator that is not understood) is *blocked*.
Removing all atoms of a class gives the same outputs as setting the weights that read them to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, dims, is_op, module_path, sizes_of, tensor_of
from .grids import Array, Axis, Balance, Cut, Fix, Grid, Keeps, fits


class Coupling:
    """What is known of one graph so far: rules of operators ask it and add to it, see :func:`.analyse.analyse`.

    Args:
        graph: to analyse.
        across_norms: let channels that a normalization computes over go one by one: what stays is then normalized by
            what is left, which is not what masking gives.
    """

    def __init__(self, graph: Graph, *, across_norms: bool = False) -> None:
        self.graph, self.across_norms = graph, across_norms
        self.grids: dict[onnx_ir.Value, Grid] = {}
        self.weights: dict[onnx_ir.Value, dict[int, Axis]] = {}
        self.cuts: list[Cut] = []
        self.fixes: list[Fix] = []
        self.balances: list[Balance] = []
        self.heads: list[Array] = []
        """Atoms of the heads of each attention, taken apart or not."""
        self.pulled: list[onnx_ir.Value] = []
        """Values that were followed backwards, see :mod:`.pull`."""
        self.pulls: set[tuple[onnx_ir.Node, int]] = set()
        """Their readers that ask for what they lose."""
        self.places: dict[onnx_ir.Value, list[onnx_ir.Node]] = {}
        """The nodes that use a weight as a weight."""
        self._parents: list[int] = []
        self._blocks: dict[int, tuple[str, str]] = {}
        self._used: set[tuple[onnx_ir.Node, int]] = set()
        self.parents: Array = np.zeros(0, np.int64)
        """The root of each atom, once :meth:`close` is called."""

    # Atoms.

    def fresh(self, count: int) -> Array:
        """New atoms, each a class of its own."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, atom: int) -> int:
        """The atom that stands for the class of an atom."""
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = parents[parents[atom]]
            atom = parents[atom]
        return atom

    def unite(self, one: Array, other: Array) -> None:
        """Unite atoms place by place; the arrays are broadcast."""
        a, b = np.broadcast_arrays(one, other)
        pairs = np.unique(np.stack([a.reshape(-1), b.reshape(-1)]), axis=1)
        for x, y in pairs.T.tolist():
            x, y = self.root(x), self.root(y)
            if x != y:
                self._parents[max(x, y)] = min(x, y)

    def unite_along(self, grid: Grid, axis: int) -> Grid:
        """Unite what differs along an axis only; the grid without that axis."""
        at = grid.axes.index(axis)
        first = np.take(grid.labels, [0], axis=at)
        self.unite(grid.labels, first)
        return Grid(tuple(a for a in grid.axes if a != axis), np.take(grid.labels, 0, axis=at))

    def block(self, grid: Grid | Array, reason: str, node: onnx_ir.Node | None) -> None:
        """Nothing of this grid can be removed."""
        labels = grid.labels if isinstance(grid, Grid) else grid
        where = "" if node is None else module_path(node)
        for atom in np.unique(labels).tolist():
            self._blocks.setdefault(atom, (reason, where))

    def blocked(self) -> dict[int, tuple[str, str]]:
        """Reason and place by the root of each class that cannot be removed."""
        found: dict[int, tuple[str, str]] = {}
        for atom, why in self._blocks.items():
            found.setdefault(int(self.parents[atom]), why)
        return found

    def close(self) -> None:
        """No more is united: weights that something else reads stay, and each atom knows its class."""
        for base in self.weights:
            self._check_uses(base)
        self.parents = np.asarray([self.root(atom) for atom in range(len(self._parents))], np.int64)

    # Values.

    def grid(self, value: onnx_ir.Value | None) -> Grid | None:
        """The grid of a value; None if none of its places can be removed."""
        return None if value is None else self.grids.get(value)

    def carry(self, value: onnx_ir.Value, grid: Grid | None) -> None:
        """The grid of a value that a node computes; axes along which nothing differs are left out."""
        if grid is None:
            return
        axes, labels = list(grid.axes), grid.labels
        for at in range(len(axes))[::-1]:
            first = np.take(labels, [0], axis=at)
            if len(axes) > 1 and (labels == first).all():
                labels = np.take(labels, 0, axis=at)
                del axes[at]
        shape, maker = dims(value), value.producer()
        if shape is None or not all(fits(shape[axis], size) for axis, size in zip(axes, labels.shape, strict=True)):
            what = "a node" if maker is None else maker.op_type
            self.block(labels, f"the shape of what {what} computes is not known", maker)
            return
        if axes:
            self.grids[value] = Grid(tuple(axes), labels)

    def stop(self, node: onnx_ir.Node, reason: str) -> None:
        """Nothing that a node reads can be removed."""
        for value in node.inputs:
            if value is not None and value in self.grids:
                self.block(self.grids[value], reason, node)

    def block_value(self, value: onnx_ir.Value, reason: str, node: onnx_ir.Node) -> None:
        """Nothing of a value can be removed, be it computed or a weight."""
        if value in self.grids:
            self.block(self.grids[value], reason, node)
        for axis in self.weights.get(value, {}).values():
            self.block(axis.atoms, reason, node)

    # Constants.

    def weight(self, node: onnx_ir.Node, index: int) -> tuple[onnx_ir.Value, list[int]] | None:
        """The constant behind an input, perhaps transposed, and which of its axes each axis of the input is.

        None if the input is no constant.
        """
        value = node.inputs[index]
        perm: list[int] | None = None
        reader, at = node, index
        while value is not None and is_op(maker := value.producer(), "Transpose"):
            assert maker is not None
            size = len(value.shape) if value.shape is not None else 0
            given = maker.attributes.get("perm")
            own = list(given.value) if given is not None else list(range(size))[::-1]
            perm = own if perm is None else [own[axis] for axis in perm]
            reader, at, value = maker, 0, maker.inputs[0]
        tensor = tensor_of(value)
        if value is None or tensor is None:
            return None
        self._used.add((reader, at))
        self.places.setdefault(value, []).append(node)
        return value, perm if perm is not None else list(range(len(tensor.shape)))

    def atoms(self, base: onnx_ir.Value, axis: int, *, reads: bool) -> Array:
        """The atoms of an axis of a constant; new ones at the first question."""
        known = self.weights.setdefault(base, {})
        if axis not in known:
            tensor = tensor_of(base)
            assert tensor is not None
            known[axis] = Axis(self.fresh(sizes_of(tensor)[axis]), reads)
        known[axis].reads |= reads
        return known[axis].atoms

    def add_fix(self, node: onnx_ir.Node, grid: Grid, change: Callable[[Any, Keeps], None]) -> None:
        """Call ``change`` when something of a grid goes."""
        self.fixes.append(Fix(node, grid, change))

    def cut(self, node: onnx_ir.Node, index: int, axes: Sequence[tuple[int, int]], grid: Grid) -> None:
        """A constant input loses what ``grid`` loses along pairs of (its axis, position in the grid)."""
        if axes:
            self.cuts.append(Cut(node, index, tuple(axes), grid))

    def _check_uses(self, base: onnx_ir.Value) -> None:
        for use in base.uses():
            if (use.node, use.idx) not in self._used:
                for axis in self.weights[base].values():
                    self.block(axis.atoms, f"{use.node.op_type} reads the weight, too", use.node)
        if base.is_graph_output():
            for axis in self.weights[base].values():
                self.block(axis.atoms, "the weight is an output of the model", None)

    # Removal.

    def keeps(self, grid: Grid, gone: Array) -> Keeps | None:
        """Which places stay along each axis if some atoms go; None if what stays is no block.

        Args:
            grid: of a value.
            gone: bool for each atom.
        """
        stays = ~gone[grid.labels]
        keeps: list[Array] = []
        for at in range(stays.ndim):
            others = tuple(a for a in range(stays.ndim) if a != at)
            keeps.append(np.asarray(stays.any(axis=others) if others else stays))
        whole = np.ones(1, bool)
        for at, keep in enumerate(keeps):
            whole = whole & keep.reshape([-1 if a == at else 1 for a in range(stays.ndim)])
        return tuple(keeps) if (whole == stays).all() and all(keep.any() for keep in keeps) else None
