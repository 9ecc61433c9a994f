"""What can be removed from a graph: units, each a neuron, a channel or a head with all that goes with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir

from ...ir.graph import module_path
from .coupling import Coupling
from .grids import Array, Grid

Kind = Literal["channels", "heads"]
Heads = Literal["auto", "query", "shared"]
Roots = tuple[int, ...]
"""The classes of atoms of one unit."""
Place = tuple[onnx_ir.Value, int]
"""An axis of a constant weight."""


@dataclass
class Group:
    """Units of one place that can be removed one by one: the neurons of a layer, or its heads.

    Attributes:
        kind: what the units are.
        axes: the axes of weights that lose places, with the places of each unit: [units, places of a unit].
        reads: those of them that are summed over.
        roots: the classes of atoms of each unit.
        where: module path of the first node that makes or reads it.
        balance: where heads of keys serve several heads of queries: the units of each head of keys, ``[keys,
            queries]``, of which equally many must stay; None where any may go.
    """

    kind: Kind
    axes: dict[Place, Array]
    reads: list[Place]
    roots: list[Roots]
    where: str
    balance: Array | None = None

    def __len__(self) -> int:
        return len(self.roots)


@dataclass
class Found:
    """Groups of units, and what cannot be removed.

    Attributes:
        groups: in graph order.
        misses: (module path, reason, channels or heads) of what cannot go.
    """

    groups: list[Group] = field(default_factory=list)
    misses: list[tuple[str, str, int]] = field(default_factory=list)


class Finder:
    """Looks for units.

    Args:
        coupling: of the graph.
        heads: where heads of queries share heads of keys: ``"shared"`` removes a head of keys with all its queries,
            ``"query"`` heads of queries alone, evenly; ``"auto"`` the latter, or the former where a query cannot go.
    """

    def __init__(self, coupling: Coupling, heads: Heads = "auto") -> None:
        self._c, self._heads = coupling, heads
        self._blocked = coupling.blocked()
        self._order = {node: i for i, node in enumerate(coupling.graph.graph)}
        self._members = _members(coupling)
        self._grids = _grids(coupling)
        self._attended = {int(r) for atoms in coupling.heads for r in coupling.parents[atoms].reshape(-1)}
        self._found = Found()

    def find(self) -> Found:
        """All groups and misses."""
        found = self._found
        pools: dict[tuple[tuple[int, int, int], ...], list[Roots]] = defaultdict(list)
        for roots in self._candidates():
            pools[self._signature(roots)].append(roots)
        for units in pools.values():
            group = self._group(units)
            if group is None:
                continue
            if len(group) < 2:
                found.misses.append((group.where, "it is a single unit: nothing would be left", 1))
            elif (reason := self._broken(group)) is not None:
                found.misses.append((group.where, reason, len(group)))
            else:
                found.groups.append(group)
        self._tell_blocked()
        found.groups.sort(key=lambda group: min(self._order[node] for node in self._nodes(group.axes)))
        return found

    def _candidates(self) -> list[Roots]:
        c, units = self._c, list[Roots]()
        shared: set[int] = set()
        for balance in c.balances:
            queries, keys = c.parents[balance.queries], c.parents[balance.keys]
            shared.update(map(int, queries.reshape(-1)), map(int, keys))
            stuck = [int(root) for root in queries.reshape(-1) if int(root) in self._blocked]
            held = [int(root) for root in keys if int(root) in self._blocked]
            # Queries that are united with each other or with the keys can only go as these do.
            apart = len(np.unique(queries)) == queries.size and not np.isin(queries, keys).any()
            if self._heads != "shared" and not stuck and apart:
                units += [(int(root),) for root in queries.reshape(-1)]
            elif self._heads != "query" and not stuck and not held:
                units += [tuple(dict.fromkeys([int(k), *map(int, q)])) for k, q in zip(keys, queries, strict=True)]
            elif not stuck and not held:
                self._miss(balance.node, "its heads cannot go evenly", queries.size)
        for root in self._members:
            if root not in shared and root not in self._blocked:
                units.append((root,))
        return units

    def _signature(self, roots: Roots) -> tuple[tuple[int, int, int], ...]:
        """Units with as many places of the same axes are alike."""
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for root in roots:
            for (base, number), places in self._members[root].items():
                counts[id(base), number] += len(places)
        return tuple(sorted((base, number, count) for (base, number), count in counts.items()))

    def _group(self, units: Sequence[Roots]) -> Group | None:
        """The group of alike units; None if no product reads it, or none makes it."""
        keys = dict.fromkeys(key for root in units[0] for key in self._members[root])
        axes = {
            key: np.asarray([sorted(p for root in roots for p in self._members[root].get(key, ())) for roots in units])
            for key in keys
        }
        reads = [key for key in axes if self._c.weights[key[0]][key[1]].reads]
        if not reads or len(reads) == len(axes):
            return None
        kind: Kind = "heads" if any(root in self._attended for root in units[0]) else "channels"
        first = min(self._nodes(axes), key=self._order.__getitem__)
        return Group(kind, axes, reads, list(units), module_path(first), self._balance(units))

    def _nodes(self, axes: dict[Place, Array]) -> list[onnx_ir.Node]:
        return [node for base, _ in axes for node in self._c.places.get(base, [])]

    def _balance(self, units: Sequence[Roots]) -> Array | None:
        numbers = {roots[0]: i for i, roots in enumerate(units) if len(roots) == 1}
        for balance in self._c.balances:
            queries = self._c.parents[balance.queries]
            if all(int(root) in numbers for root in queries.reshape(-1)):
                return np.asarray([[numbers[int(root)] for root in row] for row in queries])
        return None

    def _broken(self, group: Group) -> str | None:
        """Why units of a group cannot be removed: what would be left is no block of a tensor."""
        if group.balance is not None:
            trial = [roots for at in (0, -1) for roots in [tuple(group.roots[u][0] for u in group.balance[:, at])]]
        else:
            trial = [group.roots[0], group.roots[-1]]
        for roots in trial:
            gone = np.isin(self._c.parents, roots)
            for grid, what in {id(g): (g, what) for root in roots for g, what in self._grids.get(root, [])}.values():
                if grid.labels.ndim > 1 and self._c.keeps(grid, gone) is None:
                    return f"{what} would not stay rectangular"
        return None

    def _miss(self, node: onnx_ir.Node | None, reason: str, count: int) -> None:
        self._found.misses.append(("" if node is None else module_path(node), reason, count))

    def _tell_blocked(self) -> None:
        """One miss for each distinct reason and place."""
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for root, (reason, where) in self._blocked.items():
            if root in self._members:
                seen[where, reason] += max(len(places) for places in self._members[root].values())
        self._found.misses += [(where, reason, count) for (where, reason), count in seen.items()]


def find(coupling: Coupling, heads: Heads = "auto") -> Found:
    """The units of a graph; see :class:`Finder`."""
    return Finder(coupling, heads).find()


def _members(coupling: Coupling) -> dict[int, dict[Place, list[int]]]:
    """By class of atoms: the axes of weights that it is part of, and its places there."""
    members: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
    for base, axes in coupling.weights.items():
        for number, axis in axes.items():
            for place, root in enumerate(coupling.parents[axis.atoms].tolist()):
                members[root][base, number].append(place)
    return members


def _grids(coupling: Coupling) -> dict[int, list[tuple[Grid, str]]]:
    """By class of atoms: the grids of more than one axis that it is in, and the value."""
    found: dict[int, list[tuple[Grid, str]]] = defaultdict(list)
    for value, grid in coupling.grids.items():
        if grid.labels.ndim > 1:
            for root in np.unique(coupling.parents[grid.labels]).tolist():
                found[root].append((grid, f"value {value.name!r}"))
    return found
