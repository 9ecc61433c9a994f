"""The fusion planner: which nodes of a graph become one kernel (DNNFusion, Niu et al. 2021, listing 1).

Blocks grow from the One-to-One operators with the smallest results, to successors first, then to predecessors. Each
step asks, in this order: the table of types, whether blocks would wait for each other, whether one kernel can compute
both (``structure.py``), whether it fits (``resources.py``), and where the table says so whether it pays: by measured
latencies if there are any, else by the cost model. What stands in front of a product joins it last, since the end of
the product before is the better place. Then neighbours that may still be joined are, in the order of what they save,
nodes at borders move, and small windows are searched (``windows.py``).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx_ir

from ...ir.graph import Graph
from ...ir.outline import boundary, reads
from .block_types import BlockType, Verdict, fused, host_nodes
from .cost_model import GPU, CostModel, Machine
from .deep import deepen
from .latency import Latencies
from .partition import Block, Plan, check, planned_nodes
from .quotient import Quotient
from .resources import estimate
from .sizes import Sizes
from .structure import describe, examine
from .windows import improve

__all__ = ["Block", "Plan", "Planner", "plan"]

_SEEDS = (BlockType.ONE_TO_ONE, BlockType.BROADCAST)
_PLACEWISE = (
    BlockType.ONE_TO_ONE,
    BlockType.BROADCAST,
    BlockType.REORGANIZE,
    BlockType.SHUFFLE,
    BlockType.ONE_TO_MANY,
)

_FIXED = (BlockType.OPAQUE, BlockType.HOST, BlockType.CONTRACTION)
_ALONE = (BlockType.OPAQUE, BlockType.HOST)
STARTS: tuple[bool | None, ...] = (True, None, False)
"""Ways to begin: grow to successors first, not at all, to predecessors first; the cheapest plan is kept."""
_MANY = 500
"""Nodes of a graph that is planned in the first way only."""
_NOISE = 1e-12
"""Seconds that are no difference."""
_SLIGHT = 1e-8
"""Seconds that are not worth a move."""


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
    planner = Planner(graph, machine, sizes, latencies)
    found = []
    # Growth decides early and may take a node into the wrong block; joining alone sees no further than one step.
    for start in STARTS[: 1 if len(planner.infos) > _MANY else None]:
        planner.restart()
        if start is not None:
            planner.grow(forward=start)
        planner.join()
        planner.settle()
        planner.join()
        improve(planner)
        planner.join()
        found.append(planner.blocks())
    planner.rebuild(min(found, key=lambda groups: (planner.total(groups), len(groups))))
    layers, missed = deepen(planner) if deep else (0, [])
    return replace(planner.result(), layers=layers, missed=tuple(missed))


class Planner:
    """The state of planning: blocks that are merged step by step."""

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
        """By node, the nodes whose results it reads."""
        self._after: list[list[int]] = [[] for _ in nodes]
        for index, needs in enumerate(before):
            for need in needs:
                self._after[need].append(index)
        self.quotient = Quotient(before)
        self.types = {index: info.type for index, info in enumerate(self.infos)}
        self.model = CostModel(dict(zip(nodes, self.infos, strict=True)), self.sizes, machine)
        self.latencies = latencies
        self.reasons: Counter[str] = Counter()
        self.measured = self.modelled = 0
        self._costs: dict[tuple[int, ...], float] = {}
        self._version = [0] * len(nodes)
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

    def grow(self, *, forward: bool = True) -> None:
        """Grow blocks from seeds, to successors first or to predecessors first."""
        seeds = [index for index, type_ in self.types.items() if type_ in _SEEDS]
        seeds.sort(key=lambda index: (self.sizes.bytes(self.infos[index].node.outputs[0]), index))
        for seed in seeds:
            block = self.quotient.home[seed]
            if len(self.quotient.members[block]) == 1:
                block = self._spread(block, forward=forward)
                self._spread(block, forward=not forward)

    def _spread(self, block: int, *, forward: bool) -> int:
        """Take in neighbours on one side as long as some may be; the name of the block afterwards."""
        found = True
        while found:
            found = False
            near = self.quotient.after[block] if forward else self.quotient.before[block]
            for other in sorted(near):
                if other not in self.quotient.members or self.quotient.home[other] != other:
                    continue
                if forward and self.types[other] is BlockType.CONTRACTION:
                    continue
                if self.gain(block, other) is not None:
                    block = self.merge(block, other)
                    found = True
                    break
        return block

    def join(self) -> None:
        """Join neighbours, those that save most first."""
        heap: list[tuple[float, int, int, int, int]] = []

        def push(block: int, others: Iterable[int]) -> None:
            for other in others:
                gain = self.gain(block, other)
                if gain is not None:
                    a, b = min(block, other), max(block, other)
                    heapq.heappush(heap, (-gain, a, b, self._version[a], self._version[b]))

        for block in list(self.quotient.members):
            push(block, self.quotient.after[block])
            push(block, (other for other in self._siblings(block) if other > block))
        while heap:
            _, a, b, version_a, version_b = heapq.heappop(heap)
            members = self.quotient.members
            if a not in members or b not in members:
                continue
            if (self._version[a], self._version[b]) != (version_a, version_b) or self.gain(a, b) is None:
                continue
            block = self.merge(a, b)
            push(block, self.quotient.after[block] | self.quotient.before[block])
            push(block, self._siblings(block))

    def _siblings(self, block: int) -> list[int]:
        """Blocks of placewise work on what ``block`` reads, too."""
        if self.types[block] not in _PLACEWISE:
            return []
        found: set[int] = set()
        for maker in self.quotient.before[block]:
            found |= self.quotient.after[maker]
        near = found - {block} - self.quotient.after[block] - self.quotient.before[block]
        return sorted(other for other in near if self.types[other] in _PLACEWISE)

    def settle(self) -> None:
        """Move single nodes over the border between two blocks where that saves.

        A node also goes back to the block before where it costs about the same there and that block holds a product.
        """
        self.rebuild(self.blocks())  # names as after each move
        pending = [(a, b) for a in self.quotient.members for b in self.quotient.after[a]]
        left = 4 * len(self.infos)
        while pending and left:
            left -= 1
            a, b = pending.pop()
            if a not in self.quotient.members or b not in self.quotient.after[a]:
                continue
            moved = self._back(a, b) or self._forth(a, b)
            if moved is None:
                continue
            changed = self._regroup(moved)
            for block in changed:
                pending += [(block, other) for other in self.quotient.after[block]]
                pending += [(other, block) for other in self.quotient.before[block]]

    def _back(self, a: int, b: int) -> tuple[int, int, int] | None:
        """A node of ``b`` that is better off at the end of ``a``: (node, from, to)."""
        own = set(self.quotient.members[b])
        for node in self.quotient.members[b]:
            needs = self.needs[node]
            homes = {self.quotient.home[need] for need in needs}
            if a not in homes or any(need in own for need in needs):
                continue
            if any(self.quotient.reaches(a, home) for home in homes - {a, b}):
                continue
            saved = self._moving(node, b, a)
            # What follows a product is computed once, what precedes one or a pool may be computed again.
            least = -_SLIGHT if self.types[a] is BlockType.CONTRACTION else _SLIGHT
            if saved is not None and saved > least:
                return node, b, a
        return None

    def _forth(self, a: int, b: int) -> tuple[int, int, int] | None:
        """A node of ``a`` that is better off at the beginning of ``b``: (node, from, to)."""
        for node in reversed(self.quotient.members[a]):
            if any(self.quotient.home[user] != b for user in self._after[node]) or not self._after[node]:
                continue
            saved = self._moving(node, a, b)
            if saved is not None and saved > _SLIGHT:
                return node, a, b
        return None

    def _moving(self, node: int, source: int, target: int) -> float | None:
        """Seconds saved by moving a node from one block to another; None where that may not be."""
        rest = [member for member in self.quotient.members[source] if member != node]
        grown = sorted([*self.quotient.members[target], node])
        if not rest or self.infos[node].type in _FIXED or self.types[target] in _ALONE:
            return None
        if not self._connected(rest) or self.objection(rest) is not None or self.objection(grown) is not None:
            return None
        before = self.cost(self.quotient.members[source]) + self.cost(self.quotient.members[target])
        return before - self.cost(rest) - self.cost(grown)

    def _connected(self, members: Sequence[int]) -> bool:
        inside, seen, stack = set(members), {members[0]}, [members[0]]
        while stack:
            node = stack.pop()
            for other in (*self.needs[node], *self._after[node]):
                if other in inside and other not in seen:
                    seen.add(other)
                    stack.append(other)
        return len(seen) == len(inside)

    def _regroup(self, moved: tuple[int, int, int]) -> list[int]:
        """Rebuild the blocks after a move; the names of the two that changed."""
        node, source, target = moved
        groups = dict(self.quotient.members)
        groups[source] = [member for member in groups[source] if member != node]
        groups[target] = sorted([*groups[target], node])
        changed = [groups[source], groups[target]]
        self.rebuild(list(groups.values()))
        return [group[0] for group in changed]

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
        self._version = [version + 1 for version in self._version]
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
        self._version[block] += 1
        return block

    def _ordered(self, a: int, b: int) -> tuple[int, int]:
        return (b, a) if a in self.quotient.after[b] else (a, b)

    def gain(self, a: int, b: int) -> float | None:
        """Seconds saved by making one block of two; None where that may not be."""
        first, second = self._ordered(a, b)
        pair = (first, second, self._version[first], self._version[second])
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


def block_of(blocks: Sequence[Block]) -> dict[onnx_ir.Node, Block]:
    """By node, its block."""
    return {node: block for block in blocks for node in block.nodes}
