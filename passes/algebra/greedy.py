"""The table applied to a graph: part by part, the rewrite that saves most first (Niu et al. 2021, section 4.2)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import onnx_ir

from ...ir.errors import VerificationError
from ...ir.graph import Graph, is_op, module_path
from ...ir.rewrite import Editor
from ..base import Outcome
from .build import CannotBuild, build
from .equation import Equation
from .equations import EQUATIONS
from .match import Match, matches
from .saving import Saving, dying, saving
from .terms import ONNX

ROUNDS = 64
"""Each round applies what pays in a part of the graph, best first; parts settle in two or three."""

_BY_OPERATOR: dict[str, list[Equation]] = defaultdict(list)
for _equation in EQUATIONS:
    _BY_OPERATOR[ONNX[_equation.root]].append(_equation)
    if _equation.root == "recip":
        _BY_OPERATOR["Div"].append(_equation)
_IN_TABLE = frozenset(ONNX.values()) | {"Pow"}
_INTEGERS = frozenset(onnx_ir.DataType[name] for name in "INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64".split())
_FLOATS = frozenset(onnx_ir.DataType[name] for name in "FLOAT16 BFLOAT16 FLOAT DOUBLE".split())


def partition(graph: Graph) -> list[list[onnx_ir.Node]]:
    """Connected parts of the main graph made of operators of the table, in graph order.

    Operators with none of the properties separate them. So do products of matrices: what holds across one is looked
    for from the node that ends it.
    """
    nodes = [node for node in graph.graph if is_op(node, *_IN_TABLE)]
    parent = {node: node for node in nodes}

    def find(node: onnx_ir.Node) -> onnx_ir.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in nodes:
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker in parent and not is_op(node, "MatMul") and not is_op(maker, "MatMul"):
                parent[find(maker)] = find(node)
    parts: dict[onnx_ir.Node, list[onnx_ir.Node]] = {}
    for node in nodes:
        parts.setdefault(find(node), []).append(node)
    return list(parts.values())


class Greedy:
    """Applies equations to one graph.

    Args:
        graph: edited in place.
        reassociate: also use equations that are not exact.
        outcome: where rewrites are counted, and what nearly was one is told.
    """

    def __init__(self, graph: Graph, reassociate: bool, outcome: Outcome) -> None:
        self.graph, self.reassociate, self.outcome = graph, reassociate, outcome
        self._edit = Editor(graph, "simplify_algebra")
        self._unused: Counter[str] = Counter()
        self._no_gain: dict[str, tuple[int, str]] = {}

    def run(self) -> None:
        """Rewrite until nothing pays any more."""
        for part in partition(self.graph):
            self._simplify(part)
        for name, times in self._unused.items():
            self.outcome.missed("", f"{name}: {times} places, not exact; reassociate=True uses it", equation=name)
        for name, (times, reason) in self._no_gain.items():
            self.outcome.missed("", f"{name}: {times} places, {reason}", equation=name)

    def _simplify(self, part: Sequence[onnx_ir.Node]) -> None:
        nodes = list(part)
        for round_ in range(ROUNDS):
            found = [c for node in nodes if node.graph is not None for c in self._candidates(node, round_ == 0)]
            found.sort(key=lambda c: -c[0].order)
            applied = False
            for _, match in found:
                # An earlier rewrite of this round may have taken away what the match stands on.
                if match.node.graph is None or (applied and not self._stands(match)):
                    continue
                if applied and self._weigh(match) is None:
                    continue
                nodes.extend(self._apply(match))
                applied = True
            if not applied:
                return

    def _candidates(self, node: onnx_ir.Node, first: bool) -> Iterator[tuple[Saving, Match]]:
        for equation in _BY_OPERATOR[node.op_type]:
            usable = self._usable(equation, node)
            if usable is None or (not usable and not first):
                continue
            for match in matches(equation, node, regroup=self._regroups(node)):
                reasons: list[str] = []
                weighed = self._weigh(match, reasons)
                if weighed is None:
                    if first and usable and reasons and len(_left(match)) > 1:
                        times, _ = self._no_gain.get(equation.name, (0, ""))
                        self._no_gain[equation.name] = (times + 1, reasons[0])
                elif usable:
                    yield weighed, match
                else:
                    self._unused[equation.name] += 1
                    break

    def _usable(self, equation: Equation, node: onnx_ir.Node) -> bool | None:
        """Whether the equation may be used at the node: False if only with ``reassociate``, None if never."""
        dtype = node.outputs[0].dtype
        if dtype in _INTEGERS:
            return True if equation.integers else None
        if dtype == onnx_ir.DataType.BOOL:
            return True if equation.exact else None
        if dtype not in _FLOATS:
            return None
        return equation.exact or self.reassociate

    def _regroups(self, node: onnx_ir.Node) -> bool:
        """Sums and products of integers, which wrap around, may be grouped at will; of floats only when asked for."""
        return self.reassociate or node.outputs[0].dtype in _INTEGERS

    def _stands(self, match: Match) -> bool:
        """Whether the same equation still holds there with the same values."""
        again = matches(match.equation, match.node, regroup=self._regroups(match.node))
        return any(m.bound == match.bound and m.rest == match.rest for m in again)

    def _weigh(self, match: Match, reasons: list[str] | None = None) -> Saving | None:
        """Build the right side, see what it would save, and take it away again; None if nothing."""
        before = set(self.graph.graph.initializers)
        edit = self._edit.at(match.node)
        edit.rule = match.equation.name
        try:
            value = build(edit, match)
            result = self._saved(match.node, value, edit.made)
            reason = "" if result is not None else "nothing would be saved, or an inner value has other readers"
        except (CannotBuild, VerificationError) as error:
            result, reason = None, str(error)
        self._undo(edit, before)
        if reasons is not None and reason:
            reasons.append(reason)
        return result

    def _saved(self, root: onnx_ir.Node, value: onnx_ir.Value, made: Sequence[onnx_ir.Node]) -> Saving | None:
        if value is root.outputs[0]:
            return None
        gone = dying(root)
        # What takes the place of the root is read from now on.
        kept = value.producer()
        if kept is not None and kept in gone:
            gone = _without(gone, kept)
        result = saving(gone, made)
        return result if result is not None and result.order > 0 else None

    def _undo(self, edit: Editor, before: set[str]) -> None:
        edit.sweep(reversed(edit.made))
        for name in [name for name in self.graph.graph.initializers if name not in before]:
            edit.drop_initializer(self.graph.graph.initializers[name])

    def _apply(self, match: Match) -> list[onnx_ir.Node]:
        before = set(self.graph.graph.initializers)
        edit = self._edit.at(match.node, _left(match))
        edit.rule = match.equation.name
        value = build(edit, match)
        where = module_path(match.node)
        edit.replace(match.node.outputs[0], value)
        made = list(edit.made)
        edit.sweep([match.node])
        self._undo(edit.at(None), before)
        self.outcome.count(match.equation.name)
        self.outcome.applied(where, match.equation.name)
        return made


def _left(match: Match) -> list[onnx_ir.Node]:
    """The nodes of the left side that go."""
    return dying(match.node)


def _without(gone: Sequence[onnx_ir.Node], kept: onnx_ir.Node) -> list[onnx_ir.Node]:
    """The nodes that still go if ``kept`` stays."""
    stays = {kept}
    stack = [kept]
    while stack:
        for value in stack.pop().inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker in gone and maker not in stays:
                stays.add(maker)
                stack.append(maker)
    return [node for node in gone if node not in stays]
