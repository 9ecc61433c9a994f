"""A partition of a graph's nodes as a graph of its own that stays acyclic while its blocks are merged.

Who reaches whom is kept as bit sets, so that a merge that would close a cycle is seen at once, whichever way round the
graph the cycle goes: convexity of each block alone is not enough, since two convex blocks can wait for each other.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence


def bits(mask: int) -> Iterator[int]:
    """Positions of the ones in ``mask``."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Quotient:
    """Blocks of nodes ``0 … n-1``; a block is named by one of its nodes.

    Args:
        before: per node, the nodes it needs; each has a smaller number.
        blocks: a partition whose quotient is acyclic; each node a block of its own if not given.
    """

    def __init__(self, before: Sequence[Sequence[int]], blocks: Sequence[Sequence[int]] | None = None) -> None:
        groups = [[n] for n in range(len(before))] if blocks is None else [sorted(block) for block in blocks]
        self.home = [0] * len(before)
        """By node, its block."""
        self.members = {group[0]: group for group in groups}
        """By block, its nodes in order."""
        for name, group in self.members.items():
            for node in group:
                self.home[node] = name
        self.after: dict[int, set[int]] = {name: set() for name in self.members}
        self.before: dict[int, set[int]] = {name: set() for name in self.members}
        for node, needs in enumerate(before):
            here = self.home[node]
            for need in needs:
                there = self.home[need]
                if there != here:
                    self.after[there].add(here)
                    self.before[here].add(there)
        self._mask = {name: sum(1 << node for node in group) for name, group in self.members.items()}
        self._above = dict.fromkeys(self.members, 0)
        self._below = dict.fromkeys(self.members, 0)
        order = self.order()
        for block in order:
            for need in self.before[block]:
                self._above[block] |= self._above[need] | self._mask[need]
        for block in reversed(order):
            for user in self.after[block]:
                self._below[block] |= self._below[user] | self._mask[user]

    def reaches(self, a: int, b: int) -> bool:
        """Whether some path leads from block ``a`` to block ``b``."""
        return bool(self._below[a] & self._mask[b])

    def closes_cycle(self, a: int, b: int) -> bool:
        """Whether some path between the blocks ``a`` and ``b`` goes through a third."""
        return self._around(a, b) or self._around(b, a)

    def _around(self, first: int, second: int) -> bool:
        if not self._below[first] & self._mask[second]:
            return False
        target = self._mask[second]
        return any(next_ != second and self._below[next_] & target for next_ in self.after[first])

    def merge(self, a: int, b: int) -> int:
        """Make one block of two, which must not close a cycle; the name of the new block, ``a``."""
        above_a, above_b, below_a, below_b = self._above[a], self._above[b], self._below[a], self._below[b]
        mask_a, mask_b = self._mask[a], self._mask[b]
        mask = mask_a | mask_b
        above, below = (above_a | above_b) & ~mask, (below_a | below_b) & ~mask
        # Who reached only one of the two now reaches what is below the other, and so on.
        for block in self._blocks((above_a ^ above_b) & ~mask):
            self._below[block] |= below | mask
        for block in self._blocks((below_a ^ below_b) & ~mask):
            self._above[block] |= above | mask
        for node in self.members[b]:
            self.home[node] = a
        self.members[a] = sorted(self.members[a] + self.members.pop(b))
        for others, mirror in ((self.after, self.before), (self.before, self.after)):
            for other in others.pop(b):
                mirror[other].discard(b)
                if other != a:
                    mirror[other].add(a)
                    others[a].add(other)
            others[a].discard(b)
        for table in (self._mask, self._above, self._below):
            del table[b]
        self._mask[a], self._above[a], self._below[a] = mask, above, below
        return a

    def _blocks(self, mask: int) -> set[int]:
        return {self.home[node] for node in bits(mask)}

    def order(self) -> list[int]:
        """The blocks in topological order, as near to the order of their first nodes as it can be."""
        waiting = {block: len(needs) for block, needs in self.before.items()}
        ready = [(self.members[block][0], block) for block, left in waiting.items() if not left]
        heapq.heapify(ready)
        found: list[int] = []
        while ready:
            _, block = heapq.heappop(ready)
            found.append(block)
            for user in self.after[block]:
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, (self.members[user][0], user))
        return found
