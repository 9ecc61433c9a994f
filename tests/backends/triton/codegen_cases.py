"""Small graphs for generated kernels: for each operator that has a rule, and for what makes kernels hard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir
import torch
from burnish.ir.infer import infer_graph
from burnish.ir.outline import outline

DTYPES = {
    torch.float32: onnx_ir.DataType.FLOAT, torch.float64: onnx_ir.DataType.DOUBLE,
    torch.float16: onnx_ir.DataType.FLOAT16, torch.bfloat16: onnx_ir.DataType.BFLOAT16,
    torch.int64: onnx_ir.DataType.INT64, torch.int32: onnx_ir.DataType.INT32, torch.int8: onnx_ir.DataType.INT8,
    torch.uint8: onnx_ir.DataType.UINT8, torch.bool: onnx_ir.DataType.BOOL,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A graph with inputs.

    Attributes:
        name: of the case.
        make: builds the graph and its inputs.
        torch_calls: operators that may be left to PyTorch; whatever else is left there is a failure.
        kernels: how many launches there must be, if that is part of the case.
        tolerance: relative to the largest output.
    """

    name: str
    make: Callable[[], tuple[onnx_ir.Model, dict[str, torch.Tensor]]]
    torch_calls: tuple[str, ...] = ()
    kernels: int | None = None
    tolerance: float = 1e-5


class Build:
    """A graph in the making.

    Args:
        opset: of ONNX.
    """

    def __init__(self, opset: int = 23) -> None:
        self.model = onnx_ir.Model(
            onnx_ir.Graph([], [], nodes=[], opset_imports={"": opset, "com.microsoft": 1}, name="g"), ir_version=10
        )
        self.feeds: dict[str, torch.Tensor] = {}

    def input(self, tensor: torch.Tensor, shape: Sequence[int | str] | None = None) -> onnx_ir.Value:
        """An input with the tensor that is fed; sizes may have names."""
        name = f"a{len(self.feeds)}"
        dims = onnx_ir.Shape(list(shape) if shape is not None else list(tensor.shape))
        value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(DTYPES[tensor.dtype]), shape=dims)
        self.model.graph.inputs.append(value)
        self.feeds[name] = tensor
        return value

    def constant(self, array: Any, dtype: Any = np.int64) -> onnx_ir.Value:
        """An initializer."""
        tensor = onnx_ir.Tensor(np.asarray(array, dtype=dtype))
        value = onnx_ir.Value(
            name=f"c{len(self.model.graph.initializers)}", type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()), const_value=tensor,
        )  # fmt: skip
        self.model.graph.register_initializer(value)
        return value

    def op(
        self, kind: str, *inputs: onnx_ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> Any:
        """A node; its output, or all of them."""
        node = onnx_ir.Node(
            domain, kind, list(inputs), onnx_ir.convenience.convert_attributes(attributes), num_outputs=outputs
        )
        for n, value in enumerate(node.outputs):
            value.name = f"{kind.lower()}{len(list(self.model.graph))}_{n}"
        node.name = f"{kind}{len(list(self.model.graph))}"
        self.model.graph.append(node)
        infer_graph(self.model)
        return node.outputs[0] if outputs == 1 else node.outputs

    def typed(self, array: Any, kind: onnx_ir.DataType) -> onnx_ir.Value:
        """An initializer of a type that NumPy may not have."""
        tensor = onnx_ir.Tensor(np.asarray(array).astype(kind.numpy()), dtype=kind)
        name = f"c{len(self.model.graph.initializers)}"
        shape = onnx_ir.Shape(tensor.shape.numpy())
        value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(kind), shape=shape, const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def fused(self, *outputs: onnx_ir.Value) -> tuple[onnx_ir.Model, dict[str, torch.Tensor]]:
        """The graph with all nodes in one function, and the inputs."""
        model, feeds = self.done(*outputs)
        outline(model, list(model.graph), "block")
        return model, feeds

    def done(self, *outputs: onnx_ir.Value) -> tuple[onnx_ir.Model, dict[str, torch.Tensor]]:
        """The graph with these outputs, and the inputs."""
        self.model.graph.outputs.extend(outputs)
        infer_graph(self.model)
        return self.model, self.feeds


def _random(*shape: int, dtype: torch.dtype = torch.float32, low: float = -2.0, high: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    made = torch.rand(*shape, generator=generator) * (high - low) + low
    if dtype is torch.bool:
        return made > 0
    return made.to(dtype)


CASES: list[Case] = []


def case(name: str, **options: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(name, make, **options))
        return make

    return add


def _unary(
    kind: str, x: torch.Tensor, opset: int = 23, domain: str = "", tolerance: float = 1e-5, **attributes: Any
) -> None:
    def make() -> Any:
        b = Build(opset)
        return b.done(b.op(kind, b.input(x), domain=domain, **attributes))

    CASES.append(Case(f"{kind} {str(x.dtype)[6:]} {attributes or ''}".strip(), make, tolerance=tolerance))


def _binary(kind: str, x: torch.Tensor, y: torch.Tensor, **attributes: Any) -> None:
    def make() -> Any:
        b = Build()
        return b.done(b.op(kind, b.input(x), b.input(y), **attributes))

    CASES.append(Case(f"{kind} {str(x.dtype)[6:]} {list(x.shape)} {list(y.shape)} {attributes or ''}".strip(), make))


def _elementwise() -> None:
    wide = torch.cat([_random(3, 67, low=-30, high=30), _random(3, 33, low=-1, high=1)], 1)
    wide[0, :4] = torch.tensor([0.0, -0.0, 1.0, -1.0])
    for kind in ("Abs Neg Identity Ceil Floor Exp Erf Atan Sinh Cosh Tanh Asinh Softplus Round Mish Sigmoid Softsign "
                 "HardSwish Relu Sign Sin Cos").split():  # fmt: skip
        _unary(kind, _random(3, 100, low=-4, high=4) if kind in ("Sinh", "Cosh", "Exp", "Sin", "Cos") else wide)
    for kind, low, high in (("Log", 0.01, 9.0), ("Sqrt", 0.0, 9.0), ("Reciprocal", 0.1, 3.0), ("Acosh", 1.0, 9.0),
                            ("Acos", -1.0, 1.0), ("Asin", -1.0, 1.0), ("Atanh", -0.99, 0.99),
                            ("Tan", -1.2, 1.2)):  # fmt: skip
        _unary(kind, _random(5, 31, low=low, high=high))
    small = _random(7, 9)
    for kind in "Gelu Swish LeakyRelu ThresholdedRelu HardSigmoid Elu Celu Selu Shrink".split():
        opset = 24 if kind == "Swish" else 23
        _unary(kind, small, opset)
    _unary("Gelu", small, approximate="tanh")
    _unary("Swish", small, 24, alpha=1.7)
    _unary("Celu", small, alpha=0.7)
    _unary("Gelu", small, domain="com.microsoft")
    _unary("Not", _random(4, 5, dtype=torch.bool))
    _unary("BitwiseNot", _random(4, 5, dtype=torch.int32, low=-99, high=99))
    strange = torch.tensor([[float("inf"), float("-inf"), float("nan"), 1.0]])
    for kind in ("IsNaN", "IsInf"):
        _unary(kind, strange)
    _unary("IsInf", strange, detect_negative=0)
    for dtype in (torch.int32, torch.int64, torch.int8, torch.uint8):
        _unary("Abs", _random(4, 5, dtype=dtype, low=0, high=99))
    _unary("Sqrt", _random(4, 5, dtype=torch.float64, low=0))
    for dtype in (torch.float16, torch.bfloat16):
        for kind in ("Exp", "Tanh", "Sigmoid"):
            _unary(kind, _random(4, 33, dtype=dtype), tolerance=2e-2)

    for kind in "Add Sub Mul Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Sum Mean".split():
        _binary(kind, _random(3, 5, 7).round(), _random(5, 1).round() + 0.25 * (kind == "Div"))
    for kind in "Add Sub Mul Div Equal Greater Max Min BitwiseAnd BitwiseOr BitwiseXor Mod".split():
        _binary(kind, _random(3, 7, dtype=torch.int64, low=-20, high=20), _random(7, dtype=torch.int64, low=1, high=9))
    for kind in "And Or Xor Equal".split():
        _binary(kind, _random(3, 7, dtype=torch.bool), _random(3, 1, dtype=torch.bool))
    _binary("Mod", _random(3, 7, low=-9, high=9), _random(7, low=1, high=3), fmod=1)
    _binary("Mod", _random(3, 7, dtype=torch.int32, low=-9, high=9), _random(7, dtype=torch.int32, low=-5, high=-1))
    _binary(
        "BitShift",
        _random(3, 7, dtype=torch.uint8, low=0, high=99),
        _random(7, dtype=torch.uint8, low=0, high=4),
        direction="RIGHT",
    )
    _binary(
        "BitShift",
        _random(3, 7, dtype=torch.uint8, low=0, high=20),
        _random(7, dtype=torch.uint8, low=0, high=3),
        direction="LEFT",
    )
    _binary("Pow", _random(3, 7, low=0, high=3), _random(7))
    _binary("PRelu", _random(3, 7), _random(7))
    for exponent in (2.0, 3.0, 0.5, -1.0, 1.0, 1.7):

        def power(exponent: float = exponent) -> Any:
            b = Build()
            return b.done(b.op("Pow", b.input(_random(4, 5, low=0.1)), b.constant(exponent, np.float32)))

        CASES.append(Case(f"Pow {exponent}", power))


_elementwise()


@case("Pow of negative numbers")
def _pow() -> Any:
    b = Build()
    x = torch.tensor([-2.0, -2.0, -2.0, 0.0, 0.0, 0.0, 1.0, -1.5, 3.0])
    y = torch.tensor([3.0, 2.0, 0.5, 2.0, 0.0, -1.0, 5.0, -3.0, -2.0])
    return b.done(b.op("Pow", b.input(x), b.input(y)))


@case("Where")
def _where() -> Any:
    b = Build()
    c = b.input(_random(3, 1, dtype=torch.bool))
    return b.done(b.op("Where", c, b.input(_random(3, 5)), b.constant(-1e9, np.float32)))


@case("Clip", kernels=2)
def _clip() -> Any:
    b = Build()
    x = b.input(_random(3, 5))
    return b.done(
        b.op("Clip", x, b.constant(-0.5, np.float32), b.constant(1.0, np.float32)),
        b.op("Clip", x, None, b.constant(0.1, np.float32)),
    )


@case("Cast and CastLike")
def _cast() -> Any:
    b = Build()
    x, n = b.input(_random(3, 5)), b.input(_random(3, 5, dtype=torch.int32, low=-9, high=9))
    return b.done(
        b.op("Cast", x, to=onnx_ir.DataType.INT64.value), b.op("Cast", x, to=onnx_ir.DataType.BOOL.value),
        b.op("Cast", n, to=onnx_ir.DataType.FLOAT.value), b.op("CastLike", n, x),
        b.op("Cast", b.op("Greater", x, b.constant(0, np.float32)), to=onnx_ir.DataType.INT32.value),
    )  # fmt: skip


# The interpreter cuts float32 to bfloat16, where a GPU rounds: a place in 2 to the power of 7.
@case("Cast to bfloat16", tolerance=8e-3)
def _cast_small() -> Any:
    b = Build()
    small = b.op("Cast", b.input(_random(3, 5)), to=onnx_ir.DataType.BFLOAT16.value)
    return b.done(b.op("Cast", small, to=onnx_ir.DataType.FLOAT.value))


@case("Dropout")
def _dropout() -> Any:
    b = Build()
    return b.done(*b.op("Dropout", b.input(_random(3, 5)), outputs=2))


@case("BatchNormalization")
def _batch_norm() -> Any:
    b = Build()
    x = b.input(_random(2, 3, 4, 5))
    parameters = [b.input(_random(3, low=0.5 + n, high=1.5 + n)) for n in range(4)]
    return b.done(b.op("BatchNormalization", x, *parameters))


@case("Trilu")
def _trilu() -> Any:
    b = Build()
    x = b.input(_random(2, 4, 5))
    return b.done(b.op("Trilu", x), b.op("Trilu", x, b.constant(-1), upper=0))


def _rotary(name: str, x: torch.Tensor, positions: bool, **attributes: Any) -> None:
    def make() -> Any:
        b = Build()
        width = attributes.get("rotary_embedding_dim") or 8
        batch, sequence = x.shape[0], x.shape[1] if x.dim() == 3 else x.shape[2]
        if positions:
            tables = [b.input(_random(11, width // 2, low=n)) for n in (-1, -2)]
            ids = [b.input(_random(batch, sequence, dtype=torch.int64, low=0, high=10))]
        else:
            tables, ids = [b.input(_random(batch, sequence, width // 2, low=n)) for n in (-1, -2)], []
        return b.done(b.op("RotaryEmbedding", b.input(x), *tables, *ids, **attributes))

    CASES.append(Case(f"RotaryEmbedding {name}", make))


_rotary("halves", _random(2, 3, 5, 8), True)
_rotary("pairs", _random(2, 3, 5, 8), True, interleaved=1)
_rotary("flat", _random(2, 5, 24), False, num_heads=3)
_rotary("partial", _random(2, 3, 5, 10), True, rotary_embedding_dim=4)


@case("DequantizeLinear and QuantizeLinear")
def _quantize() -> Any:
    b = Build()
    x = b.input(_random(6, 8, low=-9, high=9))
    scale, zero = b.input(_random(8, low=0.05, high=0.1)), b.input(_random(8, dtype=torch.uint8, low=99, high=150))
    one = b.constant(0.1, np.float32)
    codes = b.op("QuantizeLinear", x, scale, zero, axis=1)
    blocks = b.input(_random(3, 8, low=0.05, high=0.1))
    return b.done(
        codes, b.op("DequantizeLinear", codes, scale, zero, axis=1),
        b.op("DequantizeLinear", b.op("QuantizeLinear", x, one, b.constant(3, np.int8)), one, b.constant(3, np.int8)),
        b.op("DequantizeLinear", codes, blocks, axis=0, block_size=2),
    )  # fmt: skip


@case("DynamicQuantizeLinear")
def _dynamic() -> Any:
    b = Build()
    return b.done(*b.op("DynamicQuantizeLinear", b.input(_random(5, 9)), outputs=3))


def _reductions() -> None:
    x = _random(3, 5, 4, low=0.1, high=2)
    for kind in ("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum "
                 "ReduceLogSumExp").split():  # fmt: skip
        for axes, keep in (((2,), 1), ((0,), 0), ((0, 2), 0), ((), 1), ((1, 2), 1)):

            def make(kind: str = kind, axes: tuple[int, ...] = axes, keep: int = keep) -> Any:
                b = Build()
                given = [b.constant(list(axes))] if axes else []
                return b.done(b.op(kind, b.input(x), *given, keepdims=keep))

            CASES.append(Case(f"{kind} {list(axes)} {keep}", make))
    for dtype in (torch.int64, torch.int32):
        for kind in ("ReduceSum", "ReduceMax", "ReduceMin"):

            def ints(kind: str = kind, dtype: torch.dtype = dtype) -> Any:
                b = Build()
                return b.done(b.op(kind, b.input(_random(3, 5, dtype=dtype, low=-9, high=9)), b.constant([1])))

            CASES.append(Case(f"{kind} {dtype}", ints))
    for kind in ("ArgMax", "ArgMin"):
        for options in ({"axis": 1}, {"axis": 0, "keepdims": 0}, {"axis": -1, "select_last_index": 1}):

            def arg(kind: str = kind, options: dict[str, int] = options) -> Any:
                b = Build()
                return b.done(b.op(kind, b.input(_random(3, 7).round()), **options))

            CASES.append(Case(f"{kind} {options}", arg))
    for kind in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
        for axis in (-1, 1, 0):

            def soft(kind: str = kind, axis: int = axis) -> Any:
                b = Build()
                return b.done(b.op(kind, b.input(_random(3, 5, 9, low=-8, high=8)), axis=axis))

            CASES.append(Case(f"{kind} {axis}", soft, kernels=1))


_reductions()


@case("ReduceMax with NaN")
def _nan() -> Any:
    b = Build()
    x = _random(3, 5)
    x[1, 2] = float("nan")
    return b.done(b.op("ReduceMax", b.input(x), b.constant([1])))


@case("Softmax of an old opset", kernels=1)
def _old_softmax() -> Any:
    b = Build(11)
    return b.done(b.op("Softmax", b.input(_random(3, 5, 9)), axis=1))


@case("GlobalAveragePool and GlobalMaxPool", kernels=2)
def _global() -> Any:
    b = Build()
    x = b.input(_random(2, 3, 5, 7))
    return b.done(b.op("GlobalAveragePool", x), b.op("GlobalMaxPool", x))


@case("LayerNormalization", kernels=1)
def _layer_norm() -> Any:
    b = Build()
    x = b.input(_random(2, 3, 50, low=9, high=11), ("batch", "tokens", 50))
    return b.done(b.op("LayerNormalization", x, b.input(_random(50)), b.input(_random(50))))


@case("LayerNormalization of two axes with its mean", kernels=1)
def _layer_norm_two() -> Any:
    b = Build()
    made = b.op("LayerNormalization", b.input(_random(4, 3, 5)), b.input(_random(3, 5)), None, axis=1, outputs=3)
    return b.done(*made)


@case("LayerNormalization of long rows", kernels=1)
def _layer_norm_long() -> Any:
    b = Build()
    return b.done(b.op("LayerNormalization", b.input(_random(2, 5001)), b.input(_random(5001))))


@case("Softmax of long rows", kernels=1)
def _softmax_long() -> Any:
    b = Build()
    return b.done(b.op("Softmax", b.input(_random(2, 4500, low=-9, high=9))))


@case("Softmax of rows of any length", kernels=1)
def _softmax_any() -> Any:
    b = Build()
    return b.done(b.op("Softmax", b.input(_random(2, 3, 17), ("batch", 3, "past"))))


@case("RMSNormalization", kernels=1, tolerance=2e-2)
def _rms() -> Any:
    b = Build()
    x = b.input(_random(2, 3, 33, dtype=torch.bfloat16))
    return b.done(b.op("RMSNormalization", x, b.input(_random(33, dtype=torch.bfloat16))))


def _runtime(name: str, kind: str, *tensors: torch.Tensor, outputs: int = 1, **attributes: Any) -> None:
    """An operator of ONNX Runtime."""

    def make() -> Any:
        b = Build()
        domain = "" if kind == "SimplifiedLayerNormalization" else "com.microsoft"
        made = b.op(kind, *map(b.input, tensors), outputs=outputs, domain=domain, **attributes)
        made = made if isinstance(made, onnx_ir.Value) else made[0]
        made.type, made.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape(list(tensors[0].shape))
        return b.done(made)

    CASES.append(Case(name, make))


_runtime("BiasGelu", "BiasGelu", _random(2, 3, 8), _random(8))
_runtime("FastGelu", "FastGelu", _random(2, 3, 8), _random(8))
_runtime("QuickGelu", "QuickGelu", _random(2, 3, 8))
_runtime("SimplifiedLayerNormalization", "SimplifiedLayerNormalization", _random(2, 3, 8), _random(8), axis=-1)
_runtime("SkipLayerNormalization", "SkipLayerNormalization", _random(2, 3, 8), _random(2, 3, 8, low=-1), _random(8),
         _random(8), _random(8))  # fmt: skip
_runtime("SkipSimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", _random(2, 3, 8),
         _random(2, 3, 8, low=-1), _random(8))  # fmt: skip


@case("RMSNormalization of a sum")
def _rms_sum() -> Any:
    b = Build()
    total = b.op("Add", b.input(_random(2, 3, 8)), b.input(_random(2, 3, 8)))
    return b.done(b.op("RMSNormalization", total, b.input(_random(8))))


@case("ReverseSequence")
def _reverse() -> Any:
    b = Build()
    return b.done(b.op("ReverseSequence", b.input(_random(5, 3, 2)), b.input(torch.tensor([2, 5, 1]))))


@case("CenterCropPad")
def _center() -> Any:
    b = Build()
    return b.done(b.op("CenterCropPad", b.input(_random(5, 7)), b.constant([8, 4])))


@case("InstanceNormalization", kernels=1)
def _instance() -> Any:
    b = Build()
    return b.done(b.op("InstanceNormalization", b.input(_random(2, 3, 4, 5)), b.input(_random(3)), b.input(_random(3))))


@case("GroupNormalization", kernels=1)
def _group() -> Any:
    b = Build()
    return b.done(
        b.op("GroupNormalization", b.input(_random(2, 6, 4, 5)), b.input(_random(6)), b.input(_random(6)), num_groups=3)
    )


@case("GroupNormalization of opset 18", kernels=1)
def _group_old() -> Any:
    b = Build(18)
    return b.done(
        b.op("GroupNormalization", b.input(_random(2, 6, 7)), b.input(_random(3)), b.input(_random(3)), num_groups=3)
    )


@case("MeanVarianceNormalization", kernels=1)
def _mvn() -> Any:
    b = Build()
    return b.done(b.op("MeanVarianceNormalization", b.input(_random(2, 3, 4, 5))))


def _after(x: onnx_ir.Value, b: Build) -> onnx_ir.Value:
    """Something that is no view, so that a kernel must read through the view."""
    return b.op("Mul", b.op("Neg", x), b.constant(0.5, np.float32))


def _movement() -> None:
    def single(name: str, build: Callable[[Build], onnx_ir.Value], opset: int = 23) -> None:
        def make() -> Any:
            b = Build(opset)
            return b.done(_after(build(b), b))

        CASES.append(Case(name, make))

    single("Reshape", lambda b: b.op("Reshape", b.input(_random(2, 6, 5)), b.constant([3, -1, 2])))
    single(
        "Reshape of any size", lambda b: b.op("Reshape", b.input(_random(2, 6, 5), ("n", 6, 5)), b.constant([0, 3, 10]))
    )
    single("Flatten", lambda b: b.op("Flatten", b.input(_random(2, 3, 4)), axis=2))
    single("Squeeze", lambda b: b.op("Squeeze", b.input(_random(2, 1, 4)), b.constant([1])))
    single("Unsqueeze", lambda b: b.op("Unsqueeze", b.input(_random(2, 4)), b.constant([0, 3])))
    single("Transpose", lambda b: b.op("Transpose", b.input(_random(2, 3, 5)), perm=[2, 0, 1]))
    single("Expand", lambda b: b.op("Expand", b.input(_random(3, 1)), b.constant([2, 3, 4])))
    single("Tile", lambda b: b.op("Tile", b.input(_random(2, 3)), b.constant([2, 3])))
    single(
        "Slice",
        lambda b: b.op(
            "Slice",
            b.input(_random(7, 9)),
            b.constant([1, -2]),
            b.constant([6, 0]),
            b.constant([0, 1]),
            b.constant([2, -3]),
        ),
    )
    single(
        "Slice of any size",
        lambda b: b.op(
            "Slice", b.input(_random(7, 9), ("n", 9)), b.constant([-3]), b.constant([2**62]), b.constant([0])
        ),
    )
    single(
        "Concat",
        lambda b: b.op("Concat", b.input(_random(2, 3)), b.input(_random(2, 1)), b.input(_random(2, 4)), axis=1),
    )
    single(
        "Concat of any size",
        lambda b: b.op("Concat", b.input(_random(2, 3), (2, "past")), b.input(_random(2, 1), (2, "new")), axis=1),
    )
    single("Gather", lambda b: b.op("Gather", b.input(_random(7, 5)), b.input(torch.tensor([[1, -1, 6]])), axis=0))
    single("Gather of one", lambda b: b.op("Gather", b.input(_random(7, 5)), b.constant(-2), axis=0))
    single(
        "Gather of the last axis",
        lambda b: b.op("Gather", b.input(_random(2, 7)), b.input(torch.tensor([3, 0])), axis=1),
    )
    single(
        "GatherElements",
        lambda b: b.op(
            "GatherElements", b.input(_random(3, 5)), b.input(torch.tensor([[0, 2, -1], [1, 1, 0]])), axis=0
        ),
    )
    single("GatherND", lambda b: b.op("GatherND", b.input(_random(3, 5, 2)), b.input(torch.tensor([[0, 2], [1, 4]]))))
    single(
        "GatherND of batches",
        lambda b: b.op(
            "GatherND", b.input(_random(2, 5, 3)), b.input(torch.tensor([[[2], [0]], [[1], [4]]])), batch_dims=1
        ),
    )
    single("Pad", lambda b: b.op("Pad", b.input(_random(3, 4)), b.constant([1, 2, 0, 3]), b.constant(7.0, np.float32)))
    single("Pad that cuts", lambda b: b.op("Pad", b.input(_random(3, 4)), b.constant([1, -1, 0, 2])))
    for mode in ("reflect", "edge", "wrap"):
        single(
            f"Pad {mode}", lambda b, mode=mode: b.op("Pad", b.input(_random(3, 4)), b.constant([2, 1, 1, 2]), mode=mode)
        )
    for mode in ("DCR", "CRD"):
        single(
            f"DepthToSpace {mode}",
            lambda b, mode=mode: b.op("DepthToSpace", b.input(_random(2, 8, 3, 2)), blocksize=2, mode=mode),
        )
    single("SpaceToDepth", lambda b: b.op("SpaceToDepth", b.input(_random(2, 3, 4, 6)), blocksize=2))
    single(
        "OneHot",
        lambda b: b.op("OneHot", b.input(torch.tensor([[0, 2], [-1, 1]])), b.constant(4), b.input(_random(2)), axis=1),
    )
    for mode, way in (
        ("nearest", "half_pixel"),
        ("nearest", "asymmetric"),
        ("linear", "half_pixel"),
        ("linear", "align_corners"),
    ):
        single(f"Resize {mode} {way}", lambda b, mode=mode, way=way: b.op(
            "Resize", b.input(_random(1, 2, 4, 5)), None, b.constant([1, 1, 2, 2], np.float32), mode=mode,
            coordinate_transformation_mode=way,
            nearest_mode="floor" if way == "asymmetric" else "round_prefer_floor"))  # fmt: skip
    single(
        "Resize to a size",
        lambda b: b.op("Resize", b.input(_random(1, 2, 4, 5)), None, None, b.constant([1, 2, 6, 3]), mode="nearest"),
    )
    single(
        "Upsample",
        lambda b: b.op("Upsample", b.input(_random(1, 2, 3, 4)), b.constant([1, 1, 2, 3], np.float32), mode="nearest"),
        9,
    )
    single("EyeLike", lambda b: b.op("EyeLike", b.input(_random(4, 5)), k=1))
    single(
        "ConstantOfShape",
        lambda b: b.op("ConstantOfShape", b.constant([3, 4]), value=onnx_ir.tensor(np.array([2.5], np.float32))),
    )
    single(
        "MaxPool",
        lambda b: b.op("MaxPool", b.input(_random(1, 2, 7, 8)), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    )
    single(
        "AveragePool",
        lambda b: b.op("AveragePool", b.input(_random(1, 2, 7, 8)), kernel_shape=[2, 3], pads=[0, 1, 0, 1]),
    )
    single(
        "AveragePool with its pads",
        lambda b: b.op("AveragePool", b.input(_random(1, 2, 7)), kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    )
    single(
        "Transpose of a transpose",
        lambda b: b.op("Transpose", b.op("Transpose", b.input(_random(2, 3, 4)), perm=[1, 0, 2]), perm=[0, 2, 1]),
    )


_movement()


@case("Split", kernels=3)
def _split() -> Any:
    b = Build()
    first, second = b.op("Split", b.input(_random(3, 7)), b.constant([3, 4]), axis=1, outputs=2)
    return b.done(_after(first, b), b.op("Exp", second))


@case("Range")
def _range() -> Any:
    b = Build()
    x = b.input(_random(5, 2), ("n", 2))
    size = b.op("Gather", b.op("Shape", x), b.constant(0), axis=0)
    made = b.op("Range", b.constant(0), size, b.constant(1))
    return b.done(b.op("Cast", made, to=onnx_ir.DataType.FLOAT.value))


def _product(name: str, dtype: torch.dtype, *, turned: bool, tail: str) -> None:
    """A product in 16 bits with what follows it: one call of a template."""

    def make() -> Any:
        b = Build()
        x = b.input(_random(2, 5, 32, dtype=dtype), ("batch", "tokens", 32))
        weight = _random(24, 32, low=-0.3, high=0.3)
        kind = np.float16 if dtype is torch.float16 else onnx_ir.DataType.BFLOAT16.numpy()
        if turned:
            w = b.op("Transpose", b.constant(weight.numpy(), kind), perm=[1, 0])
        else:
            w = b.constant(weight.T.numpy(), kind)
        y = b.op("Add", b.op("MatMul", x, w), b.input(_random(24, dtype=dtype)))
        if tail == "gelu":
            y = b.op("Gelu", y)
        elif tail == "residual":
            y = b.op("Add", b.input(_random(2, 5, 24, dtype=dtype), ("batch", "tokens", 24)), y)
        elif tail == "heads":
            y = b.op("Reshape", b.op("Sigmoid", y), b.constant([0, 0, 4, 6]))
        return b.fused(y)

    CASES.append(Case(f"MatMul {name}", make, kernels=0, tolerance=2e-2))


_product("and bias in bfloat16", torch.bfloat16, turned=True, tail="")
_product("and gelu in float16", torch.float16, turned=False, tail="gelu")
_product("and residual in bfloat16", torch.bfloat16, turned=True, tail="residual")
_product("cut into heads in float16", torch.float16, turned=True, tail="heads")


def _codes(name: str, kind: onnx_ir.DataType, *, turned: bool, zeros: bool, tail: bool) -> None:
    """Weights in blocks of codes, which a template expands."""

    def make() -> Any:
        b = Build()
        x = b.input(_random(3, 64), ("rows", 64))
        low, high = {"UINT4": (0, 15), "INT4": (-8, 7), "UINT8": (0, 255), "INT8": (-128, 127)}[kind.name]
        generator = np.random.default_rng(0)
        codes = generator.integers(low, high + 1, (20, 64))
        scales = generator.uniform(0.01, 0.02, (20, 2)).astype(np.float32)
        points = generator.integers(low, high + 1, (20, 2))
        if not turned:
            codes, scales, points = codes.T, scales.T, points.T
        given = [b.typed(codes, kind), b.constant(scales, np.float32)] + ([b.typed(points, kind)] if zeros else [])
        w = b.op("DequantizeLinear", *given, axis=1 if turned else 0, block_size=32)
        w = b.op("Transpose", w, perm=[1, 0]) if turned else w
        y = b.op("MatMul", x, w)
        return b.fused(b.op("Relu", b.op("Add", y, b.input(_random(20)))) if tail else y)

    CASES.append(Case(f"MatMul of {name}", make, kernels=0))


_codes("4 bits", onnx_ir.DataType.UINT4, turned=True, zeros=True, tail=True)
_codes("signed 4 bits", onnx_ir.DataType.INT4, turned=False, zeros=False, tail=False)
_codes("8 bits", onnx_ir.DataType.UINT8, turned=False, zeros=True, tail=True)
_codes("signed 8 bits", onnx_ir.DataType.INT8, turned=True, zeros=False, tail=False)


@case("Product whose result is needed as it is", torch_calls=("MatMul",), kernels=1, tolerance=2e-2)
def _product_twice() -> Any:
    b = Build()
    w = b.constant(_random(16, 16).numpy(), np.float16)
    y = b.op("MatMul", b.input(_random(3, 16, dtype=torch.float16)), w)
    return b.fused(y, b.op("Exp", y))


@case("Product with a sum along rows", torch_calls=("MatMul",), kernels=1, tolerance=2e-2)
def _product_softmax() -> Any:
    b = Build()
    w = b.constant(_random(16, 16).numpy(), np.float16)
    return b.fused(b.op("Softmax", b.op("MatMul", b.input(_random(3, 16, dtype=torch.float16)), w)))


@case("Block of many outputs", kernels=1)
def _many() -> Any:
    b = Build()
    x = b.input(_random(2, 3, 8), ("batch", 3, 8))
    total = b.op("Add", x, b.input(_random(1, 3, 1)))
    mean = b.op("ReduceMean", total, b.constant([2]), keepdims=0)
    return b.fused(total, mean, b.op("Softmax", total))


@case("Reductions over different axes", kernels=2)
def _different() -> Any:
    b = Build()
    x = b.op("Softmax", b.input(_random(4, 6)))
    return b.fused(b.op("Sub", x, b.op("ReduceMean", x, b.constant([0]))))


@case("Zero-size and rank 0", kernels=2)
def _zero() -> Any:
    b = Build()
    x, one = b.input(_random(0, 5), ("n", 5)), b.input(torch.tensor(1.5))
    total = b.op("Mul", b.op("Add", x, one), one)
    return b.fused(total, b.op("ReduceSum", b.op("Exp", total), b.constant([0]), keepdims=0))


@case("Rank 0 only", kernels=1)
def _scalar() -> Any:
    b = Build()
    return b.fused(b.op("Exp", b.op("Add", b.input(torch.tensor(0.5)), b.constant(1.0, np.float32))))


@case("Broadcast of sizes that may be 1", kernels=1)
def _maybe_one() -> Any:
    b = Build()
    x, y = b.input(_random(3, 5), ("n", 5)), b.input(_random(1, 5), (1, 5))
    return b.fused(b.op("Mul", b.op("Add", x, y), y))


@case("Rotated halves", kernels=1)
def _halves() -> Any:
    b = Build()
    x = b.input(_random(2, 4, 3, 8), ("batch", 4, "tokens", 8))
    cos, sin = (b.input(_random(2, 1, 3, 8, low=n), ("batch", 1, "tokens", 8)) for n in (-1, -2))
    low = b.op("Slice", x, b.constant([0]), b.constant([4]), b.constant([3]))
    high = b.op("Slice", x, b.constant([4]), b.constant([8]), b.constant([3]))
    turned = b.op("Concat", b.op("Neg", high), low, axis=3)
    return b.fused(b.op("Add", b.op("Mul", x, cos), b.op("Mul", turned, sin)))


@case("Transposed, cut and put together", kernels=1)
def _moved() -> Any:
    b = Build()
    x = b.op("Transpose", b.op("Reshape", b.input(_random(2, 6, 8)), b.constant([2, 6, 2, 4])), perm=[0, 2, 1, 3])
    y = b.op("Concat", x, b.input(_random(2, 2, 1, 4)), axis=2)
    return b.fused(b.op("Relu", b.op("Pad", y, b.constant([0, 0, 1, 0, 0, 0, 0, 2]))))


@case("Softmax of rows of any length, a long one", kernels=1)
def _softmax_any_long() -> Any:
    b = Build()
    return b.done(b.op("Softmax", b.input(_random(1, 2, 4100), ("batch", 2, "past"))))


def _long(kind: str, *shape: int, axis: int, **attributes: Any) -> None:
    """A reduction that takes several steps, along the last axis or one before it."""

    def make() -> Any:
        b = Build()
        x = b.input(_random(*shape, low=0.98, high=1.02))
        if kind in ("ArgMax", "Softmax"):
            return b.done(b.op(kind, x, axis=axis))
        return b.done(b.op(kind, x, b.constant([axis]), **attributes))

    CASES.append(Case(f"{kind} in steps {list(shape)} {axis}", make, kernels=1))


for _kind in ("ReduceMean", "ReduceMax", "ReduceLogSumExp", "ArgMax", "Softmax"):
    _long(_kind, 2, 4500, axis=1)
    _long(_kind, 300, 40, axis=0)
_long("ReduceProd", 200, 3, axis=0)
