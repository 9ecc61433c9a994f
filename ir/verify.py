"""The verifier: whether a graph keeps the rules that every pass relies on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir

from . import dialect
from .errors import VerificationError
from .graph import RULE, Graph, module_path
from .infer import conflict, inferred
from .values import Evaluator

SHOWN = 5
"""How many broken rules a message lists."""

_Problem = tuple[str, str]
"""(what, where)"""


def verify(
    graph: Graph,
    nodes: Iterable[onnx_ir.Node] | None = None,
    *,
    lowered: bool = False,
    types: bool = True,
) -> None:
    """Check that a graph is well formed.

    Structure (order, single definition, names, initializers, graph inputs and outputs, opset imports, dialect) is
    checked for the whole graph, subgraphs and functions included. Then type and shape of each output are inferred
    anew and compared with what is recorded: a contradiction is an error, something unknown is not.

    Args:
        graph: the model.
        nodes: re-infer the outputs of these nodes only (those a pass touched, and for its consumers' sake the nodes
            that read them); None: of all nodes.
        lowered: whether the graph is legalized for a runtime, so that runtime-specific operators belong into it.
        types: whether to compare types and shapes at all.

    Raises:
        VerificationError: what is wrong and where; the first few breaches are listed.
    """
    problems = list(_structure(graph, lowered))
    if not problems and types:
        problems = list(_types(graph, nodes))
    if problems:
        what, where = problems[0]
        more = [f"{w} (at {at})" for w, at in problems[1:SHOWN]]
        if len(problems) > SHOWN:
            more.append(f"and {len(problems) - SHOWN} more")
        raise VerificationError(
            "; ".join([what, *more]),
            where=where,
            fix="this is a defect of the pass that ran last, or the imported file is not valid ONNX",
        )


def touched(nodes: Iterable[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """``nodes`` that are still in a graph, and the nodes that read their outputs."""
    found: dict[onnx_ir.Node, None] = {}
    for node in nodes:
        if node.graph is None:
            continue
        found[node] = None
        for value in node.outputs:
            found.update((user, None) for user, _ in value.uses() if user.graph is not None)
    return list(found)


def _at(node: onnx_ir.Node) -> str:
    path = module_path(node)
    text = f"{path}, node {node.name}" if node.name and node.name != path else path
    rule = node.metadata_props.get(RULE)
    return f"{text} ({node.op_type}, made by {rule})" if rule else f"{text} ({node.op_type})"


def _structure(graph: Graph, lowered: bool) -> Iterator[_Problem]:
    if not graph.opset_imports:
        yield "the graph imports no opset", graph.graph.name or "main graph"
    yield from _Scope(graph, lowered).check(graph.graph, set())
    for function in graph.functions.values():
        yield from _Scope(graph, lowered).check(function, set())


class _Scope:
    """Walks one graph or function with its subgraphs.

    A name is defined once in its graph. A subgraph may use a name of the outer graph again, as long as nothing in it
    means the outer one: in the file there are only names.
    """

    def __init__(self, graph: Graph, lowered: bool) -> None:
        self._graph, self._lowered = graph, lowered
        self._names: list[dict[str, onnx_ir.Value]] = []

    def check(self, scope: onnx_ir.Graph | onnx_ir.Function, outer: set[onnx_ir.Value]) -> Iterator[_Problem]:
        self._names.append({})
        try:
            yield from self._check(scope, outer)
        finally:
            self._names.pop()

    def _check(self, scope: onnx_ir.Graph | onnx_ir.Function, outer: set[onnx_ir.Value]) -> Iterator[_Problem]:
        here = scope.name or "graph"
        visible = set(outer)
        initializers = scope.initializers if isinstance(scope, onnx_ir.Graph) else {}
        for value in scope.inputs:
            yield from self._define(value, here)
            if value in visible:
                yield f"graph input {value.name!r} is listed twice", here
            visible.add(value)
        for name, value in initializers.items():
            if value not in visible:
                yield from self._define(value, here)
            visible.add(value)
            yield from self._initializer(name, value, here)
        for node in scope:
            yield from self._node(node, scope, visible)
        listed: set[onnx_ir.Value] = set()
        for value in scope.outputs:
            if value not in visible:
                yield f"graph output {value.name!r} is made by no node of the graph", here
            elif not value.name:
                yield "a graph output has no name", here
            if value in listed and isinstance(scope, onnx_ir.Graph):
                yield f"graph output {value.name!r} is listed twice", here
            listed.add(value)

    def _define(self, value: onnx_ir.Value, where: str) -> Iterator[_Problem]:
        name = value.name
        if not name:
            return
        first = self._names[-1].setdefault(name, value)
        if first is not value:
            yield f"the name {name!r} is defined twice", where

    def _initializer(self, name: str, value: onnx_ir.Value, here: str) -> Iterator[_Problem]:
        if value.name != name:
            yield f"initializer {value.name!r} is registered as {name!r}", here
        tensor = value.const_value
        if tensor is None:
            yield f"initializer {name!r} has no data", here
            return
        if value.dtype is not None and value.dtype != tensor.dtype:
            yield f"initializer {name!r} is declared {value.dtype.name}, its data is {tensor.dtype.name}", here
        shape = value.shape
        if shape is not None and list(shape) != list(tensor.shape) and all(isinstance(d, int) for d in shape):
            yield f"initializer {name!r} is declared {list(shape)}, its data is {list(tensor.shape)}", here

    def _node(
        self, node: onnx_ir.Node, scope: onnx_ir.Graph | onnx_ir.Function, visible: set[onnx_ir.Value]
    ) -> Iterator[_Problem]:
        for value in node.inputs:
            if value is None:
                continue
            if value not in visible:
                yield self._undefined(node, value), _at(node)
            elif len(self._names) > 1 and self._means(value.name) not in (value, None):
                yield f"input {value.name!r} is hidden by another value of that name", _at(node)
        reason = dialect.complaint(self._graph, node, self._lowered)
        if reason is not None:
            yield reason, _at(node)
        for attr in node.attributes.values():
            if attr.type == onnx_ir.AttributeType.GRAPH:
                yield from self.check(attr.as_graph(), visible)
            elif attr.type == onnx_ir.AttributeType.GRAPHS:
                for body in attr.as_graphs():
                    yield from self.check(body, visible)
        for value in node.outputs:
            yield from self._define(value, _at(node))
            visible.add(value)

    def _means(self, name: str | None) -> onnx_ir.Value | None:
        for names in reversed(self._names):
            if name in names:
                return names[name or ""]
        return None

    def _undefined(self, node: onnx_ir.Node, value: onnx_ir.Value) -> str:
        maker = value.producer()
        if maker is None:
            return f"input {value.name!r} is neither a graph input nor an initializer nor made by a node"
        if maker.graph is None:
            return f"input {value.name!r} is made by a node that was removed ({maker.op_type} {maker.name!r})"
        if maker.graph is node.graph:
            return f"input {value.name!r} is made by a node that comes later ({maker.op_type} {maker.name!r})"
        return f"input {value.name!r} belongs to a graph that is not visible here"


def _types(graph: Graph, nodes: Iterable[onnx_ir.Node] | None) -> Iterator[_Problem]:
    evaluator = Evaluator()
    for node in graph.graph.all_nodes() if nodes is None else nodes:
        if node.graph is None:
            continue
        try:
            results = inferred(node, graph.opset_imports.get(node.domain, 1), evaluator, graph)
        except VerificationError as error:
            yield f"{error.what} ({error.fix})", _at(node)
            continue
        for value, (dtype, dims) in zip(node.outputs, results, strict=False):
            reason = conflict(value, dtype, dims)
            if reason is not None:
                yield f"output {value.name!r} of {node.op_type}: {reason}", _at(node)
