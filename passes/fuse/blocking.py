"""The state of a fusion plan in the making: blocks, whether two may become one, and what that saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ...ir.graph import Graph
from ...ir.outline import boundary, reads
from .block_types import BlockType, Verdict, fused, host_nodes
from .cost_model import GPU, CostModel, Machine
from .latency import Latencies
from .partition import Block, Plan, check, planned_nodes
from .quotient import Quotient
from .resources import estimate
from .sizes import Sizes
from .structure import describe, examine

_NOISE = 1e-12
"""Seconds that are no difference."""


class Blocking:
    """The state of planning: which nodes are one block now, what more may be, and what it costs.

    Attributes:
        infos: the nodes that are planned, described; numbers of nodes are places in this list.
        needs: by node, the nodes whose results it reads.
        users: by node, the nodes that read its results.
        quotient: the blocks and what lies between them; a block's name is its first node.
        types: by block, its mapping type.
        version: by block, how often it has changed.
        reasons: how often what kept two blocks apart.
        measured, modelled: how often profit was asked of the latencies and of the cost model.
    """

    def __init__(
        self,
        graph: Graph,
        machine: Machine = GPU,
        sizes: Mapping[str, int] | None = None,
        latencies: Latencies | None = None,
    ) -> None:
        self.graph = graph
        self.sizes = Sizes.of_graph(graph.graph, sizes)
        nodes = planned_nodes(graph)
        host = host_nodes(graph.graph)
        self.infos = [describe(node, self.sizes, node in host) for node in nodes]
        number = {node: index for index, node in enumerate(nodes)}
        makers = ([value.producer() for value in reads(node)] for node in nodes)
        before = [sorted({number[maker] for maker in needed if maker in number}) for needed in makers]
        self.needs = before
        self.users: list[list[int]] = [[] for _ in nodes]
        for index, needs in enumerate(before):
            for need in needs:
                self.users[need].append(index)
        self.quotient = Quotient(before)
        self.types = {index: info.type for index, info in enumerate(self.infos)}
        self.model = CostModel(dict(zip(nodes, self.infos, strict=True)), self.sizes, machine)
        self.latencies = latencies
        self.reasons: Counter[str] = Counter()
        self.measured = self.modelled = 0
        self._costs: dict[tuple[int, ...], float] = {}
        self.version = [0] * len(nodes)
        self._vetoed: set[tuple[int, ...]] = set()
        self._refused: set[tuple[int, int, int, int]] = set()

    def restart(self) -> None:
        """Let each node be a block of its own."""
        self.rebuild([[node] for node in range(len(self.infos))])

    def blocks(self) -> list[list[int]]:
        """The blocks as they are."""
        return list(self.quotient.members.values())

    def total(self, groups: Sequence[Sequence[int]]) -> float:
        """Seconds of these blocks together, by the cost model, to a picosecond."""
        return round(sum(self.cost(group) for group in groups), 12)

    def rebuild(self, groups: Sequence[list[int]]) -> bool:
        """Let ``groups`` be the blocks; False, and nothing changes, if they would wait for each other."""
        quotient = Quotient(self.needs, groups)
        if len(quotient.order()) != len(groups):
            return False
        known = {tuple(group): self.types[name] for name, group in self.quotient.members.items()}
        self.quotient = quotient
        self.types = {name: known.get(tuple(group)) or self.type_of(group) for name, group in quotient.members.items()}
        # Names of blocks may mean others than before.
        self._refused.clear()
        self.version = [version + 1 for version in self.version]
        return True

    def type_of(self, members: Sequence[int]) -> BlockType:
        """The type of nodes as one block."""
        kinds = [self.infos[member].type for member in members]
        for telling in (BlockType.CONTRACTION, BlockType.REDUCTION):
            if telling in kinds:
                return telling
        found = kinds[0]
        for kind in kinds[1:]:
            found = fused(found, kind)[1]
        return found

    def merge(self, a: int, b: int) -> int:
        """Make one block of two."""
        first, second = self._ordered(a, b)
        type_ = fused(self.types[first], self.types[second])[1]
        if second not in self.quotient.after[first]:
            type_ = _wider(self.types[a], self.types[b])
        block = self.quotient.merge(a, b)
        self.types[block] = type_
        self.version[block] += 1
        return block

    def _ordered(self, a: int, b: int) -> tuple[int, int]:
        return (b, a) if a in self.quotient.after[b] else (a, b)

    def gain(self, a: int, b: int) -> float | None:
        """Seconds saved by making one block of two; None where that may not be."""
        first, second = self._ordered(a, b)
        pair = (first, second, self.version[first], self.version[second])
        if pair in self._refused:
            return None
        beside = second not in self.quotient.after[first]
        if beside:
            verdict = Verdict.IF_IT_PAYS
        else:
            verdict, _ = fused(self.types[first], self.types[second])
        reason: str | None = None
        if verdict is Verdict.NEVER:
            reason = f"{self.types[first].value} before {self.types[second].value}"
        elif self.quotient.closes_cycle(first, second):
            # What is refused here may be allowed once other blocks have been merged.
            return None
        else:
            members = sorted(self.quotient.members[first] + self.quotient.members[second])
            reason = self.objection(members)
        if reason is None:
            saved = self._saved(first, second, members, verdict is Verdict.IF_IT_PAYS)
            if verdict is Verdict.ALWAYS or saved >= -_NOISE:
                return saved
            reason = f"{self.types[first].value} before {self.types[second].value} does not pay"
        self._refused.add(pair)
        self.reasons[reason] += 1
        return None

    def objection(self, members: Sequence[int]) -> str | None:
        """Why the nodes cannot be one kernel; None if they can. Cycles are not looked at."""
        if tuple(members) in self._vetoed:
            return "measured to be slower than its parts"
        block = [self.infos[member] for member in members]
        inputs, outputs = boundary([info.node for info in block])
        reason = examine(block, outputs).objection
        if reason is not None or len(block) == 1:
            return reason
        return estimate(block, len(inputs), outputs).objection

    def cost(self, members: Sequence[int]) -> float:
        """Seconds of nodes as one block, by the cost model."""
        key = tuple(members)
        found = self._costs.get(key)
        if found is None:
            block = [self.infos[member] for member in members]
            found = self._costs[key] = self.model.seconds(block, examine(block, ()).anchored)
        return found

    def _saved(self, first: int, second: int, members: Sequence[int], asks: bool) -> float:
        parts = [self.quotient.members[first], self.quotient.members[second], members]
        if asks and self.latencies is not None:
            taken = [
                self.latencies.seconds(
                    [self.infos[member].node for member in part], dict(self.graph.opset_imports), self.sizes
                )
                for part in parts
            ]
            one, two, both = taken
            if one is not None and two is not None and both is not None:
                self.measured += 1
                if one + two < both:
                    # Later steps that go by the cost model must not do it after all.
                    self._vetoed.add(tuple(members))
                return one + two - both
        if asks:
            self.modelled += 1
        return self.cost(parts[0]) + self.cost(parts[1]) - self.cost(members)

    def result(self) -> Plan:
        """The plan, checked."""
        blocks = []
        for name in self.quotient.order():
            members = self.quotient.members[name]
            infos = [self.infos[member] for member in members]
            nodes = tuple(info.node for info in infos)
            inputs, outputs = boundary(nodes)
            view = all(info.view for info in infos)
            blocks.append(Block(nodes, self.types[name], tuple(inputs), tuple(outputs), self.cost(members), view))
        check(self.graph, [block.nodes for block in blocks])
        if self.latencies is not None:
            self.latencies.save()
        return Plan(tuple(blocks), dict(self.reasons), self.measured, self.modelled)


def _wider(a: BlockType, b: BlockType) -> BlockType:
    order = list(BlockType)
    return a if order.index(a) >= order.index(b) else b
