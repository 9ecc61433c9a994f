"""``Attention`` out of two matrix products with a softmax between them (Vaswani et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir

from ...ir.graph import attribute, dims, is_op, producer, rank, tensor_of
from ...ir.rewrite import Editor
from .heads import unrepeated, untransposed
from .masks import Bias, Fill, Masks, Refused
from .match import FLOATS, Site, last_axis, nodes, only_user, scalar, strip, users, with_scalar

OPSET = 23


@dataclass
class _Scores:
    """What leads from the product of queries and keys to the softmax."""

    product: onnx_ir.Node
    scale: float = 1.0
    terms: list[Bias | Fill] = field(default_factory=list)
    softcap: float = 0.0
    between: list[onnx_ir.Value] = field(default_factory=list)


def recover_attention(site: Site) -> None:
    """Replace ``softmax(scale * Q K^T + mask) V`` by Attention.

    The scale may stand on queries, keys or scores, before or after; the mask may be an additive bias or a choice
    between the score and a constant; NaN may be replaced by zero after the softmax. Keys and values whose heads were
    repeated are taken before that.
    """
    masks = Masks()
    for node in nodes(site.graph, "Softmax"):
        scores = _scores(node.inputs[0])
        if scores is None:
            continue
        try:
            _replace(site, node, scores, masks)
        except Refused as refused:
            site.missed(node, "Attention", str(refused))


def _scores(value: onnx_ir.Value | None, depth: int = 8) -> _Scores | None:
    """Follow scores back to a product of two computed values; None if there is none."""
    if value is None or depth == 0:
        return None
    value = strip(value)
    node = value.producer()
    if node is None:
        return None
    if is_op(node, "MatMul"):
        right = node.inputs[1]
        turned = producer(right, "Transpose")
        weight = right if turned is None else turned.inputs[0]
        # A product with a weight before a softmax is a classifier.
        return None if tensor_of(weight) is not None else _Scores(node, between=[value])
    found = None
    if is_op(node, "Cast") and node.inputs[0] is not None and node.inputs[0].dtype in FLOATS:
        found = _scores(node.inputs[0], depth - 1)
    elif is_op(node, "Mul", "Div"):
        found = _scaled(node, depth)
    elif is_op(node, "Add"):
        for scored, bias in ((0, 1), (1, 0)):
            found, added = _scores(node.inputs[scored], depth - 1), node.inputs[bias]
            if found is not None and added is not None:
                found.terms.insert(0, Bias(strip(added)))
                break
    elif is_op(node, "Where") and node.inputs[0] is not None:
        for scored, other in ((1, 2), (2, 1)):
            fill = scalar(node.inputs[other])
            found = None if fill is None else _scores(node.inputs[scored], depth - 1)
            if found is not None and fill is not None:
                found.terms.insert(0, Fill(strip(node.inputs[0]), scored == 2, fill))
                break
    if found is not None:
        found.between.append(value)
    return found


def _scaled(node: onnx_ir.Node, depth: int) -> _Scores | None:
    factor = _factor(node)
    if factor is None:
        return None
    operand, number = factor
    tanh = producer(strip(operand), "Tanh")
    found = _scores(operand if tanh is None else tanh.inputs[0], depth - 1)
    if found is None or found.softcap or (found.terms and (number != 1.0 or tanh is not None)):
        return None  # a mask that is scaled, or a second bound, is no attention that the operator has
    if tanh is None:
        found.scale *= number
    else:
        # c * tanh(s / c): the scores before the bound carry the factor 1 / c.
        found.scale *= number
        found.softcap = number
        found.between.append(strip(operand))
    return found


def _factor(node: onnx_ir.Node | None) -> tuple[onnx_ir.Value, float] | None:
    """(operand, number) of a product with, or quotient by, a constant number."""
    if is_op(node, "Mul"):
        return with_scalar(node, "Mul")
    if is_op(node, "Div"):
        assert node is not None
        number = scalar(node.inputs[1])
        return (node.inputs[0], 1 / number) if number and node.inputs[0] is not None else None
    return None


def _unscaled(value: onnx_ir.Value) -> tuple[onnx_ir.Value, float]:
    """``value`` before products with numbers, and their product."""
    total = 1.0
    while True:
        value = strip(value)
        factor = _factor(value.producer())
        if factor is None or rank(factor[0]) != rank(value):
            return value, total
        value, total = factor[0], total * factor[1]


def _weighted(softmax: onnx_ir.Node) -> tuple[onnx_ir.Node, bool]:
    """The product of probabilities and values, and whether NaN is replaced by zero before it.

    Raises:
        Refused: the probabilities go elsewhere.
    """
    value, guarded = softmax.outputs[0], False
    while True:
        readers = users(value)
        if value.is_graph_output():
            raise Refused("the probabilities are an output of the model")
        if len(readers) == 1 and is_op(readers[0], "Cast", "Dropout"):
            value = readers[0].outputs[0]
        elif len(readers) == 2 and {r.op_type for r in readers} == {"IsNaN", "Where"}:
            where = next(r for r in readers if r.op_type == "Where")
            isnan = producer(where.inputs[0], "IsNaN")
            if isnan not in readers or scalar(where.inputs[1]) != 0.0 or where.inputs[2] is not value:
                raise Refused("the probabilities are chosen in a way that is not a guard against NaN")
            value, guarded = where.outputs[0], True
        elif len(readers) == 1 and is_op(readers[0], "MatMul"):
            first = readers[0].inputs[0]
            if first is None or strip(first) is not strip(value):
                raise Refused("the probabilities are not the first operand of the product with the values")
            return readers[0], guarded
        else:
            raise Refused("the probabilities are used by more than the product with the values")


def _replace(site: Site, softmax: onnx_ir.Node, scores: _Scores, masks: Masks) -> None:
    product, guarded = _weighted(softmax)
    axis = attribute(softmax, "axis", -1)
    if not last_axis(softmax.outputs[0], axis):
        raise Refused("the softmax is not known to run over the last axis")
    if site.opset < OPSET:
        raise Refused(f"the graph has opset {site.opset}, the operator exists since {OPSET}")
    if any(only_user(v) is None for v in scores.between):
        raise Refused("the scores are used by more than the softmax")
    left, right, v = scores.product.inputs[0], scores.product.inputs[1], product.inputs[1]
    assert left is not None and right is not None and v is not None
    q, q_scale = _unscaled(left)
    turned, k_scale = _unscaled(right)
    # Masks are shared by layers: they go before the softmax, in whose order attentions are visited. Values may be
    # computed after it.
    origin = [scores.product, softmax, product]
    edit = site.edit("attention(q, k, v, mask)", softmax, origin)
    keys = untransposed(edit, turned)
    if keys is None:
        raise Refused("the keys are not transposed by a node of their own")
    k, more = _unscaled(keys)
    scale = scores.scale * q_scale * k_scale * more
    if not scale > 0:
        raise Refused("the scale is not positive")
    size = rank(q)
    if size not in (3, 4) or any(rank(x) != size for x in (k, v)):
        raise Refused("queries, keys and values are not all known to have rank 4 (or 3)")
    dtype = q.dtype
    reason = site.unsupported("Attention", dtype)
    if reason is not None or k.dtype != dtype or v.dtype != dtype:
        raise Refused(reason or "queries, keys and values differ in element type")
    if dtype == onnx_ir.DataType.FLOAT16 and softmax.outputs[0].dtype == dtype:
        # ONNX Runtime's kernel fails ONNX's own test of it (test_attention_4d_causal_fp16), the decomposed form passes.
        raise Refused("a softmax in float16 rounds less well in the fused kernel")
    if size == 3:
        q, k = (edit.op("Unsqueeze", [x, edit.ints([0])], dtype=dtype) for x in (q, k))
    else:
        k, v = _fewer_heads(k, v)
    attributes: dict[str, float | int] = {"scale": scale}
    if scores.softcap:
        attributes["softcap"] = scores.softcap
    if softmax.outputs[0].dtype != dtype and softmax.outputs[0].dtype is not None:
        attributes["softmax_precision"] = int(softmax.outputs[0].dtype)
    mask = masks.build(edit, scores.terms, q, k, guarded)
    edit.at(product, origin)
    if size == 3:
        v = edit.op("Unsqueeze", [v, edit.ints([0])], dtype=dtype)
    _finish(site, edit, product, [q, k, v] + ([] if mask is None else [mask]), attributes, size)


def _fewer_heads(k: onnx_ir.Value, v: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    (keys, times), (values, again) = unrepeated(k), unrepeated(v)
    return (keys, values) if times == again else (k, v)


def _finish(
    site: Site,
    edit: Editor,
    product: onnx_ir.Node,
    inputs: list[onnx_ir.Value],
    attributes: dict[str, float | int],
    size: int,
) -> None:
    q, v = dims(inputs[0]), dims(inputs[2])
    shape = [*q[:3], v[3]] if q is not None and v is not None else product.outputs[0].shape
    new = edit.op("Attention", inputs, attributes, dtype=inputs[0].dtype, shape=shape)
    if size == 3:
        new = edit.op("Squeeze", [new, edit.ints([0])], dtype=new.dtype, shape=product.outputs[0].shape)
    site.finish(edit, product.outputs[0], new, "Attention")
