"""What a node costs: arithmetic operations and bytes moved, as expressions over the named dimensions.

A multiplication and an addition count one operation each, so a matrix product of [M, K] and [K, N] is 2·M·K·N.
Exponentials and the like count as the few operations of ``traits.Trait.work``. Bytes are what the node must read and
write if nothing is fused: a Gather reads the rows that it picks, a Reshape moves nothing. What is made of weights alone
(a transposed weight, a dequantized one) is prepared once or inside its reader: it costs nothing, and who reads it reads
the weights it is made of, in their own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir
import sympy

from .graph import Graph, attribute, module_path
from .symbolic import UNKNOWN, Dim, Dims, add, evaluate, exact_div, known, mul, product, to_dim, to_expr, total
from .traits import Kind, reduced_axes, trait

__all__ = ["Cost", "GraphCost", "byte_count", "flops", "graph_cost", "node_cost"]


@dataclass(frozen=True)
class Cost:
    """Arithmetic operations and bytes of a node; None where a size is not known."""

    flops: int | None
    bytes: int | None


@dataclass
class GraphCost:
    """What the main graph costs.

    Attributes:
        flops: arithmetic operations of all nodes that are known.
        bytes: bytes moved by all nodes that are known.
        weights: bytes of all initializers.
        by_operator: the same by operator type.
        unknown: paths of nodes whose cost cannot be told (missing shapes or sizes, control flow).
    """

    flops: int = 0
    bytes: int = 0
    weights: int = 0
    by_operator: dict[str, Cost] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def graph_cost(graph: Graph, sizes: Mapping[str, int] | None = None) -> GraphCost:
    """Cost of one run of the main graph with named dimensions of these sizes."""
    result = GraphCost()
    for value in graph.graph.initializers.values():
        result.weights += value.const_value.nbytes if value.const_value is not None else 0
    for node in graph.graph:
        cost = node_cost(node, sizes)
        if cost.flops is None or cost.bytes is None:
            result.unknown.append(module_path(node))
        before = result.by_operator.get(node.op_type, Cost(0, 0))
        flops_, bytes_ = cost.flops or 0, cost.bytes or 0
        result.by_operator[node.op_type] = Cost((before.flops or 0) + flops_, (before.bytes or 0) + bytes_)
        result.flops += flops_
        result.bytes += bytes_
    return result


def node_cost(node: onnx_ir.Node, sizes: Mapping[str, int] | None = None) -> Cost:
    """Cost of one node with named dimensions of these sizes."""
    sizes = sizes or {}
    return Cost(evaluate(flops(node), sizes), evaluate(byte_count(node), sizes))


def flops(node: onnx_ir.Node) -> Dim:
    """Arithmetic operations of a node; unknown for control flow and operators outside the table of traits."""
    row = trait(node)
    if row is None or row.kind is Kind.CONTROL:
        return UNKNOWN
    if _prepared(node) is not None:
        return 0
    formula = _FORMULAS.get(node.op_type)
    if formula is not None:
        return formula(node)
    if row.kind is Kind.CONTRACTION:
        return UNKNOWN
    if row.work == 0:
        return 0
    per = node.inputs[0] if row.kind in (Kind.REDUCTION, Kind.NORMALIZATION) else node.outputs[0]
    return mul(row.work, _elements(per))


def byte_count(node: onnx_ir.Node) -> Dim:
    """Bytes that a node reads and writes."""
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Constant", "Shape", "Size"):
        return 0
    row = trait(node)
    if row is not None and row.kind is Kind.CONTROL:
        return UNKNOWN
    if _prepared(node) is not None:
        return 0
    written = total(_bytes(v) for v in node.outputs if v.name or v.uses())
    if node.op_type in ("Gather", "GatherElements", "GatherND", "Slice", "Split", "Compress"):
        # They read only what they pick.
        return add(mul(2, written), total(_bytes(v) for v in _present(node.inputs[1:])))
    if node.op_type == "GatherBlockQuantized":
        bits = attribute(node, "bits", 4)
        return add(written, exact_div(mul(_elements(node.outputs[0]), bits), 8))
    return add(written, total(_read(v) for v in _present(node.inputs)))


def _prepared(node: onnx_ir.Node | None) -> list[onnx_ir.Value] | None:
    """The weights that ``node`` is made of, if it only rearranges or decodes weights; else None."""
    if node is None or node.op_type not in ("Transpose", "DequantizeLinear", "Reshape", "Cast", "Identity"):
        return None
    found: list[onnx_ir.Value] = []
    for value in _present(node.inputs):
        if value.is_initializer():
            found.append(value)
            continue
        inner = _prepared(value.producer())
        if inner is None:
            return None
        found += inner
    return found


def _read(value: onnx_ir.Value) -> Dim:
    weights = _prepared(value.producer())
    return _bytes(value) if weights is None else total(map(_bytes, weights))


def _present(values: Iterable[onnx_ir.Value | None]) -> list[onnx_ir.Value]:
    return [v for v in values if v is not None]


def _dims(value: onnx_ir.Value | None) -> Dims | None:
    return None if value is None or value.shape is None else value.shape.dims


def _elements(value: onnx_ir.Value | None) -> Dim:
    dims = _dims(value)
    return UNKNOWN if dims is None else product(dims)


def _bytes(value: onnx_ir.Value) -> Dim:
    count = _elements(value)
    if value.dtype is None or value.dtype == onnx_ir.DataType.STRING or not known(count):
        return UNKNOWN
    bits = value.dtype.bitwidth
    if bits % 8 == 0:
        return mul(count, bits // 8)
    if isinstance(count, int):
        return -(-count * bits // 8)
    expr = to_expr(count)
    assert expr is not None
    # Codes of less than a byte are packed.
    return to_dim(-sympy.floor(-expr * bits / 8))


def _matmul(node: onnx_ir.Node) -> Dim:
    left = _dims(node.inputs[0])
    return UNKNOWN if not left else mul(2, mul(_elements(node.outputs[0]), left[-1]))


def _fused_matmul(node: onnx_ir.Node) -> Dim:
    left = _dims(node.inputs[0])
    if not left:
        return UNKNOWN
    return mul(2, mul(_elements(node.outputs[0]), left[-2] if attribute(node, "transA", 0) else left[-1]))


def _gemm(node: onnx_ir.Node) -> Dim:
    result = _fused_matmul(node)
    return add(result, _elements(node.outputs[0])) if len(node.inputs) > 2 and node.inputs[2] is not None else result


def _nbits(node: onnx_ir.Node) -> Dim:
    return mul(2 * attribute(node, "K"), _elements(node.outputs[0]))


def _conv(node: onnx_ir.Node) -> Dim:
    weight = _dims(node.inputs[3 if node.op_type == "QLinearConv" else 1])
    if weight is None:
        return UNKNOWN
    out = _elements(node.outputs[0])
    biased = len(node.inputs) > 2 and node.inputs[2] is not None and node.op_type in ("Conv", "FusedConv")
    return add(mul(mul(2, out), product(weight[1:])), out if biased else 0)


def _conv_transpose(node: onnx_ir.Node) -> Dim:
    weight = _dims(node.inputs[1])
    return UNKNOWN if weight is None else mul(mul(2, _elements(node.inputs[0])), product(weight[1:]))


def _pool(node: onnx_ir.Node) -> Dim:
    return mul(_elements(node.outputs[0]), product(attribute(node, "kernel_shape", [1])))


def _einsum(node: onnx_ir.Node) -> Dim:
    left = str(attribute(node, "equation")).replace(" ", "").split("->")[0]
    if "." in left:
        return UNKNOWN
    sizes: dict[str, Dim] = {}
    for term, value in zip(left.split(","), node.inputs, strict=True):
        dims = _dims(value)
        if dims is None:
            return UNKNOWN
        sizes.update(zip(term, dims, strict=True))
    return mul(2 if len(node.inputs) > 1 else 1, product(sizes.values()))


def _recurrent(node: onnx_ir.Node) -> Dim:
    x, w = _dims(node.inputs[0]), _dims(node.inputs[1])
    hidden = attribute(node, "hidden_size")
    if x is None or w is None or hidden is None:
        return UNKNOWN
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op_type]
    step = mul(2 * gates * hidden, add(w[2], hidden))
    return mul(mul(mul(x[0], x[1]), w[0]), step)


def _attention(node: onnx_ir.Node) -> Dim:
    """Two products over the keys and a softmax of five operations a score; a causal mask saves nothing here."""
    q, k, v = (_dims(value) for value in node.inputs[:3])
    if q is None or k is None or v is None:
        return UNKNOWN
    if len(q) == 4:
        heads, head, v_head = q[1], q[3], v[3]
    else:
        heads = attribute(node, "q_num_heads", attribute(node, "num_heads"))
        kv_heads = attribute(node, "kv_num_heads", heads)
        head, v_head = exact_div(q[2], heads), exact_div(v[2], kv_heads)
    keys = k[-2]
    past_at = {"Attention": 4, "GroupQueryAttention": 3, "MultiHeadAttention": 6}[node.op_type]
    past = _dims(node.inputs[past_at]) if len(node.inputs) > past_at else None
    if past is not None:
        keys = add(past[2], keys)
    scores = product((q[0], heads, q[-2], keys))
    return mul(scores, add(mul(2, add(head, v_head)), 5))


def _plain_reduction(node: onnx_ir.Node) -> Dim:
    axes, dims = reduced_axes(node), _dims(node.inputs[0])
    # Reducing an axis of size 1 is no work.
    if axes is not None and dims is not None and all(dims[a] == 1 for a in axes):
        return 0
    return _elements(node.inputs[0])


_FORMULAS: dict[str, Callable[[onnx_ir.Node], Dim]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "DynamicQuantizeMatMul": _matmul,
    "Einsum": _einsum,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _fused_matmul,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "GroupQueryAttention": _attention,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MatMulBnb4": _nbits,
    "MatMulFpQ4": _nbits,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _nbits,
    "MaxPool": _pool,
    "MultiHeadAttention": _attention,
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
    "ReduceMax": _plain_reduction,
    "ReduceMean": _plain_reduction,
    "ReduceMin": _plain_reduction,
    "ReduceProd": _plain_reduction,
    "ReduceSum": _plain_reduction,
}
"""Formulas of contractions, pools and recurrences; other operators cost their work per element."""
