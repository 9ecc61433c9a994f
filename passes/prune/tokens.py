"""``PruneTokens``: tokens that an encoder pays no attention to leave the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir

from ...ir.errors import OptionError
from ...ir.graph import Graph, attribute, dims, is_op, module_path, rank, tensor_of
from ...ir.infer import infer_graph
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from ..base import Context, Outcome, Pass, Stage

RULE = "prune tokens"


@dataclass(frozen=True)
class Point:
    """A place between two layers where the sequence can get shorter.

    Attributes:
        attention: of the layer before it.
        stream: the value that all later layers get of the tokens, [batch, tokens, channels].
        masks: other values that later nodes read with an axis of tokens.
        after: the nodes behind the point.
    """

    attention: onnx_ir.Node
    stream: onnx_ir.Value
    masks: tuple[onnx_ir.Value, ...]
    after: tuple[onnx_ir.Node, ...]


@dataclass(frozen=True)
class PruneTokens(Pass):
    """Shorten the sequence of an encoder between layers (Learned Token Pruning, Kim et al. 2022, equations 1 to 3).

    A token matters as the attention that it gets: the mean of its column of the probabilities over heads and queries.
    The
    share ``keep`` that gets most goes on, in its order, with masks cut alike; the first token always does. Outputs keep
    one row a token: for a token that left, what it was when it did. Products behind the point work on shorter
    sequences.

    Attributes:
        keep: share of the tokens that go on at each point.
        after: numbers of the attentions after whose layers tokens leave, from 0; negative ones count from the end.

    Raises:
        OptionError: a share that makes no sense, or an attention that the model does not have.
    """

    stage = Stage.PRUNE
    approximate = True

    keep: float = 0.7
    after: int | Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise OptionError(f"keep={self.keep!r} must be between 0 and 1", where="PruneTokens", fix="use 0.7")
        object.__setattr__(self, "after", (self.after,) if isinstance(self.after, int) else tuple(self.after))

    def run(self, graph: Graph, context: Context) -> Outcome:
        """Shorten after every layer that was asked for; say why it cannot be otherwise."""
        outcome, edit = Outcome(), Editor(graph, RULE)
        infer_graph(graph)
        attentions = [node for node in graph.graph if is_op(node, "Attention")]
        if not attentions:
            outcome.missed("", "no token leaves: the model has no attention that is understood")
            return outcome
        assert not isinstance(self.after, int)
        wrong = [n for n in self.after if not -len(attentions) <= n < len(attentions)]
        if wrong:
            raise OptionError(
                f"after={wrong[0]!r}: the model has {len(attentions)} attentions", where="PruneTokens",
                fix=f"use numbers from 0 to {len(attentions) - 1}",
            )  # fmt: skip
        # From the end, so that nothing that a point adds crosses the next one.
        for number in sorted({n % len(attentions) for n in self.after}, reverse=True):
            node = attentions[number]
            found = point(graph, attentions, number)
            if isinstance(found, str):
                outcome.missed(module_path(node), f"no token leaves after attention {number}: {found}")
                continue
            _shorten(edit, found, self.keep)
            infer_graph(graph)
            outcome.count(RULE)
            outcome.applied(module_path(node), f"{self.keep:.0%} of the tokens go on after attention {number}",
                            keep=self.keep, attention=number)  # fmt: skip
        return outcome


def point(graph: Graph, attentions: Sequence[onnx_ir.Node], number: int) -> Point | str:
    """The place behind an attention's layer, or why there is none."""
    node = attentions[number]
    query, key = dims(node.inputs[0]), dims(node.inputs[1])
    if attribute(node, "is_causal", 0) or any(v is not None for v in node.inputs[4:6]):
        return "it is causal, or keeps a cache"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return "something reads more than its result"
    if query is None or key is None or not same(query[-2], key[-2]) or _heads(node)[0] != _heads(node)[1]:
        return "its queries and keys are not of the same sequence and heads"
    tokens = query[-2]
    if isinstance(tokens, int):
        return "the length of the sequence is fixed: reshapes may rely on it"
    nodes = list(graph.graph)
    order = {each: i for i, each in enumerate(nodes)}
    last = order[attentions[number + 1]] if number + 1 < len(attentions) else len(nodes)
    for start in range(last, order[node], -1):
        crossing = _crossing(graph, nodes, start, order)
        carried = [v for v in crossing if (shape := dims(v)) is not None and any(same(d, tokens) for d in shape)]
        unknown = [v for v in crossing if dims(v) is None]
        streams = [v for v in carried if _is_stream(v, tokens) and v.producer() is not None
                   and order[v.producer()] > order[node]]  # type: ignore[index]  # fmt: skip
        masks = [v for v in carried if v not in streams]
        sizes = [v for v in crossing if v not in carried and rank(v) in (0, 1) and v.dtype == onnx_ir.DataType.INT64]
        if len(streams) == 1 and not unknown and not sizes and all(_is_mask(v, tokens) for v in masks):
            return Point(node, streams[0], tuple(masks), tuple(nodes[start:]))
    return "more than one value with tokens goes on to the next layer"


def _crossing(
    graph: Graph, nodes: Sequence[onnx_ir.Node], start: int, order: dict[onnx_ir.Node, int]
) -> list[onnx_ir.Value]:
    """Values that are there before a position and read after it, constants left out."""
    found: dict[onnx_ir.Value, None] = {}
    for node in nodes[start:]:
        for value in node.inputs:
            if value is None or tensor_of(value) is not None:
                continue
            maker = value.producer()
            if maker is None or order[maker] < start:
                # A transposed weight is a constant, too.
                if maker is not None and all(v is None or tensor_of(v) is not None for v in maker.inputs):
                    continue
                found[value] = None
    for value in graph.graph.outputs:
        maker = value.producer()
        if maker is not None and order[maker] < start:
            continue  # it is computed before tokens leave
    return list(found)


def _is_stream(value: onnx_ir.Value, tokens: onnx_ir.SymbolicDim) -> bool:
    shape = dims(value)
    return shape is not None and len(shape) == 3 and same(shape[1], tokens) and isinstance(shape[2], int)


def _is_mask(value: onnx_ir.Value, tokens: onnx_ir.SymbolicDim) -> bool:
    """[batch, tokens], or something of 3 or 4 axes with tokens in the last two at most."""
    shape = dims(value)
    if shape is None or any(same(d, tokens) for d in shape[: max(1, len(shape) - 2)]):
        return False
    return len(shape) == 2 and same(shape[1], tokens) if len(shape) < 3 else len(shape) <= 4


def _heads(node: onnx_ir.Node) -> tuple[object, object]:
    query, key = dims(node.inputs[0]), dims(node.inputs[1])
    if query is not None and key is not None and len(query) == 4:
        return query[1], key[1]
    return attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")


def _shorten(edit: Editor, at: Point, keep: float) -> None:
    """Insert the choice behind the point, cut stream and masks, and put the rows back at the outputs."""
    graph = edit.graph.graph
    inside = set(at.after)
    shape = dims(at.stream)
    assert shape is not None
    tokens = shape[1]
    ends = [v for v in graph.outputs if v.producer() in inside and (s := dims(v)) is not None and len(s) >= 2
            and same(s[1], tokens)]  # fmt: skip
    edit.at(at.after[0], [at.attention])
    chosen = _chosen(edit, at, keep)
    rows = _spread(edit, chosen, at.stream)
    cut: dict[onnx_ir.Value, onnx_ir.Value] = {at.stream: edit.op("GatherElements", [at.stream, rows], {"axis": 1})}
    for mask in at.masks:
        cut[mask] = _cut_mask(edit, mask, chosen, tokens)
    for node in at.after:
        for index, value in enumerate(node.inputs):
            if value is not None and value in cut:
                node.replace_input_with(index, cut[value])
    # What was known of shapes behind the point is so no more.
    for node in at.after:
        for value in node.outputs:
            if value.shape is not None and not value.is_graph_output() and any(same(d, tokens) for d in value.shape):
                value.shape = None
    for value in ends:
        short = dims(value)
        assert short is not None
        # Rows of tokens that left are what they were; another width has no such rows and gets zeros.
        edit.at(None, [at.attention])
        wide = isinstance(short[-1], int) and len(short) == 3 and short[-1] == shape[2]
        if wide:
            place, base = rows, at.stream
        else:
            base = edit.op("Expand", [edit.initializer(np.zeros((), value.dtype.numpy()), "zero"),  # type: ignore[union-attr]
                                      _shape_like(edit, at.stream, value)])  # fmt: skip
            place = _spread(edit, chosen, base)
        restored = edit.op("ScatterElements", [base, place, value], {"axis": 1}, dtype=value.dtype, shape=short)
        value.shape = None
        edit.replace_output(value, restored)


def _chosen(edit: Editor, at: Point, keep: float) -> onnx_ir.Value:
    """Places of the tokens that go on, ascending: int64 [batch, kept]."""
    node = at.attention
    query, key = (_apart(edit, node, index) for index in (0, 1))
    width = dims(query)
    assert width is not None and isinstance(width[-1], int)
    dtype = query.dtype
    assert dtype is not None
    scale = attribute(node, "scale") or width[-1] ** -0.5
    scores = edit.op("MatMul", [query, edit.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    scores = edit.op("Mul", [scores, edit.initializer(np.asarray(scale, dtype.numpy()), "scale")])
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype == onnx_ir.DataType.BOOL:
        low = edit.initializer(np.asarray(np.finfo(dtype.numpy()).min / 2, dtype.numpy()), "closed")
        scores = edit.op("Where", [mask, scores, low])
    elif mask is not None:
        scores = edit.op("Add", [scores, mask])
    shares = edit.op("Softmax", [scores], {"axis": -1})
    mass = edit.op("ReduceMean", [shares, edit.ints([1, 2], "axes")], {"keepdims": 0})
    # The first token stands for the sequence in many models.
    length = edit.op("Shape", [mass], {"start": 1, "end": 2})
    zero, one = edit.ints([0], "zero"), edit.ints([1], "one")
    first = edit.op("Range", [edit.ints(0, "zero"), edit.op("Squeeze", [length]), edit.ints(1, "one")])
    bonus = edit.op("Cast", [edit.op("Equal", [first, zero])], {"to": dtype.value})
    mass = edit.op("Add", [mass, bonus])
    share = edit.initializer(np.asarray([keep], np.float32), "keep")
    count = edit.op("Mul", [edit.op("Cast", [length], {"to": onnx_ir.DataType.FLOAT.value}), share])
    count = edit.op("Cast", [edit.op("Ceil", [count])], {"to": onnx_ir.DataType.INT64.value})
    count = edit.op("Max", [count, one])
    _, best = edit.ops("TopK", [mass, count], {"axis": -1}, outputs=2)
    ascending, _ = edit.ops("TopK", [best, count], {"axis": -1, "largest": 0}, outputs=2)
    return ascending


def _apart(edit: Editor, node: onnx_ir.Node, index: int) -> onnx_ir.Value:
    """Queries or keys as [batch, heads, tokens, width]."""
    value = node.inputs[index]
    assert value is not None
    if rank(value) == 4:
        return value
    heads = attribute(node, "q_num_heads" if index == 0 else "kv_num_heads")
    return edit.op("Transpose", [edit.op("Reshape", [value, edit.ints([0, 0, heads, -1])])], {"perm": [0, 2, 1, 3]})


def _spread(edit: Editor, chosen: onnx_ir.Value, value: onnx_ir.Value) -> onnx_ir.Value:
    """Places [batch, kept] for each channel of a value of 2 or 3 axes."""
    if rank(value) == 2:
        return chosen
    last = edit.op("Shape", [value], {"start": 2, "end": 3})
    wide = edit.op("Concat", [edit.op("Shape", [chosen]), last], {"axis": 0})
    return edit.op("Expand", [edit.op("Unsqueeze", [chosen, edit.ints([2], "axes")]), wide])


def _shape_like(edit: Editor, stream: onnx_ir.Value, value: onnx_ir.Value) -> onnx_ir.Value:
    """Batch and tokens of the stream, other sizes of a value."""
    front = edit.op("Shape", [stream], {"start": 0, "end": 2})
    if rank(value) == 2:
        return front
    return edit.op("Concat", [front, edit.op("Shape", [value], {"start": 2})], {"axis": 0})


def _cut_mask(
    edit: Editor, mask: onnx_ir.Value, chosen: onnx_ir.Value, tokens: int | onnx_ir.SymbolicDim
) -> onnx_ir.Value:
    """A mask for the tokens that go on, along each of its axes of tokens."""
    shape = dims(mask)
    assert shape is not None
    found = mask
    batch = edit.op("Shape", [chosen], {"start": 0, "end": 1})
    for axis in (a for a, d in enumerate(shape) if a > 0 and same(d, tokens)):
        others = [a for a in range(1, len(shape)) if a != axis]
        place = edit.op("Unsqueeze", [chosen, edit.ints(others, "axes")]) if others else chosen
        sizes = [batch, *(edit.op("Shape", [place if a == axis else found], {"start": a, "end": a + 1})
                          for a in range(1, len(shape)))]  # fmt: skip
        wide = edit.op("Concat", sizes, {"axis": 0})
        # One mask for all sequences of a batch becomes one for each.
        whole = [batch, edit.op("Shape", [found], {"start": 1})]
        found = edit.op("Expand", [found, edit.op("Concat", whole, {"axis": 0})])
        found = edit.op("GatherElements", [found, edit.op("Expand", [place, wide])], {"axis": axis})
    return found
