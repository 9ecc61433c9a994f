"""The reference backend against ONNX Runtime, and its gradients against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from burnish.backends.reference import Reference
from burnish.backends.reference.registry import RULES
from burnish.frontends.torch_module import import_module
from burnish.ir.errors import InputError, UnsupportedError
from burnish.ir.infer import infer_graph
from burnish.tools.coverage import EXAMPLE, made
from burnish.tools.coverage_families import FAMILIES
from burnish.tools.coverage_pruning import outputs, prepared

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5
"""Of the largest output: float32 sums in another order."""


@pytest.mark.parametrize(
    "name",
    ["BERT", "Llama", "T5", "Mixtral", "Whisper", "CLIP", "ResNet", "UNet", "LSTM classifier", "Swin", "DeBERTa-v2"],
)
def test_families(name: str) -> None:
    graph, feeds = prepared(name)
    with torch.no_grad():
        got = Reference(graph).run(feeds)
    for one, other in zip(got.values(), outputs(graph, feeds), strict=True):
        assert one.shape == other.shape
        assert np.abs(one.numpy() - other).max() <= TOLERANCE * max(np.abs(other).max(), 1e-6)


_X = np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)
_M = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
_I = np.asarray([[1, 0, -1, 2, 2], [0, 0, 1, 1, -2], [2, 1, 0, -1, 0]])
NODES: dict[str, tuple[str, dict[str, Array]]] = {
    **{f"pool {op} ceil={ceil}": (
        f"y = {op}<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1], ceil_mode={ceil}>(x)", {"x": _X})
       for op in ("MaxPool", "AveragePool") for ceil in (0, 1)},
    **{f"places of maxima ceil={ceil}": (
        f"v, y = MaxPool<kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], ceil_mode={ceil}>(x)",
        {"x": _X}) for ceil in (0, 1)},
    "determinant": ("y = Det(x)", {"x": _X}),
    "grid sample": ('y = GridSample<mode="linear", padding_mode="border">(x, g)',
                    {"x": _X, "g": np.tanh(_X.transpose(0, 2, 3, 1)[..., :2]).copy()}),
    "average with pads": ("y = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1>(x)", {"x": _X}),
    "conv, unequal pads": ("y = Conv<kernel_shape=[3, 3], pads=[0, 1, 2, 1], dilations=[2, 1]>(x, w)",
                           {"x": _X, "w": _X[:, :, :3, :3].copy()}),
    "conv, groups": ("y = Conv<kernel_shape=[3, 3], group=2>(x, w)", {"x": _X, "w": _X[:, :2, :3, :3].copy()}),
    "transposed conv": ("y = ConvTranspose<strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0]>(x, w)",
                        {"x": _X, "w": _X.transpose(1, 0, 2, 3)[:, :, :3, :3].copy()}),
    **{f"resize {mode} {way}": (
        f'y = Resize<mode="{mode}", coordinate_transformation_mode="{way}", nearest_mode="floor">(x, , scales)',
        {"x": _X, "scales": np.asarray([1, 1, 2, 1.5], np.float32)})
       for mode in ("nearest", "linear") for way in ("half_pixel", "asymmetric", "align_corners")},
    **{f"reduce {op}": (f"y = {op}<keepdims=0>(x, axes)", {"x": np.abs(_X) + 0.1, "axes": np.asarray([1, -1])})
       for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
                  "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")},
    **{f"unary {op}": (f"y = {op}(x)", {"x": _M}) for op in
       ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus",
        "Softsign", "Tanh", "Mish", "HardSwish", "HardSigmoid", "Elu", "Celu", "Selu", "LeakyRelu", "ThresholdedRelu",
        "Shrink", "Gelu", "Softmax", "LogSoftmax", "Hardmax", "Identity", "Shape", "Size", "IsNaN")},
    "gather elements": ("y = GatherElements<axis=0>(x, i)", {"x": _M, "i": _I}),
    "scatter elements": ('y = ScatterElements<axis=0, reduction="add">(x, i, u)', {"x": _M, "i": _I, "u": _M}),
    "gather nd": ("y = GatherND(x, i)", {"x": _M, "i": np.asarray([[0, 1], [2, 4]])}),
    "scatter nd": ("y = ScatterND(x, i, u)", {"x": _M, "i": np.asarray([[1], [0]]), "u": _M[:2]}),
    "slice": ("y = Slice(x, s, e, a, p)", {"x": _M, "s": np.asarray([2, 0]), "e": np.asarray([-4, 9]),
                                           "a": np.asarray([0, 1]), "p": np.asarray([-1, 2])}),
    "pad reflect": ('y = Pad<mode="reflect">(x, p)', {"x": _M, "p": np.asarray([1, 0, 1, 2])}),
    "pad, cut and value": ("y = Pad(x, p, v)", {"x": _M,
                                                "p": np.asarray([-1, 1, 0, 2]), "v": np.asarray(3, np.float32)}),
    "cumsum": ("y = CumSum<exclusive=1, reverse=1>(x, a)", {"x": _M, "a": np.asarray(1)}),
    "depth to space": ('y = DepthToSpace<blocksize=2, mode="DCR">(x)', {"x": _X}),
    "space to depth": ("y = SpaceToDepth<blocksize=2>(x)", {"x": _X}),
    "trilu": ("y = Trilu<upper=0>(x, k)", {"x": _M, "k": np.asarray(1)}),
    "one hot": ("y = OneHot<axis=0>(i, d, v)", {"i": _I, "d": np.asarray(4), "v": np.asarray([0.5, 2], np.float32)}),
    "tile": ("y = Tile(x, r)", {"x": _M, "r": np.asarray([2, 3])}),
    "group norm": ("y = GroupNormalization<num_groups=2>(x, s, b)",
                   {"x": _X, "s": _X[0, :, 0, 0], "b": _X[1, :, 0, 0]}),
    "instance norm": ("y = InstanceNormalization(x, s, b)", {"x": _X, "s": _X[0, :, 0, 0], "b": _X[1, :, 0, 0]}),
    "integer division": ("y = Div(a, b)", {"a": np.asarray([7, -7, 6]), "b": np.asarray([2, 2, -4])}),
    "mod": ("y = Mod(a, b)", {"a": np.asarray([7, -7, 6]), "b": np.asarray([2, 2, -4])}),
    "quantize": ("y = QuantizeLinear<axis=1>(x, s, z)", {"x": _M, "s": np.abs(_M[0]) / 50 + 0.01,
                                                         "z": np.arange(5, dtype=np.uint8)}),
    "dequantize in blocks": ("y = DequantizeLinear<axis=1, block_size=2>(q, s)",
                             {"q": np.arange(12, dtype=np.int8).reshape(2, 6), "s": np.abs(_X[0, :2, 0, :3]).copy()}),
    "einsum": ('y = Einsum<equation="ij,kj->ik">(x, z)', {"x": _M, "z": _M}),
    "where": ("c = Less(x, t) y = Where(c, x, t)", {"x": _M, "t": _M[::-1].copy()}),
    "attention, grouped heads": (
        "y = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(q, k, v)",
        {name: np.random.default_rng(i).standard_normal((2, 5, size)).astype(np.float32)
         for i, (name, size) in enumerate((("q", 32), ("k", 16), ("v", 16)))}),
}  # fmt: skip


def _graph(text: str, inputs: dict[str, Array]) -> tuple[onnx_ir.Model, onnxruntime.InferenceSession]:
    kinds = {
        np.dtype(np.float32): "float",
        np.dtype(np.int64): "int64",
        np.dtype(np.uint8): "uint8",
        np.dtype(np.int8): "int8",
    }
    arguments = ", ".join(f"{kinds[a.dtype]}[{', '.join(map(str, a.shape))}] {name}" for name, a in inputs.items())
    for out in ("float", "int64", "uint8", "bool"):
        proto = onnx.ModelProto(
            ir_version=10, graph=onnx.parser.parse_graph(f"g ({arguments}) => ({out} y) {{ {text} }}")
        )
        proto.opset_import.add(domain="", version=23 if "Attention" in text or "DequantizeLinear" in text else 22)
        try:
            session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # the declared type of the output is another one
            continue
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        return onnx_ir.from_proto(proto), session
    raise AssertionError(f"ONNX Runtime does not run {text}")


@pytest.mark.parametrize("name", NODES)
def test_operators(name: str) -> None:
    text, inputs = NODES[name]
    graph, session = _graph(text, inputs)
    want = session.run(None, inputs)[0]
    got = Reference(graph).run(inputs)["y"].numpy()
    assert got.shape == want.shape and got.dtype == want.dtype
    if want.dtype == np.float32:
        assert np.abs(got - want).max() <= TOLERANCE * max(np.abs(want).max(), 1.0)
    else:
        assert np.array_equal(got, want)


def test_gradients_are_those_of_the_module() -> None:
    model = made(FAMILIES["Llama"])
    torch.manual_seed(1)
    inputs = FAMILIES["Llama"].inputs(*EXAMPLE)
    graph = import_module(model, (), inputs, FAMILIES["Llama"].dynamic).graph
    names = {name: parameter for name, parameter in model.named_parameters() if name in graph.graph.initializers}
    assert len(names) > 10
    leaves = {name: p.detach().clone().requires_grad_() for name, p in names.items()}
    loss = model(**inputs).logits.square().mean()
    want = torch.autograd.grad(loss, list(names.values()))
    out = Reference(graph).run(inputs, constants=leaves)
    found = torch.autograd.grad(next(iter(out.values())).square().mean(), list(leaves.values()))
    for one, other in zip(found, want, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_gradients_through_codes() -> None:
    """Rounding counts as the identity, what is clamped has none, and scales get those of learned step sizes."""
    x = np.asarray([[-9.0, -0.26, 0.1, 0.64, 30.0]], np.float32)
    text = "c = QuantizeLinear(x, s, z) y = DequantizeLinear(c, s, z)"
    graph, _ = _graph(text, {"x": x, "s": np.asarray(0.1, np.float32), "z": np.asarray(3, np.uint8)})
    given = {"x": torch.from_numpy(x), "s": torch.tensor(0.1), "z": torch.tensor(3, dtype=torch.uint8)}
    plain = Reference(graph).run(given)["y"]
    leaves = {name: given[name].clone().requires_grad_() for name in ("x", "s")}
    y = Reference(graph).run(given | leaves)["y"]
    assert torch.equal(y.detach(), plain)
    dx, ds = torch.autograd.grad(y.sum(), [leaves["x"], leaves["s"]])
    assert torch.equal(dx, torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0]]))
    # -3 and 252 steps where clamped; round(r) - r inside: -3 + 2.6, 1 - 1, 6 - 6.4.
    assert float(ds) == pytest.approx(-3 + 252 - 0.4 + 0.0 - 0.4, abs=1e-4)


def _chain(parse: Callable[..., onnx_ir.Model] | None = None) -> onnx_ir.Model:
    text = "g (float[T, 4] x) => (float[T, 4] y) { a = Relu(x) b = Mul(a, a) y = Add(b, x) }"
    proto = onnx.ModelProto(ir_version=10, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=22)
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    return graph


def test_a_part_of_a_graph() -> None:
    model = Reference(_chain())
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    assert torch.equal(model.run({"x": x}, ["b"])["b"], torch.tensor([[1.0, 0.0, 9.0, 0.0]]))
    # Nothing before a given value is computed: x is not even needed for b.
    assert torch.equal(model.run({}, ["b"], given={"a": x})["b"], x * x)


def test_errors() -> None:
    graph = _chain()
    model = Reference(graph)
    with pytest.raises(InputError, match="'x' is missing"):
        model.run({})
    with pytest.raises(InputError, match="no value 'z'"):
        model.run({"x": torch.ones(1, 4)}, ["z"])
    with pytest.raises(InputError, match="no input 'w'"):
        model.run({"w": torch.ones(1, 4)})
    for node in graph.graph:
        if node.op_type == "Relu":
            node.op_type = "NonMaxSuppression"
    with pytest.raises(UnsupportedError, match="no rule for NonMaxSuppression"):
        Reference(graph).run({"x": torch.ones(1, 4)})


def test_rules_are_of_operators_that_exist() -> None:
    for domain, name in RULES:
        if not domain and name != "SimplifiedLayerNormalization":
            assert onnx.defs.has(name), name
