"""The best plan of a small graph, by search over all partitions: what the greedy planner is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.errors import UnsupportedError
from .block_types import BlockType
from .planner import Planner
from .quotient import bits

LARGEST = 14
"""Nodes of the largest graph that is searched."""


def best_partition(planner: Planner) -> tuple[float, list[list[int]]]:
    """The legal partition of least cost, as (seconds, blocks of node numbers in an order in which they can run).

    Blocks run one after another, so what has run is always closed under predecessors: the search goes from one such
    set to a larger one, each step being a block. That is exact, and no partition with a cycle ever comes up.

    Args:
        planner: of a graph of at most ``LARGEST`` nodes; its own blocks are not looked at.

    Raises:
        UnsupportedError: the graph is too large.
    """
    before = planner.needs
    count = len(before)
    if count > LARGEST:
        raise UnsupportedError(f"the exact planner takes {LARGEST} nodes at most, not {count}")
    needs = [sum(1 << need for need in nodes) for nodes in before]
    closed = [mask for mask in range(1 << count) if all(needs[node] & ~mask == 0 for node in bits(mask))]
    near = _neighbours(planner)
    costs: dict[int, float | None] = {}

    def cost(mask: int) -> float | None:
        if mask not in costs:
            members = list(bits(mask))
            costs[mask] = planner.cost(members) if _legal(planner, members, mask, near) else None
        return costs[mask]

    full = (1 << count) - 1
    best: dict[int, tuple[float, int]] = {full: (0.0, 0)}
    # Larger sets first: what is left to do after them is known when smaller ones ask.
    for done in sorted(closed, key=lambda mask: -mask.bit_count()):
        if done == full:
            continue
        found: tuple[float, int] | None = None
        for then in closed:
            if then == done or then & done != done or then not in best:
                continue
            seconds = cost(then & ~done)
            if seconds is not None and (found is None or seconds + best[then][0] < found[0]):
                found = seconds + best[then][0], then
        if found is not None:
            best[done] = found
    blocks = []
    at = 0
    while at != full:
        then = best[at][1]
        blocks.append(list(bits(then & ~at)))
        at = then
    return best[0][0], blocks


def _neighbours(planner: Planner) -> list[int]:
    """By node, the nodes that it reads, that read it, or that read what it reads, as bit sets."""
    near = [0] * len(planner.needs)
    readers: dict[int, list[int]] = {}
    for node, nodes in enumerate(planner.needs):
        for need in nodes:
            near[node] |= 1 << need
            near[need] |= 1 << node
            readers.setdefault(need, []).append(node)
    for together in readers.values():
        for node in together:
            near[node] |= sum(1 << other for other in together)
    return near


def _legal(planner: Planner, members: Sequence[int], mask: int, near: Sequence[int]) -> bool:
    if len(members) == 1:
        return True
    if any(planner.infos[member].type in (BlockType.OPAQUE, BlockType.HOST) for member in members):
        return False
    seen = stack = 1 << members[0]
    while stack:
        node = stack.bit_length() - 1
        stack &= ~(1 << node)
        new = near[node] & mask & ~seen
        seen |= new
        stack |= new
    return seen == mask and planner.objection(members) is None
