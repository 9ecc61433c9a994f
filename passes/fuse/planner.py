"""The fusion planner: which nodes of a graph become one kernel (DNNFusion, Niu et al. 2021, listing 1).

Blocks grow from the One-to-One operators with the smallest results, to successors first, then to predecessors. Each
step asks, in this order: the table of types, whether blocks would wait for each other, whether one kernel can compute
both (``structure.py``), whether it fits (``resources.py``), and where the table says so whether it pays: by measured
latencies if there are any, else by the cost model. What stands in front of a product joins it last, since the end of
the product before is the better place. Then neighbours that may still be joined are, in the order of what they save,
nodes at borders move, and small windows are searched (``windows.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...ir.graph import Graph
from .blocking import Blocking
from .cost_model import GPU, Machine
from .deep import deepen
from .growing import grow, join
from .latency import Latencies
from .partition import Block, Plan
from .settling import settle
from .windows import improve

__all__ = ["Block", "Plan", "plan"]

STARTS: tuple[bool | None, ...] = (True, None, False)
"""Ways to begin: grow to successors first, not at all, to predecessors first; the cheapest plan is kept."""
_MANY = 500
"""Nodes of a graph that is planned in the first way only."""


def plan(
    graph: Graph,
    *,
    machine: Machine = GPU,
    sizes: Mapping[str, int] | None = None,
    latencies: Latencies | None = None,
    deep: bool = False,
) -> Plan:
    """The partition of the main graph's nodes into blocks.

    Args:
        graph: shapes should be inferred; a node without shapes runs alone.
        machine: figures of the cost model.
        sizes: sizes of named dimensions to plan for; others are taken to be typical.
        latencies: measured ones, preferred to the cost model where the table asks for profit.
        deep: whether layers of a transformer become four blocks each.

    Raises:
        PassError: the planner made a plan that breaks its own rules.
    """
    blocking = Blocking(graph, machine, sizes, latencies)
    found = []
    # Growth decides early and may take a node into the wrong block; joining alone sees no further than one step.
    for start in STARTS[: 1 if len(blocking.infos) > _MANY else None]:
        blocking.restart()
        if start is not None:
            grow(blocking, forward=start)
        join(blocking)
        settle(blocking)
        join(blocking)
        improve(blocking)
        join(blocking)
        found.append(blocking.blocks())
    blocking.rebuild(min(found, key=lambda groups: (blocking.total(groups), len(groups))))
    layers, missed = deepen(blocking) if deep else (0, [])
    return replace(blocking.result(), layers=layers, missed=tuple(missed))
