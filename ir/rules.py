"""Rules in the pattern language of ``onnxscript.rewriter``, applied through our :class:`~.rewrite.Editor`.

A rule is three methods, as in onnxscript: ``pattern`` draws what to look for, ``check`` decides with a reason, and
``rewrite`` builds the replacement. The matcher is onnxscript's; what a rule inserts gets fresh names, inferred shapes
and provenance here.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir
from onnxscript.rewriter._basics import MatchFailureError, MatchResult, MatchStatus
from onnxscript.rewriter._pattern_ir import GraphPattern, _to_graph_pattern
from onnxscript.rewriter._rewrite_rule import Pattern

from .errors import PassError
from .graph import Graph, module_path
from .rewrite import Editor

__all__ = ["MatchFailureError", "MatchResult", "Rule", "RuleReport", "apply_rules"]


class Rule(abc.ABC):
    """One equation: ``pattern`` on the left, ``rewrite`` on the right.

    Attributes:
        name: reads like the equation, e.g. ``"x * sigmoid(x) => silu(x)"``.
        commutative: also match with the operands of Add and Mul swapped.
        shared: also match when inner values of the pattern have other uses (they are then computed for those uses).
    """

    name: str = ""
    commutative: bool = False
    shared: bool = False

    @abc.abstractmethod
    def pattern(self, op: Any, *args: Any) -> Any:
        """The left-hand side, in onnxscript's pattern language; its parameters are the variables."""

    def check(self, context: Any, **bindings: Any) -> Any:
        """Whether a structural match is one; return ``MatchResult().fail(reason)`` or raise MatchFailureError."""
        return True

    @abc.abstractmethod
    def rewrite(self, edit: Editor, **bindings: Any) -> onnx_ir.Value | Sequence[onnx_ir.Value]:
        """Build the right-hand side with ``edit`` and return what replaces the pattern's outputs."""

    @functools.cached_property
    def _patterns(self) -> list[Pattern]:
        target: GraphPattern = _to_graph_pattern(self.pattern)
        targets = target.commute() if self.commutative else [target]
        return [Pattern(t, self.check, name=self.name) for t in targets]

    @functools.cached_property
    def _roots(self) -> frozenset[str] | None:
        """Operator types that the last node of the pattern can have; None if any."""
        roots = set()
        for pattern in self._patterns:
            node = pattern._target_pattern.outputs[-1].producer()
            name = getattr(getattr(node, "op", None), "value", None) or getattr(
                getattr(node, "op", None), "_value", None
            )
            if not isinstance(name, str):
                return None
            roots.add(name)
        return frozenset(roots)


@dataclass
class RuleReport:
    """What a set of rules did: rewrites by rule name, and near misses as (node, rule, reason)."""

    rewrites: dict[str, int] = field(default_factory=dict)
    near_misses: list[tuple[str, str, str]] = field(default_factory=list)


class _NearMiss:
    """Collects why a structural match was turned down by a check."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def log(self, rule: Any, graph: Any, node: Any, match: MatchResult, status: MatchStatus) -> None:
        if status == MatchStatus.CONDITION_FAILED:
            self.reason = match.reason


def apply_rules(graph: Graph, rules: Iterable[Rule]) -> RuleReport:
    """Apply rules to every node of the main graph, first rule that matches first, until the end of the graph.

    Args:
        graph: edited in place; subgraphs are left alone.
        rules: tried in order at each node; the node is the *last* one of the pattern.

    Returns:
        Counts of rewrites and the near misses (structure matched, check said no).
    """
    report = RuleReport()
    rules = list(rules)
    several = False
    if not rules:
        return report
    names = Editor(graph, rules[0].name).names
    editors = {rule.name: Editor(graph, rule.name, names=names) for rule in rules}
    for node in list(graph.graph):
        for rule in rules:
            if node.graph is None:
                break
            if rule._roots is not None and node.op_type not in rule._roots:
                continue
            if _apply(graph, node, rule, editors[rule.name], report):
                several = several or len(rule._patterns[0]._target_pattern.outputs) > 1
                break
    if several:
        # What reads the first output of a pattern may stand before its last node, where the replacement is inserted.
        graph.graph.sort()
    return report


def _apply(graph: Graph, node: onnx_ir.Node, rule: Rule, edit: Editor, report: RuleReport) -> bool:
    for pattern in rule._patterns:
        tracer = _NearMiss()
        match = pattern.match(graph, graph.graph, node, check_nodes_are_removable=not rule.shared, tracer=tracer)
        if tracer.reason is not None:
            report.near_misses.append((module_path(node), rule.name, tracer.reason))
        if not match:
            continue
        edit.at(node, list(match.nodes))
        try:
            new = rule.rewrite(edit, **match.bindings)
        except MatchFailureError as error:
            edit.sweep(reversed(edit.made))
            report.near_misses.append((module_path(node), rule.name, error.reason))
            continue
        values = [new] if isinstance(new, onnx_ir.Value) else list(new)
        if len(values) != len(match.outputs):
            raise PassError(
                f"rule {rule.name!r} returned {len(values)} values for the {len(match.outputs)} outputs of its pattern"
            )
        for old, value in zip(match.outputs, values, strict=True):
            edit.replace(old, value)
        edit.sweep([node, *match.nodes])
        report.rewrites[rule.name] = report.rewrites.get(rule.name, 0) + 1
        return True
    return False
