from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import pytest
from burnish.ir.errors import ModelError, OptionError, SelectorError, UnsupportedError
from burnish.ir.graph import MODULE
from burnish.ir.rewrite import Editor
from burnish.ir.weights import lazy
from burnish.passes.base import Context, Outcome
from burnish.passes.quantize import Quantize
from burnish.passes.quantize.tensors import stored_bytes

WIDTH = 96


class Builder:
    """A graph with one input ``x`` [batch, WIDTH] and named modules."""

    def __init__(self, opset: int = 23) -> None:
        self.model = onnx_ir.Model(onnx_ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="g"), ir_version=10)
        self.x = onnx_ir.Value(
            name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["batch", WIDTH])
        )
        self.model.graph.inputs.append(self.x)
        self.edit = Editor(self.model, "test")
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int, name: str = "w", dtype: Any = np.float32) -> onnx_ir.Value:
        return self.edit.initializer(self.random.standard_normal(shape).astype(dtype), name)

    def op(self, op_type: str, *inputs: onnx_ir.Value | None, module: str = "", **attributes: Any) -> onnx_ir.Value:
        value = self.edit.op(op_type, inputs, attributes)
        node = value.producer()
        assert node is not None
        if module:
            node.metadata_props[MODULE] = module
        return value

    def linear(self, x: onnx_ir.Value, weight: onnx_ir.Value, module: str = "") -> onnx_ir.Value:
        return self.op("MatMul", x, self.op("Transpose", weight, perm=[1, 0]), module=module)

    def done(self, *outputs: onnx_ir.Value) -> onnx_ir.Model:
        self.model.graph.outputs.extend(outputs)
        return self.model


def run(model: onnx_ir.Model, quantize: Quantize | None = None) -> Outcome:
    outcome = (quantize or Quantize()).run(model, Context())
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    return outcome


def ops(model: onnx_ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def reasons(outcome: Outcome, kind: str) -> list[str]:
    return [remark.reason for remark in outcome.remarks if remark.kind == kind]


def test_every_form_of_a_product() -> None:
    b = Builder()
    torch_like = b.linear(b.x, b.weight(64, WIDTH))
    plain = b.op("MatMul", b.x, b.weight(WIDTH, 64))
    gemm = b.op("Gemm", b.x, b.weight(WIDTH, 64), b.weight(64))
    gemm_b = b.op("Gemm", b.x, b.weight(64, WIDTH), None, transB=1)
    model = b.done(torch_like, plain, gemm, gemm_b)
    outcome = run(model)
    assert outcome.rewrites == {"quantize weights": 4}
    assert ops(model) == {"DequantizeLinear": 4, "Transpose": 1, "MatMul": 2, "Gemm": 2}
    axes = [n.attributes["axis"].value for n in model.graph if n.op_type == "DequantizeLinear"]
    assert axes == [1, 0, 0, 1]  # groups always run along what the product contracts
    assert all(n.attributes["block_size"].value == 64 for n in model.graph if n.op_type == "DequantizeLinear")
    total = outcome.remarks[-1].values
    assert total["products"] == total["products_found"] == 4
    assert total["weights"] == 4 * 64 * WIDTH


def test_nothing_is_computed_before_it_is_read() -> None:
    """But for a look at three weights, to see whether they come from a grid."""
    reads = []

    def compute() -> np.ndarray:
        reads.append(1)
        return np.random.default_rng(0).standard_normal((64, WIDTH)).astype(np.float32)

    b = Builder()
    weight = b.edit.initializer(lazy(compute, onnx_ir.DataType.FLOAT, (64, WIDTH)), "w")
    model = b.done(b.linear(b.x, weight))
    Quantize().run(model, Context())
    assert reads == [1]
    reads.clear()
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert len(tensors) == 3
    for tensor in tensors:
        assert tensor is not None
        tensor.numpy()
    assert reads == [1]  # codes, scales and zero points of one computation


def test_tied_embedding_is_one_weight() -> None:
    b = Builder()
    table = b.weight(3000, WIDTH, name="embed")
    ids = b.edit.op("Cast", [b.edit.op("ReduceMax", [b.x], {"keepdims": 0})], {"to": 7})
    rows = b.op("Gather", table, ids, module="embed_tokens")
    model = b.done(b.op("Identity", rows), b.linear(b.x, table, "lm_head"))
    outcome = run(model)
    assert outcome.rewrites == {"quantize weights": 1}
    (node,) = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert {use.node.op_type for use in node.outputs[0].uses()} == {"Gather", "Transpose"}
    assert "embed" not in model.graph.initializers
    assert outcome.remarks[-1].values["embeddings"] == 1


def test_what_is_left_alone_and_why() -> None:
    b = Builder()
    wide = onnx_ir.Value(
        name="y", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["batch", WIDTH, 8])
    )
    b.model.graph.inputs.append(wide)
    shared = b.weight(WIDTH, WIDTH, name="shared")
    both = b.weight(WIDTH, WIDTH, name="both")
    outputs = [
        b.op("MatMul", b.x, wide, module="attention"),
        b.op("MatMul", b.weight(64, WIDTH), wide, module="left"),
        b.op("MatMul", b.x, b.weight(4, WIDTH, 64), module="experts"),
        b.op("MatMul", b.x, b.op("Gather", b.weight(4, WIDTH, 64), b.edit.ints(1), axis=0), module="expert"),
        b.op("MatMul", b.x, b.weight(WIDTH, 4), module="small"),
        b.op("MatMul", b.x, shared, module="shared"),
        b.op("Add", b.x, b.op("ReduceSum", shared)),
        b.op("MatMul", b.x, both, module="both"),
        b.linear(b.x, both, module="both.turned"),
        b.op("Conv", wide, b.weight(8, WIDTH, 1), module="conv"),
        b.op("Gather", b.weight(128, WIDTH), b.edit.ints([3]), axis=0, module="positions"),
    ]
    model = b.done(*outputs)
    before = ops(model)
    outcome = run(model)
    assert ops(model) == before and not outcome.changed
    found = {remark.node: remark.reason for remark in outcome.remarks if remark.kind == "skipped"}
    assert found == {
        "attention": "neither operand is constant",
        "left": "the weight is the left operand",
        "experts": "the weight of shape [4,96,64] is a stack of matrices (experts?); only matrices are quantized",
        "expert": "the weight is cut out of a stack of matrices (experts?); only matrices are quantized",
        "small": "too small to pay: 384 weights, fewer than 2048",
        "shared": "ReduceSum at ReduceSum reads it too",
        "both": "it is used both as it is and transposed, so no axis can be divided into groups for both",
        "conv": "Conv has no kernel for low-bit weights",
        "positions": "a table of 12288 weights, fewer than 262144, read row by row",
    }
    assert reasons(outcome, "missed") == [
        "nothing was quantized: 0 of 4 products with constant weights and 0 embeddings quantized"
    ]


def layered() -> onnx_ir.Model:
    b = Builder()
    x = b.x
    for i in range(3):
        x = b.linear(x, b.weight(WIDTH, WIDTH, name=f"{i}.a"), f"layers.{i}.a")
        x = b.op("Gemm", x, b.weight(WIDTH, WIDTH, name=f"{i}.b"), module=f"layers.{i}.b")
    return b.done(x)


def bits(model: onnx_ir.Model) -> dict[str, int]:
    return {
        (n.inputs[0].name or "").removesuffix(".codes"): 4 if n.inputs[0].dtype == onnx_ir.DataType.UINT4 else 8
        for n in model.graph
        if n.op_type == "DequantizeLinear" and n.inputs[0] is not None
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"exclude": "layers.1"}, {"0.a": 4, "0.b": 4, "2.a": 4, "2.b": 4}),
        ({"include": ["*.a"], "exclude": ["layers.0.*"]}, {"1.a": 4, "2.a": 4}),
        ({"include": "op:Gemm"}, {"0.b": 4, "1.b": 4, "2.b": 4}),
        (
            {"overrides": {"layers.0": "w8a16", "op:Gemm": {"bits": 8, "group_size": 32}, "layers.2.a": "float"}},
            {"0.a": 8, "0.b": 8, "1.a": 4, "1.b": 8, "2.b": 8},
        ),
        ({"overrides": [("layers.0.a", "float"), ("layers.0", "w8a16")], "include": "layers.0"}, {"0.b": 8}),
    ],
)
def test_selection_and_overrides(options: dict[str, Any], expected: dict[str, int]) -> None:
    model = layered()
    run(model, Quantize(**options))
    assert bits(model) == expected


def test_shared_weight_is_left_if_one_user_is_excluded() -> None:
    b = Builder()
    weight = b.weight(WIDTH, WIDTH)
    model = b.done(b.linear(b.x, weight, "one"), b.linear(b.x, weight, "two"))
    outcome = run(model, Quantize(exclude="two"))
    assert not outcome.changed
    assert reasons(outcome, "skipped") == ["shared with two, which is not selected"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheme": "w4a61"}, OptionError, "did you mean 'w4a16'"),
        ({"bits": 5}, OptionError, "use 2, 3, 4 or 8 bits"),
        ({"group_size": 48}, OptionError, "taken by no kernel"),
        ({"group_size": 8}, OptionError, "16, 32, 64, 128, 256"),
        ({"group_size": 512}, OptionError, "taken by no kernel"),
        ({"symmetric": "yes"}, OptionError, "True or False"),
        ({"overrides": {"a": {"bitz": 4}}}, OptionError, "did you mean 'bits'"),
        ({"overrides": {"a": 7}}, OptionError, "is not an override"),
        ({"overrides": {"a": {"group_size": 33}}}, OptionError, "taken by no kernel"),
        ({"include": "op:"}, SelectorError, "is not a selector"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Quantize(**options)


@pytest.mark.parametrize("where", ["include", "exclude", "overrides"])
def test_selector_that_matches_nothing(where: str) -> None:
    value: Any = {"layers.7": "w8a16"} if where == "overrides" else "layers.7"
    with pytest.raises(SelectorError, match=r"matches none of the 6 products and embeddings") as caught:
        Quantize(**{where: value}).run(layered(), Context())
    assert "layers.2" in str(caught.value)


def test_options_are_hashable_and_compare() -> None:
    one, two = Quantize(overrides={"a": {"bits": 8}}), Quantize(overrides=[("a", {"bits": 8})])
    assert one == two and hash(one) == hash(two)


def test_shorthands() -> None:
    assert Quantize("w8a16").resolved.bits == 8
    assert Quantize(bits=8).resolved == Quantize("w8a16").resolved
    assert Quantize(group_size=-1).resolved.group_size == 0


@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256, 0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [4, 8])
def test_groups_that_do_not_divide(group_size: int, symmetric: bool, width: int) -> None:
    """K = 96 and N odd: the last group is shorter, rows of 4-bit codes end anywhere."""
    b = Builder()
    rows, columns = b.weight(65, WIDTH), b.weight(WIDTH, 65)
    model = b.done(b.linear(b.x, rows), b.op("MatMul", b.x, columns))
    floats = [np.array(v.const_value.numpy()) for v in (rows, columns) if v.const_value is not None]
    run(model, Quantize(bits=width, group_size=group_size, symmetric=symmetric))
    restored = onnx.reference.ReferenceEvaluator(
        onnx.helper.make_model(
            onnx.helper.make_graph(
                [onnx_ir.to_proto(n) for n in model.graph if n.op_type == "DequantizeLinear"],
                "dequantize",
                [],
                [
                    onnx.helper.make_tensor_value_info(n.outputs[0].name, 1, None)
                    for n in model.graph
                    if n.op_type == "DequantizeLinear"
                ],
                [_named(value) for value in model.graph.initializers.values()],
            ),
            opset_imports=[onnx.helper.make_opsetid("", 23)],
        )
    ).run(None, {})
    for have, want in zip(restored, floats, strict=True):
        step = (want.max() - want.min()) / (2**width - 1) * 1.15
        assert np.abs(have - want).max() <= step


def _named(value: onnx_ir.Value) -> onnx.TensorProto:
    proto = onnx_ir.to_proto(value.const_value)
    proto.name = value.name
    return proto


def test_constant_nodes_are_weights_too() -> None:
    b = Builder()
    data = onnx_ir.tensor(b.random.standard_normal((WIDTH, 64)).astype(np.float32))
    model = b.done(b.op("MatMul", b.x, b.op("Constant", value=data)))
    assert run(model).changed
    assert ops(model) == {"DequantizeLinear": 1, "MatMul": 1}


def test_half_precision_keeps_its_type() -> None:
    b = Builder()
    x = b.op("Cast", b.x, to=int(onnx_ir.DataType.FLOAT16))
    model = b.done(b.linear(x, b.weight(64, WIDTH, dtype=np.float16)))
    run(model)
    (node,) = [n for n in model.graph if n.op_type == "DequantizeLinear"]
    assert node.outputs[0].dtype == onnx_ir.DataType.FLOAT16
    assert node.inputs[1] is not None and node.inputs[1].dtype == onnx_ir.DataType.FLOAT16


def test_weight_that_is_not_finite_names_itself() -> None:
    b = Builder()
    data = np.ones((64, WIDTH), np.float32)
    data[3, 3] = np.nan
    model = b.done(b.linear(b.x, b.edit.initializer(data, "layers.0.weight")))
    Quantize().run(model, Context())
    with pytest.raises(ModelError, match=r"layers\.0\.weight"):
        model.graph.initializers["layers.0.weight.codes"].const_value.numpy()


def test_old_opset_is_refused() -> None:
    b = Builder(opset=17)
    model = b.done(b.op("MatMul", b.x, b.weight(WIDTH, 64)))
    with pytest.raises(UnsupportedError, match="opset 17"):
        Quantize().run(model, Context())


def test_bits_per_weight_counts_padding() -> None:
    scheme = Quantize(symmetric=True).resolved
    assert stored_bytes(1, 576, scheme) * 8 / 576 == 4.5
    # Group 128 pads 576 to 640: 320 bytes of codes and 5 scales.
    assert stored_bytes(1, 576, Quantize(group_size=128, symmetric=True).resolved) == 340
    # 9 zero points of 4 bits take 5 bytes.
    assert stored_bytes(1, 576, Quantize(symmetric=False).resolved) == 288 + 36 + 5
