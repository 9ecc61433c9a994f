"""Composed index maps: against NumPy on random chains of movements, and that divisions disappear where they can."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir
import pytest
import sympy
from burnish.ir.index_algebra import compose, extents_of, simplified, simplify_index
from burnish.ir.index_maps import IndexMap, index_map
from burnish.ir.infer import infer_graph
from burnish.ir.symbolic import to_expr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

i0, i1, i2, i3 = sympy.symbols("i0:4", integer=True, nonnegative=True)


def chain(shape: tuple[Any, ...], steps: list[tuple[str, list[Any], dict[str, Any]]]) -> onnx_ir.Model:
    """A chain of operators on one input; further operands are int64 constants."""
    nodes, constants, last = [], [], "x"
    for n, (op, operands, attributes) in enumerate(steps):
        names = [f"c{n}_{m}" for m in range(len(operands))]
        constants += [numpy_helper.from_array(np.asarray(v, np.int64), c) for c, v in zip(names, operands, strict=True)]
        nodes.append(helper.make_node(op, [last, *names], [f"v{n}"], **attributes))
        last = f"v{n}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
        constants,
    )
    model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    infer_graph(model)
    return model


def composed(model: onnx_ir.Model) -> IndexMap:
    """The map of the whole chain."""
    nodes = list(model.graph)
    whole = index_map(nodes[-1])
    assert whole is not None
    shape = nodes[-1].outputs[0].shape
    assert shape is not None
    extents = extents_of(whole.outputs, [to_expr(dim) for dim in shape])
    whole = simplified(whole, extents)
    for node in reversed(nodes[:-1]):
        inner = index_map(node)
        assert inner is not None
        whole = compose(whole, inner, extents)
        assert whole is not None
    return whole


def numbers(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_heads_are_a_product_and_a_sum() -> None:
    model = chain(("B", "S", 32), [("Reshape", [[0, 0, 4, 8]], {}), ("Transpose", [], {"perm": [0, 2, 1, 3]})])
    assert composed(model).inputs[0] == (i0, i2, 8 * i1 + i3)


def test_heads_and_back_are_nothing() -> None:
    steps = [
        ("Reshape", [[0, 0, 4, 8]], {}),
        ("Transpose", [], {"perm": [0, 2, 1, 3]}),
        ("Transpose", [], {"perm": [0, 2, 1, 3]}),
        ("Reshape", [[0, 0, 32]], {}),
    ]
    assert composed(chain(("B", "S", 32), steps)).inputs[0] == (i0, i1, i2)


def test_what_cannot_disappear_stays() -> None:
    # A transpose between two reshapes mixes the digits of the position.
    model = chain((6, 4), [("Transpose", [], {"perm": [1, 0]}), ("Reshape", [[3, 8]], {})])
    index = composed(model).inputs[0]
    assert index is not None
    assert any(e.has(sympy.floor) or e.has(sympy.Mod) for e in index)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (sympy.floor((8 * i0 + i1) / 8), i0),
        (sympy.Mod(8 * i0 + i1, 8), i1),
        (sympy.Mod(8 * i0 + i1, 4), sympy.Mod(i1, 4)),
        (sympy.floor(sympy.floor(i2 / 2) / 3), sympy.floor(i2 / 6)),
        (8 * sympy.floor(i2 / 8) + sympy.Mod(i2, 8), i2),
        (sympy.Mod(sympy.Mod(i2, 12), 4), sympy.Mod(i2, 4)),
        (sympy.floor((4 * i0 + 2) / 8), sympy.floor((2 * i0 + 1) / sympy.Integer(4))),
    ],
)
def test_rules(before: sympy.Expr, after: sympy.Expr) -> None:
    extents = {i0: sympy.Integer(5), i1: sympy.Integer(8), i2: sympy.Integer(100)}
    assert sympy.simplify(simplify_index(before, extents) - after) == 0


def test_no_rule_without_a_bound() -> None:
    assert simplify_index(sympy.Mod(i0, 8), {}) == sympy.Mod(i0, 8)
    assert simplify_index(sympy.Mod(i0, 8), {i0: sympy.Integer(9)}) == sympy.Mod(i0, 8)
    assert simplify_index(sympy.Mod(i0, 8), {i0: sympy.Integer(8)}) == i0


def test_named_sizes() -> None:
    s = sympy.Symbol("S", integer=True, nonnegative=True)
    assert simplify_index(sympy.floor((s * i0 + i1) / s), {i1: s}) == i0
    assert simplify_index(sympy.Mod(8 * s * i0 + 8 * i1 + i2, 8 * s), {i1: s, i2: sympy.Integer(8)}) == 8 * i1 + i2


def test_data_keeps_its_place() -> None:
    """A row picked by data behind a transpose: the data is an input of the operator before."""
    model = onnx_ir.from_proto(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 23]> agraph (float[9, 4] t, int64[B, 5] n) => (float[4, B, 5] y) {
            g = Gather(t, n) y = Transpose <perm = [2, 0, 1]> (g) }"""
        )
    )
    infer_graph(model)
    gather, transpose = (index_map(node) for node in model.graph)
    assert gather is not None and transpose is not None
    whole = compose(transpose, gather, {})
    assert whole is not None
    row, column = whole.inputs[0] or ()
    assert str(row) == "x0.1(i1, i2)" and column == i0
    assert whole.inputs[1] == (i1, i2)


@st.composite
def movements(draw: Any) -> tuple[tuple[int, ...], list[tuple[str, list[Any], dict[str, Any]]]]:
    """A shape and a chain of movements that fit it."""
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4, 6)), min_size=1, max_size=3)))
    steps: list[tuple[str, list[Any], dict[str, Any]]] = []
    now = shape
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("reshape", "transpose", "slice", "unsqueeze", "expand", "tile", "flip")))
        axis = draw(st.integers(0, len(now) - 1))
        if kind == "reshape":
            size = int(np.prod(now))
            first = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
            second = draw(st.sampled_from([n for n in range(1, size // first + 1) if size // first % n == 0]))
            now = (first, second, size // first // second)
            steps.append(("Reshape", [list(now)], {}))
        elif kind == "transpose":
            perm = draw(st.permutations(range(len(now))))
            now = tuple(now[p] for p in perm)
            steps.append(("Transpose", [], {"perm": list(perm)}))
        elif kind == "slice":
            start = draw(st.integers(0, now[axis] - 1))
            step = draw(st.integers(1, 2))
            steps.append(("Slice", [[start], [now[axis]], [axis], [step]], {}))
            now = (*now[:axis], -(-(now[axis] - start) // step), *now[axis + 1 :])
        elif kind == "flip":
            steps.append(("Slice", [[-1], [-100], [axis], [-1]], {}))
        elif kind == "unsqueeze" and len(now) < 4:
            steps.append(("Unsqueeze", [[axis]], {}))
            now = (*now[:axis], 1, *now[axis:])
        elif kind == "expand":
            target = tuple(draw(st.integers(2, 3)) if d == 1 else d for d in now)
            steps.append(("Expand", [list(target)], {}))
            now = target
        elif kind == "tile" and np.prod(now) < 100:
            repeats = [2 if n == axis else 1 for n in range(len(now))]
            steps.append(("Tile", [repeats], {}))
            now = tuple(d * r for d, r in zip(now, repeats, strict=True))
    return shape, steps


@settings(max_examples=60, deadline=None)
@given(movements())
@example(((4, 3), [("Reshape", [[1, 6, 2]], {}), ("Tile", [[1, 2, 1]], {}), ("Slice", [[0], [2], [2], [2]], {})]))
@example(((1, 3, 3), [("Expand", [[2, 3, 3]], {}), ("Reshape", [[1, 9, 2]], {})]))
def test_random_chains_read_the_right_elements(case: Any) -> None:
    shape, steps = case
    if not steps:
        return
    model = chain(shape, steps)
    whole = composed(model)
    x = numbers(shape)
    proto = onnx_ir.to_proto(model)
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    index = whole.inputs[0]
    assert index is not None
    for place in itertools.product(*map(range, expected.shape)):
        # In rational numbers: of floats, 2/3 * 7 + 1/3 is less than 5.
        numbered = dict(zip(whole.outputs, map(sympy.Integer, place), strict=True))
        source = tuple(int(expr.xreplace(numbered)) for expr in index)
        assert x[source] == expected[place]
