"""A graph cut into pieces that run one after the other, so that neither weights nor statistics must fit at once.

The graph is first cut to what the observed values need, lowered, and written once; its pieces share the file with the
weights. What flows from one piece into a later one is *carried*: output of the one, input of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from ...backends.onnxruntime.lower import lower
from ...backends.onnxruntime.writer import write
from ...ir.graph import Graph
from ...ir.rewrite import Editor
from ...passes.statistics import Observer

BASE = "base.onnx"


@dataclass(frozen=True)
class Segment:
    """A run of nodes of the written graph.

    Attributes:
        observed: names of the values observed in it.
        carried: names of the values that it or an earlier segment makes and a later one reads.
    """

    observed: tuple[str, ...]
    carried: tuple[str, ...]


def write_base(graph: Graph, names: Sequence[str], folder: Path) -> Path:
    """Write what the named values need, lowered for ONNX Runtime, with its weights in a data file.

    Args:
        graph: unchanged.
        names: of values of the main graph.
        folder: to write into.
    """
    base = graph.clone()
    made = {value.name: value for node in base.graph for value in node.outputs}
    base.graph.outputs[:] = [made[name] for name in names if name in made]
    _cut(base, names)
    lower(base)
    base.graph.sort()
    path = folder / BASE
    write(base, path, overwrite=True, external=True)
    return path


def split(base: Graph, sizes: Mapping[str, int], memory: int) -> list[Segment]:
    """Segments in the order they run, each with at most ``memory`` bytes where a single node does not need more.

    Counted are the statistics of observed values, and weights twice (the runtime packs them). A segment ends where few
    values flow on: between two blocks rather than in the middle of one.

    Args:
        base: as :func:`write_base` wrote it.
        sizes: bytes that observing takes, by the name of the value.
        memory: bytes.
    """
    nodes = list(base.graph)
    reads = [_reads(node) for node in nodes]
    flows = _flows(nodes, reads)
    segments: list[Segment] = []
    start, used, seen = 0, 0, set[onnx_ir.Value]()
    inputs = tuple(name for name in _names(base.graph.inputs) if name in sizes)
    used += sum(sizes[name] for name in inputs)
    costs: list[int] = []
    at = 0
    while at < len(nodes):
        cost = sum(sizes.get(value.name or "", 0) for value in nodes[at].outputs)
        cost += sum(2 * _bytes(value) for value in reads[at] if value not in seen)
        end = _boundary(start, at, costs, flows, memory) if used + cost > memory and at > start else None
        if end is None:
            seen.update(reads[at])
            used += cost
            costs.append(used)
            at += 1
            continue
        segments.append(Segment((*inputs, *_observed(nodes[start:end], sizes)), _names(flows[end])))
        start = at = end
        used, seen, costs, inputs = 0, set(), [], ()
    segments.append(Segment((*inputs, *_observed(nodes[start:], sizes)), ()))
    return segments


def write_segment(
    base: Path, segment: Segment, before: Sequence[str], wanted: Mapping[str, Sequence[Observer]], path: Path
) -> list[str]:
    """Write a segment with the operators of observers; its weights stay in the file of the whole graph.

    Args:
        base: the whole graph.
        segment: what to write.
        before: names of the values that the segment before it carries.
        wanted: the statistics of each observed value, by its name.
        path: in the folder of ``base``.

    Returns:
        Names of the carried values that are outputs. Outputs are these, then for each observed value and statistic its
        parts and the shape [T, K] that the value had as tokens.
    """
    piece = onnx_ir.load(base)
    scope = piece.graph
    values = {value.name: value for value in scope.inputs}
    values.update((value.name, value) for node in scope for value in node.outputs)
    for name in before:
        old = values[name]
        fed = onnx_ir.Value(name=name, type=old.type, shape=old.shape)
        for node, index in tuple(old.uses()):
            node.replace_input_with(index, fed)
        old.name = f"{name}_before"
        scope.inputs.append(fed)
        values[name] = fed
    given = [name for name in segment.carried if name not in before]
    outputs = [values[name] for name in given]
    scope.outputs[:] = outputs
    edit = Editor(piece, "observe").at(None)
    for name in segment.observed:
        for observer in wanted[name]:
            tokens = _tokens(edit, values[name], observer)
            outputs += observer.insert(edit, tokens)
            outputs.append(edit.op("Shape", [tokens], dtype=onnx_ir.DataType.INT64, shape=[2]))
    scope.outputs[:] = outputs
    _cut(piece)
    onnx_ir.save(piece, path)
    return given


def _tokens(edit: Editor, value: onnx_ir.Value, observer: Observer) -> onnx_ir.Value:
    """``value`` as float32 [T, K]; all of it as one channel where the observer wants that."""
    channels = 1 if observer.per_tensor or value.shape is None else value.shape[observer.axis]
    if not observer.per_tensor and value.shape is not None and observer.axis != -1:
        axis = observer.axis % len(value.shape)
        perm = [*(a for a in range(len(value.shape)) if a != axis), axis]
        value = edit.op("Transpose", [value], {"perm": perm})
    assert isinstance(channels, int)  # what is observed has a known number
    if value.dtype != onnx_ir.DataType.FLOAT:
        value = edit.op("Cast", [value], {"to": onnx_ir.DataType.FLOAT.value}, dtype=onnx_ir.DataType.FLOAT)
    return edit.op("Reshape", [value, edit.ints([-1, channels], "tokens_shape")])


def _cut(graph: Graph, keep: Sequence[str] = ()) -> None:
    """Remove what the outputs do not need; optional outputs stay: kernels of attention refuse to do without."""
    scope, kept = graph.graph, set(graph.graph.outputs)
    edit = Editor(graph, "cut")
    for node in reversed(scope):
        if not any(value.uses() or value in kept for value in node.outputs):
            edit.remove([node])
    for value in list(scope.initializers.values()):
        edit.drop_initializer(value)
    scope.inputs[:] = [value for value in scope.inputs if value.uses() or value.name in keep]


def _reads(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values that a node and its subgraphs read, each once."""
    found = dict.fromkeys(value for value in node.inputs if value is not None)
    for attr in node.attributes.values():
        if attr.type == onnx_ir.AttributeType.GRAPH:
            for inner in onnx_ir.traversal.RecursiveGraphIterator(attr.as_graph()):
                found.update((value, None) for value in inner.inputs if value is not None)
            found.update((value, None) for value in attr.as_graph().outputs)
    return list(found)


def _flows(nodes: Sequence[onnx_ir.Node], reads: Sequence[Iterable[onnx_ir.Value]]) -> list[list[onnx_ir.Value]]:
    """For each position, the values that nodes before it make and nodes from it on read."""
    last: dict[onnx_ir.Value, int] = {}
    for at, values in enumerate(reads):
        for value in values:
            last[value] = at
    flows: list[list[onnx_ir.Value]] = []
    alive: list[onnx_ir.Value] = []
    for at, node in enumerate(nodes):
        alive = [value for value in alive if last[value] >= at]
        flows.append(alive)
        alive = alive + [value for value in node.outputs if value in last]
    return flows


def _boundary(
    start: int, at: int, costs: Sequence[int], flows: Sequence[Sequence[onnx_ir.Value]], memory: int
) -> int | None:
    """The position after ``start`` and up to ``at`` where the fewest values flow on, the last one of these.

    Positions in the first half of the memory are left out: segments would get short. None if nowhere is a way through.
    """
    places = [p for p in range(start + 1, at + 1) if all(value.type is not None for value in flows[p])]
    late = [p for p in places if 2 * costs[p - 1 - start] >= memory] or places[-1:]
    return min(late, key=lambda p: (len(flows[p]), -p), default=None)


def _observed(nodes: Iterable[onnx_ir.Node], sizes: Mapping[str, int]) -> list[str]:
    return [value.name or "" for node in nodes for value in node.outputs if value.name in sizes]


def _names(values: Iterable[onnx_ir.Value]) -> tuple[str, ...]:
    return tuple(value.name or "" for value in values)


def _bytes(value: onnx_ir.Value) -> int:
    return int(value.const_value.nbytes) if value.is_initializer() and value.const_value is not None else 0
