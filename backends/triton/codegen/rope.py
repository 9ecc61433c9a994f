"""Rotary positions and the write to the cache in a block: what ``rotate_and_append`` computes in one launch.

A decoder has, from one product for queries, keys and values::

    q, k, v = Split(product)                            # [batch, tokens, heads d], the last axis
    queries = RotaryEmbedding(heads of q, cos, sin)     # heads of x: Transpose(Reshape(x)), [batch, heads, tokens, d]
    present_k = Concat(past_k, RotaryEmbedding(heads of k, cos, sin))
    present_v = Concat(past_v, heads of v)

Keys or values alone that are joined to a past are found, too: they are appended in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir

from ....ir.graph import attribute, dims, is_op
from .values import Scope

_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Rotation:
    """A call of ``rotate_and_append``.

    Attributes:
        nodes: that it computes.
        qkv, cos, sin, past_k, past_v: its operands.
        queries, present_k, present_v: its results.
        heads: of the queries.
        pairs: whether neighbours are rotated together.
        place: of the node after which all operands are there.
    """

    nodes: frozenset[onnx_ir.Node]
    qkv: onnx_ir.Value
    cos: onnx_ir.Value
    sin: onnx_ir.Value
    past_k: onnx_ir.Value
    past_v: onnx_ir.Value
    queries: onnx_ir.Value
    present_k: onnx_ir.Value
    present_v: onnx_ir.Value
    heads: int
    pairs: bool
    place: int


@dataclass(frozen=True)
class Part:
    """Queries, keys or values on their way from the product.

    Attributes:
        output: of the last node.
        nodes: up to the output of the split, that excluded.
        source: output of the split.
        heads, width: heads and their width.
        rotary: the rotation, if there is one.
    """

    output: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]
    source: onnx_ir.Value
    heads: int
    width: int
    rotary: onnx_ir.Node | None


def find(scope: Scope) -> tuple[list[Rotation], list[str]]:
    """Rotations with their caches in a block, and reasons why what looks like one is none."""
    found: list[Rotation] = []
    missed: list[str] = []
    for node in scope.nodes:
        if not is_op(node, "Split") or len(node.outputs) != 3:
            continue
        rotation = _rotation(node, scope)
        if isinstance(rotation, Rotation):
            found.append(rotation)
        elif rotation:
            missed.append(rotation)
    apart = not found and not missed and any(is_op(node, "MatMul", "Gemm") for node in scope.nodes)
    if apart and any(_rotated_cache(node) for node in scope.nodes):
        missed.append("queries, keys and values are no one product: merge_products joins them")
    return found, missed


def appended(node: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value] | None:
    """The past and what is joined to it, [batch, heads, tokens, d] both; None of what is no cache.

    A past is an input of the graph, and what comes of it an output.
    """
    if not is_op(node, "Concat") or len(node.inputs) != 2 or node.outputs[0].dtype not in _FLOATS:
        return None
    past, new = node.inputs
    shape = dims(node.outputs[0])
    if past is None or new is None or shape is None or len(shape) != 4 or attribute(node, "axis", 0) not in (2, -2):
        return None
    return past, new


def _rotated_cache(node: onnx_ir.Node) -> bool:
    joined = appended(node)
    return joined is not None and is_op(joined[1].producer(), "RotaryEmbedding")


def _rotation(split: onnx_ir.Node, scope: Scope) -> Rotation | str | None:
    parts = [_part(value) for value in split.outputs]
    if any(part is None for part in parts):
        return None
    q, k, v = (part for part in parts if part is not None)
    if q.rotary is None or k.rotary is None or v.rotary is not None:
        return None
    qkv = split.inputs[0]
    whole = None if qkv is None else dims(qkv)
    if qkv is None or whole is None or len(whole) != 3 or attribute(split, "axis", 0) not in (-1, 2):
        return "queries, keys and values are not cut from the last of three axes"
    if qkv.dtype not in _FLOATS:
        return "the type has no kernel"
    if (k.heads, k.width) != (v.heads, v.width) or q.width != k.width or not k.heads or q.heads % k.heads:
        return f"{q.heads} heads of {q.width} by {k.heads} of {k.width} and {v.heads} of {v.width} have no kernel"
    joins = [_join(k), _join(v)]
    if joins[0] is None or joins[1] is None:
        return "keys and values are joined to no past"
    (join_k, past_k), (join_v, past_v) = joins[0], joins[1]
    tables = _tables(q.rotary, k.rotary)
    if isinstance(tables, str):
        return tables
    cos, sin, pairs = tables
    nodes = frozenset([split, *q.nodes, *k.nodes, *v.nodes, join_k, join_v])
    if not nodes <= set(scope.nodes):
        return "queries, keys and values are in several blocks"
    kept = (q.output, join_k.outputs[0], join_v.outputs[0])
    for node in nodes:
        for value in node.outputs:
            if value not in kept and (value.is_graph_output() or any(u not in nodes for u, _ in value.uses())):
                return "parts of queries, keys or values are read elsewhere, too"
    place = _place(nodes, (qkv, cos, sin, past_k, past_v), kept, scope.nodes)
    if place is None:
        return "what reads the queries stands before what they are made of"
    return Rotation(nodes, qkv, cos, sin, past_k, past_v, *kept, q.heads, pairs, place)


def _part(value: onnx_ir.Value) -> Part | None:
    """Heads of an output of a split: a reshape, a transpose, maybe a rotation."""
    reshape = _only_reader(value, "Reshape")
    transpose = None if reshape is None else _only_reader(reshape.outputs[0], "Transpose")
    if reshape is None or transpose is None or attribute(transpose, "perm") not in ([0, 2, 1, 3], (0, 2, 1, 3)):
        return None
    shape = dims(transpose.outputs[0])
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        return None
    nodes: tuple[onnx_ir.Node, ...] = (reshape, transpose)
    rotary = _only_reader(transpose.outputs[0], "RotaryEmbedding")
    if rotary is not None:
        nodes = (*nodes, rotary)
    return Part(nodes[-1].outputs[0], nodes, value, shape[1], shape[3], rotary)


def _only_reader(value: onnx_ir.Value, operator: str) -> onnx_ir.Node | None:
    readers = {user for user, _ in value.uses()}
    if len(readers) != 1 or value.is_graph_output():
        return None
    (reader,) = readers
    return reader if is_op(reader, operator) else None


def _join(part: Part) -> tuple[onnx_ir.Node, onnx_ir.Value] | None:
    reader = _only_reader(part.output, "Concat")
    joined = None if reader is None else appended(reader)
    if reader is None or joined is None or joined[1] is not part.output:
        return None
    past = dims(joined[0])
    if past is None or past[1] != part.heads or past[3] != part.width or joined[0].dtype != part.output.dtype:
        return None
    return reader, joined[0]


def _tables(q: onnx_ir.Node, k: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value, bool] | str:
    """Cosines and sines of a row for each token, and whether neighbours are rotated together."""
    if list(q.inputs[1:]) != list(k.inputs[1:]) or len([v for v in q.inputs if v is not None]) != 3:
        return "queries and keys are rotated by different tables, or by places in them"
    if any(attribute(q, name, 0) != attribute(k, name, 0) for name in ("interleaved", "rotary_embedding_dim")):
        return "queries and keys are rotated in different ways"
    cos, sin = q.inputs[1], q.inputs[2]
    assert cos is not None and sin is not None
    shape = dims(cos)
    if shape is None or len(shape) != 3 or dims(sin) != shape or not isinstance(shape[-1], int):
        return "the tables have no row for each token"
    width = attribute(q, "rotary_embedding_dim", 0)
    if width and width != 2 * shape[-1]:
        return "the tables are wider than what is rotated"
    return cos, sin, bool(attribute(q, "interleaved", 0))


def _place(
    nodes: frozenset[onnx_ir.Node], operands: Sequence[onnx_ir.Value], results: Sequence[onnx_ir.Value],
    order: Sequence[onnx_ir.Node],
) -> int | None:  # fmt: skip
    """Place of the node after which all operands are there and before which no result is read."""
    at = {node: n for n, node in enumerate(order)}
    made = [at[maker] for maker in (v.producer() for v in operands) if maker is not None and maker in at]
    place = max([*made, min(at[node] for node in nodes)])
    return None if any(n <= place for n in _readers(results, nodes, at)) else place


def _readers(
    results: Sequence[onnx_ir.Value], nodes: frozenset[onnx_ir.Node], at: dict[onnx_ir.Node, int]
) -> Iterator[int]:
    for value in results:
        for user, _ in value.uses():
            if user not in nodes and user in at:
                yield at[user]
