"""Shape inference: symbols survive, ONNX Runtime's shapes agree, contradictions are found, and it is fast."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.ir import symbolic
from burnish.ir.errors import VerificationError
from burnish.ir.infer import infer, infer_graph
from burnish.ir.shapes.arrangement import reshaped
from burnish.ir.shapes.movement import sliced
from burnish.ir.shapes.node_view import RULES, ShapeError, broadcast, show
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper


def dim(text: str | int) -> symbolic.Dim:
    return text if isinstance(text, int) else onnx_ir.SymbolicDim(text)


def dims(*texts: str | int) -> symbolic.Dims:
    return tuple(map(dim, texts))


def one(
    op: str, inputs: list[Any], attributes: dict[str, Any] | None = None, domain: str = "", opset: int = 23, n: int = 1
) -> list[str]:
    """Infer one node; inputs are shapes (float), (dtype, shape) or arrays (constants)."""
    values: list[onnx_ir.Value | None] = []
    for i, given_ in enumerate(inputs):
        if given_ is None:
            values.append(None)
            continue
        if isinstance(given_, np.ndarray):
            tensor = onnx_ir.Tensor(given_)
            value = onnx_ir.Value(
                name=f"x{i}",
                type=onnx_ir.TensorType(tensor.dtype),
                shape=onnx_ir.Shape(given_.shape),
                const_value=tensor,
            )
            graph_value = value
            graph = onnx_ir.Graph([], [], nodes=[], name="g")
            graph.register_initializer(graph_value)
        else:
            dtype, shape = (
                given_ if given_ and isinstance(given_[0], onnx_ir.DataType) else (onnx_ir.DataType.FLOAT, given_)
            )
            value = onnx_ir.Value(name=f"x{i}", type=onnx_ir.TensorType(dtype), shape=onnx_ir.Shape(dims(*shape)))
        values.append(value)
    node = onnx_ir.Node(
        domain,
        op,
        values,
        attributes=onnx_ir.convenience.convert_attributes(attributes or {}),
        num_outputs=n,
        name="node",
    )
    for i, output in enumerate(node.outputs):
        output.name = f"y{i}"
    infer(node, opset)
    return [
        f"{'?' if v.dtype is None else v.dtype.name}{show(None if v.shape is None else v.shape.dims)}"
        for v in node.outputs
    ]


INT64 = onnx_ir.DataType.INT64
UINT8 = onnx_ir.DataType.UINT8


def ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, dtype=np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Add", [("B", 1, 4), ("S", 4)], {}, "FLOAT[B, S, 4]"),
    ("Add", [("B", "S"), ("S",)], {}, "FLOAT[B, S]"),
    ("Mul", [("B", 4), (1,)], {}, "FLOAT[B, 4]"),
    ("Greater", [("B", 4), ()], {}, "BOOL[B, 4]"),
    ("Where", [(onnx_ir.DataType.BOOL, ("B", 1)), ("B", 4), ()], {}, "FLOAT[B, 4]"),
    ("Cast", [("B",)], {"to": 7}, "INT64[B]"),
    ("MatMul", [("B", "S", 8), (8, 4)], {}, "FLOAT[B, S, 4]"),
    ("MatMul", [("B", "H", "S", 8), ("B", "H", 8, "T")], {}, "FLOAT[B, H, S, T]"),
    ("MatMul", [(8,), ("B", 8, 4)], {}, "FLOAT[B, 4]"),
    ("Gemm", [("B", 8), (4, 8), (4,)], {"transB": 1}, "FLOAT[B, 4]"),
    ("Concat", [("B", "P", 4), ("B", "S", 4)], {"axis": 1}, "FLOAT[B, P + S, 4]"),
    ("Concat", [("B", 3), ("B", 5)], {"axis": -1}, "FLOAT[B, 8]"),
    ("Transpose", [("B", "S", 4)], {"perm": [0, 2, 1]}, "FLOAT[B, 4, S]"),
    ("Unsqueeze", [("B", "S"), ints(1, -1)], {}, "FLOAT[B, 1, S, 1]"),
    ("Squeeze", [("B", 1, "S"), ints(1)], {}, "FLOAT[B, S]"),
    ("Reshape", [("B", "S", 576), ints(0, 0, 9, 64)], {}, "FLOAT[B, S, 9, 64]"),
    ("Reshape", [("B", "S", 9, 64), ints(0, 0, -1)], {}, "FLOAT[B, S, 576]"),
    ("Reshape", [("B", "S", 576), ints(-1, 576)], {}, "FLOAT[B*S, 576]"),
    ("Reshape", [("B*S", 576), ints(-1, 64)], {}, "FLOAT[9*B*S, 64]"),
    ("Flatten", [("B", 3, 4)], {}, "FLOAT[B, 12]"),
    ("Gather", [(100, 8), (INT64, ("B", "S"))], {}, "FLOAT[B, S, 8]"),
    ("Gather", [("B", "S", 8), (INT64, ())], {"axis": 1}, "FLOAT[B, 8]"),
    ("Shape", [("B", "S", 8)], {}, "INT64[3]"),
    ("Shape", [("B", "S", 8)], {"start": -1}, "INT64[1]"),
    ("ReduceMean", [("B", "S", 8), ints(-1)], {}, "FLOAT[B, S, 1]"),
    ("ReduceSum", [("B", "S", 8), ints(1)], {"keepdims": 0}, "FLOAT[B, 8]"),
    ("ReduceMax", [("B", "S")], {"keepdims": 0}, "FLOAT[]"),
    ("ArgMax", [("B", "S", 8)], {"axis": -1, "keepdims": 0}, "INT64[B, S]"),
    ("Slice", [("B", "S"), ints(0), ints(2), ints(1)], {}, "FLOAT[B, Min(2, S)]"),
    ("Slice", [("B", "S"), ints(-1), ints(2**63 - 1), ints(1)], {}, "FLOAT[B, 1]"),
    ("Slice", [("B", "S"), ints(1), ints(2**63 - 1), ints(1)], {}, "FLOAT[B, S - 1]"),
    ("Slice", [("B", "S"), ints(0), ints(-1), ints(1)], {}, "FLOAT[B, S - 1]"),
    ("Slice", [("B", 64), ints(0), ints(32), ints(-1)], {}, "FLOAT[B, 32]"),
    ("Slice", [("B", "S"), ints(-1), ints(-(2**63)), ints(1), ints(-1)], {}, "FLOAT[B, S]"),
    ("Expand", [("B", 1, 4), ints(1, 3, 1)], {}, "FLOAT[B, 3, 4]"),
    ("Tile", [("B", 3), ints(2, 2)], {}, "FLOAT[2*B, 6]"),
    ("Pad", [("B", 3), ints(0, 1, 0, 2)], {}, "FLOAT[B, 6]"),
    ("ConstantOfShape", [ints(2, 3)], {}, "FLOAT[2, 3]"),
    ("Range", [np.array(0), np.array(7), np.array(2)], {}, "INT64[4]"),
    ("Softmax", [("B", "S")], {}, "FLOAT[B, S]"),
    ("Conv", [("B", 3, "H", "W"), (8, 3, 3, 3)], {"pads": [1, 1, 1, 1]}, "FLOAT[B, 8, H, W]"),
    ("Conv", [("B", 4, 8, 8), (8, 1, 3, 3)], {"group": 4, "strides": [2, 2]}, "FLOAT[B, 8, 3, 3]"),
    ("MaxPool", [("B", 3, 7, 7)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "FLOAT[B, 3, 4, 4]"),
    ("GlobalAveragePool", [("B", 3, "H", "W")], {}, "FLOAT[B, 3, 1, 1]"),
    ("Einsum", [("B", "S", 8), ("B", 8, "T")], {"equation": "bsk,bkt->bst"}, "FLOAT[B, S, T]"),
    ("RMSNormalization", [("B", "S", 8), (8,)], {}, "FLOAT[B, S, 8]"),
    ("DequantizeLinear", [(UINT8, (4, 8)), (4, 2), (UINT8, (4, 2))], {"axis": 1, "block_size": 4}, "FLOAT[4, 8]"),
    ("QuantizeLinear", [("B", 8), (), (UINT8, ())], {}, "UINT8[B, 8]"),
    ("OneHot", [(INT64, ("B",)), np.array(5), (2,)], {}, "FLOAT[B, 5]"),
    ("TopK", [("B", 9), ints(3)], {}, "FLOAT[B, 3]"),
    ("DepthToSpace", [("B", 8, "H", "W")], {"blocksize": 2}, "FLOAT[B, 2, 2*H, 2*W]"),
]


@pytest.mark.parametrize(("op", "inputs", "attributes", "expected"), CASES, ids=[f"{c[0]}-{c[3]}" for c in CASES])
def test_rule(op: str, inputs: list[Any], attributes: dict[str, Any], expected: str) -> None:
    assert one(op, inputs, attributes)[0] == expected


def test_several_outputs() -> None:
    assert one("Split", [("B", 10), ints(3, 7)], {"axis": 1}, n=2) == ["FLOAT[B, 3]", "FLOAT[B, 7]"]
    assert one("Split", [("B", 7)], {"axis": 1, "num_outputs": 2}, n=2) == ["FLOAT[B, 4]", "FLOAT[B, 3]"]
    assert one("LSTM", [("S", "B", 3), (1, 8, 3), (1, 8, 2)], {"hidden_size": 2}, n=3) == [
        "FLOAT[S, 1, B, 2]",
        "FLOAT[1, B, 2]",
        "FLOAT[1, B, 2]",
    ]
    assert one("LayerNormalization", [("B", "S", 8), (8,)], {"axis": -1}, n=3) == [
        "FLOAT[B, S, 8]",
        "FLOAT[B, S, 1]",
        "FLOAT[B, S, 1]",
    ]


def test_attention_with_a_cache() -> None:
    attributes = {"q_num_heads": 9, "kv_num_heads": 3}
    cache = ("B", 3, "P", 64)
    inputs = [("B", "S", 576), ("B", "S", 192), ("B", "S", 192), ("B", 1, "S", "P + S"), cache, cache]
    assert one("Attention", inputs, attributes, n=3) == [
        "FLOAT[B, S, 576]",
        "FLOAT[B, 3, P + S, 64]",
        "FLOAT[B, 3, P + S, 64]",
    ]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        (
            "MatMulNBits",
            [("B", "S", 576), (UINT8, (1536, 9, 32)), (1536, 9)],
            {"N": 1536, "K": 576, "bits": 4, "block_size": 64},
            ["FLOAT[B, S, 1536]"],
        ),
        (
            "GatherBlockQuantized",
            [(UINT8, (1000, 288)), (INT64, ("B", "S")), (1000, 9)],
            {"bits": 4, "block_size": 64, "quantize_axis": 1},
            ["FLOAT[B, S, 576]"],
        ),
        ("FusedMatMul", [("B", 4, 8), ("B", 5, 8)], {"transB": 1}, ["FLOAT[B, 4, 5]"]),
        ("SkipSimplifiedLayerNormalization", [("B", "S", 8)] * 2 + [(8,)], {}, ["FLOAT[B, S, 8]"]),
        ("DynamicQuantizeMatMul", [("B", 8), (onnx_ir.DataType.INT8, (8, 4)), ()], {}, ["FLOAT[B, 4]"]),
        (
            "MatMulIntegerToFloat",
            [(UINT8, ("B", 8)), (onnx_ir.DataType.INT8, (8, 4)), (), (4,)],
            {},
            ["FLOAT[B, 4]"],
        ),
        ("QuickGelu", [("B", 4)], {}, ["FLOAT[B, 4]"]),
        ("BiasGelu", [("B", 4), (4,)], {}, ["FLOAT[B, 4]"]),
    ],
)
def test_runtime_operator(op: str, inputs: list[Any], attributes: dict[str, Any], expected: list[str]) -> None:
    assert one(op, inputs, attributes, domain="com.microsoft", opset=1, n=len(expected)) == expected


def test_group_query_attention_keeps_what_is_sure() -> None:
    inputs = [("B", "S", 576), ("B", "S", 192), ("B", "S", 192), ("B", 3, "P", 64), ("B", 3, "P", 64)]
    got = one("GroupQueryAttention", inputs, {"num_heads": 9, "kv_num_heads": 3}, "com.microsoft", 1, 3)
    assert got == ["FLOAT[B, S, 576]", "FLOAT[B, 3, ?, 64]", "FLOAT[B, 3, ?, 64]"]


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "said"),
    [
        ("MatMul", [("B", 8), (9, 4)], {}, "MatMul of shapes [B, 8] and [9, 4]"),
        ("Add", [(3,), (4,)], {}, "3 and 4 do not broadcast"),
        ("Concat", [("B", 3), ("B", 4)], {"axis": 0}, "must be equal"),
        ("Reshape", [(2, 3), ints(7)], {}, "changes the number of elements"),
        ("Reshape", [(2, 3), ints(4, -1)], {}, "changes the number of elements"),
        ("Squeeze", [(2, 3), ints(0)], {}, "which has size 2"),
        ("Transpose", [(2, 3)], {"perm": [0, 0]}, "Transpose by [0, 0]"),
        ("Add", [("B",), (INT64, ("B",))], {}, "inputs of types FLOAT and INT64"),
        ("Where", [(onnx_ir.DataType.BOOL, ()), (INT64, ("B",)), ("B",)], {}, "inputs of types INT64 and FLOAT"),
        ("Pow", [("B",), (INT64, ("B",))], {}, ""),
        ("Conv", [("B", 3, 8, 8), (4, 5, 3, 3)], {}, "must be equal"),
    ],
)
def test_contradiction(op: str, inputs: list[Any], attributes: dict[str, Any], said: str) -> None:
    if not said:
        one(op, inputs, attributes)
        return
    with pytest.raises(VerificationError, match="does not accept its inputs") as error:
        one(op, inputs, attributes)
    assert said in str(error.value)


def test_recorded_types_stay_and_unknown_dimensions_are_filled() -> None:
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["B", 4]))
    node = onnx_ir.Node("", "Relu", [x])
    node.outputs[0].shape = onnx_ir.Shape(["batch", None])
    infer(node, 23)
    assert str(node.outputs[0].shape) == "[batch,4]"


def test_broadcast_of_unrelated_symbols_is_unknown() -> None:
    assert show(broadcast(dims("A"), dims("B"))) == "[?]"
    # A table of 512 positions sliced to the sequence broadcasts with the sequence.
    assert show(broadcast(dims("S"), dims("Min(512, S)"))) == "[S]"
    with pytest.raises(ShapeError):
        broadcast(dims(2), dims(3))


@settings(deadline=None)
@given(st.integers(0, 8), st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slice_length_of_numbers(size: int, start: int, end: int, step: int) -> None:
    # ONNX: negative bounds count from the end, then both are clamped.
    first, last = (start + size if start < 0 else start), (end + size if end < 0 else end)
    first = min(max(first, 0), size) if step > 0 else min(max(first, 0), size - 1)
    last = min(max(last, 0), size) if step > 0 else min(max(last, -1), size)
    if size == 0:
        first = last = 0
    assert sliced(size, start, end, step) == len(range(first, last, step))


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3))
def test_slice_length_of_symbols(size: int, start: int, end: int, step: int) -> None:
    found = sliced(dim("S"), start, end, step)
    if symbolic.known(found):
        assert symbolic.evaluate(found, {"S": size}) == sliced(size, start, end, step)


def test_reshape_infers_one_unknown_dimension() -> None:
    assert show(reshaped(dims("B", "S", 8), [symbolic.UNKNOWN, dim("S"), 8])) == "[B, S, 8]"
    assert show(reshaped(dims("B*S", 8), [dim("B"), dim("S"), -1])) == "[B, S, 8]"
    assert show(reshaped(None, [0, 3, -1])) == "[?, 3, ?]"


def test_unnamed_dimensions_get_names(parse: Any, value_of: Any) -> None:
    model = parse("agraph (float[N, 4] x) => (float[A, 4] y) { i = NonZero(x) t = Transpose(i) y = GatherND(x, t) }")
    model.graph.outputs[0].shape = None
    infer_graph(model)
    assert show(value_of(model, "t").shape.dims) == "[u0, 2]"
    assert show(value_of(model, "y").shape.dims) == "[u0]"


def test_input_dimensions_that_cannot_be_computed_with_are_renamed() -> None:
    x = onnx_ir.Value(
        name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["batch size?", "?", "?", -1])
    )
    node = onnx_ir.Node("", "Relu", [x])
    node.outputs[0].name = "y"
    model = onnx_ir.Model(onnx_ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)
    infer_graph(model)
    assert x.shape is not None
    first, *rest = (d.value for d in x.shape if isinstance(d, onnx_ir.SymbolicDim))
    assert first == "d_batch_size_" and len(set(rest)) == 3
    assert node.outputs[0].shape == x.shape


def test_wrong_record_of_a_file_is_corrected(parse: Any, value_of: Any) -> None:
    model = parse("agraph (float[B, 4] x) => (float[B, 4] y) <float[7, 9] h> { h = Relu(x) y = Neg(h) }")
    infer_graph(model)
    # A 7 beside a dynamic batch is a leftover of whoever made it dynamic.
    assert show(value_of(model, "h").shape.dims) == "[B, 4]"


def test_names_of_output_dimensions_stay_where_inputs_do_not_contradict(parse: Any, value_of: Any) -> None:
    model = parse("agraph (float[B, S] x) => (float[rows, B] y, float[B, T] z) { y = Relu(x) z = Neg(x) }")
    infer_graph(model)
    assert show(value_of(model, "y").shape.dims) == "[rows, S]"
    assert show(value_of(model, "z").shape.dims) == "[B, T]"


def test_contradictions_are_reported_or_raised(parse: Any) -> None:
    text = "agraph (float[B, 4] x, float[5] w) => (float[B, 4] y) { y = Add(x, w) }"
    (found,) = infer_graph(parse(text))
    assert "4 and 5 do not broadcast" in found
    with pytest.raises(VerificationError):
        infer_graph(parse(text), strict=True)


def test_subgraphs(parse: Any, value_of: Any) -> None:
    model = parse(
        """agraph (bool c, float[B, 4] x) => (float[A, 4] y) {
            y = If(c) <then_branch = t () => (float[C, 4] a) { a = Relu(x) },
                       else_branch = e () => (float[D, 4] b) { b = Neg(x) }>
        }"""
    )
    model.graph.outputs[0].shape = None
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape, value.type = None, None
    infer_graph(model)
    assert show(value_of(model, "a").shape.dims) == "[B, 4]"
    assert show(value_of(model, "y").shape.dims) == "[B, 4]"


def test_calls_of_functions(parse: Any, value_of: Any) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 23, "burnish" : 1]>
        agraph (float[B, S] x) => (float[A, C] y) {
            t = burnish.Turn<order = [1, 0]>(x) y = burnish.Turn<order = [0, 1]>(t)
        }
        <domain: "burnish", opset_import: ["" : 23]> Turn <order> (a) => (b) {
            r = Relu(a) b = Transpose<perm: ints = @order>(r) }"""
    )
    model.graph.outputs[0].shape = None
    infer_graph(model, strict=True)
    assert show(value_of(model, "t").shape.dims) == "[S, B]"
    assert show(value_of(model, "y").shape.dims) == "[S, B]"
    (function,) = model.functions.values()
    assert all(v.shape is None for n in function for v in n.outputs)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_against_execution(random_graphs: Any, run: Any, data: Any) -> None:
    """Every inferred dtype and shape is what ONNX Runtime computes, at two sets of sizes."""
    sample = data.draw(random_graphs())
    model = onnx_ir.from_proto(sample.model)
    assert infer_graph(model, strict=True) == []
    values = {v.name: v for node in model.graph for v in node.outputs}
    for sizes in ({"B": 2, "S": 5}, {"B": 3, "S": 1}):
        found = run(sample.model, sample.feeds(**sizes), list(values))
        for name, array in found.items():
            shape = values[name].shape
            assert shape is not None and values[name].dtype is not None
            # Nothing is unknown in these graphs.
            assert [symbolic.evaluate(d, sizes) for d in shape] == list(array.shape), name
            assert values[name].dtype.numpy() == array.dtype


def layers(count: int) -> onnx.ModelProto:
    """Something like a decoder: per layer a norm, two products, reshapes with shape arithmetic, a residual."""
    nodes, inits = [], [numpy_helper.from_array(np.zeros((64, 64), np.float32), "w")]
    for name, data in {"zero": [0], "one": [1], "heads": [4], "size": [16], "free": [-1], "flat": [64]}.items():
        inits.append(numpy_helper.from_array(np.array(data, np.int64), name))
    inits.append(numpy_helper.from_array(np.ones(64, np.float32), "g"))
    x = "x"
    for i in range(count):
        n = [f"l{i}_{k}" for k in range(40)]
        nodes += [
            helper.make_node("RMSNormalization", [x, "g"], [n[0]]),
            helper.make_node("MatMul", [n[0], "w"], [n[1]]),
            helper.make_node("Shape", [n[1]], [n[2]]),
            helper.make_node("Gather", [n[2], "zero"], [n[3]]),
            helper.make_node("Gather", [n[2], "one"], [n[4]]),
            helper.make_node("Concat", [n[3], n[4], "heads", "size"], [n[5]], axis=0),
            helper.make_node("Reshape", [n[1], n[5]], [n[6]]),
            helper.make_node("Transpose", [n[6]], [n[7]], perm=[0, 2, 1, 3]),
            helper.make_node("Transpose", [n[7]], [n[8]], perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", [n[7], n[8]], [n[9]]),
            helper.make_node("Softmax", [n[9]], [n[10]]),
            helper.make_node("MatMul", [n[10], n[7]], [n[11]]),
            helper.make_node("Transpose", [n[11]], [n[12]], perm=[0, 2, 1, 3]),
            helper.make_node("Concat", [n[3], n[4], "free"], [n[13]], axis=0),
            helper.make_node("Reshape", [n[12], n[13]], [n[14]]),
        ]
        last = n[14]
        for k in range(15, 39, 3):
            nodes += [
                helper.make_node("Mul", [last, n[0]], [n[k]]),
                helper.make_node("Sigmoid", [n[k]], [n[k + 1]]),
                helper.make_node("Add", [n[k + 1], x], [n[k + 2]]),
            ]
            last = n[k + 2]
        x = last
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", 64])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        inits,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def test_speed_on_three_thousand_nodes(least_seconds: Any) -> None:
    proto = layers(78)
    models = [onnx_ir.from_proto(proto) for _ in range(3)]
    model = models[-1]
    count = sum(1 for _ in model.graph)
    assert count > 3000
    fresh = iter(models)
    took = least_seconds(lambda: infer_graph(next(fresh)))
    assert all(v.shape is not None and all(map(symbolic.known, v.shape)) for n in model.graph for v in n.outputs)
    assert show(model.graph.outputs[0].shape.dims) == "[B, S, 64]"
    # About 0.1 s on an idle machine; the margin is for a busy one.
    assert took < 1.0


def test_rules_are_registered() -> None:
    assert len(RULES) > 150
    assert all(domain in ("", "com.microsoft") for domain, _ in RULES)
