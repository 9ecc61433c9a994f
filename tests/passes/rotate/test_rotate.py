"""``Rotate`` on graphs: outputs stay, outliers go, and what cannot be rotated says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir
import pytest
from burnish.ir.errors import OptionError
from burnish.passes import Quantize, Rotate
from burnish.passes.base import Context, Outcome
from hypothesis import given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Outputs = Callable[[onnx_ir.Model, Feeds], list[Array]]
TOLERANCE = 1e-5
"""Of the largest output: float32 sums over a few hundred terms, twice."""

BLOCK = """g (int64[T] ids) => (float[T, 40] y) {
    x = Gather(table, ids)
    a = RMSNormalization(x, g1)
    u = MatMul(a, w1)
    r = Relu(u)
    d = Gemm(r, w2, bias)
    z = Add(x, d)
    b = Add(z, shift)
    c = RMSNormalization(b, g2)
    y = MatMul(c, w3)
}"""
SHAPES = {"table": (50, 32), "g1": (32,), "w1": (32, 64), "w2": (64, 32), "bias": (32,), "shift": (32,), "g2": (32,),
          "w3": (32, 40)}  # fmt: skip
IDS = {"ids": np.arange(20, dtype=np.int64)}


def difference(before: list[Array], after: list[Array]) -> float:
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(before, after, strict=True))


def reasons(outcome: Outcome) -> list[tuple[str, str]]:
    return [(remark.kind, remark.reason) for remark in outcome.remarks]


@pytest.mark.parametrize("family", ["llama", "tied"])
def test_outputs_of_transformers_stay(
    family: str, transformer: Callable[[str], tuple[onnx_ir.Model, Feeds]], outputs: Outputs
) -> None:
    graph, feeds = transformer(family)
    before, nodes = outputs(graph, feeds), len(graph.graph)
    outcome = Rotate().run(graph, Context())
    assert difference(before, outputs(graph, feeds)) < TOLERANCE
    assert len(graph.graph) == nodes + (family == "tied")
    assert [kind for kind, _ in reasons(outcome)] == ["applied"]
    tables = [node for node in graph.graph if node.op_type == "Gather" and node.inputs[0].is_initializer()]  # type: ignore[union-attr]
    assert len(tables) == 1


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_vectors_biases_and_both_norms(norm: str, parse: Callable[..., onnx_ir.Model], outputs: Outputs) -> None:
    text = BLOCK.replace("RMSNormalization", norm)
    if norm == "LayerNormalization":
        text = text.replace("(b, g2)", "(b, g2, shift)")
    graph = parse(text, **SHAPES)
    before = outputs(graph, IDS)
    outcome = Rotate(seed=1).run(graph, Context())
    assert sum(outcome.rewrites.values()) == 1
    assert difference(before, outputs(graph, IDS)) < TOLERANCE
    norms = [node for node in graph.graph if node.op_type == norm]
    assert all(np.all(node.inputs[1].const_value.numpy() == 1) for node in norms)  # type: ignore[union-attr]


@settings(max_examples=15, deadline=None)
@given(size=st.sampled_from([2, 6, 24, 33]), seed=st.integers(0, 99), times=st.sampled_from([1.0, 0.125]))
def test_any_width_and_seed(size: int, seed: int, times: float) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    text = BLOCK.replace("z = Add(x, d)", "m = Mul(d, factor)\n    z = Add(x, m)")
    random = np.random.default_rng(seed)
    proto = onnx.ModelProto(ir_version=10, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=23)
    for name, shape in SHAPES.items():
        array = random.uniform(-1, 1, [size if d == 32 else d for d in shape]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(times).reshape(()), "factor"))
    graph = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    before = ReferenceEvaluator(onnx_ir.to_proto(graph)).run(None, IDS)
    assert Rotate(seed).run(graph, Context()).changed
    assert difference(before, ReferenceEvaluator(onnx_ir.to_proto(graph)).run(None, IDS)) < 1e-4  # norms of two numbers


def test_outliers_are_gone_and_four_bits_lose_less(parse: Callable[..., onnx_ir.Model], outputs: Outputs) -> None:
    """A tied table with three channels 20 times the others, as language models have them."""
    random = np.random.default_rng(0)
    table = random.standard_normal((8192, 32)).astype(np.float32)
    table[:, [3, 17, 30]] *= 20
    text = BLOCK.replace("float[T, 40]", "float[T, 8192]").replace("y = MatMul(c, w3)", "y = MatMul(c, turned)")
    text = text.replace("x = Gather", "turned = Transpose(table)\n    x = Gather")
    shapes = {name: shape for name, shape in SHAPES.items() if name != "w3"} | {"table": table}
    errors = {}
    for name in ("plain", "rotated"):
        graph = parse(text, **shapes)
        before = outputs(graph, IDS)
        if name == "rotated":
            assert "1 product added" in reasons(Rotate().run(graph, Context()))[0][1]
            assert difference(before, outputs(graph, IDS)) < TOLERANCE
        Quantize(group_size=32).run(graph, Context())
        errors[name] = float(np.square(outputs(graph, IDS)[0] - before[0]).sum())
    assert errors["rotated"] < errors["plain"] / 1.5


_ADD = "z = Add(x, d)"
_SHARED = "e = MatMul(d, square)\n    f = MatMul(x, square)\n    h = Add(e, f)\n    z = Add(x, h)"
_GATED = "q = Gather(table2, ids)\n    k = ReduceMax(table2)\n    e = Add(d, q)\n    l = Mul(e, k)\n    z = Add(x, l)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("y = MatMul(c, w3)", "s = Sigmoid(c)\n    y = MatMul(s, w3)"), "Sigmoid reads a normalized value"),
        ((_ADD, "s = Sigmoid(x)\n    z = Add(s, d)"), "Sigmoid"),
        (("c = RMSNormalization(b, g2)", "c = LayerNormalization(b, zeros, g2)"), "is zero"),
        ((_ADD, _SHARED), "shared"),
        ((_ADD, _GATED), "Mul makes it"),
    ],
)
def test_what_cannot_be_rotated_says_why(
    change: tuple[str, str], reason: str, parse: Callable[..., onnx_ir.Model], outputs: Outputs
) -> None:
    more: dict[str, Any] = {"zeros": np.zeros(32, np.float32), "square": (32, 32), "table2": (50, 32)}
    text = BLOCK.replace(*change)
    graph = parse(text, **SHAPES, **{name: value for name, value in more.items() if name in text})
    before = outputs(graph, IDS)
    outcome = Rotate().run(graph, Context())
    assert not outcome.changed
    assert any(kind == "missed" and reason in said for kind, said in reasons(outcome)), reasons(outcome)
    assert difference(before, outputs(graph, IDS)) == 0


def test_nothing_to_rotate(parse: Callable[..., onnx_ir.Model]) -> None:
    graph = parse("g (float[T, 8] x) => (float[T, 4] y) { y = MatMul(x, w) }", w=(8, 4))
    assert reasons(Rotate().run(graph, Context()))[0][0] == "skipped"
    graph = parse(BLOCK, **SHAPES)
    outcome = Rotate(only_calibrated=True).run(graph, Context())
    assert reasons(outcome) == [("skipped", "nothing is rotated: there are no calibration inputs to round for")]
    assert Rotate(only_calibrated=True).run(graph, Context(observe=lambda values, observer: {})).changed
    with pytest.raises(OptionError, match="negative"):
        Rotate(seed=-1)
