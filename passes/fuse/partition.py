"""Plans: partitions of a graph's nodes into blocks, and the check that a partition is one that can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import networkx
import onnx_ir

from ...ir.errors import PassError
from ...ir.graph import Graph, is_op, module_path
from ...ir.outline import reads
from .block_types import BlockType


@dataclass(frozen=True)
class Block:
    """Nodes that run as one kernel.

    Attributes:
        nodes: in topological order.
        type: what the whole does to its iteration space.
        inputs: what they read of others, constants included.
        outputs: what others, or the caller, read of them.
        seconds: what it costs, by the cost model.
        view: whether it only gives tensors other sizes, which needs no kernel.
    """

    nodes: tuple[onnx_ir.Node, ...]
    type: BlockType
    inputs: tuple[onnx_ir.Value, ...]
    outputs: tuple[onnx_ir.Value, ...]
    seconds: float = 0.0
    view: bool = False


@dataclass(frozen=True)
class Plan:
    """A partition of the main graph's nodes (``Constant`` excepted) into blocks.

    Attributes:
        blocks: in an order in which they can run.
        reasons: how often two neighbours stayed apart, by reason.
        measured: decisions by latencies.
        modelled: decisions by the cost model.
        layers: layers of a transformer that became four blocks.
        missed: where a layer nearly did, and why not.
    """

    blocks: tuple[Block, ...]
    reasons: Mapping[str, int] = field(default_factory=dict)
    measured: int = 0
    modelled: int = 0
    layers: int = 0
    missed: tuple[tuple[onnx_ir.Node, str], ...] = ()

    @property
    def seconds(self) -> float:
        """What the blocks cost together, by the cost model."""
        return sum(block.seconds for block in self.blocks)


def planned_nodes(graph: Graph) -> list[onnx_ir.Node]:
    """The nodes that a plan is about: those of the main graph that are no ``Constant``."""
    return [node for node in graph.graph if not is_op(node, "Constant")]


def check(graph: Graph, blocks: Sequence[Sequence[onnx_ir.Node]]) -> None:
    """Check that ``blocks`` are a partition of the graph's nodes and that they can run one after another.

    Raises:
        PassError: a node is in no block or in several, or blocks wait for each other.
    """
    counts = Counter(node for block in blocks for node in block)
    for node in planned_nodes(graph):
        if counts.pop(node, 0) != 1:
            raise PassError("the fusion plan has a node in no block or in several", where=module_path(node))
    if counts:
        raise PassError("the fusion plan has a node that is not in the graph", where=module_path(next(iter(counts))))
    home = {node: index for index, block in enumerate(blocks) for node in block}
    quotient = networkx.DiGraph()
    quotient.add_nodes_from(range(len(blocks)))
    for node, index in home.items():
        for value in reads(node):
            other = home.get(value.producer())  # type: ignore[arg-type]
            if other is not None and other != index:
                quotient.add_edge(other, index)
    # Without a cycle among blocks each of them is convex, too: a path that left one and came back would be one.
    if not networkx.is_directed_acyclic_graph(quotient):
        cycle = networkx.find_cycle(quotient)
        raise PassError(
            f"{len(cycle)} blocks of the fusion plan wait for each other",
            where=module_path(blocks[cycle[0][0]][0]),
        )
