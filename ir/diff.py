"""What changed between two graphs: nodes added, removed and changed, as data and as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir

from .graph import Graph, constant
from .printer import SMALL, format_node, format_type, format_value


@dataclass
class GraphDiff:
    """The differences between an older and a newer graph (main graphs).

    Attributes:
        added: nodes of the newer graph that match none of the older.
        removed: nodes of the older graph that match none of the newer.
        changed: (older node, newer node, what differs).
        signature: differences in graph inputs and outputs, one sentence each.
        weights: differences in initializers, one sentence each.
        same: number of nodes that match and do not differ.
    """

    added: list[onnx_ir.Node] = field(default_factory=list)
    removed: list[onnx_ir.Node] = field(default_factory=list)
    changed: list[tuple[onnx_ir.Node, onnx_ir.Node, list[str]]] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    same: int = 0

    @property
    def empty(self) -> bool:
        """Whether the graphs are the same."""
        return not (self.added or self.removed or self.changed or self.signature or self.weights)

    def __str__(self) -> str:
        """A summary line, then one line per difference: ``-`` removed, ``+`` added, ``~`` changed."""
        lines = [
            f"{self.same} nodes the same, {len(self.removed)} removed, {len(self.added)} added, "
            f"{len(self.changed)} changed"
        ]
        lines += [f"~ {text}" for text in (*self.signature, *self.weights)]
        lines += [f"- {format_node(node)}" for node in self.removed]
        lines += [f"+ {format_node(node)}" for node in self.added]
        for old, new, what in self.changed:
            lines.append(f"~ {format_node(new)}")
            lines += [f"    {text}" for text in what]
            if old.op_type != new.op_type:
                lines.append(f"    was {format_node(old)}")
        return "\n".join(lines)


def diff(old: Graph, new: Graph) -> GraphDiff:
    """Compare two graphs.

    Nodes match by name, then by the name of their first output, then by structure: the same computation from the same
    inputs and weights, whatever its names.
    """
    result = GraphDiff()
    matches = _match(old, new)
    values = _matched_values(old, new, matches)
    for node in old.graph:
        other = matches.get(node)
        if other is None:
            result.removed.append(node)
            continue
        what = _differences(node, other, values)
        if what:
            result.changed.append((node, other, what))
        else:
            result.same += 1
    taken = set(matches.values())
    result.added = [node for node in new.graph if node not in taken]
    result.signature = _signature("input", old.graph.inputs, new.graph.inputs)
    result.signature += _signature("output", old.graph.outputs, new.graph.outputs)
    result.weights = _weights(old, new)
    return result


def _match(old: Graph, new: Graph) -> dict[onnx_ir.Node, onnx_ir.Node]:
    matches: dict[onnx_ir.Node, onnx_ir.Node] = {}
    free_old, free_new = dict.fromkeys(old.graph), dict.fromkeys(new.graph)
    for key in (_by_name, _by_output):
        offers: dict[Hashable, list[onnx_ir.Node]] = defaultdict(list)
        for node in free_new:
            offers[key(node)].append(node)
        for node in list(free_old):
            offer = offers.get(key(node))
            if key(node) is not None and offer and len(offer) == 1:
                matches[node] = offer.pop()
                del free_old[node], free_new[matches[node]]
    old_shapes, new_shapes = _structures(old), _structures(new)
    pool: dict[int, list[onnx_ir.Node]] = defaultdict(list)
    for node in free_new:
        pool[new_shapes[node]].append(node)
    for node in list(free_old):
        if pool[old_shapes[node]]:
            matches[node] = pool[old_shapes[node]].pop(0)
    return matches


def _by_name(node: onnx_ir.Node) -> Hashable:
    return (node.name, node.op_type, node.domain) if node.name else None


def _by_output(node: onnx_ir.Node) -> Hashable:
    return node.outputs[0].name if node.outputs and node.outputs[0].name else None


def _structures(graph: Graph) -> dict[onnx_ir.Node, int]:
    """A hash of each node's computation, down to the graph's inputs and weights."""
    ids: dict[onnx_ir.Value, int] = {}
    found: dict[onnx_ir.Node, int] = {}
    for value in graph.graph.inputs:
        ids[value] = hash(("input", value.name))
    for value in graph.graph.initializers.values():
        ids.setdefault(value, hash(_content(value)))
    for node in graph.graph:
        inputs = tuple(None if v is None else ids.get(v) for v in node.inputs)
        found[node] = hash((node.op_type, node.domain, _attributes(node), inputs, len(node.outputs)))
        for i, value in enumerate(node.outputs):
            ids[value] = hash((found[node], i))
    return found


def _content(value: onnx_ir.Value) -> Hashable:
    """What identifies an initializer: small ones by their numbers, large ones by name, type and shape."""
    data = constant(value, limit=SMALL) if value.dtype != onnx_ir.DataType.STRING else None
    if data is not None:
        return "small", str(data.dtype), data.shape, data.tobytes()
    return "large", value.name, format_type(value)


def _attributes(node: onnx_ir.Node) -> Hashable:
    return tuple(sorted((name, _attribute_text(attr)) for name, attr in node.attributes.items()))


def _attribute_text(attr: onnx_ir.Attr) -> str:
    if attr.type == onnx_ir.AttributeType.TENSOR and not attr.is_ref():
        tensor = attr.value
        return f"{tensor.dtype.name}{list(tensor.shape)}:{hash(tensor.tobytes())}"
    if attr.type == onnx_ir.AttributeType.GRAPH:
        return f"graph of {len(attr.as_graph())} nodes"
    return f"@{attr.ref_attr_name}" if attr.is_ref() else str(attr.value)


def _matched_values(
    old: Graph, new: Graph, matches: dict[onnx_ir.Node, onnx_ir.Node]
) -> dict[onnx_ir.Value, onnx_ir.Value]:
    """Which value of the newer graph stands for a value of the older."""
    values: dict[onnx_ir.Value, onnx_ir.Value] = {}
    inputs = {v.name: v for v in new.graph.inputs}
    for value in old.graph.inputs:
        if value.name in inputs:
            values[value] = inputs[value.name]
    by_content = {_content(v): v for v in new.graph.initializers.values()}
    for name, value in old.graph.initializers.items():
        other = new.graph.initializers.get(name, by_content.get(_content(value)))
        if other is not None:
            values[value] = other
    for node, match in matches.items():
        values.update(zip(node.outputs, match.outputs, strict=False))
    return values


def _differences(old: onnx_ir.Node, new: onnx_ir.Node, values: dict[onnx_ir.Value, onnx_ir.Value]) -> list[str]:
    what: list[str] = []
    if (old.domain, old.op_type) != (new.domain, new.op_type):
        what.append(f"operator {old.op_type} -> {new.op_type}")
    before = {name: _attribute_text(attr) for name, attr in old.attributes.items()}
    after = {name: _attribute_text(attr) for name, attr in new.attributes.items()}
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            what.append(f"attribute {name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}")
    for i in range(max(len(old.inputs), len(new.inputs))):
        one = old.inputs[i] if i < len(old.inputs) else None
        other = new.inputs[i] if i < len(new.inputs) else None
        if one is None and other is None:
            continue
        if one is None or other is None or not _stands_for(one, other, values):
            what.append(f"input {i}: {_name(one)} -> {_name(other)}")
    for i, (a, b) in enumerate(zip(old.outputs, new.outputs, strict=False)):
        if format_type(a) != format_type(b):
            what.append(f"output {i}: {format_type(a)} -> {format_type(b)}")
    return what


def _stands_for(old: onnx_ir.Value, new: onnx_ir.Value, values: dict[onnx_ir.Value, onnx_ir.Value]) -> bool:
    match = values.get(old)
    # A shared constant may have been split, or several merged into one.
    return match is new or (old.is_initializer() and new.is_initializer() and _content(old) == _content(new))


def _name(value: onnx_ir.Value | None) -> str:
    return "absent" if value is None else f"%{value.name}"


def _signature(role: str, old: Iterable[onnx_ir.Value], new: Iterable[onnx_ir.Value]) -> list[str]:
    before, after = {v.name: v for v in old}, {v.name: v for v in new}
    lines = [f"{role} removed: {format_value(v)}" for name, v in before.items() if name not in after]
    lines += [f"{role} added: {format_value(v)}" for name, v in after.items() if name not in before]
    for name, value in before.items():
        other = after.get(name)
        if other is not None and format_type(value) != format_type(other):
            lines.append(f"{role} {name}: {format_type(value)} -> {format_type(other)}")
    if not lines and list(before) != list(after):
        lines.append(f"{role}s in another order: {', '.join(map(str, before))} -> {', '.join(map(str, after))}")
    return lines


def _weights(old: Graph, new: Graph) -> list[str]:
    before, after = old.graph.initializers, new.graph.initializers
    contents = {_content(v) for v in after.values()}
    earlier = {_content(v) for v in before.values()}
    lines = [f"weight removed: {format_value(v)}" for v in before.values() if _is_gone(v, after, contents)]
    lines += [f"weight added: {format_value(v)}" for v in after.values() if _is_gone(v, before, earlier)]
    for name, value in before.items():
        if name in after and format_type(value) != format_type(after[name]):
            lines.append(f"weight {name}: {format_type(value)} -> {format_type(after[name])}")
    return lines


def _is_gone(value: onnx_ir.Value, others: Mapping[str, onnx_ir.Value], contents: set[Hashable]) -> bool:
    return (value.name or "") not in others and _content(value) not in contents
