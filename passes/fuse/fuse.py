"""``Fuse``: blocks of operators that run as one kernel become functions of the graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import onnx_ir

from ...ir.errors import OptionError, nearest
from ...ir.graph import Graph, module_path
from ...ir.outline import Outliner
from ..base import Context, Outcome, Pass, Stage
from .block_types import BlockType
from .cost_model import MACHINES
from .latency import Latencies
from .partition import Block, Plan
from .planner import plan

BLOCK = "burnish.block"
"""Metadata of a call: the mapping type of its body."""
ROLE = "burnish.role"
"""Metadata of the nodes in a body with a product: ``before`` it, the ``product`` itself, or ``after`` it."""
RULE = "fuse"
Style = Literal["blocks", "deep"]
_SHOWN = 12
"""Reasons why neighbours stayed apart that are listed."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Find the blocks of operators that one kernel can compute, and make each a function (Niu et al. 2021, DNNFusion).

    A file with these functions computes what it did before; a code generator makes a kernel of each. Whether a block
    pays is read from measured latencies where there are any, else from a model of the machine.

    Attributes:
        style: ``blocks``, or ``deep`` for small batches: four blocks for each layer of a transformer, products included
            (Aminabadi et al. 2022, Deep-Fusion), and ``blocks`` elsewhere.
        machine: whose figures the cost model takes: ``auto`` (that of the target), ``gpu`` or ``cpu``.
        latencies: file of measured latencies, read and, where blocks can be measured, added to; none if empty.
    """

    stage = Stage.FUSE

    style: Style = "blocks"
    machine: str = "auto"
    latencies: str = ""

    def __post_init__(self) -> None:
        if self.style not in get_args(Style):
            raise OptionError(f"style={self.style!r} is no style of fusion", fix=nearest(self.style, get_args(Style)))
        if self.machine != "auto" and self.machine not in MACHINES:
            known = ("auto", *MACHINES)
            raise OptionError(f"machine={self.machine!r} is not known", fix=nearest(self.machine, known))

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Plan, and make a function of each block of several nodes."""
        name = self.machine if self.machine != "auto" else ("gpu" if context.target == "triton" else "cpu")
        machine = MACHINES[name]
        table = None
        if self.latencies:
            table = Latencies(Path(self.latencies), context.latency)
        found = plan(graph, machine=machine, latencies=table, deep=self.style == "deep")
        outcome = Outcome()
        outliner = Outliner(graph, RULE)
        for block in found.blocks:
            if worth_a_function(block):
                metadata = {BLOCK: block.type.value}
                _mark(block)
                call = outliner.outline(block.nodes, function_name(block), metadata)
                outcome.count(RULE)
                outcome.applied(module_path(call), f"{len(block.nodes)} operators become {call.op_type}")
        self._tell(found, table, machine.name, outcome)
        return outcome

    def _tell(self, found: Plan, table: Latencies | None, machine: str, outcome: Outcome) -> None:
        nodes = sum(len(block.nodes) for block in found.blocks)
        if self.style == "deep":
            for node, why in found.missed:
                outcome.missed(module_path(node), f"no layer of four blocks: {why}")
            if found.layers:
                outcome.applied("", f"{found.layers} layers became four blocks each", layers=found.layers)
            elif not found.missed:
                outcome.skipped("", "deep fusion looks for attention, and there is none")
        if not outcome.changed:
            outcome.skipped("", f"no two of {nodes} operators can be one kernel")
        else:
            kinds = Counter(block.type.value for block in found.blocks)
            outcome.applied("", f"{nodes} operators in {len(found.blocks)} blocks", **dict(kinds))
        for reason, times in Counter(found.reasons).most_common(_SHOWN):
            outcome.skipped("", f"neighbours stay apart: {reason}", times=times)
        if found.modelled:
            why = "no latencies were given" if table is None else "their latencies are not in the table"
            outcome.skipped("", f"{found.modelled} decisions by the figures of {machine}: {why}")
        if found.measured:
            outcome.applied("", f"{found.measured} decisions by measured latencies")


def worth_a_function(block: Block) -> bool:
    """Whether a block becomes a function: several nodes that compute something on the device, and somebody reads it."""
    alone = (BlockType.HOST, BlockType.OPAQUE)
    return len(block.nodes) > 1 and not block.view and block.type not in alone and bool(block.outputs)


def function_name(block: Block) -> str:
    """A name that says what is in the block: its type and its most telling operators."""
    operators = Counter(node.op_type for node in block.nodes)
    views = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
    named = [node.op_type for node in block.nodes if node.op_type not in views] or list(operators)
    shown = list(dict.fromkeys(named))[:4]
    return f"{block.type.value.replace('-', '_')}_{'_'.join(shown)}"


def _mark(block: Block) -> None:
    """Say of the nodes of a block with a product where they stand."""
    if block.type is not BlockType.CONTRACTION:
        return
    makers: set[onnx_ir.Node] = set()
    product = None
    for node in block.nodes:
        if _is_product(node):
            product = node
            node.metadata_props[ROLE] = "product"
            makers.add(node)
        elif product is not None and any(v is not None and v.producer() in makers for v in node.inputs):
            node.metadata_props[ROLE] = "after"
            makers.add(node)
        else:
            node.metadata_props[ROLE] = "before"


def _is_product(node: onnx_ir.Node) -> bool:
    from ...ir.traits import Kind, kind

    return kind(node) is Kind.CONTRACTION
