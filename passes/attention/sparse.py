"""``SparseAttention``: queries attend to some of the keys only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import Graph, attribute, dims, is_op, module_path
from ...ir.rewrite import Editor
from ..base import Context, Outcome, Pass, Stage
from ..selectors import parse_all, selected
from .patterns import Kind, Pattern

BLOCKS = "attention => attention by blocks"
MASK = "attention => attention with a sparse mask"
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SparseAttention(Pass):
    """Let queries attend to some of the keys only: an approximation, asked for by name.

    Where attention has neither a cache nor a mask of its own and the pattern has a bound (``window``, ``dilated``,
    ``block_local``), it is computed by blocks: time and memory grow with length × window. Elsewhere the pattern becomes
    a mask, which changes what is computed and not how long it takes; the report says which was done and why.

    Attributes:
        pattern: ``window``, ``dilated``, ``block_local``, ``strided`` or ``fixed``.
        window: tokens to either side, the token itself included; the size of a block for ``block_local`` and ``fixed``.
        dilation: of ``dilated``: only every so many tokens are seen.
        summary: of ``fixed``: so many tokens at the end of each block are seen by all.
        global_tokens: so many tokens at the beginning are seen by all and see all.
        include: selectors of the attention to change; all if empty.
    """

    stage = Stage.ATTENTION
    approximate = True
    pattern: Kind = "window"
    window: int = 256
    dilation: int = 1
    summary: int = 1
    global_tokens: int = 0
    include: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._rule()
        parse_all(self.include)

    def _rule(self) -> Pattern:
        return Pattern(self.pattern, self.window, self.dilation, self.summary, self.global_tokens)

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Rewrite attention in the main graph in place."""
        outcome, rule = Outcome(), self._rule()
        edit = Editor(graph, BLOCKS)
        nodes = [node for node in graph.graph if is_op(node, "Attention")]
        wanted = selected(nodes, self.include, "attention")
        for node in wanted:
            why = _by_mask(node, rule)
            if why is None:
                _blocks(edit, node, rule)
                outcome.count(BLOCKS)
            elif _masked(edit, node, rule):
                outcome.count(MASK)
                outcome.applied(module_path(node), f"masked, which saves no time: {why}")
            else:
                outcome.missed(module_path(node), "its scores have an unknown rank or a cache inside")
        if not nodes:
            outcome.skipped("", "there is no attention")
        return outcome


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _by_mask(node: onnx_ir.Node, rule: Pattern) -> str | None:
    """Why attention cannot be computed by blocks, or None."""
    if rule.block() is None:
        return f"{rule.kind} reaches back without bound"
    if _input(node, 3) is not None:
        return "it has a mask of its own"
    if any(_input(node, index) is not None for index in (4, 5, 6)) or len(node.outputs) > 1:
        return "it has a cache"
    shapes = [dims(value) for value in node.inputs[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return "its operands are not split into heads"
    query, key, value = shapes
    assert query is not None and key is not None and value is not None
    if query[2] != key[2]:
        return "queries and keys differ in number"
    if not all(isinstance(shape[axis], int) for shape in (query, key, value) for axis in (1, 3)):
        return "heads of unknown number or size"
    return None


def _lengths(edit: Editor, node: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Number of queries and of keys, as scalars."""
    mask = _input(node, 3)
    places = [(value, 2) for value in node.inputs[:2]]
    if mask is not None and 1 not in (dims(mask) or (1,))[-2:]:
        places = [(mask, -2), (mask, -1)]  # who reads queries or keys besides attention keeps them from being fused
    shapes = [(edit.op("Shape", [value]), axis) for value, axis in places]
    sizes = [edit.op("Gather", [shape, edit.ints([axis], "axis")], {"axis": 0}) for shape, axis in shapes]
    first, second = (edit.op("Squeeze", [size]) for size in sizes)
    return first, second


def _range(edit: Editor, start: onnx_ir.Value, end: onnx_ir.Value) -> onnx_ir.Value:
    return edit.op("Range", [start, end, edit.ints(1, "one")])


def _masked(edit: Editor, node: onnx_ir.Node, rule: Pattern) -> bool:
    """Forbid what the pattern does not allow, in the mask."""
    if any(len(dims(value) or ()) != 4 for value in node.inputs[:2]) or _input(node, 4) is not None:
        return False
    edit.at(node, [node])
    queries, keys = _lengths(edit, node)
    first = edit.op("Sub", [keys, queries])  # the keys of a cache come before
    query = edit.op("Unsqueeze", [_range(edit, first, keys), edit.ints([1], "axis")])
    key = _range(edit, edit.ints(0, "zero"), keys)
    allowed = rule.insert(edit, query, key)
    if rule.global_tokens:
        allowed = edit.op("Or", [allowed, _global(edit, query, key, rule)])
    mask = _input(node, 3)
    inputs = list(node.inputs)
    if mask is None:
        inputs = [*inputs[:3], allowed]
    elif mask.dtype == onnx_ir.DataType.BOOL:
        inputs[3] = edit.op("And", [mask, allowed])
    else:
        kind = mask.dtype or onnx_ir.DataType.FLOAT
        low = edit.initializer(onnx_ir.Tensor(np.asarray(-np.inf, kind.numpy()), dtype=kind), "forbidden")
        inputs[3] = edit.op("Where", [allowed, mask, low])
    _replace(edit, node, inputs, {name: attribute(node, name) for name in node.attributes})
    return True


def _global(edit: Editor, query: onnx_ir.Value, key: onnx_ir.Value, rule: Pattern) -> onnx_ir.Value:
    count = edit.ints(rule.global_tokens, "global_tokens")
    return edit.op("Or", [edit.op("Less", [query, count]), edit.op("Less", [key, count])])


def _replace(edit: Editor, node: onnx_ir.Node, inputs: list[Any], attributes: dict[str, Any]) -> None:
    outputs = edit.ops("Attention", inputs, attributes, outputs=len(node.outputs), hint=node.name, infer_types=False)
    for new, old in zip(outputs, node.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
        edit.replace(old, new)
    edit.sweep([node])


def _blocks(edit: Editor, node: onnx_ir.Node, rule: Pattern) -> None:
    """Compute attention block of queries by block of queries, on the keys that the pattern lets it see.

    Operands are [batch, heads, length, size]; a block becomes a row of the batch.
    """
    edit.at(node, [node])
    causal = bool(attribute(node, "is_causal", 0))
    size = rule.block()
    assert size is not None
    offsets = rule.offsets(causal)
    query, key, value = node.inputs[:3]
    length, _ = _lengths(edit, node)
    whole = edit.ints(size, "block")
    count = edit.op("Div", [edit.op("Add", [length, edit.ints(size - 1, "rest")]), whole])
    batch = edit.op("Shape", [query], {"start": 0, "end": 1})
    one = edit.ints([0], "axis")
    counts = edit.op("Unsqueeze", [count, one])
    rows = edit.op("Mul", [batch, counts])
    missing = edit.op("Sub", [edit.op("Mul", [count, whole]), length])
    nothing = edit.ints([0, 0, 0, 0, 0, 0], "none")
    pads = edit.op("Concat", [nothing, edit.op("Unsqueeze", [missing, one]), edit.ints([0], "none")], {"axis": 0})
    # Blocks of keys by block of queries; those before the beginning or behind the end are masked.
    number = edit.op("Unsqueeze", [_range(edit, edit.ints(0, "zero"), count), edit.ints([1], "axis")])
    wanted = edit.op("Add", [number, edit.ints(offsets, "offsets")])
    last = edit.op("Sub", [count, edit.ints(1, "one")])
    there = edit.op("Min", [edit.op("Max", [wanted, edit.ints(0, "zero")]), last])

    def split(operand: onnx_ir.Value | None) -> tuple[onnx_ir.Value, int, int]:
        heads, width = (dims(operand) or ())[1], (dims(operand) or ())[3]
        assert isinstance(heads, int) and isinstance(width, int)
        padded = edit.op("Pad", [operand, pads])
        shape = edit.op("Concat", [batch, edit.ints([heads]), counts, edit.ints([size, width])], {"axis": 0})
        return edit.op("Reshape", [padded, shape]), heads, width

    blocks, heads, width = split(query)
    blocks = edit.op("Transpose", [blocks], {"perm": [0, 2, 1, 3, 4]})
    queries = edit.op("Reshape", [blocks, edit.op("Concat", [rows, edit.ints([heads, size, width])], {"axis": 0})])
    others = []
    for operand in (key, value):
        blocks, kv_heads, kv_width = split(operand)
        seen = edit.op("Gather", [blocks, there], {"axis": 2})
        seen = edit.op("Transpose", [seen], {"perm": [0, 2, 1, 3, 4, 5]})
        shape = edit.op("Concat", [rows, edit.ints([kv_heads, size * len(offsets), kv_width])], {"axis": 0})
        others.append(edit.op("Reshape", [seen, shape]))
    within = edit.initializer(np.arange(size, dtype=np.int64), "within")
    at = edit.op("Add", [edit.op("Mul", [number, whole]), within])  # [blocks, size]
    keys_at = edit.op("Mul", [edit.op("Unsqueeze", [wanted, edit.ints([2], "axis")]), whole])
    keys_at = edit.op("Reshape", [edit.op("Add", [keys_at, within]), edit.ints([0, size * len(offsets)])])
    at = edit.op("Unsqueeze", [at, edit.ints([2], "axis")])
    keys_at = edit.op("Unsqueeze", [keys_at, edit.ints([1], "axis")])
    allowed = rule.insert(edit, at, keys_at)
    allowed = edit.op("And", [allowed, edit.op("GreaterOrEqual", [keys_at, edit.ints(0, "zero")])])
    allowed = edit.op("And", [allowed, edit.op("Less", [keys_at, length])])
    if causal:
        allowed = edit.op("And", [allowed, edit.op("LessOrEqual", [keys_at, at])])
    if rule.global_tokens:
        others, allowed = _with_global(edit, rule, (key, value), others, allowed, at, counts, rows, causal)
    columns = edit.op("Shape", [allowed], {"start": 2})
    shape = edit.op("Concat", [batch, counts, edit.ints([size]), columns], {"axis": 0})
    mask = edit.op("Expand", [allowed, shape])
    mask = edit.op("Reshape", [mask, edit.op("Concat", [rows, edit.ints([1, size]), columns], {"axis": 0})])
    kept = {name: attribute(node, name) for name in node.attributes if name != "is_causal"}
    if "scale" not in kept:
        kept["scale"] = float(width) ** -0.5
    result = edit.op("Attention", [queries, *others, mask], kept, hint=node.name)
    out_width = (dims(value) or ())[3]
    assert isinstance(out_width, int)
    shape = edit.op("Concat", [batch, counts, edit.ints([heads, size, out_width])], {"axis": 0})
    result = edit.op("Transpose", [edit.op("Reshape", [result, shape])], {"perm": [0, 2, 1, 3, 4]})
    padded = edit.op("Mul", [counts, edit.ints([size])])
    shape = edit.op("Concat", [batch, edit.ints([heads]), padded, edit.ints([out_width])], {"axis": 0})
    result = edit.op("Reshape", [result, shape])
    ends, axis = edit.op("Unsqueeze", [length, one]), edit.ints([2], "axis")
    if rule.global_tokens:
        first = _global_rows(edit, node, rule, causal, kept)
        rest = edit.op("Slice", [result, edit.ints([rule.global_tokens]), ends, axis])
        result = edit.op("Concat", [first, rest], {"axis": 2})
    else:
        result = edit.op("Slice", [result, edit.ints([0]), ends, axis])
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    edit.replace(old, result)
    edit.sweep([node])


def _with_global(
    edit: Editor,
    rule: Pattern,
    operands: tuple[Any, Any],
    others: list[onnx_ir.Value],
    allowed: onnx_ir.Value,
    at: onnx_ir.Value,
    counts: onnx_ir.Value,
    rows: onnx_ir.Value,
    causal: bool,
) -> tuple[list[onnx_ir.Value], onnx_ir.Value]:
    """Append the global tokens to the keys of each block, where the pattern does not have them already."""
    axis = edit.ints([2], "axis")
    longer = []
    for operand, seen in zip(operands, others, strict=True):
        heads, width = (dims(operand) or ())[1], (dims(operand) or ())[3]
        assert isinstance(heads, int) and isinstance(width, int)
        first = edit.op("Slice", [operand, edit.ints([0]), edit.ints([rule.global_tokens]), axis])
        first = edit.op("Unsqueeze", [first, edit.ints([1], "axis")])
        number = edit.op("Shape", [first], {"start": 3, "end": 4})
        batch = edit.op("Shape", [first], {"start": 0, "end": 1})
        shape = edit.op("Concat", [batch, counts, edit.ints([heads]), number, edit.ints([width])], {"axis": 0})
        first = edit.op("Expand", [first, shape])
        first = edit.op(
            "Reshape", [first, edit.op("Concat", [rows, edit.ints([heads]), number, edit.ints([width])], {"axis": 0})]
        )
        longer.append(edit.op("Concat", [seen, first], {"axis": 2}))
    total = edit.op("Gather", [edit.op("Shape", [operands[0]]), edit.ints(2, "axis")], {"axis": 0})
    end = edit.op("Min", [total, edit.ints(rule.global_tokens, "global_tokens")])
    place = edit.op("Unsqueeze", [_range(edit, edit.ints(0, "zero"), end), edit.ints([0, 1], "axis")])
    extra = edit.op("Not", [rule.insert(edit, at, place)])
    if causal:
        extra = edit.op("And", [extra, edit.op("LessOrEqual", [place, at])])
    return longer, edit.op("Concat", [allowed, extra], {"axis": 2})


def _global_rows(edit: Editor, node: onnx_ir.Node, rule: Pattern, causal: bool, kept: dict[str, Any]) -> onnx_ir.Value:
    """Attention of the global tokens, to all keys."""
    query, key, value = node.inputs[:3]
    first = edit.op("Slice", [query, edit.ints([0]), edit.ints([rule.global_tokens]), edit.ints([2], "axis")])
    return edit.op("Attention", [first, key, value], {**kept, "is_causal": int(causal)})
