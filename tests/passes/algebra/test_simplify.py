"""The pass as a whole: what it rewrites by default and when asked for more, what it leaves alone, random graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from burnish.frontends.onnx_file import import_onnx
from burnish.ir.infer import infer_graph
from burnish.ir.verify import verify
from burnish.passes import SimplifyAlgebra
from burnish.passes.algebra.greedy import partition
from burnish.passes.algebra.saving import saving
from burnish.passes.base import Context, Outcome, Stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Array = np.ndarray[Any, Any]
Run = Callable[[onnx_ir.Model, Mapping[str, Array]], list[Array]]


def graph_of(text: str, opset: int = 23, **constants: Array) -> onnx_ir.Model:
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    proto.opset_import.add(domain="", version=opset)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    return graph


def simplified(graph: onnx_ir.Model, reassociate: bool = False) -> Outcome:
    outcome = SimplifyAlgebra(reassociate=reassociate).run(graph, Context())
    verify(graph)
    return outcome


def operators(graph: onnx_ir.Model) -> list[str]:
    return sorted(node.op_type for node in graph.graph)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ABC = "g (float[B,8] a, float[B,8] b, float[B,8] c) => (float[B,8] y)"
FEEDS = {"a": random(5, 8), "b": random(5, 8, seed=1), "c": random(5, 8, seed=2)}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("s = Mul(a, b) t = Mul(c, a) y = Add(s, t)", ["Add", "Mul"]),
        ("s = Exp(a) t = Exp(b) y = Mul(t, s)", ["Add", "Exp"]),
        ("s = Sigmoid(a) n = Neg(b) t = Mul(n, c) y = Add(t, s)", ["Mul", "Sigmoid", "Sub"]),
        ("s = Exp(b) r = Reciprocal(s) y = Mul(a, r)", ["Div", "Exp"]),
        ("d = Add(a, b) s = Mul(d, d) t = Mul(c, d) y = Sub(s, t)", ["Add", "Mul", "Sub"]),
    ],
)
def test_fewer_operators(body: str, left: list[str], run: Run) -> None:
    graph = graph_of(f"{ABC} {{ {body} }}")
    before = run(graph, FEEDS)
    outcome = simplified(graph, reassociate=True)
    assert outcome.changed and operators(graph) == left
    # Three roundings of float32 of numbers below 100.
    np.testing.assert_allclose(run(graph, FEEDS)[0], before[0], rtol=1e-5, atol=1e-5)
    assert all(remark.kind != "applied" or remark.reason for remark in outcome.remarks)


def test_what_changes_rounding_is_only_told() -> None:
    graph = graph_of(f"{ABC} {{ s = Mul(a, b) t = Mul(a, c) y = Add(s, t) }}")
    outcome = simplified(graph)
    assert not outcome.changed and operators(graph) == ["Add", "Mul", "Mul"]
    assert any(
        "reassociate=True" in r.reason and r.values["equation"].startswith("a * b + a * c") for r in outcome.remarks
    )


def test_exact_rows_are_used_by_default(run: Run) -> None:
    graph = graph_of(f"{ABC} {{ s = Abs(a) t = Abs(b) p = Mul(s, t) n = Neg(c) y = Add(p, n) }}")
    before = run(graph, FEEDS)
    outcome = simplified(graph)
    assert outcome.rewrites == {"abs(a) * abs(b) => abs(a * b)": 1, "a + (-b) => a - b": 1}
    np.testing.assert_array_equal(run(graph, FEEDS)[0], before[0])


def test_integers_wrap_and_may_be_regrouped_always(run: Run) -> None:
    text = "g (int64[B] a, int64[B] b, int64[B] c) => (int64[B] y) { s = Mul(a, b) t = Mul(a, c) y = Add(s, t) }"
    graph = graph_of(text)
    feeds = {name: np.array([2**62, -3, 5], np.int64) + i for i, name in enumerate("abc")}
    before = run(graph, feeds)
    assert simplified(graph).rewrites == {"a * b + a * c => a * (b + c)": 1}
    np.testing.assert_array_equal(run(graph, feeds)[0], before[0])


def test_division_of_integers_is_left_alone() -> None:
    text = "g (int64[B] a, int64[B] b, int64[B] c) => (int64[B] y) { s = Div(a, c) t = Div(b, c) y = Add(s, t) }"
    graph = graph_of(text)
    assert not simplified(graph, reassociate=True).changed


@pytest.mark.parametrize("reassociate", [False, True])
def test_an_inner_value_with_other_readers_stays(reassociate: bool) -> None:
    text = ABC.replace("y)", "y, float[B,8] s, float[B,8] t)")
    graph = graph_of(f"{text} {{ s = Mul(a, b) t = Mul(a, c) y = Add(s, t) }}")
    assert not simplified(graph, reassociate).changed
    graph = graph_of(f"{text} {{ s = Abs(a) t = Abs(c) y = Mul(s, t) }}")
    assert not simplified(graph, reassociate).changed


def test_broadcasting_that_would_cost_more_is_left_alone() -> None:
    text = "g (float[8,8] a, float[8,1] b, float[1,8] c) => (float[8,8] y)"
    # a·(b + c) adds two small ones into a large one: the same cost as a·b + a·c less one product.
    assert simplified(graph_of(f"{text} {{ s = Mul(a, b) t = Mul(a, c) y = Add(s, t) }}"), True).changed
    # b·c is as large as a; joining the small ones first saves nothing.
    assert not simplified(graph_of(f"{text} {{ s = Mul(a, b) y = Mul(s, c) }}"), True).changed
    rows = "g (float[8,8] a, float[8,1] b, float[8,1] c) => (float[8,8] y)"
    assert simplified(graph_of(f"{rows} {{ s = Mul(a, b) y = Mul(s, c) }}"), True).changed


def test_a_sum_of_broadcast_operands_is_not_the_sum_of_sums(run: Run) -> None:
    text = "g (float[4,8] a, float[4,1] b) => (float[4,1] y)"
    axes = np.array([1])
    graph = graph_of(f"{text} {{ s = ReduceSum(a, ax) t = ReduceSum(b, ax) y = Add(s, t) }}", ax=axes)
    assert not simplified(graph, True).changed
    graph = graph_of(f"{text} {{ p = Mul(a, b) y = ReduceSum(p, ax) }}", ax=axes)
    feeds = {"a": random(4, 8), "b": random(4, 1)}
    before = run(graph, feeds)
    assert simplified(graph, True).rewrites == {"sum(a * b) => sum(a) * b": 1}
    np.testing.assert_allclose(run(graph, feeds)[0], before[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_reductions_take_their_axes_as_the_opset_does(opset: int, run: Run) -> None:
    text = "g (float[4,8] a) => (float[4,1] y)"
    graph = graph_of(f"{text} {{ s = Exp(a) y = ReduceMax<axes=[1]>(s) }}", opset) if opset < 18 else graph_of(
        f"{text} {{ s = Exp(a) y = ReduceMax(s, ax) }}", opset, ax=np.array([1])
    )  # fmt: skip
    before = run(graph, {"a": random(4, 8)})
    assert simplified(graph, True).rewrites == {"top(exp(a)) => exp(top(a))": 1}
    np.testing.assert_allclose(run(graph, {"a": random(4, 8)})[0], before[0], rtol=1e-6)


def test_long_sums_are_flattened(run: Run) -> None:
    numbers = {name: np.array(value, np.float32) for name, value in {"k": 2.0, "m": 3.0, "n": 0.25}.items()}
    graph = graph_of(f"{ABC} {{ p = Add(a, k) q = Add(m, p) r = Add(q, b) y = Add(r, n) }}", **numbers)
    before = run(graph, FEEDS)
    assert simplified(graph, True).rewrites == {"a + k + m => a + (k + m)": 1}
    assert operators(graph) == ["Add", "Add"]
    np.testing.assert_allclose(run(graph, FEEDS)[0], before[0], rtol=1e-6, atol=1e-6)


def test_constants_that_would_overflow_or_vanish_stay_apart() -> None:
    for number in (1e30, 1e-30):
        constants = {name: np.array(number, np.float32) for name in "km"}
        graph = graph_of(f"{ABC} {{ p = Mul(a, k) y = Mul(p, m) }}", **constants)
        assert not simplified(graph, True).changed


def test_the_rewrite_that_saves_most_goes_first() -> None:
    # sqrt(a)·sqrt(a) = a takes two roots away, sqrt(a)·sqrt(b) one.
    graph = graph_of(f"{ABC} {{ r = Sqrt(a) s = Mul(r, r) t = Sqrt(b) y = Mul(s, t) }}")
    outcome = simplified(graph, True)
    assert next(iter(outcome.rewrites)) == "sqrt(a) * sqrt(a) => a" and operators(graph) == ["Mul", "Sqrt"]


def test_parts_end_at_operators_without_properties() -> None:
    graph = graph_of(f"{ABC} {{ s = Mul(a, b) t = Softmax(s) u = Add(t, c) v = Neg(u) y = Relu(v) }}")
    assert [[n.op_type for n in part] for part in partition(graph)] == [["Mul"], ["Add", "Neg", "Relu"]]


def test_a_saving_must_hold_at_every_size() -> None:
    scores = "g (float[B,S,8] q, float[B,8,S] k) => (float[B,S,S] y) { p = MatMul(q, k) y = Mul(p, c) }"
    # On q [S, 8] the factor costs less than on scores [S, S] only from S > 8 on.
    graph = graph_of(scores, c=np.array(0.3, np.float32))
    assert not simplified(graph, True).changed
    fixed = scores.replace("S", "64")
    graph = graph_of(fixed, c=np.array(0.3, np.float32))
    assert simplified(graph, True).changed and operators(graph) == ["MatMul", "Mul"]
    node = graph_of(scores, c=np.array(0.3, np.float32)).graph[0]
    assert saving([], [node]) is None and saving([node], []) is not None


def test_half_precision_keeps_its_type(run: Run) -> None:
    text = "g (float16[4] a, float16[4] b) => (float16[4] y) { s = Mul(a, k) t = Mul(s, m) y = Add(t, b) }"
    graph = graph_of(text, k=np.array(3, np.float16), m=np.array(0.5, np.float16))
    assert simplified(graph, True).changed
    feeds = {"a": random(4).astype(np.float16), "b": random(4, seed=1).astype(np.float16)}
    np.testing.assert_allclose(run(graph, feeds)[0], feeds["a"] * np.float16(1.5) + feeds["b"], rtol=2e-3)


def test_where_it_may_run() -> None:
    assert SimplifyAlgebra.stage is Stage.RECOVER and SimplifyAlgebra.latest is Stage.FUSE
    outcome = simplified(graph_of(f"{ABC} {{ y = Softmax(a) }}"))
    assert not outcome.changed and "nothing could be computed" in outcome.remarks[-1].reason


def _same(before: list[Array], after: list[Array], reassociate: bool, rewrites: object) -> None:
    for old, new in zip(before, after, strict=True):
        assert old.dtype == new.dtype and old.shape == new.shape
        if not reassociate:
            np.testing.assert_array_equal(new, old, err_msg=str(rewrites))
            continue
        # Steps that cancel keep the rounding of what they cancel; what overflows may do so elsewhere.
        finite = np.isfinite(old) & np.isfinite(new)
        scale = max(1.0, float(np.abs(old[finite]).max(initial=0)))
        np.testing.assert_allclose(new[finite], old[finite], rtol=1e-3, atol=1e-4 * scale, err_msg=str(rewrites))


@pytest.mark.parametrize("reassociate", [False, True])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_graphs(reassociate: bool, data: st.DataObject, random_graphs: Callable[..., Any], run: Run) -> None:
    drawn = data.draw(random_graphs(max_steps=16, symbolic=data.draw(st.booleans())))
    graph = import_onnx(drawn.model).graph
    feeds = drawn.feeds(data.draw(st.integers(0, 9)), B=2, S=3)
    before = run(graph, feeds)
    outcome = simplified(graph, reassociate)
    _same(before, run(graph, feeds), reassociate, outcome.rewrites)


_ONE = ("Neg", "Abs", "Relu", "Exp", "Sqrt", "Log", "Reciprocal", "Sigmoid", "Tanh", "Floor", "Sign")
_TWO = ("Add", "Sub", "Mul", "Div", "Max", "Min")
_ALL = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")


@st.composite
def formulas(draw: Any) -> tuple[str, dict[str, Array]]:
    """Graphs made of operators of the table alone, with many readers of each value, so that rows match often."""
    shapes = {"a": "4,6", "b": "4,6", "c": "4,1"}
    constants = {"k": np.array([2.0], np.float32), "m": np.array([0.5, 3, 1, 4, -2, 0.75], np.float32)}
    values, lines = [*shapes, *constants, "a", "a"], []
    for index in range(draw(st.integers(2, 14))):
        name, kind = f"v{index}", draw(st.integers(0, 9))
        x, y = draw(st.sampled_from(values[-6:])), draw(st.sampled_from(values))
        if kind < 3:
            lines.append(f"{name} = {draw(st.sampled_from(_ONE))}({x})")
        elif kind < 9 or x in ("k", "m"):
            lines.append(f"{name} = {draw(st.sampled_from(_TWO))}({x}, {y})")
        else:
            lines.append(f"{name} = {draw(st.sampled_from(_ALL))}<keepdims=1>({x}, ax)")
        values.append(name)
    inputs = ", ".join(f"float[{shape}] {name}" for name, shape in shapes.items())
    last = ", ".join(f"float[] {name}" for name in dict.fromkeys([values[-1], draw(st.sampled_from(values[7:]))]))
    return f"g ({inputs}) => ({last}) {{ {' '.join(lines)} }}", constants | {"ax": np.array([-1])}


@pytest.mark.parametrize("reassociate", [False, True])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_formulas(reassociate: bool, data: st.DataObject, run: Run) -> None:
    text, constants = data.draw(formulas())
    proto = onnx.ModelProto(ir_version=8, graph=onnx.parser.parse_graph(text))
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    proto.opset_import.add(domain="", version=23)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    proto = onnx.shape_inference.infer_shapes(proto)
    graph = onnx_ir.from_proto(proto)
    infer_graph(graph)
    random_ = np.random.default_rng(data.draw(st.integers(0, 9)))
    feeds = {name: random_.uniform(0.5, 2, shape).astype(np.float32) for name, shape in
             {"a": (4, 6), "b": (4, 6), "c": (4, 1)}.items()}  # fmt: skip
    if not reassociate:
        feeds["a"][0, :3] = [0.0, np.inf, -np.inf]
    before = run(graph, feeds)
    outcome = simplified(graph, reassociate)
    if not reassociate:
        _same(before, run(graph, feeds), False, outcome.rewrites)
        return
    # Differences of close numbers magnify rounding, and a floor magnifies it to 1: compared in float64.
    wide = _in_double(onnx_ir.from_proto(proto)), _in_double(graph)
    doubles = {name: array.astype(np.float64) for name, array in feeds.items()}
    for old, new in zip(run(wide[0], doubles), run(wide[1], doubles), strict=True):
        finite = np.isfinite(old) & np.isfinite(new) & (np.abs(old) < 1e6)
        assert np.mean(np.isfinite(old) & ~np.isfinite(new) & (np.abs(old) < 1e6)) == 0, outcome.rewrites
        close = np.isclose(new[finite], old[finite], rtol=1e-4, atol=1e-4)
        assert close.all() or "Floor" in text or "Sign" in text or "Relu" in text, outcome.rewrites


def _in_double(graph: onnx_ir.Model) -> onnx_ir.Model:
    """The graph with every float32 made float64."""
    proto = onnx_ir.to_proto(graph)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
            )
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del proto.graph.value_info[:]
    return onnx_ir.from_proto(proto)


@pytest.mark.slow
@pytest.mark.parametrize("reassociate", [False, True])
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_random_graphs(
    reassociate: bool, data: st.DataObject, random_graphs: Callable[..., Any], run: Run
) -> None:
    test_random_graphs.hypothesis.inner_test(reassociate, data, random_graphs, run)


@pytest.mark.slow
@pytest.mark.parametrize("reassociate", [False, True])
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_random_formulas(reassociate: bool, data: st.DataObject, run: Run) -> None:
    test_random_formulas.hypothesis.inner_test(reassociate, data, run)
