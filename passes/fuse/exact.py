"""The best plan of a small graph, by search over all partitions: what the greedy planner is compared with."""

from __future__ import annotations

from ...ir.errors import UnsupportedError
from .blocking import Blocking
from .windows import search

LARGEST = 14
"""Nodes of the largest graph that is searched."""


def best_partition(blocking: Blocking) -> tuple[float, list[list[int]]]:
    """The legal partition of least cost, as (seconds, blocks of node numbers in an order in which they can run).

    Args:
        blocking: of a graph of at most ``LARGEST`` nodes; its own blocks are not looked at.

    Raises:
        UnsupportedError: the graph is too large.
    """
    count = len(blocking.needs)
    if count > LARGEST:
        raise UnsupportedError(f"the exact planner takes {LARGEST} nodes at most, not {count}")
    return search(blocking, range(count))
