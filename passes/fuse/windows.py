"""Search for the best partition of a few nodes, and its use on windows of a plan: neighbouring blocks, planned anew."""

from __future__ import annotations

from collections.abc import Sequence

from .block_types import BlockType
from .blocking import Blocking
from .quotient import bits

WINDOW = 9
"""Nodes of a window."""
BUDGET = 400
"""Windows that are searched in one graph."""
_LEAST = 1e-8
"""Seconds that are worth a change."""


def search(blocking: Blocking, nodes: Sequence[int]) -> tuple[float, list[list[int]]]:
    """The cheapest way to cut ``nodes`` into legal blocks: (seconds, blocks in an order in which they can run).

    Blocks run one after another, so what has run is always closed under predecessors: the search goes from one such set
    to a larger one, each step being a block. That is exact, and blocks that wait for each other never come up.
    Predecessors outside ``nodes`` count as having run.
    """
    number = {node: index for index, node in enumerate(nodes)}
    needs = [sum(1 << number[need] for need in blocking.needs[node] if need in number) for node in nodes]
    count = len(needs)
    closed = [mask for mask in range(1 << count) if all(needs[node] & ~mask == 0 for node in bits(mask))]
    near = _neighbours(blocking, nodes, number)
    costs: dict[int, float | None] = {}

    def cost(mask: int) -> float | None:
        if mask not in costs:
            members = [nodes[index] for index in bits(mask)]
            legal = len(members) == 1 or (_linked(mask, near) and _legal(blocking, members))
            costs[mask] = blocking.cost(members) if legal else None
        return costs[mask]

    full = (1 << count) - 1
    best: dict[int, tuple[float, int]] = {full: (0.0, 0)}
    # Larger sets first: what is left to do after them is known when smaller ones ask.
    for done in sorted(closed, key=lambda mask: -mask.bit_count()):
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
        blocks.append([nodes[index] for index in bits(then & ~at)])
        at = then
    return best[0][0], blocks


def _neighbours(blocking: Blocking, nodes: Sequence[int], number: dict[int, int]) -> list[int]:
    """By node, those that it reads, that read it, or that read what it reads, as bit sets."""
    near = [0] * len(nodes)
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        for need in blocking.needs[node]:
            readers.setdefault(need, []).append(index)
            if need in number:
                near[index] |= 1 << number[need]
                near[number[need]] |= 1 << index
    for together in readers.values():
        group = sum(1 << index for index in together)
        for index in together:
            near[index] |= group
    return near


def _linked(mask: int, near: Sequence[int]) -> bool:
    seen = stack = mask & -mask
    while stack:
        index = stack.bit_length() - 1
        stack &= ~(1 << index)
        new = near[index] & mask & ~seen
        seen |= new
        stack |= new
    return seen == mask


def _legal(blocking: Blocking, members: Sequence[int]) -> bool:
    alone = (BlockType.OPAQUE, BlockType.HOST)
    return not any(blocking.infos[member].type in alone for member in members) and blocking.objection(members) is None


def improve(blocking: Blocking) -> None:
    """Plan windows of the graph anew as long as that saves: neighbouring blocks of few nodes together."""
    left = BUDGET
    seen: set[tuple[int, ...]] = set()
    pending = list(blocking.quotient.members)
    while pending and left:
        block = pending.pop()
        if block not in blocking.quotient.members:
            continue
        window = _window(blocking, block)
        nodes = sorted(node for name in window for node in blocking.quotient.members[name])
        if len(window) < 2 or tuple(nodes) in seen:
            continue
        seen.add(tuple(nodes))
        left -= 1
        now = sum(blocking.cost(blocking.quotient.members[name]) for name in window)
        seconds, blocks = search(blocking, nodes)
        if seconds > now - _LEAST:
            continue
        rest = [group for name, group in blocking.quotient.members.items() if name not in window]
        if blocking.rebuild([*rest, *blocks]):
            pending += [blocking.quotient.home[node] for node in nodes]


def _window(blocking: Blocking, block: int) -> list[int]:
    """A block and neighbours, and theirs, as long as there are no more than ``WINDOW`` nodes."""
    quotient = blocking.quotient
    alone = (BlockType.OPAQUE, BlockType.HOST)
    if blocking.types[block] in alone:
        return []
    window, size = [block], len(quotient.members[block])
    for center in window:
        around = quotient.before[center] | quotient.after[center]
        around |= {other for need in quotient.before[center] for other in quotient.after[need]}
        for other in sorted(around - set(window), key=lambda name: (len(quotient.members[name]), name)):
            more = len(quotient.members[other])
            if blocking.types[other] not in alone and size + more <= WINDOW:
                window.append(other)
                size += more
    return window
