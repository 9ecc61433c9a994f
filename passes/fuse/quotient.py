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
    """Blocks of nodes ``0 … n-1``; each begins as a block of its own and a block is named by one of its nodes.

    Args:
        before: per node, the nodes it needs; each has a smaller number.
    """

    def __init__(self, before: Sequence[Sequence[int]]) -> None:
        count = len(before)
        self.home = list(range(count))
        """By node, its block."""
        self.members: dict[int, list[int]] = {n: [n] for n in range(count)}
        """By block, its nodes in order."""
        self.after: dict[int, set[int]] = {n: set() for n in range(count)}
        self.before: dict[int, set[int]] = {n: set(needs) for n, needs in enumerate(before)}
        for node, needs in enumerate(before):
            for need in needs:
                self.after[need].add(node)
        self._mask = {n: 1 << n for n in range(count)}
        self._above = {n: 0 for n in range(count)}
        self._below = {n: 0 for n in range(count)}
        for node in range(count):
            for need in before[node]:
                self._above[node] |= self._above[need] | self._mask[need]
        for node in reversed(range(count)):
            for user in self.after[node]:
                self._below[node] |= self._below[user] | self._mask[user]

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
