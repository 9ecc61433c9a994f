"""What every simplification of Canonicalize works with: the graph, what is known of its values, and what was done."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx_ir

from ...ir.graph import RULE, Graph, module_path, rules_of
from ...ir.rewrite import Editor
from ...ir.symbolic import Dim, same, symbols_of
from ...ir.values import Evaluator, SymbolicValue
from ..base import Outcome

NodeRule = Callable[["Work", onnx_ir.Node], bool]
"""Tries to simplify one node; returns whether it did. Afterwards the node may be gone."""


class Work:
    """A graph being simplified.

    Attributes:
        graph: edited in place; nodes of its subgraphs are never touched.
        outcome: counts of rewrites and remarks.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.outcome = graph, Outcome()
        self._names: set[str] | None = None
        self._evaluator = Evaluator()

    def edit(self, rule: str, node: onnx_ir.Node) -> Editor:
        """An editor that inserts before ``node`` in the name of ``rule``."""
        editor = Editor(self.graph, rule, names=self._names)
        self._names = editor.names
        return editor.at(node)

    def symbolic(self, value: onnx_ir.Value | None) -> SymbolicValue | None:
        """What is known of the elements of a small tensor of sizes."""
        return self._evaluator.of(value)

    @functools.cached_property
    def input_symbols(self) -> frozenset[str]:
        """Names of the dimensions of the graph's inputs."""
        return frozenset(
            s for value in self.graph.graph.inputs for dim in dims_of(value) or () for s in symbols_of(dim)
        )

    def forget(self) -> None:
        """Look at symbolic values afresh: shapes became known."""
        self._evaluator = Evaluator()

    def count(self, rule: str, node: onnx_ir.Node | None = None) -> None:
        """Record a rewrite by ``rule``; one that changed ``node`` in place is kept in its provenance."""
        self.outcome.count(rule)
        if node is not None:
            past = rules_of(node)
            if rule not in past:
                node.metadata_props[RULE] = ";".join([*past, rule])

    def missed(self, node: onnx_ir.Node, reason: str) -> None:
        """Record a near miss, once however many rounds meet it."""
        where = module_path(node)
        if not any(remark.node == where and remark.reason == reason for remark in self.outcome.remarks):
            self.outcome.missed(where, reason)

    def forward(self, rule: str, node: onnx_ir.Node, value: onnx_ir.Value | None) -> bool:
        """Let everything that reads the only output of ``node`` read ``value``, which is equal; the node goes."""
        old = node.outputs[0]
        if value is None or value is old:
            return False
        if old.is_graph_output():
            bound = value.is_graph_output() or value.is_graph_input() or value.is_initializer()
            if bound or value.graph is not old.graph:
                # An output needs a node that makes it: Identity is as good as it gets.
                return False
            dtype, shape = old.type, old.shape
            self.edit(rule, node).replace(old, value)
            value.type, value.shape = dtype or value.type, shape or value.shape
        else:
            old.replace_all_uses_with(value)
        self.edit(rule, node).sweep([node])
        self.count(rule)
        return True

    def replace(self, rule: str, node: onnx_ir.Node, build: Callable[[Editor], onnx_ir.Value]) -> bool:
        """Replace the only output of ``node`` by what ``build`` inserts before it."""
        editor = self.edit(rule, node)
        old = node.outputs[0]
        new = build(editor)
        new.type, new.shape = old.type or new.type, old.shape if old.is_graph_output() else old.shape or new.shape
        editor.replace(old, new)
        editor.sweep([node])
        self.count(rule)
        return True


def same_dims(a: onnx_ir.Value | None, b: onnx_ir.Value | None) -> bool:
    """Whether two values are known to have the same shape."""
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def dims_of(value: onnx_ir.Value | None) -> list[Dim] | None:
    """The dimensions of ``value``, or None if its rank is unknown."""
    return None if value is None or value.shape is None else list(value.shape)


def used(value: onnx_ir.Value) -> bool:
    """Whether anything reads ``value``."""
    return bool(value.uses()) or value.is_graph_output()
