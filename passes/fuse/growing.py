"""Growth of blocks from seeds, and the joining of neighbours."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from .block_types import BlockType
from .blocking import Blocking

_SEEDS = (BlockType.ONE_TO_ONE, BlockType.BROADCAST)
_PLACEWISE = (
    BlockType.ONE_TO_ONE,
    BlockType.BROADCAST,
    BlockType.REORGANIZE,
    BlockType.SHUFFLE,
    BlockType.ONE_TO_MANY,
)


def grow(blocking: Blocking, *, forward: bool = True) -> None:
    """Grow blocks from seeds, to successors first or to predecessors first."""
    seeds = [index for index, type_ in blocking.types.items() if type_ in _SEEDS]
    seeds.sort(key=lambda index: (blocking.sizes.bytes(blocking.infos[index].node.outputs[0]), index))
    for seed in seeds:
        block = blocking.quotient.home[seed]
        if len(blocking.quotient.members[block]) == 1:
            block = _spread(blocking, block, forward=forward)
            _spread(blocking, block, forward=not forward)


def _spread(blocking: Blocking, block: int, *, forward: bool) -> int:
    """Take in neighbours on one side as long as some may be; the name of the block afterwards."""
    found = True
    while found:
        found = False
        near = blocking.quotient.after[block] if forward else blocking.quotient.before[block]
        for other in sorted(near):
            if other not in blocking.quotient.members or blocking.quotient.home[other] != other:
                continue
            if forward and blocking.types[other] is BlockType.CONTRACTION:
                continue
            if blocking.gain(block, other) is not None:
                block = blocking.merge(block, other)
                found = True
                break
    return block


def join(blocking: Blocking) -> None:
    """Join neighbours, those that save most first."""
    heap: list[tuple[float, int, int, int, int]] = []

    def push(block: int, others: Iterable[int]) -> None:
        for other in others:
            gain = blocking.gain(block, other)
            if gain is not None:
                a, b = min(block, other), max(block, other)
                heapq.heappush(heap, (-gain, a, b, blocking.version[a], blocking.version[b]))

    for block in list(blocking.quotient.members):
        push(block, blocking.quotient.after[block])
        push(block, (other for other in _siblings(blocking, block) if other > block))
    while heap:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        members = blocking.quotient.members
        if a not in members or b not in members:
            continue
        if (blocking.version[a], blocking.version[b]) != (version_a, version_b) or blocking.gain(a, b) is None:
            continue
        block = blocking.merge(a, b)
        push(block, blocking.quotient.after[block] | blocking.quotient.before[block])
        push(block, _siblings(blocking, block))


def _siblings(blocking: Blocking, block: int) -> list[int]:
    """Blocks of placewise work on what ``block`` reads, too."""
    if blocking.types[block] not in _PLACEWISE:
        return []
    found: set[int] = set()
    for maker in blocking.quotient.before[block]:
        found |= blocking.quotient.after[maker]
    near = found - {block} - blocking.quotient.after[block] - blocking.quotient.before[block]
    return sorted(other for other in near if blocking.types[other] in _PLACEWISE)
