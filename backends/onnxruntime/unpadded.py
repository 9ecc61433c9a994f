"""Attention of batches in which nothing is padded: without the mask, and by tiles where there is much of it.

A mask that hides no key does nothing but cost time: ONNX Runtime 1.32 adds it to every score, and its kernel that keeps
scores in the cache takes none. Whether one hides anything is only known when the model runs, so an ``If`` looks at the
mask, once for all layers that share it. Time beside ``Attention`` with the mask, heads of 32 and 64 numbers, one and
two threads of an AMD EPYC (Zen 4): without it 0.83 to 0.97; ``MultiHeadAttention``, which goes by tiles, 0.73 to 0.97
from 512 tokens in sequences of 128 on, and up to 1.4 below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir

from ...ir.graph import UNPADDED, Graph, attribute, dims, is_op, tensor_of
from ...ir.remarks import Remark
from ...ir.rewrite import Editor
from ...ir.symbolic import same
from . import kernels
from .attention import is_plain
from .legality import type_name

_TILED = "MultiHeadAttention"
_FLOAT = "tensor(float)"
LENGTH, TOKENS = 128, 512
"""Keys of a sequence, and of a batch, from which on the tiled kernel is the faster one."""


def lower_unpadded(graph: Graph) -> list[Remark]:
    """Choose between kernels of attention by what its mask hides, when the model runs.

    Considered are operators on flat heads, neither causal nor with a cache, whose mask is made of parts by key or by
    query: to look at those takes no time.
    """
    edit = Editor(graph, UNPADDED)
    known: dict[tuple[tuple[onnx_ir.Value, ...], str], tuple[onnx_ir.Value, onnx_ir.Value | None]] = {}
    count = 0
    for node in [n for n in graph.graph if is_op(n, "Attention")]:
        parts = _parts(node)
        if not parts:
            continue
        edit.at(node, [node])
        key = (parts, str(dims(node.inputs[1])))
        if key not in known:
            known[key] = _conditions(edit, parts, node)
        _choose(edit, node, *known[key])
        count += 1
    return [Remark("applied", "", f"{UNPADDED}: {count} times", {UNPADDED: count})] if count else []


def _parts(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """What the mask is made of, [batch or 1, heads or 1, queries, keys] with one of the last two 1; () if it is not."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is None or any(value is not None for value in node.inputs[4:]) or len(node.outputs) > 1:
        return ()
    if not is_plain(node) or attribute(node, "is_causal", 0):
        return ()
    if any(type_name(value) != _FLOAT or len(dims(value) or ()) != 3 for value in node.inputs[:3]):
        return ()
    keys, last = dims(node.inputs[1]), (dims(mask) or (None,))[-1]
    if keys is None or last is None or not same(keys[1], last):
        return ()  # a mask may be shorter than the keys, and hides the rest
    found: dict[onnx_ir.Value, None] = {}
    left = [mask]
    while left:
        part = left.pop()
        maker = part.producer()
        if maker is not None and maker.graph is node.graph and is_op(maker, "Expand", "And"):
            left += [value for value in maker.inputs[: 1 if maker.op_type == "Expand" else 2] if value is not None]
            continue
        shape = dims(part)
        if shape is None or len(shape) != 4 or 1 not in shape[2:] or tensor_of(part) is not None:
            return ()
        if part.dtype not in (onnx_ir.DataType.BOOL, onnx_ir.DataType.FLOAT):
            return ()
        found[part] = None
    return tuple(found)


def _hides_nothing(edit: Editor, part: onnx_ir.Value) -> onnx_ir.Value:
    if part.dtype == onnx_ir.DataType.BOOL:
        numbers = edit.op("Cast", [part], {"to": int(onnx_ir.DataType.INT32)})
        least = edit.op("ReduceMin", [numbers], {"keepdims": 0})
        return edit.op("Cast", [least], {"to": int(onnx_ir.DataType.BOOL)}, hint="nothing_hidden")
    most = edit.op("ReduceMax", [edit.op("Abs", [part])], {"keepdims": 0})
    return edit.op("Equal", [most, edit.initializer(np.asarray(0, np.float32), "zero")], hint="nothing_hidden")


def _conditions(
    edit: Editor, parts: Sequence[onnx_ir.Value], node: onnx_ir.Node
) -> tuple[onnx_ir.Value, onnx_ir.Value | None]:
    """Whether the mask hides nothing, and whether the tiled kernel is the one to take then; None where it never is."""
    seen, *others = (_hides_nothing(edit, part) for part in parts)
    for other in others:
        seen = edit.op("And", [seen, other], hint="nothing_hidden")
    shape = dims(node.inputs[1])
    assert shape is not None
    if not _tiles(node) or (isinstance(shape[1], int) and shape[1] < LENGTH):
        return seen, None
    sizes = edit.op("Shape", [node.inputs[1]], {"start": 0, "end": 2})
    tokens = edit.op("ReduceProd", [sizes], {"keepdims": 0})
    length = edit.op("Squeeze", [edit.op("Shape", [node.inputs[1]], {"start": 1, "end": 2})])
    long = edit.op("GreaterOrEqual", [length, edit.ints(LENGTH, "length")])
    many = edit.op("GreaterOrEqual", [tokens, edit.ints(TOKENS, "tokens")])
    return seen, edit.op("And", [seen, edit.op("And", [long, many])], hint="by_tiles")


def _tiles(node: onnx_ir.Node) -> bool:
    """Whether the tiled kernel can do it."""
    sizes = [dims(value) for value in node.inputs[:2]]
    same = attribute(node, "q_num_heads") == attribute(node, "kv_num_heads")
    has = kernels.has("com.microsoft", _TILED, 1, [_FLOAT] * 3, ("num_heads", "scale"))
    return bool(same and sizes[0] and sizes[1] and sizes[0][2] == sizes[1][2] and has)


def _choose(edit: Editor, node: onnx_ir.Node, seen: onnx_ir.Value, tiled: onnx_ir.Value | None) -> None:
    attributes = {name: attribute(node, name) for name in node.attributes}
    masked = _branch(edit, "Attention", node, node.inputs[:4], attributes)
    plain = _branch(edit, "Attention", node, node.inputs[:3], attributes)
    result = _either(edit, node, seen, plain, masked)
    if tiled is not None:
        kept = {"num_heads": attributes["q_num_heads"]}
        if attributes.get("scale") is not None:
            kept["scale"] = attributes["scale"]
        by_tiles = _branch(edit, _TILED, node, node.inputs[:3], kept, "com.microsoft")
        result = _either(edit, node, tiled, by_tiles, _inside(result))
    edit.replace(node.outputs[0], result)
    edit.sweep([node])


def _branch(
    edit: Editor, op_type: str, node: onnx_ir.Node, inputs: Any, attributes: Any, domain: str = ""
) -> onnx_ir.Graph:
    """A graph of one operator that reads what is outside of it."""
    old = node.outputs[0]
    return _inside(
        edit.op(op_type, inputs, attributes, domain=domain, dtype=old.dtype, shape=old.shape, hint=node.name)
    )


def _inside(value: onnx_ir.Value) -> onnx_ir.Graph:
    """The operator that makes a value, taken out of its graph into one of its own."""
    maker = value.producer()
    assert maker is not None and maker.graph is not None
    maker.graph.remove(maker)
    return onnx_ir.Graph([], [value], nodes=[maker], name=value.name)


def _either(
    edit: Editor, node: onnx_ir.Node, condition: onnx_ir.Value, then: onnx_ir.Graph, otherwise: onnx_ir.Graph
) -> onnx_ir.Value:
    old = node.outputs[0]
    return edit.op(
        "If", [condition], {"then_branch": then, "else_branch": otherwise}, dtype=old.dtype, shape=old.shape,
        hint=node.name,
    )  # fmt: skip
