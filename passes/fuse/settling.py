"""Moves of single nodes over the border between two blocks."""

from __future__ import annotations

from collections.abc import Sequence

from .block_types import BlockType
from .blocking import Blocking

_FIXED = (BlockType.OPAQUE, BlockType.HOST, BlockType.CONTRACTION)
_ALONE = (BlockType.OPAQUE, BlockType.HOST)
_SLIGHT = 1e-8
"""Seconds that are not worth a move."""


def settle(blocking: Blocking) -> None:
    """Move single nodes over the border between two blocks where that saves.

    A node also goes back to the block before where it costs about the same there and that block holds a product.
    """
    blocking.rebuild(blocking.blocks())  # names as after each move
    pending = [(a, b) for a in blocking.quotient.members for b in blocking.quotient.after[a]]
    left = 4 * len(blocking.infos)
    while pending and left:
        left -= 1
        a, b = pending.pop()
        if a not in blocking.quotient.members or b not in blocking.quotient.after[a]:
            continue
        moved = _back(blocking, a, b) or _forth(blocking, a, b)
        if moved is None:
            continue
        changed = _regroup(blocking, moved)
        for block in changed:
            pending += [(block, other) for other in blocking.quotient.after[block]]
            pending += [(other, block) for other in blocking.quotient.before[block]]


def _back(blocking: Blocking, a: int, b: int) -> tuple[int, int, int] | None:
    """A node of ``b`` that is better off at the end of ``a``: (node, from, to)."""
    own = set(blocking.quotient.members[b])
    for node in blocking.quotient.members[b]:
        needs = blocking.needs[node]
        homes = {blocking.quotient.home[need] for need in needs}
        if a not in homes or any(need in own for need in needs):
            continue
        if any(blocking.quotient.reaches(a, home) for home in homes - {a, b}):
            continue
        saved = _moving(blocking, node, b, a)
        # What follows a product is computed once, what precedes one or a pool may be computed again.
        least = -_SLIGHT if blocking.types[a] is BlockType.CONTRACTION else _SLIGHT
        if saved is not None and saved > least:
            return node, b, a
    return None


def _forth(blocking: Blocking, a: int, b: int) -> tuple[int, int, int] | None:
    """A node of ``a`` that is better off at the beginning of ``b``: (node, from, to)."""
    for node in reversed(blocking.quotient.members[a]):
        if any(blocking.quotient.home[user] != b for user in blocking.users[node]) or not blocking.users[node]:
            continue
        saved = _moving(blocking, node, a, b)
        if saved is not None and saved > _SLIGHT:
            return node, a, b
    return None


def _moving(blocking: Blocking, node: int, source: int, target: int) -> float | None:
    """Seconds saved by moving a node from one block to another; None where that may not be."""
    rest = [member for member in blocking.quotient.members[source] if member != node]
    grown = sorted([*blocking.quotient.members[target], node])
    if not rest or blocking.infos[node].type in _FIXED or blocking.types[target] in _ALONE:
        return None
    if not _connected(blocking, rest) or blocking.objection(rest) is not None or blocking.objection(grown) is not None:
        return None
    before = blocking.cost(blocking.quotient.members[source]) + blocking.cost(blocking.quotient.members[target])
    return before - blocking.cost(rest) - blocking.cost(grown)


def _connected(blocking: Blocking, members: Sequence[int]) -> bool:
    inside, seen, stack = set(members), {members[0]}, [members[0]]
    while stack:
        node = stack.pop()
        for other in (*blocking.needs[node], *blocking.users[node]):
            if other in inside and other not in seen:
                seen.add(other)
                stack.append(other)
    return len(seen) == len(inside)


def _regroup(blocking: Blocking, moved: tuple[int, int, int]) -> list[int]:
    """Rebuild the blocks after a move; the names of the two that changed."""
    node, source, target = moved
    groups = dict(blocking.quotient.members)
    groups[source] = [member for member in groups[source] if member != node]
    groups[target] = sorted([*groups[target], node])
    changed = [groups[source], groups[target]]
    blocking.rebuild(list(groups.values()))
    return [group[0] for group in changed]
