"""Outlining: nodes of a graph become the body of an ONNX function that one node calls, and back.

A file with such a call still runs anywhere, because the body is made of the operators that were there before. Calls
with the same body share one function. Small constants that say how an operator works (axes, shapes, single numbers)
move into the body, where a code generator sees them; other constants become inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir

from .dialect import BURNISH
from .errors import PassError
from .graph import Graph, all_nodes, is_op, module_path, tensor_of
from .rewrite import Editor, provenance

EMBEDDED = 64
"""Constants of at most this many integers or booleans move into the body; of other types, single numbers."""

RULE = "outline"
_Key: TypeAlias = "tuple[Any, ...]"
_DISCRETE = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL)


def reads(node: onnx_ir.Node) -> Iterable[onnx_ir.Value]:
    """Every value that a node needs: its inputs, and what its subgraphs read (values of their own included)."""
    yield from (value for value in node.inputs if value is not None)
    for attr in node.attributes.values():
        if attr.type == onnx_ir.AttributeType.GRAPH:
            bodies = [attr.as_graph()]
        elif attr.type == onnx_ir.AttributeType.GRAPHS:
            bodies = list(attr.as_graphs())
        else:
            continue
        for body in bodies:
            for inner in onnx_ir.traversal.RecursiveGraphIterator(body):
                yield from (value for value in inner.inputs if value is not None)
            yield from body.outputs


def boundary(nodes: Sequence[onnx_ir.Node]) -> tuple[list[onnx_ir.Value], list[onnx_ir.Value]]:
    """What ``nodes`` read of others and what others read of them, each once, in the order of first mention.

    Args:
        nodes: in topological order.

    Returns:
        (inputs, outputs); constants are inputs, too.
    """
    members = set(nodes)
    inputs: dict[onnx_ir.Value, None] = {}
    outputs: list[onnx_ir.Value] = []
    for node in nodes:
        for value in reads(node):
            maker = value.producer()
            if maker is None or maker not in members:
                inputs[value] = None
        for value in node.outputs:
            if value.is_graph_output() or any(user not in members for user, _ in value.uses()):
                outputs.append(value)
    return list(inputs), outputs


def embedded(value: onnx_ir.Value) -> onnx_ir.TensorProtocol | None:
    """The constant behind ``value`` if it belongs into the body of a function that reads it, else None."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype == onnx_ir.DataType.STRING:
        return None
    limit = EMBEDDED if tensor.dtype in _DISCRETE else 1
    return tensor if tensor.size <= limit else None


class Outliner:
    """Outlines one set of nodes after another of the same graph.

    Args:
        graph: the model.
        rule: name of the rewrite, kept as provenance of each call.
    """

    def __init__(self, graph: Graph, rule: str = RULE) -> None:
        self.graph = graph
        self._edit = Editor(graph, rule)
        self._functions: dict[_Key, onnx_ir.Function] = {}
        for function in graph.functions.values():
            if function.domain == BURNISH:
                self._functions.setdefault(_key(list(function), function.inputs, function.outputs), function)

    def outline(
        self, nodes: Iterable[onnx_ir.Node], name: str, metadata: Mapping[str, str] | None = None
    ) -> onnx_ir.Node:
        """Replace ``nodes`` by one call of a function with them as its body; see :func:`outline`."""
        members = set(nodes)
        scope = self.graph.graph
        order = [node for node in scope if node in members]
        if not order or len(order) != len(members):
            raise PassError("only nodes of the main graph can become a function", where=name)
        late = self._dependents(order, members, name)
        inputs, outputs = boundary(order)
        free = [value for value in inputs if embedded(value) is None]
        function = self._function(order, inputs, free, outputs, name)
        call = onnx_ir.Node(
            BURNISH,
            function.name,
            free,
            num_outputs=len(outputs),
            name=self._edit.fresh(function.name),
            metadata_props={**provenance(order, self._edit.rule), **(metadata or {})},
        )
        scope.insert_after(order[-1], call)
        scope.insert_after(call, late)
        for old, new in zip(outputs, call.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            new.metadata_props.update(old.metadata_props)
            _take_over(scope, members, old, new)
        for node in reversed(order):
            scope.remove(node, safe=True)
        for value in inputs:
            if not value.uses() and not value.is_graph_output():
                maker = value.producer()
                if maker is not None:
                    self._edit.sweep([maker])
                self._edit.drop_initializer(value)
        return call

    def _dependents(self, order: Sequence[onnx_ir.Node], members: set[onnx_ir.Node], name: str) -> list[onnx_ir.Node]:
        """Other nodes between the first and the last member that need what members compute, in order."""
        late: dict[onnx_ir.Node, None] = {}
        left = len(order)
        made: set[onnx_ir.Value] = set()
        begun = False
        for node in self.graph.graph:
            if node in members:
                begun = True
                left -= 1
                if any(value.producer() in late for value in reads(node)):
                    raise PassError(
                        f"nodes cannot become the function {name}: what they compute comes back to them through others",
                        where=module_path(node),
                        fix="every path between two of the nodes must stay among them",
                    )
                made.update(node.outputs)
                if not left:
                    break
            elif begun and any(value in made for value in reads(node)):
                late[node] = None
                made.update(node.outputs)
        return list(late)

    def _function(
        self,
        order: Sequence[onnx_ir.Node],
        inputs: Sequence[onnx_ir.Value],
        free: Sequence[onnx_ir.Value],
        outputs: Sequence[onnx_ir.Value],
        name: str,
    ) -> onnx_ir.Function:
        body = _body(order, inputs, free, outputs, self.graph.opset_imports)
        key = _key(list(body), body.inputs, body.outputs)
        found = self._functions.get(key)
        if found is not None:
            return found
        taken = {function.name for function in self.graph.functions.values()}
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}_{count}"
        function = onnx_ir.Function(BURNISH, unique, graph=body, attributes=[])
        self.graph.functions[function.identifier()] = function
        self.graph.opset_imports.setdefault(BURNISH, 1)
        self._functions[key] = function
        return function


def outline(
    graph: Graph, nodes: Iterable[onnx_ir.Node], name: str, metadata: Mapping[str, str] | None = None
) -> onnx_ir.Node:
    """Replace ``nodes`` by one call of a function of domain ``burnish`` that has them as its body.

    The values that others read keep name, type and shape; the nodes keep their provenance inside the body, and the call
    gets what they have in common. A function with the same body is used again.

    Args:
        graph: the model, changed in place.
        nodes: nodes of the main graph, in any order; no path between two of them may leave the set.
        name: of the function; a number is added where it is taken by another body.
        metadata: further ``metadata_props`` of the call.

    Returns:
        The call.

    Raises:
        PassError: a node is not in the main graph, or a path between two of them leaves the set.
    """
    return Outliner(graph).outline(nodes, name, metadata)


def inline(graph: Graph, node: onnx_ir.Node) -> list[onnx_ir.Node]:
    """Replace a call by a copy of the function's body, the inverse of :func:`outline`.

    Constants of the body become initializers again; the function is removed when its last call is gone.

    Args:
        graph: the model, changed in place.
        node: a call of one of its functions; the function has no attributes.

    Returns:
        The nodes that replace it, in order.

    Raises:
        PassError: ``node`` is no call of a function of the model, or the function has attributes.
    """
    function = graph.functions.get(node.op_identifier())
    owner = node.graph
    if function is None or owner is None or not isinstance(owner, onnx_ir.Graph):
        raise PassError("only a call of a function of the model can be inlined", where=module_path(node))
    if function.attributes or node.attributes:
        raise PassError("a function with attributes cannot be inlined here", where=module_path(node))
    edit = Editor(graph, RULE).at(node)
    body = function.clone()
    given = dict(zip(body.inputs, [*node.inputs, *[None] * len(body.inputs)], strict=False))
    steps = list(body)
    results = list(body.outputs)
    kept: list[onnx_ir.Node] = []
    for step in steps:
        tensor = tensor_of(step.outputs[0]) if is_op(step, "Constant") else None
        if tensor is not None and step.outputs[0] not in results:
            given[step.outputs[0]] = edit.initializer(tensor, step.outputs[0].name or "constant")
            continue
        for index, value in enumerate(step.inputs):
            if value is not None and value in given:
                step.replace_input_with(index, given[value])
        kept.append(step)
    for attr_owner in kept:
        for value in reads(attr_owner):
            assert value not in given, "bodies with subgraphs that read arguments are not outlined"
    body.outputs.clear()
    for step in steps:
        for index in range(len(step.inputs)):
            if step not in kept:
                step.replace_input_with(index, None)
    for step in reversed(steps):
        body.remove(step)
    for step in kept:
        step.name = edit.fresh(step.name or step.op_type)
        for value in step.outputs:
            if value.name:
                value.name = edit.fresh(value.name)
        owner.insert_before(node, step)
    for old, new in zip(node.outputs, results, strict=True):
        replacement = given.get(new, new)
        if replacement is not None:
            if replacement is new:
                _take_over(owner, set(), old, new)
            else:
                edit.replace(old, replacement)
    edit.remove([node])
    if not any(other.op_identifier() == function.identifier() for other in all_nodes(graph)):
        del graph.functions[function.identifier()]
    return kept


def inline_all(graph: Graph, domain: str = BURNISH) -> int:
    """Inline every call of a function of ``domain`` in the main graph; the number of calls.

    What looks for operators in the main graph, such as a backend that knows better kernels for some of them, sees them
    again afterwards.
    """
    calls = [node for node in graph.graph if node.domain == domain and node.op_identifier() in graph.functions]
    for call in calls:
        inline(graph, call)
    if calls and not any(node.domain == domain for node in all_nodes(graph)):
        graph.opset_imports.pop(domain, None)
    return len(calls)


def _take_over(scope: onnx_ir.Graph, members: set[onnx_ir.Node], old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Let ``new`` stand for ``old`` under its name, wherever nodes outside ``members`` read it."""
    name = old.name
    old.name = None
    if old.is_graph_output():
        for index, output in enumerate(scope.outputs):
            if output is old:
                scope.outputs[index] = new
    for user, index in tuple(old.uses()):
        if user not in members:
            user.replace_input_with(index, new)
    new.name = name


def copied(node: onnx_ir.Node, copies: dict[onnx_ir.Value, onnx_ir.Value]) -> onnx_ir.Node:
    """A copy of a node that reads copies of its inputs; ``copies`` gets those of its outputs."""
    copy = onnx_ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else copies[value] for value in node.inputs],
        list(node.attributes.values()),
        num_outputs=len(node.outputs),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        copies[old] = new
    return copy


def _body(
    order: Sequence[onnx_ir.Node],
    inputs: Sequence[onnx_ir.Value],
    free: Sequence[onnx_ir.Value],
    outputs: Sequence[onnx_ir.Value],
    opsets: Mapping[str, int],
) -> onnx_ir.Graph:
    """Copies of the nodes as a graph of their own; ``inputs`` that are not ``free`` become constants."""
    copies: dict[onnx_ir.Value, onnx_ir.Value] = {}
    steps: list[onnx_ir.Node] = []
    unbound = set(free)
    for value in inputs:
        if value in unbound:
            copies[value] = onnx_ir.Value(name=value.name, type=value.type, shape=value.shape)
            continue
        tensor = embedded(value)
        assert tensor is not None
        # A copy: the tensor's name is that of the initializer.
        plain = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
        step = onnx_ir.Node("", "Constant", [], onnx_ir.convenience.convert_attributes({"value": plain}))
        step.name = f"{value.name}_constant"
        step.outputs[0].name = value.name
        step.outputs[0].type = onnx_ir.TensorType(tensor.dtype)
        step.outputs[0].shape = onnx_ir.Shape(tensor.shape.numpy())
        copies[value] = step.outputs[0]
        steps.append(step)
    domains = {""}
    for node in order:
        if any(a.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise PassError("a node with subgraphs cannot become part of a function", where=module_path(node))
        copy = copied(node, copies)
        domains.add("" if node.domain == "ai.onnx" else node.domain)
        steps.append(copy)
    return onnx_ir.Graph(
        [copies[value] for value in free],
        [copies[value] for value in outputs],
        nodes=steps,
        opset_imports={domain: opsets.get(domain, 1) for domain in sorted(domains)},
        name="body",
    )


def _key(steps: Sequence[onnx_ir.Node], inputs: Sequence[onnx_ir.Value], outputs: Sequence[onnx_ir.Value]) -> _Key:
    """Equal for bodies that differ in names and provenance at most."""
    numbers: dict[onnx_ir.Value | None, int] = {None: -1}
    for value in inputs:
        numbers[value] = len(numbers)
    parts: list[Any] = [tuple(_typed(value) for value in inputs)]
    for step in steps:
        taken = tuple(numbers[value] for value in step.inputs)
        for value in step.outputs:
            numbers[value] = len(numbers)
        parts.append(
            (
                step.domain,
                step.op_type,
                taken,
                tuple(sorted((name, _content(attr)) for name, attr in step.attributes.items())),
                tuple((bool(value.name), _typed(value)) for value in step.outputs),
            )
        )
    parts.append(tuple(numbers[value] for value in outputs))
    return tuple(parts)


def _typed(value: onnx_ir.Value) -> str:
    return f"{value.type}{None if value.shape is None else list(map(str, value.shape))}"


def _content(attr: onnx_ir.Attr) -> str:
    if attr.type == onnx_ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        return f"{tensor.dtype.name}{list(tensor.shape)}{tensor.tobytes().hex()}"
    return f"{attr.type.name} {attr.value!r}"
