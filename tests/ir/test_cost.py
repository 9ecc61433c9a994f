"""Operations and bytes of nodes and graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.cost import Cost, byte_count, flops, graph_cost, node_cost
from burnish.ir.infer import infer_graph
from burnish.ir.shapes.node_view import show_dim

FLOAT = onnx_ir.DataType.FLOAT


def value(name: str, shape: tuple[Any, ...], dtype: onnx_ir.DataType = FLOAT) -> onnx_ir.Value:
    return onnx_ir.Value(name=name, type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(shape))


def node(
    op: str,
    inputs: list[onnx_ir.Value | None],
    attributes: dict[str, Any] | None = None,
    domain: str = "",
    outputs: int = 1,
) -> onnx_ir.Node:
    made = onnx_ir.Node(
        domain, op, inputs, attributes=onnx_ir.convenience.convert_attributes(attributes or {}), num_outputs=outputs
    )
    for i, v in enumerate(made.outputs):
        v.name = f"y{i}"
    graph = onnx_ir.Graph(
        [v for v in inputs if v is not None],
        made.outputs,
        nodes=[made],
        opset_imports={"": 23, "com.microsoft": 1},
        name="g",
    )
    infer_graph(onnx_ir.Model(graph, ir_version=10))
    return made


@pytest.mark.parametrize(
    ("made", "operations", "moved"),
    [
        (node("MatMul", [value("a", ("M", 8)), value("b", (8, 4))]), "64*M", "48*M + 128"),
        (node("Gemm", [value("a", (2, 8)), value("b", (8, 4)), value("c", (4,))]), "136", "240"),
        (node("Add", [value("a", ("M", 8)), value("b", (8,))]), "8*M", "64*M + 32"),
        (node("Softmax", [value("a", ("M", 8))]), "40*M", "64*M"),
        (node("ReduceSum", [value("a", ("M", 8))], {"keepdims": 0}), "8*M", "32*M + 4"),
        (node("Reshape", [value("a", ("M", 8)), value("s", (1,), onnx_ir.DataType.INT64)]), "0", "0"),
        (node("Transpose", [value("a", ("M", 8))]), "0", "64*M"),
        (node("Conv", [value("x", (1, 3, 8, 8)), value("w", (4, 3, 3, 3))], {"pads": [1] * 4}), "13824", "2224"),
        (node("Conv", [value("x", (1, 4, 8, 8)), value("w", (4, 1, 1, 1))], {"group": 4}), "512", "2064"),
        # 5 ids pick 5 rows of the table; the rest of it is not read.
        (node("Gather", [value("t", (1000, 8)), value("i", (5,), onnx_ir.DataType.INT64)]), "0", "360"),
        (node("Einsum", [value("a", (2, 3)), value("b", (3, 4))], {"equation": "ij,jk->ik"}), "48", "104"),
        (node("MaxPool", [value("x", (1, 1, 4, 4))], {"kernel_shape": [2, 2], "strides": [2, 2]}), "16", "80"),
    ],
)
def test_node(made: onnx_ir.Node, operations: str, moved: str) -> None:
    assert (show_dim(flops(made)), show_dim(byte_count(made))) == (operations, moved)


def test_attention() -> None:
    cache = ("B", 3, "P", 64)
    inputs: list[onnx_ir.Value | None] = [
        value("q", ("B", "S", 576)),
        value("k", ("B", "S", 192)),
        value("v", ("B", "S", 192)),
        None,
        value("pk", cache),
        value("pv", cache),
    ]
    made = node("Attention", inputs, {"q_num_heads": 9, "kv_num_heads": 3}, outputs=3)
    # 9 heads, S queries, P + S keys: 2·(64 + 64) operations and a softmax of 5 per score.
    assert node_cost(made, {"B": 2, "S": 1, "P": 127}).flops == 2 * 9 * 128 * (256 + 5)


def test_four_bit_product() -> None:
    weight = value("w", (1536, 9, 32), onnx_ir.DataType.UINT8)
    made = node(
        "MatMulNBits",
        [value("a", ("M", 576)), weight, value("s", (1536, 9))],
        {"N": 1536, "K": 576, "bits": 4, "block_size": 64},
        "com.microsoft",
    )
    cost = node_cost(made, {"M": 1})
    assert cost.flops == 2 * 576 * 1536
    assert cost.bytes == 4 * 576 + 1536 * 9 * 32 + 1536 * 9 * 4 + 4 * 1536


def test_packed_types() -> None:
    made = node("DequantizeLinear", [value("q", (3, 5), onnx_ir.DataType.UINT4), value("s", ())])
    # 15 codes of half a byte in 8 bytes.
    assert byte_count(made) == 8 + 4 + 60


def test_lstm() -> None:
    made = node("LSTM", [value("x", ("S", 2, 3)), value("w", (1, 16, 3)), value("r", (1, 16, 4))], {"hidden_size": 4})
    assert node_cost(made, {"S": 5}).flops == 5 * 2 * 2 * 16 * (3 + 4)


def test_what_is_not_known_is_said(parse: Any) -> None:
    model = parse(
        """agraph (float[M, 8] x, float[8] u) => (float[A, B] z) <float w = {2}> {
            [product] y = Mul(x, w) [odd] z = Unknown(y) }"""
    )
    infer_graph(model)
    cost = graph_cost(model, {"M": 4})
    assert cost.flops == 32 and cost.weights == 4 and cost.unknown == ["odd"]
    assert cost.by_operator["Mul"] == Cost(32, 4 * 32 * 2 + 4)
    assert graph_cost(model).unknown == ["product", "odd"]


def test_graph(parse: Any) -> None:
    text = ", ".join(["1"] * 32)
    model = parse(
        f"""agraph (float[M, 8] x) => (float[M, 4] y) <float[8, 4] w = {{{text}}}> {{
            h = Relu(x) y = MatMul(h, w) }}"""
    )
    infer_graph(model)
    cost = graph_cost(model, {"M": 3})
    assert cost.flops == 3 * 8 + 2 * 3 * 8 * 4
    assert cost.bytes == 2 * 96 + (96 + 128 + 48)
    assert cost.weights == np.zeros((8, 4), np.float32).nbytes
    assert cost.unknown == []


def test_weights_are_read_in_their_own_size(parse: Any) -> None:
    codes = ", ".join(["1"] * 32)
    model = parse(
        f"""agraph (float[M, 8] x) => (float[M, 4] y) <uint8[4, 8] q = {{{codes}}}, float s = {{0.5}}> {{
            w = DequantizeLinear(q, s) t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t) }}"""
    )
    infer_graph(model)
    dequantize, transpose, product = model.graph
    assert [node_cost(n, {"M": 1}) for n in (dequantize, transpose)] == [Cost(0, 0), Cost(0, 0)]
    # x, 32 codes of a byte and one scale, y.
    assert node_cost(product, {"M": 1}) == Cost(2 * 8 * 4, 32 + (32 + 4) + 16)
