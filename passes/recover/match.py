"""Questions of dataflow that the recoveries share: what a value is, whatever nodes an exporter wrote it with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from ...ir.graph import RULE, Graph, attribute, constant, dims, is_op, module_path, producer, rank, tensor_of
from ...ir.rewrite import Editor
from ..base import Context, Outcome

FLOATS = (
    onnx_ir.DataType.FLOAT,
    onnx_ir.DataType.FLOAT16,
    onnx_ir.DataType.BFLOAT16,
    onnx_ir.DataType.DOUBLE,
)

_KERNELS = {
    "LayerNormalization": FLOATS,
    "RMSNormalization": (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.DOUBLE),
    "Gelu": (onnx_ir.DataType.FLOAT,),
    "RotaryEmbedding": (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16),
    "Attention": (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16),
}
"""Element types of ONNX Runtime's CPU kernels; on others the decomposed form runs as it came."""
_NEWEST = {"Attention": 24}
"""The newest opset in which ONNX Runtime has a kernel; it takes the operator of a later one apart again."""


@dataclass
class Site:
    """The graph under recovery and what has been said about it; one is shared by all recoveries of a run."""

    graph: Graph
    context: Context
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self._names = Editor(self.graph, "recover").names
        self.opset = self.graph.opset_imports.get("", 1)

    def edit(self, rule: str, anchor: onnx_ir.Node, origin: Sequence[onnx_ir.Node]) -> Editor:
        """An editor that inserts before ``anchor`` on behalf of ``rule``."""
        assert anchor.graph is not None
        return Editor(self.graph, rule, names=self._names).at(anchor, origin)

    def unsupported(self, operator: str, dtype: onnx_ir.DataType | None) -> str | None:
        """Why the target has no kernel for ``operator`` on ``dtype``; None if it has, or is no particular runtime."""
        if dtype is None:
            return "the element type is not known"
        if self.context.target != "onnxruntime":
            return None
        if self.opset > _NEWEST.get(operator, self.opset):
            return f"ONNX Runtime has no kernel for it in opset {self.opset}"
        known = _KERNELS.get(operator)
        if known is None or dtype in known:
            return None
        return f"ONNX Runtime has no kernel for it on {dtype.name}"

    def missed(self, node: onnx_ir.Node, operator: str, reason: str) -> None:
        """Record that ``node`` looks like ``operator`` but is not replaced."""
        self.outcome.missed(module_path(node), f"{operator} not recovered: {reason}", operator=operator)

    def sweep(self) -> None:
        """Remove what recoveries computed and then did not need."""
        if self.outcome.rewrites or self.outcome.remarks:
            dead = [n for n in self.graph.graph if not any(v.uses() or v.is_graph_output() for v in n.outputs)]
            Editor(self.graph, "recover", names=self._names).sweep(n for n in dead if RULE in n.metadata_props)

    def finish(self, edit: Editor, old: onnx_ir.Value, new: onnx_ir.Value, operator: str) -> None:
        """Let ``new`` take the place of ``old``, remove what became unused and count the recovery."""
        node = old.producer()
        assert node is not None
        edit.replace(old, new)
        edit.sweep([node])
        self.outcome.count(operator)


def nodes(graph: Graph, *op_types: str) -> Iterator[onnx_ir.Node]:
    """Nodes of the main graph of these operators that are still there when their turn comes, in graph order."""
    for node in list(graph.graph):
        if node.op_type in op_types and node.domain == "" and node.graph is not None:
            yield node


def origin_of(old: onnx_ir.Value, *others: onnx_ir.Value | None) -> list[onnx_ir.Node]:
    """The nodes whose provenance a replacement carries on: those that make these values."""
    found = [v.producer() for v in (old, *others) if v is not None]
    return [n for n in found if n is not None]


def strip(value: onnx_ir.Value) -> onnx_ir.Value:
    """``value`` before nodes that change nothing: Identity, and Cast to the type it has."""
    while True:
        node = value.producer()
        if node is None or not node.inputs or node.inputs[0] is None:
            return value
        source = node.inputs[0]
        if is_op(node, "Identity") or (
            is_op(node, "Cast") and source.dtype is not None and source.dtype == attribute(node, "to")
        ):
            value = source
        else:
            return value


def scalar(value: onnx_ir.Value | None) -> float | None:
    """The number behind a constant of one element, or None."""
    if value is None:
        return None
    tensor = tensor_of(strip(value))
    if tensor is None or tensor.size != 1 or tensor.dtype in (onnx_ir.DataType.STRING, onnx_ir.DataType.BOOL):
        return None
    return float(np.asarray(tensor.numpy()).reshape(-1)[0])


def with_scalar(node: onnx_ir.Node | None, *op_types: str) -> tuple[onnx_ir.Value, float] | None:
    """The operands of a commutative node with one constant number: (the other operand, the number)."""
    if not is_op(node, *op_types):
        return None
    assert node is not None
    a, b = node.inputs[0], node.inputs[1]
    assert a is not None and b is not None
    number = scalar(b)
    if number is not None:
        return a, number
    number = scalar(a)
    return None if number is None else (b, number)


def users(value: onnx_ir.Value, *op_types: str) -> list[onnx_ir.Node]:
    """The nodes that read ``value``, through nodes that change nothing; only these operators if any is named."""
    found: list[onnx_ir.Node] = []
    for node in dict.fromkeys(use.node for use in value.uses()):
        if node.graph is None:
            continue
        if node.outputs and strip(node.outputs[0]) is not node.outputs[0]:
            found.extend(users(node.outputs[0], *op_types))
        elif not op_types or is_op(node, *op_types):
            found.append(node)
    return found


def only_user(value: onnx_ir.Value, *op_types: str) -> onnx_ir.Node | None:
    """The one node that reads ``value``, if it is one of these operators and ``value`` is no graph output."""
    if value.is_graph_output():
        return None
    found = users(value)
    return found[0] if len(found) == 1 and (not op_types or is_op(found[0], *op_types)) else None


def close(number: float | None, expected: float, tolerance: float = 1e-3) -> bool:
    """Whether a constant is ``expected``; exporters write constants to as few as four digits, or in float16."""
    return number is not None and abs(number - expected) <= tolerance * abs(expected)


def factors(value: onnx_ir.Value, stops: Sequence[onnx_ir.Value], depth: int = 6) -> tuple[float, list[onnx_ir.Value]]:
    """A product as a number times values, whatever its association; ``stops`` are not looked into."""
    value = strip(value)
    if any(value is stop for stop in stops):
        return 1.0, [value]
    number = scalar(value)
    if number is not None:
        return number, []
    node = value.producer()
    if depth > 0 and node is not None:
        if is_op(node, "Mul"):
            left, right = node.inputs[0], node.inputs[1]
            assert left is not None and right is not None
            a, bases = factors(left, stops, depth - 1)
            b, more = factors(right, stops, depth - 1)
            return a * b, bases + more
        if is_op(node, "Div"):
            number = scalar(node.inputs[1])
            assert node.inputs[0] is not None
            if number:
                a, bases = factors(node.inputs[0], stops, depth - 1)
                return a / number, bases
        if is_op(node, "Neg"):
            assert node.inputs[0] is not None
            a, bases = factors(node.inputs[0], stops, depth - 1)
            return -a, bases
    return 1.0, [value]


def reduced_axes(node: onnx_ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction that keeps its dimensions (attribute before opset 18, input since), as written."""
    if not attribute(node, "keepdims", 1):
        return None
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1], limit=8)
        axes = None if array is None else [int(a) for a in array.reshape(-1)]
    return None if not axes else tuple(int(a) for a in axes)


def trailing(axes: Sequence[int] | None, value: onnx_ir.Value) -> int | None:
    """How many axes ``axes`` are, if they are the last ones of ``value``; None if not, or unknown."""
    if axes is None:
        return None
    size = rank(value)
    if size is None:
        return len(axes) if sorted(axes) == list(range(-len(axes), 0)) else None
    positive = sorted(a % size if -size <= a < size else a for a in axes)
    return len(axes) if positive == list(range(size - len(axes), size)) else None


def static_tail(value: onnx_ir.Value, count: int) -> tuple[int, ...] | None:
    """The last ``count`` dimensions, if they are known numbers."""
    shape = dims(value)
    if shape is None or len(shape) < count:
        return None
    tail = shape[len(shape) - count :]
    numbers = tuple(d for d in tail if isinstance(d, int))
    return numbers if len(numbers) == count else None


def same_rank(a: onnx_ir.Value, b: onnx_ir.Value) -> bool:
    """Whether two values can have the same rank (unknown ranks can)."""
    return rank(a) is None or rank(b) is None or rank(a) == rank(b)


def ints(value: onnx_ir.Value | None) -> list[int] | None:
    """A constant vector of up to eight integers, or None."""
    if value is None:
        return None
    array = constant(strip(value), limit=8)
    return None if array is None else [int(a) for a in array.reshape(-1)]


def last_axis(value: onnx_ir.Value, axis: int | None) -> bool:
    """Whether ``axis`` is known to be the last one of ``value``."""
    size = rank(value)
    return axis is not None and (axis == -1 or (size is not None and axis == size - 1))


def piece(value: onnx_ir.Value) -> tuple[onnx_ir.Value, int, int] | None:
    """A contiguous part of the last axis of another value: (that value, start, end); cuts of cuts are followed."""
    node = producer(value, "Slice", "Split")
    if node is None or node.inputs[0] is None:
        return None
    source = strip(node.inputs[0])
    size = static_tail(source, 1)
    if size is None:
        return None
    split = node.op_type == "Split"
    span = _split_part(node, value, source, size[0]) if split else _slice_part(node, source, size[0])
    if span is None:
        return None
    outer = piece(source)
    if outer is None:
        return source, *span
    return outer[0], outer[1] + span[0], outer[1] + span[1]


def _slice_part(node: onnx_ir.Node, source: onnx_ir.Value, size: int) -> tuple[int, int] | None:
    starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
    axes = ints(node.inputs[3]) if len(node.inputs) > 3 else [0]
    steps = ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
    if starts is None or ends is None or axes is None or steps != [1] or len(starts) != 1:
        return None
    if not last_axis(source, axes[0]):
        return None
    start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (starts[0], ends[0]))
    return (start, end) if start < end else None


def _split_part(node: onnx_ir.Node, value: onnx_ir.Value, source: onnx_ir.Value, size: int) -> tuple[int, int] | None:
    if not last_axis(source, attribute(node, "axis", 0)):
        return None
    sizes = ints(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "split")
    if sizes is None:
        count = len(node.outputs)
        if size % count:
            return None
        sizes = [size // count] * count
    index = next(i for i, output in enumerate(node.outputs) if output is value)
    return sum(sizes[:index]), sum(sizes[: index + 1])
